import gzip
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tst_lightning.corpus import documents
from tst_lightning.corpus.documents import Counts, read_documents
from tst_lightning.corpus.inputs import find_sources
from tst_lightning.errors import ConfigError, RunError


def read(path, field="text", counts=None):
    counts = counts or Counts()
    return ["".join(document.text()) for document in read_documents(find_sources([str(path)]), field, counts)]


def json_line(**row):
    return json.dumps(row).encode() + b"\n"


def test_plain_text_is_one_document_a_file_to_the_last_byte(tmp_path):
    text = "one\r\ntwo\n\n\tthrée ☃ \U0001f40d  "
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.md").write_bytes(b"\xef\xbb\xbf" + text.encode())  # a byte-order mark is no text
    counts = Counts()
    assert read(tmp_path, counts=counts) == [text, text]
    assert counts == Counts(files=2, documents=2, bytes=2 * len(text.encode()))


def test_python_files_are_decoded_by_their_coding_line(tmp_path):
    (tmp_path / "latin.py").write_bytes("# coding: latin-1\nname = 'é'\n".encode("latin-1"))
    (tmp_path / "unknown.py").write_bytes(b"# coding: no-such-coding\n")
    counts = Counts()
    assert read(tmp_path, counts=counts) == ["# coding: latin-1\nname = 'é'\n"]
    assert counts.skipped_undecodable == 1


def test_blank_and_undecodable_documents_are_counted_not_kept(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(b" \n\t\n")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe broken")
    (tmp_path / "d.txt").write_bytes(b"kept")
    (tmp_path / "e.jsonl").write_bytes(b'{"text": "half a \\ud83d"}\n{"text": null}\n\n{"text": "kept too"}\n')
    counts = Counts()
    assert read(tmp_path, counts=counts) == ["kept", "kept too"]
    assert counts == Counts(files=5, documents=2, bytes=12, skipped_undecodable=2, dropped_empty=3)


ROWS = [f"row {i} ☃\n" * 3 for i in range(1000)]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_rows_are_read_in_order(tmp_path, suffix):
    path = tmp_path / f"corpus{suffix}"
    lines = [json_line(id=i, body=row) for i, row in enumerate(ROWS)]
    halves = b"".join(lines[:400]), b"".join(lines[400:])
    if suffix == ".parquet":
        pq.write_table(pa.table({"id": list(range(1000)), "body": ROWS}), path, row_group_size=300)
    elif suffix == ".jsonl.gz":  # two members, as concatenated files have
        path.write_bytes(b"".join(map(gzip.compress, halves)))
    elif suffix == ".jsonl.zst":
        path.write_bytes(b"".join(map(zstandard.compress, halves)))
    else:
        path.write_bytes(b"".join(halves))
    assert read(path, "body") == ROWS


def test_the_digest_is_of_the_text_alone(tmp_path):
    (tmp_path / "a.txt").write_text("same text")
    (tmp_path / "b.jsonl").write_bytes(json_line(text="same text") + json_line(text="other text"))
    a, b, other = read_documents(find_sources([str(tmp_path)]), "text", Counts())
    assert (a.digest, a.size) == (b.digest, b.size) == (b.digest, 9)
    assert other.digest != a.digest


@pytest.mark.parametrize("text", ["word\n" * 100, "x" * 333, "ab\n" + "☃" * 70 + "\n"])
def test_long_documents_come_in_bounded_pieces(tmp_path, monkeypatch, text):
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 16)
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.jsonl").write_bytes(json_line(text=text))
    for document in read_documents(find_sources([str(tmp_path)]), "text", Counts()):
        pieces = list(document.text())
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= 32
    assert document.size == len(text.encode())


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (
            json_line(text="a") + json_line(body="b", id=1),
            ConfigError,
            "x.jsonl:2: no field 'text'; there are: 'body', 'id'",
        ),
        (b"[" * 100_000 + b"\n", RunError, "x.jsonl:1: not a line of JSON (maximum recursion depth exceeded"),
        (json_line(text="a") + b"{broken\n", RunError, "x.jsonl:2: not a line of JSON"),
        (json_line(text="a") + b'{"text": "\xff"}\n', RunError, "x.jsonl:2: not a line of JSON"),
        (b'\n["a"]\n', RunError, "x.jsonl:2: holds list, not a JSON object"),
        (json_line(text=3), ConfigError, "x.jsonl:1: field 'text' holds int '3', not text"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, error, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        read(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_parquet_column_is_named_with_those_there(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"id": [1], "body": ["b"]}), path)
    with pytest.raises(ConfigError, match="x.parquet: no column 'text'; there are: 'id', 'body'; .*--text_field"):
        read(path)
    with pytest.raises(ConfigError, match="row 1: field 'id' holds int '1', not text"):
        read(path, "id")


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("damage", ["truncated", "other"])
def test_a_damaged_compressed_file_is_an_error_not_its_end(tmp_path, suffix, damage):
    compress = gzip.compress if suffix == ".jsonl.gz" else zstandard.compress
    data = compress(b"".join(json_line(text=os.urandom(50).hex()) for _ in range(1000)))
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"no such format " * 20)
    with pytest.raises(RunError, match=f"can't read '.*x{suffix}'"):
        read(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    content = json_line(text="a") + b'{"text": "' + b"a" * (1 << 28)
    compress = {".jsonl": bytes, ".jsonl.gz": partial(gzip.compress, compresslevel=1), ".jsonl.zst": zstandard.compress}
    path.write_bytes(compress[suffix](content))
    script = (
        "import re, sys; from tst_lightning.corpus import documents, inputs\n"
        "import pyarrow\n"
        "def peak(): return int(re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1]) << 10\n"
        "documents.LONGEST_LINE, before = 1 << 24, peak()\n"
        "sources = inputs.find_sources([sys.argv[1]])\n"
        "try: print(sum(1 for _ in documents.read_documents(sources, 'text', documents.Counts())))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print(peak() - before)"
    )
    result = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    message, memory = result.stdout.splitlines()
    assert message == (
        f"RunError {path}:2: the line is longer than 16,777,216 bytes, the most for one document of JSON;"
        " cut it, or leave the file out of the inputs"
    )
    assert int(memory) < 1 << 27


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"no such format " * 20)
    with pytest.raises(RunError, match="can't read '.*x.parquet'"):
        read(path)


def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text("secret")
    path.chmod(0)
    parents = [parent for parent in [tmp_path, *tmp_path.parents] if not parent.stat().st_mode & 0o001]
    if os.geteuid() == 0:  # the permission does not bind the superuser: become nobody for the read
        for parent in parents:
            parent.chmod(0o711)
        os.seteuid(65534)
    try:
        with pytest.raises(RunError, match="can't read '.*secret.txt': Permission denied; make it readable"):
            read(path)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
            for parent in parents:
                parent.chmod(0o700)


def test_a_new_format_is_one_function(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "FORMATS", dict(documents.FORMATS))

    @documents.reads(".shout")
    def shouted(path: Path, text_field: str):
        for line in path.read_text().splitlines():
            yield lambda line=line: iter([line.upper()])

    (tmp_path / "x.shout").write_text("one\ntwo\n")
    assert read(tmp_path) == ["ONE", "TWO"]
