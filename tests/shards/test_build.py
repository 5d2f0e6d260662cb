import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from litdata import StreamingDataset
from litdata.streaming.item_loader import TokensLoader
from transformers import AutoTokenizer

from tests.processes import Command
from tst_lightning.corpus import python_source
from tst_lightning.errors import ConfigError, RunError
from tst_lightning.shards import build as build_module
from tst_lightning.shards import whole_folder
from tst_lightning.shards.build import build, split_of
from tst_lightning.shards.manifest import MANIFEST_VERSION, Manifest
from tst_lightning.shards.verify import verify_folder

OPTIONS = {"vocab_size": 300, "val_share": 0.2, "chunk_bytes": 4096}


@pytest.fixture(scope="module")
def texts():
    return [
        f"Document {i} speaks of <|endoftext|> and of {'cats and dogs ☃ ' * (i % 7)}\n" * (1 + i) for i in range(60)
    ]


@pytest.fixture
def corpus(tmp_path, texts):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i:02}.txt").write_text(text)
    return str(folder)


def tokens(folder, split):
    dataset = StreamingDataset(
        str(folder / split), item_loader=TokensLoader(block_size=1), shuffle=False, drop_last=False
    )
    return torch.cat([dataset[i] for i in range(len(dataset))]).long().numpy()


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_documents_come_back_from_the_shards(corpus, texts, tmp_path):
    out = tmp_path / "out"
    manifest, reused = build([corpus], str(out), **OPTIONS)
    assert not reused
    tokenizer = AutoTokenizer.from_pretrained(out)
    found = {}
    for split in ("train", "val"):
        info = getattr(manifest, split)
        ids = tokens(out, split)
        ends = np.flatnonzero(ids == manifest.end_of_document_id)
        documents = [
            tokenizer.decode(part[part != manifest.end_of_document_id]) for part in np.split(ids, ends[:-1] + 1)
        ]
        found[split] = documents
        assert ids[-1] == manifest.end_of_document_id
        assert len(documents) == info.documents > 0
        assert len(ids) == info.tokens
        assert sum(len(text.encode()) for text in documents) == info.bytes
        manifest.verify(split)
    assert sorted(found["train"] + found["val"]) == sorted(texts)
    assert found["train"] == [text for text in texts if text in found["train"]]  # in the order of the files
    assert len(manifest.train.chunks) > 2
    assert (manifest.version, manifest.vocab_size, manifest.dtype) == (MANIFEST_VERSION, 300, "uint16")
    assert manifest.sources["files"] == manifest.sources["documents"] == 60


def test_long_documents_are_ended_once(tmp_path, monkeypatch):
    monkeypatch.setattr("tst_lightning.corpus.documents.PIECE_CHARACTERS", 64)
    monkeypatch.setattr(build_module, "BATCH_CHARACTERS", 200)
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = [f"line {i} of a long document\n" * 100 for i in range(9)]
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text)
    manifest, _ = build([str(folder)], str(tmp_path / "out"), vocab_size=300, val_share=0.4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    decoded = "".join(tokenizer.decode(tokens(tmp_path / "out", split)) for split in ("train", "val"))
    assert sorted(decoded.split("<|endoftext|>")) == sorted(["", *texts])


def test_the_same_input_gives_the_same_bytes_on_any_number_of_cores(corpus, tmp_path):
    build([corpus], str(tmp_path / "one"), **OPTIONS)
    script = (
        f"from tst_lightning.shards.build import build; build([{corpus!r}], {str(tmp_path / 'two')!r}, **{OPTIONS})"
    )
    environment = os.environ | {"RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=tmp_path)
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert {"manifest.json", "train/index.json", "val/chunk-0-0.bin", "tokenizer.json"} <= set(one)
    assert one == two
    assert not [name for name, content in one.items() if str(tmp_path).encode() in content]


@given(
    documents=st.lists(st.binary(min_size=16, max_size=16)),
    more=st.lists(st.binary(min_size=16, max_size=16)),
    share=st.floats(0.001, 0.999),
)
def test_adding_documents_moves_none(documents, more, share):
    before = {digest: split_of(digest, share) for digest in documents}
    after = {digest: split_of(digest, share) for digest in more + documents}
    assert before.items() <= after.items()


def test_the_validation_share_is_met_and_grows_by_addition_only():
    digests = [os.urandom(16) for _ in range(20_000)]
    held = {share: {digest for digest in digests if split_of(digest, share) == "val"} for share in (0.1, 0.2)}
    assert 0.08 < len(held[0.1]) / len(digests) < 0.12
    assert held[0.1] < held[0.2]


def test_adding_files_moves_no_document_to_the_other_split(corpus, texts, tmp_path):
    build([corpus], str(tmp_path / "before"), **OPTIONS)
    tokenizer = str(tmp_path / "before")
    (tmp_path / "corpus/0 comes first.txt").write_text("something new " * 50)
    build([corpus], str(tmp_path / "after"), tokenizer=tokenizer, **OPTIONS)
    decode = AutoTokenizer.from_pretrained(tokenizer).decode
    before, after = (
        set(decode(tokens(tmp_path / name, "val")).split("\n<|endoftext|>")) for name in ("before", "after")
    )
    assert len(before) > 2
    assert before <= after


def test_max_bytes_ends_after_the_document_that_reaches_it(corpus, texts, tmp_path):
    sizes = np.cumsum([len(text.encode()) for text in texts])
    for limit, expected in ((int(sizes[39]), 40), (int(sizes[39]) + 1, 41)):
        manifest, _ = build([corpus], str(tmp_path / str(limit)), max_bytes=limit, **OPTIONS)
        assert manifest.sources["documents"] == expected
        assert manifest.train.bytes + manifest.val.bytes == manifest.sources["bytes"] == sizes[expected - 1]


def test_finished_shards_are_reused_and_other_ones_refused(corpus, tmp_path):
    out = tmp_path / "out"
    first, _ = build([corpus], str(out), **OPTIONS)
    before = files(out)
    again, reused = build([corpus], str(out), **OPTIONS)
    assert reused
    assert again == first
    with pytest.raises(ConfigError, match="val_share was 0.2, now 0.3; replace them with --overwrite"):
        build([corpus], str(out), **OPTIONS | {"val_share": 0.3})
    os.utime(tmp_path / "corpus/07.txt", ns=(1, 1))
    with pytest.raises(ConfigError, match="holds other shards: the input files are others"):
        build([corpus], str(out), **OPTIONS)
    assert files(out) == before
    replaced, reused = build([corpus], str(out), overwrite=True, **OPTIONS | {"vocab_size": 290})
    assert not reused
    assert Manifest.read(out).vocab_size == replaced.vocab_size == 290
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "out"]


def test_the_embedded_corpus_is_known_by_its_content_alone(texts, tmp_path, monkeypatch):
    def install(name, texts):
        folder = tmp_path / name
        (folder / "package").mkdir(parents=True)
        for i, text in enumerate(texts):
            (folder / f"package/{i:02}.py").write_text(text)
        where = {"stdlib": "none", "platstdlib": "none", "purelib": str(folder), "platlib": str(folder)}
        monkeypatch.setattr(python_source, "sysconfig", SimpleNamespace(get_path=where.get))
        return folder

    def prepare():
        return build([], str(tmp_path / "out"), python_source="packages", **OPTIONS)[1]

    here = install("here", texts)
    assert not prepare()
    os.utime(here / "package/07.py", ns=(1, 1))
    assert prepare()
    there = install("there", texts[::-1])
    for name in ("__editable___tst_lightning_0_1_0_finder.py", "package/__init__.py"):
        (there / name).write_text(f"MAPPING = '{there}'" if name.startswith("__editable__") else "")
    (there / "package/copy.py").write_text(texts[0])
    assert prepare()
    (there / "package/07.py").write_text(texts[7].upper())
    with pytest.raises(ConfigError) as caught:
        prepare()
    assert str(caught.value) == (
        f"'{tmp_path / 'out'}' holds other shards: the embedded corpus' files changed (other installed packages, or another"
        " Python); replace them with --overwrite, or choose another --out"
    )


def test_a_changed_tokenizer_is_noticed(corpus, tmp_path):
    build([corpus], str(tmp_path / "first"), **OPTIONS)
    name = str(tmp_path / "first")
    manifest, _ = build([corpus], str(tmp_path / "second"), tokenizer=name, **OPTIONS)
    assert manifest.tokenizer == name
    assert build([corpus], str(tmp_path / "second"), tokenizer=name, **OPTIONS)[1]
    build([corpus], name, overwrite=True, **OPTIONS | {"vocab_size": 290})
    with pytest.raises(ConfigError, match="tokenizer '.*first' has changed"):
        build([corpus], str(tmp_path / "second"), tokenizer=name, **OPTIONS)


def test_another_vocabulary_than_the_given_tokenizers_is_refused(corpus, tmp_path):
    name, out = str(tmp_path / "first"), tmp_path / "second"
    build([corpus], name, **OPTIONS)
    options = OPTIONS | {"tokenizer": name, "vocab_size": 320}
    message = (
        "--vocab_size 320 is for a tokenizer to train, but tokenizer '.*first' has 300 ids; leave one of the two out"
    )
    with pytest.raises(ConfigError, match=message):
        build([corpus], str(out), **options)
    assert not out.exists()
    build([corpus], str(out), **options | {"vocab_size": None})
    with pytest.raises(ConfigError, match=message):  # shards that are there already are no excuse
        build([corpus], str(out), **options)


def test_two_at_once_do_not_meet(corpus, tmp_path):
    """Many starts of two commands into one folder: each ends with a reason or with its own shards, whole."""
    (tmp_path / "corpus/more.txt").write_text("".join(f"{i * 7919 % 100_003} " for i in range(30_000)))
    words = ["prepare", corpus, "--out", str(tmp_path / "out"), "--overwrite", "--val_share", "0.2", "--vocab_size"]
    seen = set()
    for delay in (0, 0.2, 0.5):
        processes = []
        for vocab_size in ("300", "310"):
            processes.append(Command(*words, vocab_size))
            time.sleep(delay)
        errors = [process.communicate()[1].strip().splitlines()[-1] for process in processes]
        codes = [process.returncode for process in processes]
        seen.add(tuple(sorted(codes)))
        for code, error in zip(codes, errors, strict=True):
            assert code == 0 or error == (
                f"error: another process is writing '{tmp_path}/out' at this moment: wait for it, or choose another --out"
            )
        assert 0 in codes
        assert verify_folder(tmp_path / "out") == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "out"]
    assert (0, 1) in seen, "they never met"


def test_links_in_place_of_leftovers_are_not_followed(corpus, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "precious.txt").write_text("precious")
    build([corpus], str(tmp_path / "out"), **OPTIONS)
    for name in ("out.partial", "out.replaced"):
        (tmp_path / name).symlink_to(kept)
    build([corpus], str(tmp_path / "out"), overwrite=True, **OPTIONS)
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/train").symlink_to(kept)
    build([corpus], str(tmp_path / "out"), overwrite=True, **OPTIONS)
    assert (kept / "precious.txt").read_text() == "precious"
    assert verify_folder(tmp_path / "out") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "kept", "out"]


def test_a_shard_lost_from_finished_shards_is_noticed_and_mended(corpus, tmp_path):
    out = tmp_path / "out"
    build([corpus], str(out), **OPTIONS)
    (out / "train/chunk-0-1.bin").unlink()
    with pytest.raises(ConfigError, match="train/chunk-0-1.bin' is missing: .*--overwrite"):
        build([corpus], str(out), **OPTIONS)
    build([corpus], str(out), overwrite=True, **OPTIONS)
    Manifest.read(out).verify("train")


def test_a_folder_of_something_else_is_left_alone(corpus, tmp_path):
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds something that is no finished shards"):
            build([corpus], corpus, overwrite=overwrite, **OPTIONS)
    with pytest.raises(ConfigError, match="is a file; choose a folder"):
        build([corpus], corpus + "/00.txt", **OPTIONS)
    assert len(os.listdir(corpus)) == 60


@pytest.mark.parametrize(
    ("contents", "options", "message"),
    [
        (["", " "], {}, "no document left of 2 files: 2 empty, 0 undecodable"),
        (
            ["a"],
            {"val_share": 0.0001},
            "none of 1 documents fell into the val split at --val_share 0.0001: raise --val_share",
        ),
        (["a"], {"val_share": 0.9999}, "none of 1 documents fell into the train split at --val_share 0.9999: lower"),
        (["a"], {"val_share": 1.0}, "--val_share 1.0 must lie above 0 and below 1"),
        (["a"], {"vocab_size": 100}, "--vocab_size 100 is too small"),
        (["a"], {"chunk_bytes": 10}, "--chunk_bytes 10 must be at least 1024"),
        (["a"], {"max_bytes": 0}, "--max_bytes 0 must be at least 1"),
    ],
)
def test_what_cannot_be_built_is_refused_and_leaves_nothing(tmp_path, contents, options, message):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i, content in enumerate(contents):
        (folder / f"{i}.txt").write_text(content)
    with pytest.raises(ConfigError, match=message):
        build([str(folder)], str(tmp_path / "out"), **options)
    assert os.listdir(tmp_path) == ["corpus"]


def test_a_kill_leaves_nothing_that_looks_finished(corpus, tmp_path):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    words = ["prepare", "--python_source", "stdlib", "--out", str(out), "--vocab_size", "300"]
    process = Command(*words, "--tokenizer_train_bytes", "100000", "--chunk_bytes", "100000")
    deadline = time.monotonic() + 120
    while not list(partial.glob("train/*.bin")):  # in the middle of writing shards
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert not (partial / "manifest.json").exists()
    for folder in (out, partial):
        with pytest.raises(ConfigError, match="run `tst prepare"):
            Manifest.read(folder)
    build([corpus], str(out), **OPTIONS)
    Manifest.read(out).verify("train")
    assert not partial.exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(corpus, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=128k tmpfs {disk}"
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*namespace, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
    (tmp_path / "corpus/big.txt").write_text("".join(f"{i * 7919 % 100_003} " for i in range(100_000)))
    script = f"{mount} && {sys.executable} -m tst_lightning prepare {corpus} --out {disk}/out --vocab_size 300 "
    script += f"--val_share 0.2 --chunk_bytes 4096; echo exit $?; ls -A {disk}"
    result = subprocess.run([*namespace, script], capture_output=True, text=True)
    assert result.stdout == "exit 1\n", result
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith(f"error: No space left on device at '{disk}/out"), result.stderr
    assert "free some space" in error
    assert "Traceback" not in result.stderr


def test_a_disk_error_at_any_write_is_a_run_error(corpus, tmp_path, monkeypatch):
    def refuse(path):
        raise OSError(122, "Disk quota exceeded", str(path))

    monkeypatch.setattr(whole_folder, "_fsync", refuse)  # the last moment: everything is written
    with pytest.raises(RunError, match="Disk quota exceeded at '.*out.partial/.*'; free some space"):
        build([corpus], str(tmp_path / "out"), **OPTIONS)
    assert os.listdir(tmp_path) == ["corpus"]
