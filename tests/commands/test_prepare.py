import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
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
    assert "from 32 files (1 empty dropped, 1 undecodable skipped)" in out
    assert f"train      {manifest.train.tokens:,} tokens in {manifest.train.documents} documents and 1 chunks" in out
    assert f"{manifest.val.bytes_per_token:.2f} bytes per token" in out
    assert f"{manifest.vocab_size:,} ids, uint16" in out
    train, val = manifest.train.tokens % 4104, manifest.val.tokens % 513
    assert (
        f"bags of 8, 512 positions: of train {train:,} tokens ({train / manifest.train.tokens:.2%}) in blocks of 4,104,"
        f" of val {val:,} tokens ({val / manifest.val.tokens:.2%}) in rows of 513\n"
    ) in out

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


def test_the_next_command_can_be_given_as_it_stands(corpus, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tst"])
    (Path.cwd() / "texts/long.txt").write_text("".join(f"{i * 7919 % 100_003} " for i in range(10_000)))
    out = "my shards"
    assert main(["prepare", "texts", "--out", out, "--vocab_size", "300", "--val_share", "0.4"]) == 0
    (configs := Path("configs/quickstart")).mkdir(parents=True)
    (configs / "tst.yaml").write_bytes((ROOT / "configs/quickstart/tst.yaml").read_bytes())
    quick = ["--model.lr_schedule.warmup_steps", "2"]
    for run_dir in ("runs/my shards", "runs/my shards-2"):
        assert main(["prepare", "texts", "--out", out, "--vocab_size", "300", "--val_share", "0.4"]) == 0
        words = shlex.split(capsys.readouterr().out.splitlines()[-1])
        assert words[:3] == ["next", "tst", "fit"]
        assert main([*words[2:], "--trainer.max_steps", "10", "--trainer.val_check_interval", "10", *quick]) == 0
        assert Path(run_dir, "run.json").exists()


def test_links_out_of_the_inputs_are_named_and_counted(corpus, capsys):
    os.mkdir("secret")
    Path("secret/key.txt").write_text("secret")
    for i in range(7):
        os.symlink("../secret/key.txt", f"texts/link{i}.txt")
    os.symlink("../secret", "texts/folder")
    assert main(ARGUMENTS) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(
        "not followed: 8 links that lead out of the inputs or nowhere ('texts/folder', 'texts/link0.txt',"
    )
    assert "1 undecodable skipped, 8 links not followed)" in captured.out
    assert Manifest.read("out").sources["files"] == 32
    assert Manifest.read("out").sources["skipped_links"] == 8


@pytest.fixture
def prepared(corpus, capsys):
    assert main([*ARGUMENTS, "--chunk_bytes", "4096"]) == 0
    capsys.readouterr()
    return Path("out")


def test_whole_shards_are_verified(prepared, capsys):
    assert main(["prepare", "--verify", "out"]) == 0
    lines = capsys.readouterr().out.splitlines()
    manifest = Manifest.read("out")
    chunks = len(manifest.train.chunks) + len(manifest.val.chunks)
    assert f"of {chunks} chunks of {manifest.train.tokens + manifest.val.tokens:,} tokens" in lines[0]
    assert lines[1:] == ["ok"]
    (prepared / "val/.DS_Store").touch()
    assert main(["prepare", "--verify", "out"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "note       no part of the shards, and not read: 'val/.DS_Store'",
        "ok",
    ]


def test_every_damage_is_listed(prepared, capsys):
    (prepared / "train/chunk-0-1.bin").unlink()
    (prepared / "val/index.json").write_text("{}")
    with open(prepared / "train/chunk-0-0.bin", "r+b") as file:
        file.truncate(100)
    assert main(["prepare", "--verify", "out"]) == 1
    captured = capsys.readouterr()
    damaged = [line for line in captured.out.splitlines() if line.startswith("damaged    ")]
    assert [line.split("'")[1] for line in damaged] == [
        "out/train/chunk-0-0.bin",
        "out/train/chunk-0-1.bin",
        "out/val/index.json",
    ]
    assert "ok" not in captured.out.splitlines()
    assert captured.err == (
        "error: 3 of the files of 'out' found not as they were written, listed above; restore them, or prepare the shards"
        " again: `tst prepare ... --out out --overwrite`\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verify", "nothing"], "error: no shards at 'nothing': run `tst prepare ... --out nothing`"),
        (["--verify", "texts"], "error: 'texts' is not finished (no manifest.json): run"),
        (["--verify", "out", "texts"], "error: --verify out takes nothing else, but got inputs; give it alone"),
        (["--verify", "out", "--out", "x", "--overwrite"], "takes nothing else, but got out, overwrite; give it alone"),
        (["--verify"], "--verify"),
    ],
)
def test_what_cannot_be_verified_is_refused(prepared, capsys, arguments, message):
    assert main(["prepare", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_mutual_information_of_new_shards_and_of_finished_ones(corpus, capsys):
    measuring = [*ARGUMENTS, "--mutual_information", "--largest_distance", "8"]
    assert main(measuring) == 0
    out = capsys.readouterr().out
    assert out.startswith("wrote 'out' in ")
    written = Path("out/mutual_information.json").read_bytes()
    found = json.loads(written)
    manifest = Manifest.read("out")
    assert (found["train_sha256"], found["tokens_read"]) == (manifest.train.sha256, manifest.train.tokens)
    assert [estimate["distance"] for estimate in found["estimates"]] == list(range(1, 9))
    assert Path("out/mutual_information.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in Path("out").iterdir()} == {
        *("manifest.json", "tokenizer.json", "tokenizer_config.json", "train", "val"),
        *("mutual_information.json", "mutual_information.png"),
    }
    rows = [line.split() for line in out.splitlines() if re.match(r" +\d+ +[\d,]+ ", line)]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "6", "8"]
    assert rows[0][1:5] == [
        f"{value:,}" if name == "pairs" else f"{value:.4f}" for name, value in list(found["estimates"][0].items())[1:]
    ]

    modified = Path("out/train/chunk-0-0.bin").stat().st_mtime_ns
    Path("out/mutual_information.json").unlink()
    assert main([*measuring[:-3], "--mutual-information", "--largest_distance", "8"]) == 0
    again = capsys.readouterr().out
    assert again.startswith("reused: 'out'")
    assert again.splitlines()[1:-1] == out.splitlines()[1:-1]
    assert Path("out/mutual_information.json").read_bytes() == written
    assert Path("out/train/chunk-0-0.bin").stat().st_mtime_ns == modified, "nothing was tokenised again"

    Path("out/mutual_information.json").unlink()
    assert main(["prepare", "--mutual_information", "--out", "out", "--largest_distance", "8"]) == 0
    alone = capsys.readouterr().out.splitlines()
    assert alone[:-1] == again.splitlines()[-len(alone) : -1] and alone[-1].startswith("measured in ")
    assert Path("out/mutual_information.json").read_bytes() == written
    assert main(["prepare", "--mutual_information", "--out", "out", "--vocab_size", "300"]) == 2
    assert "no input: give files" in capsys.readouterr().err
    assert main(["prepare", "--mutual_information", "--out", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: no shards at 'nothing': run `tst prepare ... --out nothing`")

    assert main(["prepare", "--verify", "out"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["ok"]
    assert main(ARGUMENTS) == 0
    assert capsys.readouterr().out.startswith("reused: 'out'")


def test_the_yaml_of_the_mutual_information_weights_a_run(corpus, capsys):
    assert main([*ARGUMENTS, "--mutual_information", "--largest_distance", "8", "--most_pairs", "1000"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("yaml ")]
    weighting = yaml.safe_load(lines[0].removeprefix("yaml"))
    law = json.loads(Path("out/mutual_information.json").read_text())["weighting"]
    assert weighting == {"weighting": {name: pytest.approx(value, rel=1e-3) for name, value in law.items()}}
    bags = {"class_path": "tst_lightning.phases.SuperpositionPhase", "init_args": {"bag_size": 4, **weighting}}
    Path("mine.yaml").write_text(yaml.safe_dump({"model": {"phases": {"superposition": bags}}}))
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(ROOT / "configs/quickstart/tst.yaml"), "--config", "mine.yaml", "--print_config"])
    phases = yaml.safe_load(capsys.readouterr().out)["model"]["phases"]
    assert phases["superposition"]["init_args"]["weighting"] == weighting["weighting"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--largest_distance", "8"], "--largest_distance goes with --mutual_information; add that, or leave it out"),
        (["--most_pairs", "8"], "--most_pairs goes with --mutual_information; add that, or leave it out"),
        (["--mutual_information", "--largest_distance", "2"], "--largest_distance 2 must be at least 4"),
        (["--mutual_information", "--most_pairs", "0"], "--most_pairs 0 must be at least 1"),
        (["--mutual_information", "--largest_distance", "4000"], "no document has two tokens 4000 apart among the"),
        (
            ["--mutual_information", "--verify", "out"],
            "takes nothing else, but got inputs, out, vocab_size, val_share, chunk_bytes, mutual_information; give",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(prepared, capsys, arguments, message):
    assert main([*ARGUMENTS, "--chunk_bytes", "4096", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not Path("out/mutual_information.json").exists()


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
        (["texts", "--out", "out", "--vocabsize", "300"], 2, "--vocabsize 300; is it '--vocab_size'?"),
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
