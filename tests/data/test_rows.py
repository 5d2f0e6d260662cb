"""Rows cut from blocks, in integers; and the exactly-once property of the whole stream over real shards."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litdata import TokensLoader
from litdata.streaming.writer import BinaryWriter

from tst_lightning.data.blocks import BlockReader
from tst_lightning.data.rows import RowPlan, cut_rows, permute_rows, pools
from tst_lightning.data.stream import RowStream
from tst_lightning.errors import ConfigError, RunError


def test_cut_rows_spelled_out() -> None:
    blocks = torch.arange(12).view(2, 6)
    assert cut_rows(blocks, 6).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert cut_rows(blocks, 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert cut_rows(blocks, 4).tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]  # what is beyond whole rows is left out


def test_permutation_is_seeded_and_differs_by_pool() -> None:
    rows = torch.arange(64)[:, None]
    assert torch.equal(permute_rows(rows, 1, 0), permute_rows(rows, 1, 0))
    assert not torch.equal(permute_rows(rows, 1, 0), permute_rows(rows, 1, 1))
    assert not torch.equal(permute_rows(rows, 1, 0), permute_rows(rows, 2, 0))
    assert permute_rows(rows, 1, 0).flatten().sort().values.tolist() == list(range(64))


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


BLOCK = 4 * 5  # block_rows 4, L = 4


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards whose token i is i, in three files, so that every token can be told from every other."""
    folder = tmp_path_factory.mktemp("numbered")
    writer = BinaryWriter(str(folder), chunk_bytes=2 * 700, item_loader=TokensLoader())
    for index in range(20):
        writer[index] = torch.arange(index * 100, (index + 1) * 100).to(torch.uint16)
    writer.done()
    writer.merge()
    return folder


def stream(folder: Path, plans: list[RowPlan], batch_size: int = 3, workers: int = 0, **layout: Any) -> RowStream:
    reader = BlockReader(folder, BLOCK, seed=1, num_workers=workers)
    return RowStream(reader, plans, BLOCK, batch_size, pool_blocks=6, seed=1, layout=layout)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_token_at_most_once_a_pass_over_both_phases(numbered: Path, workers: int) -> None:
    # 20 x 100 tokens; blocks per file: chunks hold whole items, so ask the stream what a pass is.
    blocks = len(BlockReader(numbered, BLOCK, 1)._loader)
    superposed = blocks // 2 // 3  # batches of 3 blocks
    recovered = (blocks - superposed * 3) * 4 // 3
    batches = list(stream(numbered, [RowPlan("a", 4, 20, superposed), RowPlan("b", 1, 5, recovered)], 3, workers))
    assert [batch["phase"] for batch in batches] == ["a"] * superposed + ["b"] * recovered
    assert all(batch["tokens"].shape == (3, 20 if batch["phase"] == "a" else 5) for batch in batches)
    seen = torch.cat([batch["tokens"].flatten() for batch in batches])
    assert len(seen.unique()) == len(seen), "a token was used twice within a pass"
    assert len(seen) >= blocks * BLOCK - BLOCK  # all of the pass but less than a block
    for batch in batches:  # rows are contiguous text
        assert (batch["tokens"].diff(dim=1) == 1).all()


def test_second_pass_is_complete_and_shuffled_anew(numbered: Path) -> None:
    blocks = len(BlockReader(numbered, BLOCK, 1)._loader)
    reader = BlockReader(numbered, BLOCK, seed=1)
    first, second = reader.take(blocks), reader.take(blocks)
    assert sorted(first.flatten().tolist()) == sorted(second.flatten().tolist())
    assert not torch.equal(first, second)


def in_pieces(folder: Path, plans: list[RowPlan], stops: list[int], **options: int) -> list[torch.Tensor]:
    """The stream's rows, each stretch between two stops read by a new stream that takes up the state of the last."""
    pieces: list[torch.Tensor] = []
    state = None
    for stop in stops:
        current = stream(folder, plans, **options)
        if state is not None:
            current.load_state_dict(state)
        current.expected_batches = len(pieces)
        iterator = iter(current)
        while len(pieces) < stop:
            pieces.append(next(iterator)["tokens"])
        state = current.state_dict()
    return pieces


def assert_same_rows(whole: list[torch.Tensor], pieces: list[torch.Tensor]) -> None:
    assert len(whole) == len(pieces)
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_stopped_and_resumed_anywhere_gives_the_same_rows(numbered: Path, data: st.DataObject) -> None:
    """Two passes' worth of batches, up to three phases, stopped up to three times: not a row differs."""
    bags = data.draw(st.sampled_from([(4, 1), (4, 2, 1), (2, 4, 1), (1,)]))
    plans = [RowPlan(f"p{i}", s, s * 5, data.draw(st.integers(1, 25))) for i, s in enumerate(bags)]
    batch_size = data.draw(st.integers(1, 4))
    whole = [batch["tokens"] for batch in stream(numbered, plans, batch_size)]
    assert len(whole) == len(stream(numbered, plans, batch_size))
    stops = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=3)))
    assert_same_rows(whole, in_pieces(numbered, plans, [*stops, len(whole)], batch_size=batch_size))


@pytest.mark.parametrize("workers", [1, 2])
def test_resume_with_workers(numbered: Path, workers: int) -> None:
    """Stopped twice within the first pass, and three times within the second."""
    plans = [RowPlan("a", 4, 20, 9), RowPlan("b", 1, 5, 200)]
    whole = [batch["tokens"] for batch in stream(numbered, plans, workers=workers)]
    stops = [4, 9, 120, 140, 160, len(whole)]
    assert_same_rows(whole, in_pieces(numbered, plans, stops, workers=workers))


def test_another_layout_is_refused(numbered: Path) -> None:
    plans = [RowPlan("a", 1, 5, 3)]
    state = stream(numbered, plans, batch_size=3, seq_len=4, workers_of=0).state_dict()
    with pytest.raises(ConfigError, match="seq_len: 4 in the checkpoint, 8 now"):
        stream(numbered, plans, seq_len=8, workers_of=0).load_state_dict(state)


def test_a_stream_that_lost_its_state_is_noticed(numbered: Path) -> None:
    lost = stream(numbered, [RowPlan("a", 1, 5, 3)])
    lost.expected_batches = 2
    with pytest.raises(RunError, match="stands at batch 0, but the run at 2"):
        next(iter(lost))
