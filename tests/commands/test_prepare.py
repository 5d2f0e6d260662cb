import os
import subprocess
import sys

import pytest

from tst_lightning.__main__ import main
from tst_lightning.shards.manifest import Manifest


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for i in range(30):
        (tmp_path / f"texts/{i}.txt").write_text(f"text number {i}, and some more of it\n" * 20)
    (tmp_path / "texts/empty.txt").touch()
    (tmp_path / "texts/binary.txt").write_bytes(b"\xff\x00")
    (tmp_path / "rows.jsonl").write_text('{"body": "a row"}\n{"body": "another row"}\n')


ARGUMENTS = ["prepare", "texts", "--out", "out", "--vocab_size", "300", "--val_share", "0.2"]


def test_the_summary_says_what_was_written_then_that_it_is_reused(corpus, capsys):
    assert main(ARGUMENTS) == 0
    out = capsys.readouterr().out
    manifest = Manifest.read("out")
    assert out.startswith("wrote 'out' in ")
    assert "from 32 files (1 empty and 0 duplicate dropped, 1 undecodable skipped)" in out
    assert f"train      {manifest.train.tokens:,} tokens in {manifest.train.documents} documents and 1 chunks" in out
    assert f"{manifest.val.bytes_per_token:.2f} bytes per token" in out
    assert f"{manifest.vocab_size:,} ids, uint16" in out
    assert f"leave out {manifest.train.tokens % 4104:,} of train, {manifest.val.tokens % 4104:,} of val" in out
    assert "next       tst fit" in out

    assert main(ARGUMENTS) == 0
    again = capsys.readouterr().out
    assert again.startswith("reused: 'out'")
    assert again.splitlines()[1:] == out.splitlines()[1:]

    assert main([*ARGUMENTS, "--max_bytes", "9000"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "error: 'out' holds other shards: max_bytes was None, now 9000; "
        "replace them with --overwrite, or choose another --out\n"
    )
    assert main([*ARGUMENTS, "--max_bytes", "9000", "--overwrite"]) == 0
    assert Manifest.read("out").sources["documents"] < manifest.sources["documents"]


def test_several_inputs_of_several_kinds_and_the_interpreters_own_source(corpus, capsys):
    os.rename("rows.jsonl", "rows-1.jsonl")
    arguments = ["prepare", "texts/*.txt", "rows-?.jsonl", "--text_field", "body", "--python_source", "stdlib"]
    arguments += ["--max_bytes", "200000", "--out", "out", "--vocab_size", "300", "--val_share", "0.3"]
    assert main(arguments) == 0, capsys.readouterr().err
    sources = Manifest.read("out").sources
    assert sources["kinds"]["text"] == 33
    assert sources["kinds"]["python"] > 500
    assert sources["documents"] > 32


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--out", "out"], 2, "no input: give files, folders or globs of text, or --python_source stdlib"),
        (["texts"], 2, "out"),
        (["nothing", "--out", "out"], 2, "input 'nothing' matches no file or folder"),
        (["texts", "--out", "out", "--vocab_size", "many"], 2, "many"),
        (["texts", "--out", "out", "--vocab_size", "10"], 2, "--vocab_size 10 is too small"),
        (["texts", "--out", "out", "--vocab", "300"], 2, "--vocab"),
        (["texts", "--out", "out", "--python_source", "all"], 2, "all"),
        (["rows.jsonl", "--out", "out"], 2, "rows.jsonl:1: no field 'text'; there are: 'body'"),
        (["broken.jsonl", "--out", "out"], 1, "broken.jsonl:1: not a line of JSON"),
        (["texts", "--out", "out", "--tokenizer", "texts"], 2, "can't load tokenizer 'texts'"),
        (["texts", "--out", "rows.jsonl/out"], 1, "Not a directory"),
    ],
)
def test_errors_are_one_line_and_leave_no_folder(corpus, capsys, arguments, exit_code, message):
    with open("broken.jsonl", "w") as file:
        file.write("{\n")
    assert main(["prepare", *arguments]) == exit_code
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not os.path.exists("out")
    assert not os.path.exists("out.partial")


def test_refused_arguments_and_help_do_not_wait_for_torch(corpus):
    script = (
        "import sys; from tst_lightning.__main__ import main\n"
        "assert main(['prepare', 'nothing', '--out', 'out']) == 2\n"
        "try: main(['prepare', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'litdata', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]", result
    for word in ("--python_source {none,stdlib,packages}", "held out for validation", "INPUT"):
        assert word in result.stdout


def test_the_real_command(corpus):
    result = subprocess.run([sys.executable, "-m", "tst_lightning", *ARGUMENTS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("wrote 'out'")
    assert "Traceback" not in result.stderr
    Manifest.read("out").verify("train")
