import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litdata import StreamingDataset
from litdata.streaming.item_loader import TokensLoader

from tst_lightning.shards.writer import HEADER_BYTES, ShardWriter, dtype_for


def read_back(folder, block_size, **options):
    dataset = StreamingDataset(
        str(folder), item_loader=TokensLoader(block_size=block_size), shuffle=False, drop_last=False, **options
    )
    return [dataset[i] for i in range(len(dataset))]


def write(folder, documents, dtype="uint16", chunk_bytes=1024):
    writer = ShardWriter(folder, dtype, chunk_bytes)
    for ids in documents:
        writer.add(ids)
    return writer, *writer.finish()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "uint16"), (65_536, "uint16"), (65_537, "int32")])
def test_the_smallest_dtype_that_holds_every_id(tmp_path, vocab_size, dtype):
    assert dtype_for(vocab_size) == dtype
    ids = [0, 1, 32_768, vocab_size - 1]
    write(tmp_path, [ids], dtype)
    (block,) = read_back(tmp_path, 4)
    assert block.tolist() == ids
    assert block.dtype == getattr(torch, dtype)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    lengths=st.lists(st.one_of(st.integers(0, 20), st.integers(400, 1600)), min_size=1, max_size=12).filter(any),
    chunk_bytes=st.integers(1024, 1100),
    dtype=st.sampled_from(["uint16", "int32"]),
)
def test_litdata_reads_every_token_back_in_order(tmp_path_factory, lengths, chunk_bytes, dtype):
    folder = tmp_path_factory.mktemp("shards")
    tokens = np.arange(sum(lengths)) % 65_521
    documents = np.split(tokens, np.cumsum(lengths)[:-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # LitData warns of chunks that are not as it was asked
        writer, chunks, _ = write(folder, documents, dtype, chunk_bytes)
    assert torch.cat(read_back(folder, 1)).long().tolist() == tokens.tolist()
    assert writer.tokens == len(tokens) == sum(chunk["tokens"] for chunk in chunks)
    full = (chunk_bytes - HEADER_BYTES) // np.dtype(dtype).itemsize
    assert [chunk["tokens"] for chunk in chunks[:-1]] == [full] * (len(chunks) - 1)
    assert [(folder / chunk["filename"]).stat().st_size for chunk in chunks] == [
        chunk["size_bytes"] for chunk in chunks
    ]


def test_blocks_lose_only_the_remainder_of_each_chunk(tmp_path):
    _, chunks, _ = write(tmp_path, [list(range(1300))])
    assert [chunk["tokens"] for chunk in chunks] == [506, 506, 288]
    blocks = torch.cat(read_back(tmp_path, 100)).tolist()
    assert blocks == [*range(500), *range(506, 1006), *range(1012, 1212)]


def test_shuffled_reading_as_training_does_it_gives_each_block_once(tmp_path):
    write(tmp_path, [list(range(2024))])
    dataset = StreamingDataset(
        str(tmp_path), item_loader=TokensLoader(block_size=11), shuffle=True, drop_last=True, seed=3
    )
    firsts = [int(block[0]) for block in dataset]
    assert sorted(firsts) == list(range(0, 2024, 11))
    assert firsts != sorted(firsts)


def test_the_index_holds_no_time_and_no_path(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, [list(range(1300))])
    assert (tmp_path / "one/index.json").read_bytes() == (tmp_path / "two/index.json").read_bytes()
    assert str(tmp_path) not in (tmp_path / "one/index.json").read_text()
    write(tmp_path / "three", [list(range(1, 1301))])
    stamps = {
        json.loads((tmp_path / name / "index.json").read_text())["updated_at"] for name in ("one", "two", "three")
    }
    assert len(stamps) == 2  # other content, other stamp: LitData's caches of remote folders go by it


def test_a_split_without_tokens_has_no_chunk(tmp_path):
    _, chunks, _ = write(tmp_path, [[], []])
    assert chunks == []
    assert list(tmp_path.iterdir()) == []
