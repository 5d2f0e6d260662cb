"""Every token at most once a pass over all phases, corpora and ranks, and the same rows after any stop."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.numbered import numbered_corpus, stream
from tst_lightning.data.blocks import BlockReader, Replica
from tst_lightning.data.corpora import Corpus
from tst_lightning.data.rows import RowPlan
from tst_lightning.errors import ConfigError, RunError

BLOCK = 4 * 5  # block_rows 4, L = 4


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return numbered_corpus(tmp_path_factory.mktemp("numbered"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Corpus]:
    """Of unequal sizes, with shards of unequal sizes."""
    folder = tmp_path_factory.mktemp("three")
    return [
        numbered_corpus(folder / "a", "a", 0, 2000, 700, 3),
        numbered_corpus(folder / "b", "b", 10_000, 1100, 330, 2),
        numbered_corpus(folder / "c", "c", 20_000, 640, 640, 1),
    ]


def drawn(total: int, parts: Sequence[int]) -> list[int]:
    """Blocks of each corpus among the first ``total``, by the definition: the one that lags most comes next."""
    counts = [0] * len(parts)
    for n in range(1, total + 1):
        lags = [part * n / sum(parts) - count for part, count in zip(parts, counts, strict=True)]
        counts[max(range(len(parts)), key=lambda i: (round(lags[i], 9), -i))] += 1
    return counts


def check_exactly_once(
    corpora: list[Corpus], seq_len: int, plans: list[RowPlan], batch_size: int, world_size: int, workers: int, pool: int
) -> None:
    block = max(plan.bag_size for plan in plans) * (seq_len + 1)
    ranks = [stream(corpora, plans, block, batch_size, workers, rank, world_size, pool) for rank in range(world_size)]
    seen: Counter[int] = Counter()
    used = 0
    for each in ranks:
        batches = list(each)
        assert len(batches) == len(each) == sum(plan.batches for plan in plans)
        planned = [plan for plan in plans for _ in range(plan.batches)]
        for batch, plan in zip(batches, planned, strict=True):
            assert batch["tokens"].shape == (batch_size, plan.row_tokens)
            assert (batch["phase"], batch["bag_size"]) == (plan.phase, plan.bag_size)
            assert (batch["tokens"].diff(dim=1) == 1).all()  # contiguous text
            assert batch["corpus_rows"] == batch["corpus"].bincount(minlength=len(corpora)).tolist()
            for row, corpus in zip(batch["tokens"], batch["corpus"], strict=True):
                assert row[0] // 10_000 == corpus  # rows are of the corpus that they say
            seen.update(batch["tokens"].flatten().tolist())
            used += batch["tokens"].numel()
    # What each rank drew, and how often a pass went through it.
    state = ranks[0].state_dict()["mixture"]["drawn"]
    blocks_drawn = sum(state)
    assert state == drawn(blocks_drawn, [corpus.parts for corpus in corpora])
    assert 0 <= blocks_drawn * block * world_size - used < len(plans) * block * world_size  # phases end within a block
    for corpus, mine in zip(corpora, state, strict=True):
        a_pass = corpus.blocks(block) // world_size
        whole, partial = divmod(mine, a_pass)
        first = 10_000 * corpora.index(corpus)
        uses = [seen[token] for token in range(first, first + corpus.manifest.train.tokens)]
        assert max(uses) <= whole + (partial > 0)
        # Missing from the passes taken whole: remainders of shards, blocks left out to keep ranks even, cut-off rows.
        left = corpus.manifest.train.remainder(block) * whole
        left += (corpus.blocks(block) % world_size) * block * whole + len(plans) * block * world_size
        assert sum(max(0, whole - count) for count in uses) <= left


@settings(max_examples=40)
@given(data=st.data())
def test_every_token_at_most_once_a_pass(three: list[Corpus], data: st.DataObject) -> None:
    """Over s, L, batch size, accumulation, phases and their shares, corpora, world sizes and pools."""
    corpora = three[: data.draw(st.integers(1, 3), "corpora")]
    seq_len = data.draw(st.integers(1, 9), "L")
    bags = data.draw(st.sampled_from([(1,), (2, 1), (4, 1), (4, 2, 1), (6, 3, 1), (8, 4, 2, 1), (1, 4)]), "s")
    accumulate = data.draw(st.integers(1, 3), "accumulation")
    plans = [
        RowPlan(f"p{i}", s, s * (seq_len + 1), accumulate * data.draw(st.integers(1, 12), "steps"))
        for i, s in enumerate(bags)
    ]
    world_size = data.draw(st.integers(1, 3), "world size")
    check_exactly_once(
        corpora, seq_len, plans, data.draw(st.integers(1, 4), "B"), world_size, 0, data.draw(st.integers(1, 9), "pool")
    )


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_every_token_at_most_once_with_reading_processes(three: list[Corpus], workers: int, world_size: int) -> None:
    plans = [RowPlan("a", 4, 20, 9), RowPlan("b", 2, 10, 6), RowPlan("c", 1, 5, 60)]
    check_exactly_once(three, 4, plans, 2, world_size, workers, 6)


def test_one_pass_of_one_corpus_is_complete(numbered: Corpus) -> None:
    blocks = len(BlockReader(numbered, BLOCK, 1))
    superposed = blocks // 2 // 3  # batches of 3 blocks
    recovered = (blocks - superposed * 3) * 4 // 3
    batches = list(stream([numbered], [RowPlan("a", 4, 20, superposed), RowPlan("b", 1, 5, recovered)], BLOCK))
    seen = torch.cat([batch["tokens"].flatten() for batch in batches])
    assert len(seen.unique()) == len(seen) >= blocks * BLOCK - BLOCK


@pytest.mark.parametrize("world_size", [1, 2])
def test_second_pass_is_complete_and_shuffled_anew(numbered: Corpus, world_size: int) -> None:
    passes = []
    for rank in range(world_size):
        reader = BlockReader(numbered, BLOCK, seed=1, replica=Replica(rank, world_size))
        passes.append([[next(reader).tolist() for _ in range(len(reader))] for _ in range(2)])
    first, second = ([block for rank in passes for block in rank[k]] for k in (0, 1))
    assert len({tuple(block) for block in first}) == len({tuple(block) for block in second}) == len(first)
    assert passes[0][0] != passes[0][1]
    if world_size == 1:
        assert sorted(first) == sorted(second)


def in_pieces(corpora: list[Corpus], plans: list[RowPlan], stops: list[int], **options: int) -> list[torch.Tensor]:
    """The stream's rows, each stretch between two stops read by a new stream that takes up the state of the last."""
    pieces: list[torch.Tensor] = []
    state = None
    for stop in stops:
        current = stream(corpora, plans, BLOCK, **options)
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


@settings(max_examples=25)
@given(data=st.data())
def test_stopped_and_resumed_anywhere_gives_the_same_rows(three: list[Corpus], data: st.DataObject) -> None:
    """Passes' worth of batches, up to three phases and corpora, on any rank, stopped up to three times."""
    corpora = three[: data.draw(st.integers(1, 3), "corpora")]
    bags = data.draw(st.sampled_from([(4, 1), (4, 2, 1), (2, 4, 1), (1,)]))
    plans = [RowPlan(f"p{i}", s, s * 5, data.draw(st.integers(1, 25))) for i, s in enumerate(bags)]
    world_size = data.draw(st.integers(1, 3), "world size")
    options = {
        "batch_size": data.draw(st.integers(1, 4), "B"),
        "world_size": world_size,
        "rank": data.draw(st.integers(0, world_size - 1), "rank"),
    }
    whole = [batch["tokens"] for batch in stream(corpora, plans, BLOCK, **options)]
    stops = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=3)))
    assert_same_rows(whole, in_pieces(corpora, plans, [*stops, len(whole)], **options))


@pytest.mark.parametrize("workers", [1, 2])
def test_resume_with_reading_processes(three: list[Corpus], workers: int) -> None:
    """Stopped twice within the first pass, and three times within later ones."""
    plans = [RowPlan("a", 4, 20, 9), RowPlan("b", 1, 5, 250)]
    whole = [batch["tokens"] for batch in stream(three, plans, BLOCK, workers=workers)]
    stops = [4, 9, 120, 140, 230, len(whole)]
    assert_same_rows(whole, in_pieces(three, plans, stops, workers=workers))


def test_the_state_is_the_same_on_every_rank(three: list[Corpus]) -> None:
    """One rank's is saved for all."""
    plans = [RowPlan("a", 4, 20, 9), RowPlan("b", 1, 5, 90)]
    states = []
    for rank in range(3):
        each = stream(three, plans, BLOCK, rank=rank, world_size=3)
        iterator = iter(each)
        for _ in range(60):
            next(iterator)
        states.append(each.state_dict())
    assert states[0] == states[1] == states[2]


def test_the_state_does_not_grow_with_the_number_of_chunks(tmp_path: Path) -> None:
    states = []
    for chunk_tokens in (1000, 20):
        corpus = numbered_corpus(tmp_path / str(chunk_tokens), chunk_tokens=chunk_tokens)
        each = stream([corpus], [RowPlan("a", 4, 20, 9)], BLOCK)
        iterator = iter(each)
        for _ in range(3):
            next(iterator)
        states.append(each.state_dict())
    assert states[0] == states[1]


def test_the_next_chunk_is_checked_while_this_one_is_read(tmp_path: Path) -> None:
    """So that no rank waits for a hash; and what is wrong with it is said where it would be read, not before."""
    corpus = numbered_corpus(tmp_path, tokens=1400)  # two chunks of 35 blocks
    reader = BlockReader(corpus, BLOCK, seed=1)
    first = next(reader)
    loader = reader._loader.dataset.item_loader
    ((path, check),) = loader._ahead.items()
    assert check.result() is None and Path(path).exists()
    # The first chunk holds the tokens below 700; the next one is the other.
    assert path == str(tmp_path / "train" / f"chunk-0-{int(first[0] < 700)}.bin")

    Path(path).write_bytes(Path(path).read_bytes()[:-2] + b"\0\0")
    again = BlockReader(corpus, BLOCK, seed=1)
    assert len([next(again) for _ in range(35)]) == 35
    with pytest.raises(RunError, match=f"'{path}' is damaged"):
        next(again)


def test_another_layout_is_refused(numbered: Corpus) -> None:
    plans = [RowPlan("a", 1, 5, 3)]
    state = stream([numbered], plans, BLOCK, seq_len=4).state_dict()
    with pytest.raises(ConfigError, match="seq_len: 4 in the checkpoint, 8 now"):
        stream([numbered], plans, BLOCK, seq_len=8).load_state_dict(state)


def test_a_stream_that_lost_its_state_is_noticed(numbered: Corpus) -> None:
    lost = stream([numbered], [RowPlan("a", 1, 5, 3)], BLOCK)
    lost.expected_batches = 2
    with pytest.raises(RunError, match="stands at batch 0, but the run at 2"):
        next(iter(lost))
