"""Comparison of run folders: read (runs), judge (referee), show (report, page, chart)."""

from tst_lightning.compare.report import compare_runs

__all__ = ["compare_runs"]
