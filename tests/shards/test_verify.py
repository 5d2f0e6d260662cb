import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from tst_lightning.errors import ConfigError, RunError
from tst_lightning.shards import verify
from tst_lightning.shards.manifest import Manifest, SplitInfo
from tst_lightning.shards.verify import check_chunk, check_index, extra_files, verify_folder
from tst_lightning.shards.writer import HEADER_BYTES, ShardWriter

VOCAB = {"uint16": 300, "int32": 70_000}


@pytest.fixture(params=["uint16", "int32"])
def split(request, tmp_path):
    """A split of three chunks, and what its manifest says of it."""
    writer = ShardWriter(tmp_path, request.param, 1024)
    writer.add([i % VOCAB[request.param] for i in range(69_900, 70_000 + 600)])
    chunks, sha256 = writer.finish()
    return tmp_path, SplitInfo(writer.tokens, 1, 1, chunks, sha256), request.param


def check(folder, info, dtype, number=0):
    chunk = info.chunks[number]
    check_chunk(folder / chunk["filename"], chunk, dtype, VOCAB[dtype])


def test_what_the_writer_writes_is_accepted(split, monkeypatch):
    folder, info, dtype = split
    check_index(folder / "index.json", info, dtype)
    for size in (1 << 20, 64):  # in one piece, in many
        monkeypatch.setattr(verify, "_READ_BYTES", size)
        for number in range(len(info.chunks)):
            check(folder, info, dtype, number)


def put(path, position, data):
    content = bytearray(path.read_bytes())
    content[position : position + len(data)] = data
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: os.truncate(path, 1000), "has 1,000 bytes, 1,024 were written"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0\0"), "has 1,026 bytes, 1,024 were written"),
        (lambda path: put(path, 0, b"\2"), "is damaged"),
        (lambda path: put(path, 1023, b"\x01"), "is damaged"),
        (lambda path: (path.unlink(), path.mkdir()), "has [0-9,]+ bytes, 1,024 were written"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "has 0 bytes, 1,024 were written"),
    ],
)
def test_a_damaged_chunk_is_named(split, damage, message):
    folder, info, dtype = split
    path = folder / info.chunks[0]["filename"]
    damage(path)
    with pytest.raises(RunError, match=f"{path.name}' {message}.*: restore it, or prepare the shards again"):
        check(folder, info, dtype)


@pytest.mark.parametrize("position", [0, 31, 32, 200, 252])
@pytest.mark.parametrize("value", ["first beyond", "largest", "negative"])
def test_an_id_beyond_the_vocabulary_is_named_though_the_hash_fits(split, monkeypatch, position, value):
    folder, info, dtype = split
    monkeypatch.setattr(verify, "_READ_BYTES", 64)
    number = {
        "first beyond": VOCAB[dtype],
        "largest": np.iinfo(dtype).max,
        "negative": -1 if dtype == "int32" else 65_535,
    }[value]
    path = folder / info.chunks[0]["filename"]
    at = HEADER_BYTES + position * np.dtype(dtype).itemsize
    info.chunks[0]["sha256"] = put(path, at, np.array(number, dtype).tobytes())
    expected = f"holds id {number} at token {position}, but the vocabulary has {VOCAB[dtype]:,} ids"
    with pytest.raises(RunError, match=expected):
        check(folder, info, dtype)


@pytest.mark.parametrize("position", [0, 4, 8])
def test_a_chunk_of_other_items_is_refused_though_the_hash_fits(split, position):
    folder, info, dtype = split
    info.chunks[0]["sha256"] = put(folder / info.chunks[0]["filename"], position, b"\7")
    with pytest.raises(RunError, match="does not begin as a chunk of `tst prepare` does"):
        check(folder, info, dtype)


def in_config(name, value):
    return lambda index: index["config"].update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_config("data_format", ["pickle"]), r"names data_format \"\['pickle'\]\", shards of `tst prepare` have"),
        (in_config("data_format", ["no_header_tensor:0"]), "names data_format"),
        (in_config("data_format", None), "names data_format 'None'"),
        (in_config("data_spec", '[1, {"type": "builtins.dict"}]'), "names data_spec"),
        (in_config("item_loader", "PyTreeLoader"), "names item_loader 'PyTreeLoader'"),
        (in_config("compression", "zstd"), "names compression 'zstd', shards of `tst prepare` have None"),
        (in_config("encryption", {"algorithm": "x", "level": "chunk"}), "names encryption"),
        (in_config("types", "pickle"), "names types 'pickle'"),
        (in_config("chunk_size", 3), "names chunk_size '3'"),
        (in_config("something", "new"), "names something 'new'"),
        (lambda index: index.update(config=[]), "names data_format 'None'"),
        (lambda index: index.pop("config"), "names data_format 'None'"),
        (lambda index: index.pop("chunks"), "is damaged .it lists no chunks"),
        (lambda index: index["chunks"].pop(), "is damaged .it lists [0-9]+ chunks, the manifest [0-9]+"),
        (lambda index: index["chunks"].reverse(), "is damaged .chunk 0 is"),
        (lambda index: index["chunks"][1].update(filename="../x.bin"), "is damaged .chunk 1 is .*../x.bin"),
        (lambda index: index["chunks"][1].update(dim=7), "is damaged .chunk 1 is"),
        (lambda index: index["chunks"][1].update(chunk_bytes=7), "is damaged .chunk 1 is"),
        (lambda index: index["chunks"][1].update(chunk_size=2), "is damaged .chunk 1 is"),
        (lambda index: index.update(updated_at="now"), "is damaged .it is not stamped with the manifest's hash"),
        (lambda index: index.update(shards=[]), "is damaged .it is not stamped with the manifest's hash"),
    ],
)
def test_an_index_that_says_anything_else_is_refused(split, change, message):
    folder, info, dtype = split
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=f"index.json' {message}") as caught:
        check_index(path, info, dtype)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, "\udcff"], ids=lambda content: content[:9])
def test_an_index_that_cannot_be_parsed_is_refused(split, content):
    folder, info, dtype = split
    (folder / "index.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match="index.json' can't be understood"):
        check_index(folder / "index.json", info, dtype)


def test_the_index_of_the_other_dtype_is_refused(split):
    folder, info, dtype = split
    with pytest.raises(ConfigError, match="names data_format"):
        check_index(folder / "index.json", info, {"uint16": "int32", "int32": "uint16"}[dtype])


def test_a_folder_is_checked_to_its_end(shards, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(shards, folder)
    assert verify_folder(folder) == []
    manifest = Manifest.read(folder)
    assert extra_files(manifest) == []
    (folder / "val/notes.txt").touch()
    assert extra_files(manifest) == ["val/notes.txt"]

    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))  # another layout, the same content
    assert verify_folder(folder) == []
    tokenizer["model"]["vocab"]["a"], tokenizer["model"]["vocab"]["b"] = 1, 2
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    put(folder / "train/chunk-0-0.bin", 500, b"\xff\xff\xff")
    (folder / "val/index.json").write_text("{")
    (folder / "val/chunk-0-0.bin").unlink()
    problems = verify_folder(folder)
    for problem, name, what in zip(
        problems,
        ["tokenizer.json", "train/chunk-0-0.bin", "val/index.json", "val/chunk-0-0.bin"],
        ["is not the tokenizer", "is damaged", "can't be understood", "is missing"],
        strict=True,
    ):
        assert problem.startswith(f"'{folder / name}' {what}"), problem
        assert "\n" not in problem
