"""Shards to rows: one exact, resumable stream that serves every phase and the baseline alike."""

from tst_lightning.data.datamodule import TokenDataModule

__all__ = ["TokenDataModule"]
