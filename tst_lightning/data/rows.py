"""How blocks become rows: pure functions and data, no reading.

A block is s_max * (L + 1) tokens for the whole run. A phase whose rows are as long takes blocks whole; one with shorter
rows cuts each block into several. Several blocks are cut at a time and their rows permuted (a pool), so that the rows
of one block do not fall into neighbouring steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, gcd

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowPlan:
    """A stretch of batches with one row length.

    Attributes:
        phase: name of the phase that reads them.
        bag_size: tokens a position, carried with every batch.
        row_tokens: tokens a row.
        batches: micro-batches of one rank.
    """

    phase: str
    bag_size: int
    row_tokens: int
    batches: int


@dataclass(frozen=True)
class Pool:
    """Blocks that are read, cut and permuted together, and the batches they serve."""

    plan: RowPlan
    index: int
    blocks: int
    batches: int


def cut_rows(blocks: Tensor, row_tokens: int) -> Tensor:
    """Cuts each block into as many rows as it holds.

    Args:
        blocks: (n, block_tokens) ids.
        row_tokens: tokens a row; what a block has beyond whole rows is left out.

    Returns:
        (n * (block_tokens // row_tokens), row_tokens), rows of one block in order and together.
    """
    per_block = blocks.shape[1] // row_tokens
    return blocks[:, : per_block * row_tokens].reshape(-1, row_tokens)


def permute_rows(rows: Tensor, seed: int, pool: int) -> Tensor:
    """Permutes the rows of a pool, in an order given by the seed and the pool's number in the run."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + pool) % 2**63)
    return rows[torch.randperm(len(rows), generator=generator)]


def pools(plans: list[RowPlan], block_tokens: int, batch_size: int, pool_blocks: int) -> Iterator[Pool]:
    """Lays a run's batches over pools of blocks.

    Pools hold whole batches and never cross from one plan to the next, so at most one block's rows less one are left
    over at the end of a plan.

    Args:
        plans: stretches of batches, in order.
        block_tokens: tokens a block.
        batch_size: rows a micro-batch.
        pool_blocks: blocks to permute together; rounded so that a pool is a whole number of batches.

    Yields:
        Every pool of the run, in order.
    """
    index = 0
    for plan in plans:
        per_block = block_tokens // plan.row_tokens
        unit_blocks = batch_size // gcd(batch_size, per_block)
        full_blocks = unit_blocks * max(1, pool_blocks // unit_blocks)
        full_batches = full_blocks * per_block // batch_size
        left = plan.batches
        while left:
            batches = min(left, full_batches)
            yield Pool(plan, index, ceil(batches * batch_size / per_block), batches)
            left -= batches
            index += 1


def blocks_needed(plans: list[RowPlan], block_tokens: int, batch_size: int, pool_blocks: int) -> int:
    """Blocks that one rank reads over a run laid out by :func:`pools`."""
    return sum(pool.blocks for pool in pools(plans, block_tokens, batch_size, pool_blocks))
