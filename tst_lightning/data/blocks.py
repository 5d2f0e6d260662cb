"""Blocks of contiguous tokens from LitData shards: shuffled, shared out to ranks and workers, checked, resumable."""

import copy
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import litdata
import torch
from litdata import StreamingDataLoader, StreamingDataset
from litdata.utilities.env import _DistributedEnv
from torch import Tensor

from tst_lightning.data.corpora import Corpus
from tst_lightning.data.remote import is_remote, storage_options
from tst_lightning.errors import RunError
from tst_lightning.shards.verify import check_chunk


@dataclass(frozen=True)
class Replica:
    """Which part of the data this process reads.

    Attributes:
        rank: of this reader among ``world_size``.
        world_size: readers, each of other blocks.
        nodes: machines they run on; those of one machine share its cache.
    """

    rank: int = 0
    world_size: int = 1
    nodes: int = 1


@dataclass(frozen=True)
class Cache:
    """Where remote shards are kept.

    Attributes:
        folder: None for LitData's own.
        size_bytes: kept at most, but for the chunks in use and two fetched ahead by each worker; None for LitData's own
            bound, 75% of the free disk.
    """

    folder: str | None = None
    size_bytes: int | None = None


class TokensLoader(litdata.TokensLoader):
    """LitData's loader of blocks, which hashes a chunk file before the first block is taken from it.

    Of local chunks the next one is hashed beside training: else the ranks of a run would wait for one another's hashes,
    at a chunk's end each. It bears the same name because LitData's index names the class.

    Args:
        block_size: tokens a block.
        corpus: for the manifest's hashes.
        split: whose chunks are read.
    """

    def __init__(self, block_size: int, corpus: Corpus, split: str) -> None:
        super().__init__(block_size)
        self._manifest = corpus.manifest
        self._url = corpus.split(split)
        self._remote = is_remote(corpus.path)
        self._entries = {chunk["filename"]: chunk for chunk in getattr(corpus.manifest, split).chunks}
        self._checked: set[str] = set()
        # The number of the chunk to be read after this one, if there is one; the dataset says.
        self.upcoming: list[int] = []
        self._ahead: dict[str, Future[None]] = {}
        # LitData's own thread deletes chunks from the cache while the reader closes them.
        self._closing = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """For a reading process that is spawned."""
        return super().__getstate__() | {"_closing": None, "_ahead": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A lock is each process' own."""
        self.__dict__.update(state | {"_closing": threading.Lock()})

    def pre_load_chunk(self, chunk_index: int, chunk_filepath: str) -> None:
        """Nothing: LitData's thread would map a chunk that was not checked yet."""

    def load_item_from_chunk(
        self, index: int, chunk_index: int, chunk_filepath: str, begin: int, filesize_bytes: int
    ) -> Tensor:
        """A block of a chunk.

        Raises:
            RunError: the chunk is missing or not what was written; names it.
        """
        if chunk_filepath not in self._checked:
            path = Path(chunk_filepath)
            if self._remote:
                self._wait_for(chunk_index, path)
            if ahead := self._ahead.pop(chunk_filepath, None):
                ahead.result()
            else:
                self._check(path)
            self._checked.add(chunk_filepath)
            if not self._remote:
                self._check_next(path.parent)
        return super().load_item_from_chunk(index, chunk_index, chunk_filepath, begin, filesize_bytes)

    def _check(self, path: Path) -> None:
        check_chunk(path, self._entries[path.name], self._manifest.dtype, self._manifest.vocab_size)

    def _check_next(self, folder: Path) -> None:
        for chunk in self.upcoming:
            path = folder / self._chunks[chunk]["filename"]
            if str(path) not in self._checked:
                thread = ThreadPoolExecutor(1, "next chunk")
                self._ahead[str(path)] = thread.submit(self._check, path)
                thread.shutdown(wait=False)  # ends once that is done: none waits idly while processes are forked

    def _wait_for(self, chunk_index: int, path: Path) -> None:
        try:
            self._wait_until_chunk_ready(chunk_index, str(path), 1)  # of any size: it appears whole
        except (FileNotFoundError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise RunError(
                f"'{self._url}/{path.name}' can't be fetched ({reason[:200]}); mend access or restore it, then go on with"
                " --ckpt_path last"
            ) from error

    def delete(self, chunk_index: int, chunk_filepath: str) -> None:
        """Drops a chunk from the cache; fetched again, it is checked again."""
        with self._closing:
            self._checked.discard(chunk_filepath)
            super().delete(chunk_index, chunk_filepath)

    def close(self, chunk_index: int) -> None:
        """Releases a chunk, unless it has been deleted since."""
        with self._closing:
            if chunk_index in self._mmaps:
                super().close(chunk_index)


class _BlockDataset(StreamingDataset):
    """LitData's dataset, which tells its loader what comes next."""

    def __getitem__(self, index: Any) -> Any:
        following = self.worker_next_chunk_index  # moved on already, past the chunk of this block
        self.item_loader.upcoming = self.worker_chunks[following : following + 1]
        return super().__getitem__(index)


def open_blocks(
    corpus: Corpus, split: str, block_tokens: int, replica: Replica, cache: Cache, **options: Any
) -> StreamingDataset:
    """The blocks of a split, as a LitData dataset.

    Args:
        corpus: whose shards.
        split: "train" or "val".
        block_tokens: tokens a block.
        replica: which of them.
        cache: of remote shards.
        options: of StreamingDataset.
    """
    remote = is_remote(corpus.path)
    dataset = _BlockDataset(
        corpus.split(split),
        item_loader=TokensLoader(block_tokens, corpus, split),
        cache_dir=cache.folder if remote else None,
        max_cache_size=cache.size_bytes if remote else None,
        storage_options=storage_options() if remote else None,
        **options,
    )
    # On network file systems LitData would otherwise trim the shuffle to a window.
    dataset.posix_fast = None
    # Told, not detected: tensor-parallel ranks read the same data.
    dataset.distributed_env = _DistributedEnv(replica.world_size, replica.rank, replica.nodes)
    return dataset


def _heed_the_parent_alone(worker: int) -> None:
    """Has a reading process end by its parent's SIGTERM only: a scheduler's reaches every process of a run, which still
    wants data for its last step.
    """
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class BlockReader:
    """An endless sequence of a corpus' blocks; every block once a pass, each pass shuffled anew.

    A pass leaves out fewer blocks than there are replicas, others each time, so that all read equally many.

    Args:
        corpus: whose train split.
        block_tokens: tokens a block.
        seed: of the shuffle.
        num_workers: reading processes; 0 reads in this one, which is the fastest on local shards.
        replica: the part of this process.
        cache: of remote shards.
    """

    def __init__(
        self,
        corpus: Corpus,
        block_tokens: int,
        seed: int,
        num_workers: int = 0,
        replica: Replica = Replica(),  # noqa: B008 - immutable
        cache: Cache = Cache(),  # noqa: B008
    ) -> None:
        self._corpus = corpus
        dataset = open_blocks(
            corpus,
            "train",
            block_tokens,
            replica,
            cache,
            shuffle=True,
            drop_last=True,
            seed=seed,
            item_shuffle_window="full",
        )
        # The loader draws a base seed on every start: from a generator of its own, so that the model's isn't moved.
        self._loader = StreamingDataLoader(
            dataset,
            batch_size=1,
            drop_last=True,
            num_workers=num_workers,
            worker_init_fn=_heed_the_parent_alone,
            generator=torch.Generator().manual_seed(seed),
        )
        self._blocks: Iterator[Tensor] | None = None

    def __len__(self) -> int:
        """Blocks of a pass, on this replica."""
        return len(self._loader)

    def __next__(self) -> Tensor:
        """The next block of this replica, (block_tokens,) int64 ids, across passes.

        Raises:
            RunError: a shard is damaged or can't be fetched, or there is no block for this replica.
        """
        passes = 0
        while passes < 2:
            if self._blocks is None:
                self._blocks = iter(self._loader)
                passes += 1
            try:
                block = next(self._blocks, None)
            except RunError as error:
                # From a reading process it comes with that process' traceback, our line last.
                line = str(error).strip().splitlines()[-1]
                raise RunError(line.removeprefix(f"{RunError.__module__}.RunError: ")) from error
            if block is not None:
                return block[0].to(torch.int64)
            self._blocks = None
        raise RunError(f"a whole pass over the shards at '{self._corpus.path}' gives this process no block")

    def state_dict(self) -> dict[str, Any]:
        """LitData's position, to be restored by :meth:`load_state_dict`; empty before the first block.

        Without paths: a run may go on where its shards lie elsewhere. And without the names and sizes of all chunks, which
        LitData never reads again: the state's size would grow with their number.
        """
        if not self._loader.current_epoch:
            return {}
        state = self._loader.state_dict()
        dataset = {
            key: value
            for key, value in state["dataset"].items()
            if not key.endswith(("_path", "_url")) and key not in ("subsampled_files", "region_of_interest")
        }
        return copy.deepcopy(state | {"dataset": dataset})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after the blocks that the state had seen.

        Args:
            state: from :meth:`state_dict`; the caller has made sure that the shards are the same.
        """
        if not state:  # LitData would take the state of an unstarted loader for that of a pass already begun.
            return
        here = self._loader.dataset
        position = state["dataset"] | {
            "input_dir_path": here.input_dir.path,
            "input_dir_url": here.input_dir.url,
            "cache_dir_path": here.cache_dir.path,
        }
        # The loader compares with the processes that it detects, which may be more than there are replicas.
        detected = _DistributedEnv.detect().world_size
        self._loader.load_state_dict(state | {"dataset": position | {"world_size": detected}})
        here.load_state_dict(position)
        # With workers, only their copies take the epoch up; the next state is saved from this one.
        here.current_epoch = position["current_epoch"]
        self._blocks = None
