"""`tst compare` from its arguments to its exit code; every refusal provoked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tst_lightning
from tests.compare.run_folders import RECORD, write_run
from tst_lightning.__main__ import main


@pytest.fixture
def refused(tmp_path, capsys):
    """Compares folders, expects a refusal, and returns its one line; no report may have been begun."""

    def compare(*runs, code=2):
        assert main(["compare", *map(str, runs), "--out", str(tmp_path / "out")]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return captured.err

    return compare


@pytest.fixture
def baseline(tmp_path):
    return write_run(tmp_path / "baseline")


def test_compares_and_prints_table_and_paths(tmp_path, baseline, capsys):
    out = str(tmp_path / "out")
    assert main(["compare", baseline, write_run(tmp_path / "tst", [(50, 3.5), (100, 2.5)]), "--out", out]) == 0
    text = capsys.readouterr().out
    for words in ("baseline", "equal FLOPs (1.00 kFLOP)", "equal loss", "equal data", "notes:", "proves nothing"):
        assert words in text
    for file in ("report.html", "loss_vs_compute.png", "speedup_vs_loss.png", "comparison.json"):
        assert os.path.join(out, file) in text
        assert (tmp_path / "out" / file).stat().st_size > 500


def test_help_loads_no_heavy_library():
    code = (
        "import sys; from tst_lightning.__main__ import main\n"
        "try: main(['compare', '--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "assert not {'matplotlib', 'scipy', 'lightning', 'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--out" in done.stdout and "reference" in done.stdout


def test_folders_copied_to_a_machine_without_torch(tmp_path):
    """The originals are gone, and the configurations name their folders still."""
    originals, copies = tmp_path / "cluster", tmp_path / "laptop"
    for name, end in (("baseline", 3.0), ("tst", 2.5)):
        for seed in (1, 2):
            folder = originals / f"{name}-seed{seed}"
            write_run(folder, [(10, 8.0), (100, end + seed / 10)], seed=seed, optimizer=name)
            (folder / "config.yaml").write_text(f"run_dir: {folder}\ndata: {{shards: {originals}/shards}}\n")
    names = ["baseline-seed1", "baseline-seed2", "tst-seed1", "tst-seed2"]
    assert main(["compare", *(str(originals / name) for name in names), "--out", str(tmp_path / "there")]) == 0
    originals.rename(copies)
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'lightning', 'lightning_fabric', 'transformers', 'litdata'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from tst_lightning.__main__ import main\n"
        f"sys.exit(main(['compare', *{names}, '--out', 'here']))\n"
    )
    package = Path(tst_lightning.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(package)}
    done = subprocess.run([sys.executable, "-c", code], cwd=copies, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here = json.loads((copies / "here" / "comparison.json").read_text())
    there = json.loads((tmp_path / "there" / "comparison.json").read_text())
    assert [run.pop("path") for run in here["runs"]] == names
    assert all(run.pop("path") for run in there["runs"])
    assert here == there
    assert f"run_dir: {originals}/tst-seed2" in (copies / "here" / "report.html").read_text()


def test_arguments(refused, baseline, capsys):
    assert "two runs or more, got 1" in refused(baseline)
    assert main(["compare", baseline, baseline]) == 2
    assert "out" in capsys.readouterr().err
    assert "--ouch" in refused(baseline, baseline, "--ouch", "3")


def test_out_that_is_a_file(tmp_path, baseline, capsys):
    (tmp_path / "file").write_text("kept")
    other = write_run(tmp_path / "other")
    assert main(["compare", baseline, other, "--out", str(tmp_path / "file")]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err


def test_folders_that_are_no_runs(tmp_path, refused, baseline):
    assert f"no such run folder: {tmp_path}/none" in refused(baseline, tmp_path / "none")
    (tmp_path / "loop").symlink_to("loop")
    assert f"no such run folder: {tmp_path}/loop" in refused(baseline, tmp_path / "loop")
    (tmp_path / "empty").mkdir()
    assert "empty is not a run folder: it has no run.json" in refused(baseline, tmp_path / "empty")


def test_unknown_format(tmp_path, refused, baseline):
    assert "run.json has format 2; this version reads format 1" in refused(
        baseline, write_run(tmp_path / "x", format=2)
    )


def test_run_without_validation(tmp_path, refused, baseline):
    assert "x has no validation after its first step" in refused(baseline, write_run(tmp_path / "x", curve=[]))
    assert "y has no validation after its first step" in refused(baseline, write_run(tmp_path / "y", curve=[(0, 8.0)]))


def test_loss_that_is_no_number(tmp_path, refused, baseline):
    run = write_run(tmp_path / "x", curve=[(50, 4.0), (100, float("nan"))])
    assert "its val/loss is nan at step 100" in refused(baseline, run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"class": "transformers.LlamaConfig", "config": {"hidden_size": 128, "num_hidden_layers": 2}}},
            "model config (hidden_size 64 and 128)",
        ),
        (
            {"model": {"class": "transformers.Qwen3Config", "config": {"hidden_size": 64, "rope": [1]}}},
            "model class (transformers.LlamaConfig and transformers.Qwen3Config); "
            "model config (num_hidden_layers 2 and absent, rope absent and [1])",
        ),
        ({"tokenizer_sha256": "c" * 64}, "tokenizer (tokenizer_sha256 aaaaaaaaaaaa... and cccccccccccc...)"),
        ({"val_sha256": "c" * 64}, "validation data (val_sha256 bbbbbbbbbbbb... and cccccccccccc...)"),
        ({"seq_len": 256}, "sequence length (seq_len 128 and 256)"),
        (
            {"flops_convention": "forward only"},
            f"FLOPs convention (flops_convention {RECORD['flops_convention']} and forward only)",
        ),
    ],
)
def test_runs_that_do_not_fit_together(tmp_path, refused, baseline, changes, message):
    found = refused(baseline, write_run(tmp_path / "x", **changes))
    assert f"runs 'baseline' and 'x' can't be compared, they differ in {message};" in found


def test_a_refusal_is_one_line_whatever_the_name(tmp_path, refused, baseline):
    assert "'a b'" in refused(baseline, write_run(tmp_path / "x", name="a\nb", seq_len=1))


def test_a_newer_transformers_is_no_other_model(tmp_path, baseline):
    model = json.loads(json.dumps(RECORD["model"]))
    model["config"]["transformers_version"] = "5.23.0"
    run = write_run(tmp_path / "x", model=model)
    assert main(["compare", baseline, run, "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', "\udcff"])
def test_damaged_json(tmp_path, refused, baseline, text):
    run = Path(write_run(tmp_path / "x"))
    (run / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "x/run.json is damaged" in refused(baseline, run, code=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch,val/loss\n0,1.0\n", "it has no column 'step'"),
        ("step,val/loss\n10,abc\n", "could not convert"),
        ("step,val/loss\n10\n", "line 2 has 1 cells for 2 columns"),
        ("step,val/loss\n,3.0\n", "line 2 has no step"),
        ("step,val/loss\ninf,3.0\n", "infinity"),
        ("step,val/loss\n10,\0\n", "could not convert"),
        ("\udcff", "decode"),
    ],
)
def test_damaged_csv(tmp_path, refused, baseline, text, message):
    run = Path(write_run(tmp_path / "x"))
    (run / "csv/version_0/metrics.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    found = refused(baseline, run, code=1)
    assert "x/csv/version_0/metrics.csv is damaged" in found and message in found


def test_validation_without_compute(tmp_path, refused, baseline):
    run = Path(write_run(tmp_path / "x"))
    (run / "csv/version_0/metrics.csv").write_text("step,val/loss\n10,3.0\n")
    assert "the validation at step 10 has no 'compute/step'" in refused(baseline, run, code=1)
