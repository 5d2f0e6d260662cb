"""Blocks of contiguous tokens from LitData shards: shuffled, shared out to ranks and workers, resumable."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
from torch import Tensor


class BlockReader:
    """An endless sequence of blocks; every block of the shards once a pass, each pass shuffled anew.

    Build it where the process group exists: LitData fixes rank and world size at construction.

    Args:
        folder: the LitData folder of one split.
        block_tokens: tokens a block.
        seed: of the shuffle.
        num_workers: reading processes; 0 reads in this one, which is the fastest on local shards.
    """

    def __init__(self, folder: Path, block_tokens: int, seed: int, num_workers: int = 0) -> None:
        self._folder = folder.resolve()
        dataset = StreamingDataset(
            str(self._folder),
            item_loader=TokensLoader(block_size=block_tokens),
            shuffle=True,
            drop_last=True,
            seed=seed,
            item_shuffle_window="full",
        )
        # On network file systems LitData would otherwise trim the shuffle to a window.
        dataset.posix_fast = None
        # The loader draws a base seed on every start: from a generator of its own, so that the model's isn't moved.
        self._loader = StreamingDataLoader(
            dataset,
            batch_size=1,
            drop_last=True,
            num_workers=num_workers,
            generator=torch.Generator().manual_seed(seed),
        )
        self._blocks: Iterator[Tensor] | None = None

    def take(self, count: int) -> Tensor:
        """The next blocks of this rank, across passes where one ends.

        Args:
            count: how many.

        Returns:
            (count, block_tokens) int64 ids.
        """
        taken: list[Tensor] = []
        while len(taken) < count:
            if self._blocks is None:
                self._blocks = iter(self._loader)
            block = next(self._blocks, None)
            if block is None:
                self._blocks = None
            else:
                taken.append(block[0].to(torch.int64))
        return torch.stack(taken)

    def state_dict(self) -> dict[str, Any]:
        """LitData's position, to be restored by :meth:`load_state_dict`; empty before the first block."""
        return copy.deepcopy(self._loader.state_dict()) if self._loader.current_epoch else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after the blocks that the state had seen.

        Args:
            state: from :meth:`state_dict`. Its absolute paths are replaced by this reader's: the folder may have
                moved, and the caller has made sure that the shards are the same.
        """
        if not state:  # LitData would take the state of an unstarted loader for that of a pass already begun.
            return
        state = copy.deepcopy(state)
        here = self._loader.dataset
        state["dataset"]["input_dir_path"] = here.input_dir.path
        state["dataset"]["cache_dir_path"] = here.cache_dir.path
        self._loader.load_state_dict(state)
        # With workers, only their copies take the epoch up; the next state is saved from this one.
        here.current_epoch = state["dataset"]["current_epoch"]
        self._blocks = None
