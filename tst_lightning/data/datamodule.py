"""The LightningDataModule: which shards, how many rows, and the run's need of tokens against what there is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
from torch import Tensor

from tst_lightning.data.blocks import BlockReader
from tst_lightning.data.rows import RowPlan, blocks_needed
from tst_lightning.data.stream import RowStream
from tst_lightning.errors import ConfigError
from tst_lightning.phases import PhaseSchedule
from tst_lightning.shards.manifest import SPLITS, Manifest
from tst_lightning.shards.tokenizer import canonical_sha256


@dataclass(frozen=True)
class DataBudget:
    """Tokens a run reads against tokens there are.

    Attributes:
        needed: tokens of the blocks that all ranks read over the run.
        available: tokens of the train split in whole blocks.
        remainder: tokens of the train split that no whole block holds.
    """

    needed: int
    available: int
    remainder: int

    @property
    def passes(self) -> float:
        """How often the data is read."""
        return self.needed / self.available


def _next_token_batch(rows: list[Tensor]) -> dict[str, Tensor]:
    return {"tokens": torch.stack(rows).to(torch.int64)}


class TokenDataModule(LightningDataModule):
    """Streams the shards that ``tst prepare`` wrote.

    Args:
        shards: folder of ``tst prepare``.
        seq_len: positions a row, L; in superposition a position holds a bag of tokens.
        batch_size: rows a micro-batch of each device, in every phase.
        block_rows: next-token rows in a block, the largest bag size that the run may use. Runs that are compared share
            it, so that they read the same blocks in the same order.
        val_batch_size: rows a validation batch of each device.
        pool_blocks: blocks whose rows are permuted together.
        num_workers: reading processes; 0 is the fastest on local shards.
        seed: of the order of blocks and rows.
        verify_train: hash every train shard at the start and compare with the manifest; reads all of the data once. The
            validation split is verified in any case.

    Raises:
        ConfigError: shards missing, unfinished, damaged or too small for one block; sizes below 1.
    """

    def __init__(
        self,
        shards: str,
        seq_len: int,
        batch_size: int,
        block_rows: int = 1,
        val_batch_size: int = 32,
        pool_blocks: int = 64,
        num_workers: int = 0,
        seed: int = 1,
        verify_train: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"seq_len": seq_len, "batch_size": batch_size, "block_rows": block_rows, "pool_blocks": pool_blocks}
        for name, value in {**sizes, "val_batch_size": val_batch_size}.items():
            if value < 1:
                raise ConfigError(f"data.{name} is {value}; it must be at least 1")
        self.folder = Path(shards)
        self.manifest = Manifest.read(self.folder)
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.block_rows = block_rows
        self.val_batch_size = val_batch_size
        self.pool_blocks = pool_blocks
        self.num_workers = num_workers
        self.seed = seed
        self.verify_train = verify_train
        self._check_files()
        self._check_size()

    @property
    def block_tokens(self) -> int:
        """Tokens a block: block_rows next-token rows of L + 1."""
        return self.block_rows * (self.seq_len + 1)

    def _check_files(self) -> None:
        """What the manifest's own check of names and sizes leaves open: the small files' content."""
        path = self.folder / "tokenizer.json"
        try:
            found = canonical_sha256(path.read_text(encoding="utf-8"))
            if found != self.manifest.tokenizer_sha256:
                raise ConfigError(
                    f"'{path}' is not the tokenizer that the shards were made with (sha256 {found[:12]}...,"
                    f" {self.manifest.tokenizer_sha256[:12]}... in the manifest): restore it, or prepare the shards again"
                )
            for split in SPLITS:
                path = self.folder / split / "index.json"
                listed = [(chunk["filename"], chunk["dim"]) for chunk in json.loads(path.read_bytes())["chunks"]]
                chunks = getattr(self.manifest, split).chunks
                if listed != [(chunk["filename"], chunk["tokens"]) for chunk in chunks]:
                    raise ValueError("it does not list the manifest's chunks")
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"'{path}' is damaged ({error}): restore it, or prepare the shards again") from error

    def _check_size(self) -> None:
        if not self._whole_blocks():
            largest = max(chunk["tokens"] for chunk in self.manifest.train.chunks)
            raise ConfigError(
                f"the shards at '{self.folder}' are too small: no shard file holds a block of {self.block_tokens:,} tokens"
                f" (block_rows {self.block_rows} x (seq_len {self.seq_len} + 1)), the largest has {largest:,};"
                " prepare more text, or lower data.seq_len or data.block_rows"
            )
        if all(chunk["tokens"] < self.seq_len + 1 for chunk in self.manifest.val.chunks):
            raise ConfigError(
                f"the validation split at '{self.folder}' holds no row of {self.seq_len + 1:,} tokens (seq_len + 1);"
                " prepare with a larger --val_share, or lower data.seq_len"
            )

    def _whole_blocks(self) -> int:
        return sum(chunk["tokens"] // self.block_tokens for chunk in self.manifest.train.chunks)

    def row_plans(self, schedule: PhaseSchedule, accumulate: int) -> list[RowPlan]:
        """What each phase reads, in micro-batches.

        Args:
            schedule: the run's phases.
            accumulate: micro-batches an optimizer step.

        Raises:
            ConfigError: a bag size that does not divide ``block_rows``.
        """
        for entry in schedule:
            if self.block_rows % entry.phase.bag_size:
                raise ConfigError(
                    f"phase '{entry.name}' has bag_size {entry.phase.bag_size}, which does not divide data.block_rows"
                    f" {self.block_rows}; every bag size must divide the largest one, which block_rows names"
                )
        return [
            RowPlan(entry.name, entry.phase.bag_size, entry.phase.row_tokens(self.seq_len), entry.steps * accumulate)
            for entry in schedule
        ]

    def budget(self, schedule: PhaseSchedule, accumulate: int, world_size: int) -> DataBudget:
        """Tokens that the run needs, over all ranks, and those there are.

        Args:
            schedule: the run's phases.
            accumulate: micro-batches an optimizer step.
            world_size: ranks.
        """
        plans = self.row_plans(schedule, accumulate)
        blocks = blocks_needed(plans, self.block_tokens, self.batch_size, self.pool_blocks) * world_size
        available = self._whole_blocks() * self.block_tokens
        return DataBudget(blocks * self.block_tokens, available, self.manifest.train.tokens - available)

    def setup(self, stage: str) -> None:
        """Hashes the validation shards, and before training the train shards where ``verify_train`` asks for it.

        Args:
            stage: "fit", "validate" or "test".

        Raises:
            RunError: a shard whose content is not what ``tst prepare`` wrote; names the file.
            OSError: a shard can't be read.
        """
        self.manifest.verify("val")
        if self.verify_train and stage == "fit":
            self.manifest.verify("train")

    def train_dataloader(self) -> RowStream:
        """The run's stream; built here because LitData needs the process group to exist."""
        trainer = self.trainer
        assert trainer is not None
        module: Any = trainer.lightning_module
        schedule: PhaseSchedule = module.schedule
        accumulate = trainer.accumulate_grad_batches
        stream = RowStream(
            BlockReader(self.folder / "train", self.block_tokens, self.seed, self.num_workers),
            self.row_plans(schedule, accumulate),
            self.block_tokens,
            self.batch_size,
            self.pool_blocks,
            self.seed,
            self._layout(schedule, accumulate, trainer.world_size),
        )
        stream.expected_batches = trainer.global_step * accumulate
        return stream

    def _layout(self, schedule: PhaseSchedule, accumulate: int, world_size: int) -> dict[str, Any]:
        return {
            "shards": self.manifest.train.sha256,
            "tokenizer": self.manifest.tokenizer_sha256,
            "seq_len": self.seq_len,
            "block_rows": self.block_rows,
            "batch_size": self.batch_size,
            "pool_blocks": self.pool_blocks,
            "seed": self.seed,
            "accumulate_grad_batches": accumulate,
            "num_workers": self.num_workers,
            "world_size": world_size,
            "phases": [[entry.name, entry.phase.bag_size, entry.steps] for entry in schedule],
        }

    def val_dataloader(self) -> StreamingDataLoader:
        """Next-token rows of the validation split, in order, the same in every phase: ``tokens`` (B, L + 1) int64."""
        rows = StreamingDataset(
            str((self.folder / "val").resolve()), item_loader=TokensLoader(block_size=self.seq_len + 1), drop_last=False
        )
        rows.posix_fast = None
        return StreamingDataLoader(rows, batch_size=self.val_batch_size, collate_fn=_next_token_batch)

    def test_dataloader(self) -> StreamingDataLoader:
        """The validation split again: ``tst test`` scores a checkpoint under the ``test/`` tags."""
        return self.val_dataloader()
