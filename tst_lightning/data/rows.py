"""How blocks become rows: pure functions and data, no reading.

A block is s_max * (L + 1) tokens for the whole run. A phase whose rows are as long takes blocks whole; one with shorter
rows cuts each block into several. Several blocks are cut at a time and their rows permuted (a pool), so that the rows
of one block do not fall into neighbouring steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil, gcd

import torch
from torch import Tensor

from tst_lightning.phases import PhaseSchedule


@dataclass(frozen=True)
class RowPlan:
    """A stretch of batches with one row length.

    Attributes:
        phase: name of the phase that reads them.
        bag_size: tokens a position, carried with every batch.
        row_tokens: tokens a row.
        batches: micro-batches of one rank.
        stride: tokens from the beginning of a row to that of the next one; 0 stands for ``row_tokens``.
        row_multiple: rows of its micro-batches for each row of an ordinary one.
    """

    phase: str
    bag_size: int
    row_tokens: int
    batches: int
    stride: int = 0
    row_multiple: int = 1

    def __post_init__(self) -> None:
        if not self.stride:
            object.__setattr__(self, "stride", self.row_tokens)

    def rows_per_block(self, block_tokens: int) -> int:
        """Whole rows that a block is cut into."""
        return max(0, (block_tokens - self.row_tokens) // self.stride + 1)

    def used_tokens(self, block_tokens: int, batch_size: int) -> int:
        """Tokens of blocks that stand in the rows of all batches, each once."""
        per_block = self.rows_per_block(block_tokens)
        return (
            self.batches
            * batch_size
            * self.row_multiple
            * (self.row_tokens + (per_block - 1) * self.stride)
            // per_block
        )


@dataclass(frozen=True)
class Pool:
    """Blocks that are read, cut and permuted together, and the batches they serve."""

    plan: RowPlan
    index: int
    blocks: int
    batches: int


def row_plans(schedule: PhaseSchedule, seq_len: int, accumulate: int) -> list[RowPlan]:
    """What each phase reads, in micro-batches.

    Args:
        schedule: the run's phases.
        seq_len: L, positions of an ordinary row.
        accumulate: micro-batches an optimizer step.
    """
    return [
        RowPlan(
            name,
            phase.bag_size,
            phase.row_tokens(seq_len),
            steps * accumulate,
            phase.row_stride(seq_len),
            phase.row_multiple,
        )
        for name, phase, _, steps in schedule
    ]


def cut_rows(blocks: Tensor, row_tokens: int, stride: int) -> Tensor:
    """Cuts each block into as many rows as it holds.

    Args:
        blocks: (n, block_tokens) ids.
        row_tokens: tokens a row; what a block has beyond whole rows is left out.
        stride: tokens from the beginning of a row to that of the next one.

    Returns:
        (n * rows a block, row_tokens), rows of one block in order and together.
    """
    return blocks.unfold(1, row_tokens, stride).reshape(-1, row_tokens)


def permutation(count: int, seed: int, pool: int) -> Tensor:
    """An order of the ``count`` rows of a pool, given by the seed and the pool's number in the run: (count,) int64."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + pool) % 2**63)
    return torch.randperm(count, generator=generator)


def pools(plans: list[RowPlan], block_tokens: int, batch_size: int, pool_blocks: int) -> Iterator[Pool]:
    """Lays a run's batches over pools of blocks.

    Pools hold whole batches and never cross from one plan to the next, so at most one block's rows less one are left
    over at the end of a plan.

    Args:
        plans: stretches of batches, in order.
        block_tokens: tokens a block.
        batch_size: rows of an ordinary micro-batch.
        pool_blocks: blocks to permute together; rounded so that a pool is a whole number of batches.

    Yields:
        Every pool of the run, in order.
    """
    index = 0
    for plan in plans:
        per_block, rows = plan.rows_per_block(block_tokens), batch_size * plan.row_multiple
        full_batches = _full_pool(per_block, rows, pool_blocks)
        left = plan.batches
        while left:
            batches = min(left, full_batches)
            yield Pool(plan, index, ceil(batches * rows / per_block), batches)
            left -= batches
            index += 1


def _full_pool(per_block: int, rows: int, pool_blocks: int) -> int:
    """Batches that a pool serves, the last one of a plan aside."""
    unit_blocks = rows // gcd(rows, per_block)
    return unit_blocks * max(1, pool_blocks // unit_blocks) * per_block // rows


def blocks_needed(plans: list[RowPlan], block_tokens: int, batch_size: int, pool_blocks: int) -> int:
    """Blocks that one rank reads over a run laid out by :func:`pools`, in a time that does not grow with the run."""
    total = 0
    for plan in plans:
        per_block, rows = plan.rows_per_block(block_tokens), batch_size * plan.row_multiple
        full_batches = _full_pool(per_block, rows, pool_blocks)
        full_pools, rest = divmod(plan.batches, full_batches)
        total += full_pools * -(-full_batches * rows // per_block) + -(-rest * rows // per_block)
    return total


def merged(plans: list[RowPlan]) -> list[RowPlan]:
    """The same batches with neighbouring stretches of one phase joined."""
    joined: list[RowPlan] = []
    for plan in plans:
        if joined and replace(joined[-1], batches=0) == replace(plan, batches=0):
            plan = replace(plan, batches=joined.pop().batches + plan.batches)
        joined.append(plan)
    return joined


def replan(
    laid: list[RowPlan], wanted: list[RowPlan], batches: int, block_tokens: int, batch_size: int, pool_blocks: int
) -> list[RowPlan]:
    """Lays the rest of a run anew, the pools that are begun staying as they are: no row is lost or repeated.

    Args:
        laid: plans under which ``batches`` batches were read.
        wanted: plans of the whole run from now on.
        batches: micro-batches of one rank read so far.
        block_tokens: tokens a block.
        batch_size: rows a micro-batch.
        pool_blocks: blocks to permute together.

    Returns:
        Plans of the whole run: those of the begun pools, then the rest of ``wanted``.

    Raises:
        ValueError: ``wanted`` has other phases than ``laid`` in what was read, or in the rest of the pool begun.
    """
    begun: list[Pool] = []
    done = 0
    for pool in pools(laid, block_tokens, batch_size, pool_blocks):
        if done >= batches:
            break
        begun.append(pool)
        done += pool.batches
    kept = [
        replace(group[0].plan, batches=sum(pool.batches for pool in group))
        for group in (list(pools_of_plan) for _, pools_of_plan in groupby(begun, key=lambda pool: id(pool.plan)))
    ]
    rest = merged(wanted)
    for plan in merged(kept):
        here = rest.pop(0) if rest else replace(plan, batches=0)
        if replace(here, batches=plan.batches) != plan or here.batches < plan.batches:
            raise ValueError(f"{plan.batches} batches of phase '{plan.phase}' were laid out, {here.batches} are wanted")
        if here.batches > plan.batches:
            rest.insert(0, replace(here, batches=here.batches - plan.batches))
    joined = merged(kept + rest)
    # One after another, only where no begun pool was cut short by what was then the end of its phase.
    again = zip(begun, pools(joined, block_tokens, batch_size, pool_blocks), strict=False)
    return joined if all(one.batches == other.batches for one, other in again) else kept + rest
