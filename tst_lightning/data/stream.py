"""The training stream: batches of rows, cut for the phase that each belongs to, resumable to the batch."""

from collections.abc import Iterator
from typing import Any

from tst_lightning.data.blocks import BlockReader
from tst_lightning.data.rows import RowPlan, cut_rows, permute_rows, pools
from tst_lightning.errors import ConfigError, RunError


class RowStream:
    """An iterable with a length and a state, which Lightning saves and restores with the run.

    The state is the number of batches handed out and the reader's position before the pool of the next one. That is
    the same on every rank, and re-reading a pool gives the same rows.

    Args:
        reader: where blocks come from.
        plans: what the run's batches are, in order.
        block_tokens: tokens a block.
        batch_size: rows a micro-batch.
        pool_blocks: blocks whose rows are permuted together.
        seed: of the permutation.
        layout: everything that fixes the order of rows (shards, sizes, ranks, workers); a state of another layout is
            refused.
    """

    def __init__(
        self,
        reader: BlockReader,
        plans: list[RowPlan],
        block_tokens: int,
        batch_size: int,
        pool_blocks: int,
        seed: int,
        layout: dict[str, Any],
    ) -> None:
        self._reader = reader
        self._pools = list(pools(plans, block_tokens, batch_size, pool_blocks))
        self._batch_size = batch_size
        self._seed = seed
        self._layout = layout
        self._reader_state = reader.state_dict()
        self.batches = 0
        # Set by the caller when a run goes on: a loader restarted in silence would repeat data without a word.
        self.expected_batches = 0

    def __len__(self) -> int:
        """Micro-batches of the whole run, those already handed out included."""
        return sum(pool.batches for pool in self._pools)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields ``tokens`` (batch_size, row_tokens) int64, with the phase's name and bag size.

        Raises:
            RunError: the stream doesn't stand where the run does.
        """
        if self.batches != self.expected_batches:
            raise RunError(
                f"the data stream stands at batch {self.batches}, but the run at {self.expected_batches}: going on would"
                " repeat or skip data; this checkpoint holds no stream state, start a new run"
            )
        first = 0
        for pool in self._pools:
            if first + pool.batches > self.batches:
                self._reader_state = self._reader.state_dict()
                rows = permute_rows(
                    cut_rows(self._reader.take(pool.blocks), pool.plan.row_tokens), self._seed, pool.index
                )
                for batch in range(self.batches - first, pool.batches):
                    self.batches += 1
                    if batch == pool.batches - 1:
                        self._reader_state = self._reader.state_dict()
                    tokens = rows[batch * self._batch_size : (batch + 1) * self._batch_size]
                    yield {"tokens": tokens, "phase": pool.plan.phase, "bag_size": pool.plan.bag_size}
            first += pool.batches

    def state_dict(self) -> dict[str, Any]:
        """Position and layout, of plain values only."""
        return {"batches": self.batches, "reader": self._reader_state, "layout": self._layout}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a saved position.

        Args:
            state: from :meth:`state_dict`.

        Raises:
            ConfigError: the state belongs to another layout; names what differs, expected and found.
        """
        saved = state["layout"]
        differing = [key for key in self._layout if saved.get(key) != self._layout[key]]
        if differing:
            listed = "; ".join(
                f"{key}: {saved.get(key)} in the checkpoint, {self._layout[key]} now" for key in differing
            )
            raise ConfigError(
                f"the checkpoint was made with another data layout ({listed}); the order of data would silently change."
                " Restore these settings, or start a new run"
            )
        self.batches = state["batches"]
        self._reader_state = state["reader"]
        self._reader.load_state_dict(state["reader"])
