"""`tst sweep` from its arguments to its exit code, with real runs, and every sweep of configs/ laid out."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from tests.compare.run_folders import record
from tests.conftest import ROOT, tiny_config
from tests.sweep.plans import finish, plan_of, stand_in
from tst_lightning.__main__ import main
from tst_lightning.sweep import process
from tst_lightning.sweep.queues import StudyQueue
from tst_lightning.sweep.records import locked

SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
LR = "model.optimizer.init_args.lr"


def test_help_and_a_dry_run_load_no_heavy_library() -> None:
    code = (
        "import sys; from tst_lightning.__main__ import main\n"
        f"assert main(['sweep', '--config', {str(SWEEPS[0])!r}, '--out', 'none', '--dry_run']) == 0\n"
        "try: main(['sweep', '--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "assert not {'matplotlib', 'lightning', 'torch', 'transformers', 'optuna', 'scipy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(option in done.stdout for option in ("--retry_failed", "--devices", "--storage", "--grid"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_every_sweep_of_configs_is_laid_out(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["sweep", "--config", str(path), "--out", str(tmp_path / "out"), "--dry_run"]) == 0
    *cases, last = capsys.readouterr().out.splitlines()
    assert last == f"{len(cases)} runs, {len(cases)} waiting; nothing was started (--dry_run)"
    assert not (tmp_path / "out").exists()
    # What fit itself makes of the first and the last of them.
    for line in (cases[0], cases[-1]):
        with pytest.raises(SystemExit, match="0"):
            main(["fit", *line.split()[2:], "--print_config"])


def test_the_command_line_is_added_to_the_yaml_and_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fit.yaml").touch()
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"fit: {tmp_path}/fit.yaml\nset: {{a: 1, b: 2}}\ngrid: {{c: [1, 2], d: [1]}}\n")
    words = ["--set", "b=3", "e.f=x y", "--grid", "c=5", "--grid", "g,h=1e-3"]
    assert main(["sweep", "--config", str(sweep), "--out", str(tmp_path / "out"), "--dry_run", *words]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("c5-d1-g0.001  waiting")
    assert line.endswith(f"--config {tmp_path}/fit.yaml --a=1 --b=3 '--e.f=x y' --c=5 --d=1 --g=0.001 --h=0.001")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--out is not given; name the sweep's folder"),
        (["--out", "x", "--config", "none.yaml"], "there is no file 'none.yaml' (--config)"),
        (["--out", "x", "--ouch", "3"], "--ouch"),
        (["--out", "x", "--devices", "tpu"], "--devices is 'tpu'; give auto, cpu:2"),
        (["--out", "x", "--grid", "a"], "--grid 'a' is not of the form KEY=V1,V2,..."),
        (["--out", "x", "--grid", "a=1"], "no configuration is given"),
    ],
)
def test_refusals(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and says in captured.err


def test_runs_of_another_process_are_named_and_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tmp_path, {LR: 1.0}, {LR: 2.0})
    words = ["sweep", "--fit", str(tmp_path / "fit.yaml"), "--out", str(plan.out), "--grid", f"{LR}=1.0,2.0"]
    finish(plan, plan.cases[0], 3.0)
    (plan.run_dir(plan.cases[0]) / "config.yaml").write_text("run_dir: x\n")
    with locked(plan.run_dir(plan.cases[1])):
        assert main([*words, "--devices", "cpu"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("sweep     2 runs, 1 finished, 1 running elsewhere; 1 at a time in ")
        assert "\nrunning elsewhere: 1 of 2 runs, in other processes: lr2.0; give the same command again" in out
        assert main([*words, "--dry_run"]) == 0
        assert "2 runs, 1 finished, 1 running elsewhere; nothing was started" in capsys.readouterr().out


def test_runs_that_a_killed_worker_has_left_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    plan = plan_of(tmp_path, {LR: 1.0})
    storage = f"journal:{tmp_path}/journal"
    assert StudyQueue(plan, storage).take()  # and no more is heard of that worker
    words = ["sweep", "--fit", str(tmp_path / "fit.yaml"), "--out", str(plan.out), "--grid", f"{LR}=1.0"]
    assert main([*words, "--devices", "cpu", "--storage", storage]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: 1 of 1 runs have not ended, though no process is at work on them: lr1.0; give the")


def test_what_is_done_is_skipped_and_what_failed_is_retried_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "command", stand_in)
    plan = plan_of(tmp_path, {"loss": 3.0}, {"exit": 1}, {"loss": 2.0})
    plan.out.mkdir()
    (plan.out / "record.json").write_text(json.dumps(record()))
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"fit: {tmp_path}/fit.yaml\nlist: [{{loss: 3.0}}, {{exit: 1}}, {{loss: 2.0}}]\n")
    words = ["sweep", "--config", str(sweep), "--out", str(plan.out), "--devices", "cpu"]

    def started(*more: str) -> list[str]:
        assert main([*words, *more]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("error: 1 of 3 runs failed, as listed above")
        return [line.split()[1] for line in captured.out.splitlines() if line.startswith("started")]

    assert started() == ["loss3.0", "exit1", "loss2.0"]
    assert started() == []
    assert started("--retry_failed") == ["exit1"]


def test_a_stopped_sweep_reports_what_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "command", stand_in)
    plan = plan_of(tmp_path, {"loss": 3.0}, {"loss": 2.0, "wait": 1})
    plan.out.mkdir()
    (plan.out / "record.json").write_text(json.dumps(record()))
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"fit: {tmp_path}/fit.yaml\nlist: [{{loss: 3.0}}, {{loss: 2.0, wait: 1}}]\n")
    begun = plan.run_dir(plan.cases[1]) / "started"

    def stop() -> None:
        end = time.monotonic() + 60
        while not begun.exists() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    words = ["sweep", "--config", str(sweep), "--out", str(plan.out), "--devices", "cpu"]
    assert main(words) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM: 2 runs, 1 finished, 1 waiting" in capsys.readouterr().err
    cases = json.loads((plan.out / "sweep.json").read_text())["cases"]
    assert [(case["status"], case["final_val_loss"]) for case in cases] == [("finished", 3.0), ("waiting", None)]


@pytest.mark.slow
def test_a_sweep_of_real_runs(tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One finishes and one diverges, at the same time; called again nothing is started, and `tst fit` takes the best."""
    config = tmp_path / "tst.yaml"
    config.write_text(yaml.safe_dump(tiny_config(tmp_path / "none", shards), sort_keys=False))
    out = tmp_path / "out"
    words = ["sweep", "--fit", str(config), "--out", str(out), "--devices", "cpu:2", "--grid", f"{LR}=1e-3,1e30"]
    words += ["--set", "trainer.max_steps=5"]
    assert main(words) == 1
    captured = capsys.readouterr()
    assert "finished  lr0.001 in " in captured.out and "failed    lr1e+30, exit code 1: the " in captured.out
    assert "not finite" in captured.out and captured.err.startswith("error: 1 of 2 runs failed, as listed above")
    document = json.loads((out / "sweep.json").read_text())
    assert [(case["status"], case["exit_code"]) for case in document["cases"]] == [("finished", 0), ("failed", 1)]
    assert document["best"]["runs"] == ["lr0.001"] and (out / "loss.png").stat().st_size > 10_000
    logged = (out / "lr0.001" / "log.txt").read_text()
    assert f"validation loss {document['cases'][0]['final_val_loss']:.4f}" in logged

    assert main(words) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(f"sweep     2 runs, 1 finished, 1 failed; 2 at a time in {out}\n")
    assert "started" not in captured.out

    saved = yaml.safe_load((out / "lr0.001" / "config.yaml").read_text())
    assert yaml.safe_load((out / "best.yaml").read_text()) == {k: v for k, v in saved.items() if k != "run_dir"}
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", str(out / "best.yaml"), "--run_dir", str(tmp_path / "best"), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"] == saved["model"]
