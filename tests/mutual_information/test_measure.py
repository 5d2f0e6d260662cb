"""Estimates against exact values: of chains with known transitions, of independent tokens, of documents side by side."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tst_lightning.errors import ConfigError, RunError
from tst_lightning.mutual_information import measure as module
from tst_lightning.mutual_information.measure import Measurement, measure, mutual_information
from tst_lightning.shards.manifest import HEADER_BYTES, Manifest, SplitInfo
from tst_lightning.shards.writer import ShardWriter, dtype_for

END = 0  # of a document
MANY = 20_000_000


def write(folder: Path, tokens: Any, vocab_size: int, chunk_bytes: int = 1 << 26) -> Manifest:
    """Shards with these tokens as their train split."""
    writer = ShardWriter(folder / "train", dtype_for(vocab_size), chunk_bytes)
    writer.add(np.asarray(tokens).tolist())
    chunks, sha256 = writer.finish()
    split = SplitInfo(writer.tokens, 1, 1, chunks, sha256)
    fields: dict[str, Any] = {"tokenizer": "t", "tokenizer_sha256": "0" * 64, "sources": {}, "sources_fingerprint": ""}
    return Manifest(
        version=2,
        vocab_size=vocab_size,
        dtype=dtype_for(vocab_size),
        end_of_document_id=END,
        train=split,
        val=split,
        options={},
        folder=folder,
        **fields,
    )


def chain(transitions: Any, length: int, seed: int = 0) -> Any:
    """A walk through states 1 to n."""
    draws = np.random.default_rng(seed).random(length)
    cumulative = np.cumsum(transitions, 1)
    states, state = np.empty(length, np.int64), 0
    for step, draw in enumerate(draws):
        states[step] = state
        state = min(int(np.searchsorted(cumulative[state], draw, side="right")), len(transitions) - 1)
    return states + 1


def exact(transitions: Any, distance: int) -> float:
    """I(X_0; X_i) of the stationary chain, from the i-th power of its matrix."""
    matrix = np.asarray(transitions, np.float64)
    values, vectors = np.linalg.eig(matrix.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary /= stationary.sum()
    after = np.linalg.matrix_power(matrix, distance)
    joint = stationary[:, None] * after
    shares = joint / (stationary[:, None] * (stationary @ after))
    return float((joint[joint > 0] * np.log(shares[joint > 0])).sum())


def test_a_markov_chain(tmp_path: Path) -> None:
    transitions = [[0.8, 0.15, 0.05, 0.0], [0.05, 0.7, 0.2, 0.05], [0.3, 0.0, 0.6, 0.1], [0.1, 0.1, 0.0, 0.8]]
    measured = measure(write(tmp_path, chain(transitions, 200_000), 5), 16, MANY)
    assert (measured.tokens_read, measured.tokens) == (200_000, 200_000)
    for estimate in measured.estimates:
        truth = exact(transitions, estimate.distance)
        assert estimate.pairs == 200_000 - estimate.distance
        assert estimate.corrected == pytest.approx(truth, abs=0.012 * math.sqrt(truth) + 1e-4), estimate
    assert [estimate.distance for estimate in measured.estimates] == list(range(1, 17))
    assert measured.estimates[0].corrected > 0.3 and exact(transitions, 16) < 0.01


@pytest.mark.parametrize("vocab_size", [200, 70_000], ids=["4 bytes a pair", "8 bytes a pair"])
def test_independent_tokens_have_none_but_for_the_bias(tmp_path: Path, vocab_size: int) -> None:
    tokens = np.random.default_rng(1).integers(1, 50, 100_000) * (vocab_size // 50)
    for estimate in measure(write(tmp_path, tokens, vocab_size), 6, MANY).estimates:
        # The known bias of the plug-in estimate: (n - 1)**2 / 2N of n equally likely tokens.
        assert estimate.plug_in == pytest.approx(48**2 / 2e5, rel=0.1)
        assert estimate.shuffled == pytest.approx(48**2 / 2e5, rel=0.1)
        assert abs(estimate.corrected) < 0.0012


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60), st.sampled_from([5, 70_000]))
def test_plug_in_by_its_definition(pairs: list[tuple[int, int]], vocab_size: int) -> None:
    first, second = np.array(pairs, np.uint32).T.copy()
    n = len(pairs)
    expected = sum(
        share * math.log(share * n * n / ((first == x).sum() * (second == y).sum()))
        for x, y in set(pairs)
        for share in [pairs.count((x, y)) / n]
    )
    assert mutual_information(first, second, vocab_size) == pytest.approx(expected, abs=1e-12)


def test_the_largest_ids_are_told_apart() -> None:
    """V of 65,536 squared is the last that fits into 4 bytes."""
    for vocab_size in (1 << 16, 128_000):
        ids = np.array([vocab_size - 1, vocab_size - 2, 0, 1], np.uint32)
        assert mutual_information(ids, ids, vocab_size) == pytest.approx(math.log(4))
    # In 4 bytes this pair would be (0, 0): 33,554 * 128,000 + 55,296 is 2**32.
    first, second = np.array([0, 33_554], np.uint32), np.array([0, 55_296], np.uint32)
    assert mutual_information(first, second, 128_000) == pytest.approx(math.log(2))


def test_pairs_stay_within_a_document(tmp_path: Path) -> None:
    """Documents of one repeated token, 1 and 2 in turn: within each nothing is left to tell, across them everything."""
    tokens = [token for number in range(400) for token in [number % 2 + 1] * 10 + [END]]
    for chunk_bytes in (1 << 26, 1024):  # one chunk; many, with ends of documents and of chunks anywhere
        manifest = write(tmp_path / str(chunk_bytes), tokens, 3, chunk_bytes)
        measured = measure(manifest, 9, MANY)
        for estimate in measured.estimates:
            assert estimate.plug_in == pytest.approx(math.log(2), abs=0.002)  # the token is its document's
        if chunk_bytes > 1024:
            assert [estimate.pairs for estimate in measured.estimates] == [400 * (10 - i) for i in range(1, 10)]
    with pytest.raises(ConfigError, match="no document has two tokens 10 apart .*; the farthest are 9: lower"):
        measure(manifest, 10, MANY)


def test_nothing_is_paired_across_documents_that_tell_of_their_neighbours(tmp_path: Path) -> None:
    """Independent tokens, each document the one before once more: across the border, all would be told."""
    draws = np.random.default_rng(2).integers(1, 9, (4_000, 8))
    tokens = np.concatenate([np.repeat(draws, 2, 0), np.full((8_000, 1), END)], 1).ravel()
    # The copy of a token comes 9 later; documents of 8 have none so far apart, so let some be longer.
    longer = np.random.default_rng(3).integers(1, 9, 40_000)
    measured = measure(write(tmp_path, [*tokens, *longer], 9), 9, MANY)
    assert all(abs(estimate.corrected) < 0.002 for estimate in measured.estimates)
    assert measured.estimates[8].pairs == 40_000 - 9


def test_the_end_of_a_document_is_in_no_pair(tmp_path: Path) -> None:
    tokens = ([1] * 7 + [END]) * 100
    assert all(estimate.plug_in == 0 for estimate in measure(write(tmp_path, tokens, 2), 6, MANY).estimates)


def test_of_a_large_split_a_part_is_read_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STRETCH_TOKENS", 100)
    tokens = np.arange(1, 30_001)
    manifest = write(tmp_path, tokens, 30_001, 4096)
    assert len(manifest.train.chunks) == 15
    read = [np.asarray(stretch, np.int64) for stretch in module._read(manifest, 3_000)]
    assert 2_000 < sum(map(len, read)) <= 3_000 and max(map(len, read)) == 100
    assert all((np.diff(stretch) == 1).all() for stretch in read)
    assert [stretch[0] for stretch in read] == list(range(1, 30_001, 1_000))
    measured = measure(manifest, 5, 3_000)
    assert measured.tokens == 30_000 and measured.tokens_read == sum(map(len, read))
    assert measured.estimates[4].pairs == measured.tokens_read - 5 * len(read)
    # Every token once where all may be read.
    assert np.array_equal(np.concatenate(list(module._read(manifest, 30_000))), tokens)


def test_a_run_of_it_gives_the_same_numbers_again(tmp_path: Path) -> None:
    manifest = write(tmp_path, np.random.default_rng(4).integers(1, 50, 20_000), 50)
    first: Measurement = measure(manifest, 5, MANY)
    assert measure(manifest, 5, MANY) == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((3, MANY), "--largest_distance 3 must be at least 4, or there is nothing to fit, and at most 4,096"),
        ((5000, MANY), "--largest_distance 5000 must be at least 4"),
        ((64, 0), "--most_pairs 0 must be at least 1"),
        (
            (64, 20),
            "no document has two tokens 64 apart among the 20 tokens of the train split that were read; the farth",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, options: tuple[int, int], message: str) -> None:
    manifest = write(tmp_path, np.ones(1000, int), 2)
    with pytest.raises(ConfigError, match=message):
        measure(manifest, *options)


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_damage_is_named(tmp_path: Path, dtype: str) -> None:
    manifest = write(tmp_path, np.ones(1000, int), 300 if dtype == "uint16" else 70_000)
    assert manifest.dtype == dtype
    path = tmp_path / "train" / "chunk-0-0.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[: HEADER_BYTES + 500])
    with pytest.raises(RunError, match="chunk-0-0.bin' is damaged: `tst prepare --verify"):
        measure(manifest, 8, MANY)
    path.write_bytes(whole[:-4] + b"\xff" * 4)
    with pytest.raises(RunError, match="chunk-0-0.bin' is damaged"):
        measure(manifest, 8, MANY)
