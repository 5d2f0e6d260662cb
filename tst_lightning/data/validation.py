"""Batches of the validation split: equally many on every rank."""

from collections.abc import Iterator
from typing import Any

import torch
from litdata import StreamingDataLoader
from torch import Tensor


def next_token_batch(rows: list[Tensor]) -> dict[str, Tensor]:
    """Rows (L + 1,) of ids to ``tokens`` (B, L + 1) int64."""
    return {"tokens": torch.stack(rows).to(torch.int64)}


class EvenBatches:
    """A rank's own batches, and its last one again, marked as ``again``, until all ranks have had equally many.

    A rank whose weights lie on all of them can't run its model alone.

    Args:
        loader: of the rank's rows.
        batches: of the rank that has most.
    """

    def __init__(self, loader: StreamingDataLoader, batches: int) -> None:
        self.loader = loader
        self.batches = batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batch: dict[str, Any] = {}
        for batch in self.loader:
            yield batch
        for _ in range(len(self.loader), self.batches):
            yield batch | {"again": True}
