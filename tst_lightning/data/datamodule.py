"""The LightningDataModule: which shards, how many rows, and the run's need of tokens against what there is."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from litdata import StreamingDataLoader

from tst_lightning.data.blocks import BlockReader, Cache, Replica, open_blocks
from tst_lightning.data.corpora import Corpus, CorpusShare, open_corpora
from tst_lightning.data.mixture import Mixture
from tst_lightning.data.remote import is_remote
from tst_lightning.data.rows import RowPlan, blocks_needed, row_plans
from tst_lightning.data.stream import RowStream
from tst_lightning.data.validation import EvenBatches, next_token_batch
from tst_lightning.errors import ConfigError
from tst_lightning.phases import PhaseSchedule
from tst_lightning.shards.manifest import Manifest


@dataclass(frozen=True)
class CorpusBudget:
    """Tokens of a corpus that a run reads against those there are.

    Attributes:
        needed: tokens of the blocks that all ranks read over the run.
        available: tokens of the train split in whole blocks.
        remainder: tokens of the train split that no whole block holds; they are never read.
        uneven: tokens of the blocks that a pass leaves out, others each time, so that all ranks read equally many.
    """

    needed: int
    available: int
    remainder: int
    uneven: int

    @property
    def passes(self) -> float:
        """How often the data is read."""
        return self.needed / self.available


@dataclass(frozen=True)
class DataBudget:
    """What a run reads.

    Attributes:
        corpora: name -> its share of the reading.
        cut: tokens of blocks that are read but not used, where a phase ends within a block.
    """

    corpora: dict[str, CorpusBudget]
    cut: int


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Checks the data module's numbers, by name.

    Raises:
        ConfigError: one below 1.
    """
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"data.{name} is {value}; it must be at least 1")


class TokenDataModule(LightningDataModule):
    """Streams the shards that ``tst prepare`` wrote.

    Args:
        shards: folder of ``tst prepare``, local or ``s3://``; or a mixture, name -> ``{path: FOLDER, weight: SHARE}``, all
            made with one tokenizer. Weights are shares of the tokens and need not sum to 1.
        seq_len: positions a row, L; in superposition a position holds a bag of tokens.
        batch_size: rows a micro-batch of each device, in every phase.
        block_rows: next-token rows in a block, the largest bag size that the run may use. Runs that are compared share
            it, so that they read the same blocks in the same order.
        val_batch_size: rows a validation batch of each device.
        pool_blocks: blocks whose rows are permuted together.
        num_workers: reading processes; 0 is the fastest on local shards.
        seed: of the order of blocks and rows.
        cache_dir: where chunks of remote shards are kept; null for LitData's own folder.
        cache_bytes: how much of them is kept, but for the chunks in use and the next ones; null for LitData's own bound.

    Raises:
        ConfigError: shards missing, unfinished, damaged or too small for one block; sizes below 1.
        RunError: remote shards can't be reached.
    """

    def __init__(
        self,
        shards: str | dict[str, CorpusShare],
        seq_len: int,
        batch_size: int,
        block_rows: int = 1,
        val_batch_size: int = 32,
        pool_blocks: int = 64,
        num_workers: int = 0,
        seed: int = 1,
        cache_dir: str | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"seq_len": seq_len, "batch_size": batch_size, "block_rows": block_rows, "pool_blocks": pool_blocks}
        sizes |= {"val_batch_size": val_batch_size, "cache_bytes": 1 if cache_bytes is None else cache_bytes}
        check_sizes(sizes)
        self.corpora = open_corpora(shards)
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.block_rows = block_rows
        self.val_batch_size = val_batch_size
        self.pool_blocks = pool_blocks
        self.num_workers = num_workers
        self.seed = seed
        self.cache = Cache(cache_dir, cache_bytes)
        for corpus in self.corpora:
            self._check_size(corpus)

    @property
    def block_tokens(self) -> int:
        """Tokens a block: block_rows next-token rows of L + 1."""
        return self.block_rows * (self.seq_len + 1)

    @property
    def tokenizer(self) -> Manifest:
        """A manifest for what all corpora share: ``tokenizer_sha256``, ``vocab_size``, ``end_of_document_id``."""
        return self.corpora[0].manifest

    def sha256(self, split: str) -> str:
        """Hash of a split's tokens: of one corpus its own, of a mixture that over names, shares and hashes."""
        hashes = [getattr(corpus.manifest, split).sha256 for corpus in self.corpora]
        if len(hashes) == 1:
            return hashes[0]
        listed = [[corpus.name, corpus.parts, mine] for corpus, mine in zip(self.corpora, hashes, strict=True)]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()

    @property
    def hashes(self) -> dict[str, str]:
        """What the run's data is, by the keys of its record."""
        return {
            "tokenizer_sha256": self.tokenizer.tokenizer_sha256,
            "train_sha256": self.sha256("train"),
            "val_sha256": self.sha256("val"),
        }

    def _check_size(self, corpus: Corpus) -> None:
        if not corpus.blocks(self.block_tokens):
            largest = max(chunk["tokens"] for chunk in corpus.manifest.train.chunks)
            raise ConfigError(
                f"the shards at '{corpus.path}' are too small: no shard file holds a block of {self.block_tokens:,} tokens"
                f" (block_rows {self.block_rows} x (seq_len {self.seq_len} + 1)), the largest has {largest:,}; prepare more"
                " text, or lower data.seq_len or data.block_rows"
            )
        if all(chunk["tokens"] < self.seq_len + 1 for chunk in corpus.manifest.val.chunks):
            raise ConfigError(
                f"the validation split at '{corpus.path}' holds no row of {self.seq_len + 1:,} tokens (seq_len + 1);"
                " prepare with a larger --val_share, or lower data.seq_len"
            )

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
        plans = row_plans(schedule, self.seq_len, accumulate)
        for plan in plans:
            if plan.rows_per_block(self.block_tokens) * plan.stride < self.block_rows * self.seq_len:
                raise ConfigError(
                    f"phase '{plan.phase}' reads rows of {plan.row_tokens:,} tokens, of which a block of"
                    f" {self.block_tokens:,} (data.block_rows {self.block_rows}) holds too few: part of the text would"
                    " never be read; raise data.block_rows to the tokens that a position predicts"
                )
        return plans

    def budget(self, schedule: PhaseSchedule, accumulate: int, world_size: int) -> DataBudget:
        """Tokens that the run reads of each corpus, over all ranks, and those there are.

        Args:
            schedule: the run's phases.
            accumulate: micro-batches an optimizer step.
            world_size: ranks.
        """
        plans = self.row_plans(schedule, accumulate)
        needed = blocks_needed(plans, self.block_tokens, self.batch_size, self.pool_blocks) * world_size
        used = sum(plan.used_tokens(self.block_tokens, self.batch_size) for plan in plans) * world_size
        corpora = {}
        for corpus in self.corpora:
            blocks = corpus.blocks(self.block_tokens)
            corpora[corpus.name] = CorpusBudget(
                needed=round(needed * corpus.share) * self.block_tokens,
                available=blocks * self.block_tokens,
                remainder=corpus.manifest.train.tokens - blocks * self.block_tokens,
                uneven=blocks % world_size * self.block_tokens,
            )
        return DataBudget(corpora, needed * self.block_tokens - used)

    def setup(self, stage: str) -> None:
        """Checks that each rank has something to read, and hashes local validation shards: a run is not to learn hours
        later.

        Every chunk is checked again when it is first read, those of the train split and remote ones only then.

        Args:
            stage: "fit", "validate" or "test".

        Raises:
            ConfigError: more ranks than blocks to train on or rows to validate on.
            RunError: a shard whose content is not what ``tst prepare`` wrote; names the file.
        """
        ranks = self._replica().world_size
        for corpus in self.corpora:
            if corpus.blocks(self.block_tokens) < ranks:
                raise ConfigError(
                    f"the shards at '{corpus.path}' hold {corpus.blocks(self.block_tokens):,} blocks of"
                    f" {self.block_tokens:,} tokens, fewer than the {ranks:,} processes of the run; prepare more text, or"
                    " lower data.seq_len or data.block_rows"
                )
            if self._val_rows(corpus) < ranks:
                raise ConfigError(
                    f"the validation split at '{corpus.path}' holds {self._val_rows(corpus):,} rows of"
                    f" {self.seq_len + 1:,} tokens, fewer than the {ranks:,} processes of the run; prepare with a larger"
                    " --val_share, or lower data.seq_len"
                )
            if not is_remote(corpus.path):
                corpus.manifest.verify("val")

    def _val_rows(self, corpus: Corpus) -> int:
        return sum(chunk["tokens"] // (self.seq_len + 1) for chunk in corpus.manifest.val.chunks)

    def val_tokens(self, corpus: Corpus) -> int:
        """Tokens that a whole validation predicts of a corpus."""
        return self._val_rows(corpus) * self.seq_len

    def _replica(self) -> Replica:
        trainer = self.trainer
        assert trainer is not None
        ranks = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        return Replica(ranks["rank"], ranks["num_replicas"], trainer.num_nodes)

    def train_dataloader(self) -> RowStream:
        """The run's stream."""
        trainer = self.trainer
        assert trainer is not None
        module: Any = trainer.lightning_module
        schedule: PhaseSchedule = module.schedule
        accumulate = trainer.accumulate_grad_batches
        replica = self._replica()
        readers = [
            BlockReader(corpus, self.block_tokens, self.seed, self.num_workers, replica, self.cache)
            for corpus in self.corpora
        ]
        stream = RowStream(
            Mixture(readers, [corpus.parts for corpus in self.corpora]),
            self.row_plans(schedule, accumulate),
            self.block_tokens,
            self.batch_size,
            self.pool_blocks,
            self.seed,
            self._layout(accumulate, replica),
        )
        stream.expected_batches = trainer.global_step * accumulate
        return stream

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Pins what goes to a GPU: from other memory a copy may have the host wait until the device is done."""
        assert self.trainer is not None
        if self.trainer.strategy.root_device.type != "cuda":
            return batch
        return {key: value.pin_memory() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}

    def _layout(self, accumulate: int, replica: Replica) -> dict[str, Any]:
        return {
            # Lists, because their order is that of the readers in the state.
            "shards": [[corpus.name, corpus.manifest.train.sha256] for corpus in self.corpora],
            "weights": [[corpus.name, corpus.parts] for corpus in self.corpora],
            "tokenizer": self.tokenizer.tokenizer_sha256,
            "seq_len": self.seq_len,
            "block_rows": self.block_rows,
            "batch_size": self.batch_size,
            "pool_blocks": self.pool_blocks,
            "seed": self.seed,
            "accumulate_grad_batches": accumulate,
            "num_workers": self.num_workers,
            "world_size": replica.world_size,
            "num_nodes": replica.nodes,
        }

    def val_dataloader(self) -> list[EvenBatches]:
        """Next-token rows of each corpus' validation split, in order, the same in every phase: ``tokens`` (B, L + 1).

        LitData deals whole batches to ranks, so they are smaller where there are few rows.
        """
        assert self.trainer is not None
        loaders = [
            StreamingDataLoader(
                open_blocks(corpus, "val", self.seq_len + 1, self._replica(), self.cache, drop_last=False),
                batch_size=min(self.val_batch_size, self._val_rows(corpus) // self._replica().world_size),
                collate_fn=next_token_batch,
            )
            for corpus in self.corpora
        ]
        strategy = self.trainer.strategy
        most = strategy.reduce(
            torch.tensor([len(loader) for loader in loaders]).to(strategy.root_device), reduce_op="max"
        )
        return [EvenBatches(loader, batches) for loader, batches in zip(loaders, most.tolist(), strict=True)]

    def test_dataloader(self) -> list[EvenBatches]:
        """The validation splits again: ``tst test`` scores a checkpoint under the ``test/`` tags."""
        return self.val_dataloader()
