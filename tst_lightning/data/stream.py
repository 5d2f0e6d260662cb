"""The training stream: batches of rows, cut for the phase that each belongs to, resumable to the batch."""

from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

from tst_lightning.data.mixture import Mixture
from tst_lightning.data.rows import RowPlan, cut_rows, merged, permutation, pools, replan
from tst_lightning.errors import ConfigError, RunError


class RowStream:
    """An iterable with a length and a state, which Lightning saves and restores with the run.

    The state is the number of batches handed out and the readers' position before the pool of the next one. That is
    the same on every rank, and re-reading a pool gives the same rows.

    Args:
        mixture: where blocks come from.
        plans: what the run's batches are, in order.
        block_tokens: tokens a block.
        batch_size: rows of an ordinary micro-batch.
        pool_blocks: blocks whose rows are permuted together.
        seed: of the permutation.
        layout: everything else that fixes the order of rows (shards, sizes, ranks, workers); a state of another layout
            is refused.
    """

    def __init__(
        self,
        mixture: Mixture,
        plans: list[RowPlan],
        block_tokens: int,
        batch_size: int,
        pool_blocks: int,
        seed: int,
        layout: dict[str, Any],
    ) -> None:
        self._mixture = mixture
        self._plans = plans
        self._sizes = (block_tokens, batch_size, pool_blocks)
        self._batch_size = batch_size
        self._seed = seed
        self._layout = layout
        self._mixture_state = mixture.state_dict()
        self.batches = 0
        # Set by the caller when a run goes on: a loader restarted in silence would repeat data without a word.
        self.expected_batches = 0

    def __len__(self) -> int:
        """Micro-batches of the whole run, those already handed out included."""
        return sum(plan.batches for plan in self._plans)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields ``tokens`` (rows, row_tokens) int64, the number of each row's corpus, ``corpus`` (rows,) int64, how many
        rows each corpus has, ``corpus_rows``, and the phase's name and bag size.

        Raises:
            RunError: the stream doesn't stand where the run does; or see :class:`~tst_lightning.data.blocks.BlockReader`.
        """
        if self.batches != self.expected_batches:
            raise RunError(
                f"the data stream stands at batch {self.batches}, but the run at {self.expected_batches}: going on would"
                " repeat or skip data; this checkpoint was written within a step, or without the stream: name another one"
            )
        first = 0
        for pool in pools(self._plans, *self._sizes):
            if first + pool.batches > self.batches:
                self._mixture_state = self._mixture.state_dict()
                blocks, corpora = self._mixture.take(pool.blocks)
                rows = cut_rows(blocks, pool.plan.row_tokens, pool.plan.stride)
                order = permutation(len(rows), self._seed, pool.index)
                rows = rows[order]
                corpora = corpora.repeat_interleave(len(rows) // len(blocks))[order]
                size = self._batch_size * pool.plan.row_multiple
                for batch in range(self.batches - first, pool.batches):
                    self.batches += 1
                    if batch == pool.batches - 1:
                        self._mixture_state = self._mixture.state_dict()
                    part = slice(batch * size, (batch + 1) * size)
                    yield {
                        "tokens": rows[part],
                        "corpus": corpora[part],
                        "corpus_rows": corpora[part].bincount(minlength=len(self._mixture)).tolist(),
                        "phase": pool.plan.phase,
                        "bag_size": pool.plan.bag_size,
                    }
            first += pool.batches

    def state_dict(self) -> dict[str, Any]:
        """Position, plans and layout, of plain values only."""
        return {
            "batches": self.batches,
            "mixture": self._mixture_state,
            "plans": [list(astuple(plan)) for plan in self._plans],
            "layout": self._layout,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a saved position. Phases still to come may have changed; what was read must not have.

        Args:
            state: from :meth:`state_dict`.

        Raises:
            ConfigError: the state belongs to another layout, or to other phases; names what differs, expected and found.
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
        laid = [RowPlan(*plan) for plan in state["plans"]]
        try:
            same = merged(laid) == merged(self._plans)
            self._plans = laid if same else replan(laid, self._plans, state["batches"], *self._sizes)
        except ValueError as error:
            was, now = (
                ", ".join(f"{plan.phase} (bag size {plan.bag_size}) {plan.batches}" for plan in merged(plans))
                for plans in (laid, self._plans)
            )
            raise ConfigError(
                f"the checkpoint's phases, in batches, are {was}; now {now}: they differ in the {state['batches']} batches"
                " already read. Change only what is to come, restore the phases, or start a new run"
            ) from error
        self.batches = state["batches"]
        self._mixture_state = state["mixture"]
        self._mixture.load_state_dict(state["mixture"])
