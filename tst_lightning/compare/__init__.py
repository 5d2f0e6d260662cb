"""Comparison of run folders: read (runs), group (arms), judge (referee, across_seeds, frontier), show (report)."""

from tst_lightning.compare.report import compare_runs

__all__ = ["compare_runs"]
