import dataclasses
import hashlib
import json

import numpy as np
import pytest

from tst_lightning.errors import ConfigError
from tst_lightning.shards.manifest import MANIFEST_VERSION, Manifest, SplitInfo


@pytest.fixture
def folder(tmp_path):
    splits = {}
    for split, sizes in (("train", (40, 30)), ("val", (20,))):
        (tmp_path / split).mkdir()
        (tmp_path / split / "index.json").write_text("{}")
        chunks, whole = [], b""
        for i, size in enumerate(sizes):
            data = np.array([1, 12, size], "<u4").tobytes() + bytes([1, 0] * ((size - 12) // 2))
            (tmp_path / split / f"chunk-0-{i}.bin").write_bytes(data)
            sha256 = hashlib.sha256(data).hexdigest()
            chunks.append(
                {"filename": f"chunk-0-{i}.bin", "tokens": (size - 12) // 2, "size_bytes": size, "sha256": sha256}
            )
            whole += data
        splits[split] = SplitInfo(
            sum(chunk["tokens"] for chunk in chunks), 3, sum(sizes) * 2, chunks, hashlib.sha256(whole).hexdigest()
        )
    (tmp_path / "tokenizer.json").write_text("{}")
    Manifest(
        version=MANIFEST_VERSION,
        tokenizer="byte-level BPE",
        tokenizer_sha256="ab" * 32,
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
    assert manifest.train.bytes_per_token == 140 / 23
    assert manifest.train.remainder(8) == 14 % 8 + 9 % 8


def test_the_content_hash_changes_with_tokens_and_tokenizer_only(folder):
    manifest = Manifest.read(folder)
    others = [
        dataclasses.replace(manifest, tokenizer_sha256="cd" * 32),
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
    "content",
    [
        *("", "{", "[]", "3", '{"version": 2}', '{"version": 2, "train": {}, "val": {}}', "\udcff"),
        *("[" * 100_000, '{"version": ' + "[" * 400 + "]" * 400 + "}", '{"version": ' + "1" * 5000 + "}"),
    ],
    ids=lambda content: content[:20],
)
def test_a_manifest_that_cannot_be_understood_is_refused(folder, content):
    (folder / "manifest.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match="manifest.json' can't be understood"):
        Manifest.read(folder)


def test_another_version_is_refused(folder):
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | {"version": 99, "new": 1}))
    with pytest.raises(ConfigError, match="has version 99, this program reads version 2"):
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


def rewrite(folder, change):
    """Changes a manifest as somebody would who knows its hashes."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    content.pop("content_sha256"), content.pop("manifest_sha256")
    path.write_text(json.dumps(content))


def sets(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(content):
        for key in keys:
            content = content[key]
        content[last] = value

    return change


CHUNK = ("train", "chunks", 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (sets("new", 1), "has the unknown key 'new'"),
        (sets("train", "new", 1), "has the unknown key 'train.new'"),
        (lambda content: content["train"]["chunks"][0].pop("sha256"), r"lacks 'train.chunks\[0\].sha256'"),
        (sets("tokenizer", 3), "tokenizer is 3, not text"),
        (sets("options", []), r"options is \[\], not an object"),
        (sets("sources", "documents", "many"), "sources.documents is 'many', not a whole number"),
        (sets("tokenizer_sha256", "ab"), "tokenizer_sha256 is 'ab', not a SHA-256"),
        (sets("dtype", "object"), "dtype is 'object', not one of uint16, int32"),
        (sets("dtype", ["uint16"]), "dtype is .*, not one of"),
        (sets("vocab_size", True), "vocab_size is True, not a whole number"),
        (sets("vocab_size", 1e99), "vocab_size is 1e\\+99, not a whole number"),
        (sets("end_of_document_id", 300), "end_of_document_id is 300, not below vocab_size 300"),
        (sets("end_of_document_id", -1), "end_of_document_id is -1, not a whole number from 0"),
        (sets("train", None), "train is None, not an object"),
        (sets("train", "chunks", {}), "train.chunks is {}, not a list"),
        (sets("train", "chunks", ["a"]), r"train.chunks\[0\] is 'a', not an object"),
        (sets(*CHUNK, "filename", "../val/chunk-0-0.bin"), "filename is '../val/chunk-0-0.bin', not a name such as"),
        (sets(*CHUNK, "filename", "/etc/passwd"), "filename is '/etc/passwd', not a name such as"),
        (sets(*CHUNK, "filename", ".."), "filename is '..', not a name such as"),
        (sets(*CHUNK, "filename", "chunk-0-0.bin\n"), "filename is 'chunk-0-0.bin\\\\n', not a name such as"),
        (sets(*CHUNK, "filename", "chunk-0-1.bin"), r"chunks\[1\].filename is 'chunk-0-1.bin', not a name .* once"),
        (sets(*CHUNK, "filename", ["a"]), "filename is .*, not a name such as"),
        (sets(*CHUNK, "tokens", 0), "tokens is 0, not a whole number from 1"),
        (sets(*CHUNK, "tokens", 13), "size_bytes is 40, not 38, by its tokens"),
        (sets(*CHUNK, "size_bytes", -40), "size_bytes is -40, not 40"),
        (sets(*CHUNK, "sha256", None), "sha256 is None, not a SHA-256"),
        (sets("dtype", "int32"), "size_bytes is 40, not 68, by its tokens"),
        (sets("train", "tokens", 24), "train.tokens is 24, not 23, the sum of its chunks"),
    ],
)
def test_what_a_manifest_may_not_say(folder, change, reason):
    rewrite(folder, change)
    with pytest.raises(ConfigError, match=f"manifest.json' can't be understood .*{reason}") as caught:
        Manifest.read(folder)
    assert "\n" not in str(caught.value)


def test_any_changed_value_shows_in_the_manifests_own_hash(folder):
    path = folder / "manifest.json"
    text = path.read_text()
    for before, after in (('"bytes": 140', '"bytes": 141'), ('"documents": 3', '"documents": 4'), ("0.1", "0.2")):
        assert before in text
        path.write_text(text.replace(before, after, 1))
        with pytest.raises(ConfigError, match="its hash is another one"):
            Manifest.read(folder)


def test_a_manifest_without_hashes_is_of_before_and_read(folder):
    manifest = Manifest.read(folder)
    rewrite(folder, lambda content: None)
    assert Manifest.read(folder) == manifest


def test_chunks_that_lie_elsewhere_are_not_looked_for(folder):
    (folder / "train/chunk-0-0.bin").unlink()
    assert Manifest.read(folder, check_chunks=False).train.tokens == 23
    (folder / "train/index.json").unlink()
    with pytest.raises(ConfigError, match="train/index.json' is missing"):
        Manifest.read(folder, check_chunks=False)
