"""Rows cut from blocks, in integers; how batches lie over pools, and how the rest of a run is laid anew."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tst_lightning.data.rows import RowPlan, cut_rows, merged, permutation, pools, replan


def test_cut_rows_spelled_out() -> None:
    blocks = torch.arange(12).view(2, 6)
    assert cut_rows(blocks, 6, 6).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert cut_rows(blocks, 3, 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert cut_rows(blocks, 4, 4).tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]  # what is beyond whole rows is left out


def test_permutation_is_seeded_and_differs_by_pool() -> None:
    assert torch.equal(permutation(64, 1, 0), permutation(64, 1, 0))
    assert not torch.equal(permutation(64, 1, 0), permutation(64, 1, 1))
    assert not torch.equal(permutation(64, 1, 0), permutation(64, 2, 0))
    assert permutation(64, 1, 0).sort().values.tolist() == list(range(64))


@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))
def test_pools_serve_every_batch_and_waste_less_than_a_block_a_phase(
    block_rows: int, batch_size: int, pool_blocks: int, first: int, second: int
) -> None:
    plans = [RowPlan("a", block_rows, block_rows * 5, first), RowPlan("b", 1, 5, second)]
    laid = list(pools(plans, block_rows * 5, batch_size, pool_blocks))
    for plan in plans:
        mine = [pool for pool in laid if pool.plan is plan]
        per_block = block_rows * 5 // plan.row_tokens
        assert sum(pool.batches for pool in mine) == plan.batches
        rows = sum(pool.blocks for pool in mine) * per_block
        assert 0 <= rows - plan.batches * batch_size < per_block
    assert [pool.index for pool in laid] == list(range(len(laid)))


def test_merged_joins_neighbours_of_one_phase() -> None:
    a, b = RowPlan("a", 4, 20, 3), RowPlan("b", 1, 5, 2)
    assert merged([a, a, b, a]) == [replace(a, batches=6), b, a]


def test_replan_spelled_out() -> None:
    """Blocks of 20, batches of 2 rows, pools of 4 blocks: 2 batches of 'a', 8 of 'b'."""
    a, b = RowPlan("a", 4, 20, 3), RowPlan("b", 1, 5, 10)
    longer = [a, replace(b, batches=30)]
    # Before the last, shorter pool of a phase nothing shows; within it that pool stays short.
    assert replan([a, b], longer, 5, 20, 2, 4) == longer
    assert replan([a, b], longer, 12, 20, 2, 4) == [a, b, replace(b, batches=20)]
    assert replan([a, b], longer, 0, 20, 2, 4) == longer
    assert replan([a, b], [replace(a, batches=9), b], 2, 20, 2, 4) == [replace(a, batches=9), b]
    assert replan([a, b], [replace(a, batches=9), b], 3, 20, 2, 4) == [a, replace(a, batches=6), b]
    for wanted in ([replace(a, batches=2), b], [replace(a, bag_size=2), b], [b]):
        with pytest.raises(ValueError, match="of phase 'a' were laid out"):
            replan([a, b], wanted, 3, 20, 2, 4)


@given(st.data())
def test_replan_keeps_what_was_begun_and_serves_what_is_wanted(data: st.DataObject) -> None:
    sizes = (20, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 12)))
    laid = [RowPlan("a", 4, 20, data.draw(st.integers(1, 20))), RowPlan("b", 1, 5, data.draw(st.integers(1, 40)))]
    batches = data.draw(st.integers(0, sum(plan.batches for plan in laid)))
    more = data.draw(st.integers(0, 50))
    wanted = [laid[0], replace(laid[1], batches=laid[1].batches + more)]
    if batches < laid[0].batches and data.draw(st.booleans()):
        wanted[0] = replace(laid[0], batches=laid[0].batches + more)
    new = replan(laid, wanted, batches, *sizes)
    assert merged(new) == wanted
    done = 0
    for old, now in zip(pools(laid, *sizes), pools(new, *sizes), strict=False):
        if done >= batches:
            break
        assert (old.plan.phase, old.index, old.blocks, old.batches) == (
            now.plan.phase,
            now.index,
            now.blocks,
            now.batches,
        )
        done += old.batches
    # And once more, as after a second stop.
    assert merged(replan(new, wanted, batches, *sizes)) == wanted
