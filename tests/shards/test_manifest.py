import dataclasses
import hashlib
import json

import pytest

from tst_lightning.errors import ConfigError, RunError
from tst_lightning.shards.manifest import MANIFEST_VERSION, Manifest, SplitInfo


@pytest.fixture
def folder(tmp_path):
    splits = {}
    for split, sizes in (("train", (40, 30)), ("val", (20,))):
        (tmp_path / split).mkdir()
        (tmp_path / split / "index.json").write_text("{}")
        chunks, whole = [], b""
        for i, size in enumerate(sizes):
            data = bytes(range(size))
            (tmp_path / split / f"chunk-0-{i}.bin").write_bytes(data)
            sha256 = hashlib.sha256(data).hexdigest()
            chunks.append({"filename": f"chunk-0-{i}.bin", "tokens": size // 2, "size_bytes": size, "sha256": sha256})
            whole += data
        splits[split] = SplitInfo(sum(sizes) // 2, 3, sum(sizes) * 2, chunks, hashlib.sha256(whole).hexdigest())
    (tmp_path / "tokenizer.json").write_text("{}")
    Manifest(
        version=MANIFEST_VERSION,
        tokenizer="byte-level BPE",
        tokenizer_sha256="abc",
        vocab_size=300,
        dtype="uint16",
        end_of_document_id=0,
        sources={"files": 3},
        sources_fingerprint="def",
        options={"val_share": 0.1, "tokenizer": None},
        **splits,
    ).write(tmp_path)
    return tmp_path


def test_read_gives_back_what_was_written(folder):
    manifest = Manifest.read(folder)
    written = (folder / "manifest.json").read_bytes()
    manifest.write(folder)
    assert (folder / "manifest.json").read_bytes() == written
    assert manifest == Manifest.read(str(folder))
    assert manifest.folder == folder
    assert str(folder) not in written.decode()
    assert manifest.options == {"val_share": 0.1, "tokenizer": None}
    assert manifest.train.bytes_per_token == 140 / 35
    assert manifest.train.remainder(8) == 20 % 8 + 15 % 8


def test_the_content_hash_changes_with_tokens_and_tokenizer_only(folder):
    manifest = Manifest.read(folder)
    others = [
        dataclasses.replace(manifest, tokenizer_sha256="abd"),
        dataclasses.replace(manifest, val=dataclasses.replace(manifest.val, sha256="0")),
        dataclasses.replace(manifest, train=dataclasses.replace(manifest.train, sha256="0")),
    ]
    assert len({other.content_sha256 for other in [manifest, *others]}) == 4
    assert dataclasses.replace(manifest, sources_fingerprint="x", options={}).content_sha256 == manifest.content_sha256


def test_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="no shards at '.*nothing': run `tst prepare ... --out .*nothing`"):
        Manifest.read(tmp_path / "nothing")


def test_a_half_written_folder_is_refused(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="is not finished \\(no manifest.json\\): run `tst prepare"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"version": 1}', '{"version": 1, "train": {}, "val": {}}', "\udcff"]
)
def test_a_manifest_that_cannot_be_understood_is_refused(folder, content):
    (folder / "manifest.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match="manifest.json' can't be understood"):
        Manifest.read(folder)


def test_another_version_is_refused(folder):
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | {"version": 99, "new": 1}))
    with pytest.raises(ConfigError, match="has version 99, this program reads version 1"):
        Manifest.read(folder)


def test_a_chunk_of_another_size_is_named(folder):
    (folder / "train/chunk-0-1.bin").write_bytes(b"x")
    with pytest.raises(ConfigError, match="train/chunk-0-1.bin' has 1 bytes, 30 were recorded"):
        Manifest.read(folder)


@pytest.mark.parametrize("name", ["train/chunk-0-0.bin", "val/chunk-0-0.bin", "val/index.json", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"{name}' is missing"):
        Manifest.read(folder)


def test_verify_names_the_damaged_chunk(folder):
    path = folder / "train/chunk-0-1.bin"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    manifest = Manifest.read(folder)  # the size is the same
    manifest.verify("val")
    with pytest.raises(RunError, match="train/chunk-0-1.bin' is damaged"):
        manifest.verify("train")
