"""Several corpora in exact proportions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tst_lightning.data.blocks import BlockReader


class Mixture:
    """Draws each block from the corpus that lags most behind its share.

    In whole numbers, so the sequence of corpora is the same on every machine and every rank. No corpus is ever a whole
    block ahead of its share of the blocks drawn so far.

    Args:
        readers: of the corpora.
        parts: each corpus' integer share of their sum.
    """

    def __init__(self, readers: Sequence[BlockReader], parts: Sequence[int]) -> None:
        self._readers = readers
        self._parts = parts
        self._drawn = [0] * len(parts)

    def __len__(self) -> int:
        """How many corpora."""
        return len(self._readers)

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """The next blocks of this rank.

        Args:
            count: how many.

        Returns:
            (count, block_tokens) int64 ids, and (count,) int64 numbers of the corpora they are from.
        """
        corpora = [self._next_corpus() for _ in range(count)]
        return torch.stack([next(self._readers[corpus]) for corpus in corpora]), torch.tensor(corpora)

    def _next_corpus(self) -> int:
        number, whole = sum(self._drawn) + 1, sum(self._parts)
        lag = [part * number - drawn * whole for part, drawn in zip(self._parts, self._drawn, strict=True)]
        corpus = lag.index(max(lag))
        self._drawn[corpus] += 1
        return corpus

    def state_dict(self) -> dict[str, Any]:
        """Blocks drawn from each corpus, and where each reader stands."""
        return {"drawn": list(self._drawn), "readers": [reader.state_dict() for reader in self._readers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after the blocks that the state had seen."""
        if len(state["drawn"]) != len(self._drawn):
            raise ValueError(f"blocks of {len(state['drawn'])} corpora were drawn, there are {len(self._drawn)}")
        self._drawn = list(state["drawn"])
        for reader, saved in zip(self._readers, state["readers"], strict=True):
            reader.load_state_dict(saved)
