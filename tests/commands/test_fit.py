"""``tst fit`` at its edges: help, what it prints, signals, runs that are there already, and defects of our own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from tests.conftest import ROOT, tiny_config
from tests.processes import run
from tests.test_resume import signal_at
from tst_lightning.__main__ import main


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tst_lightning", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def write(path: Path, config: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return str(path)


# -- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "code", "says"),
    [
        ("--help", 0, "usage: tst COMMAND"),
        ("fitt", 2, "unknown command 'fitt'; choose one of"),
        ("--version", 0, "tst-l"),
    ],
)
def test_answers_without_importing_torch_or_lightning(word: str, code: int, says: str) -> None:
    heavy = "{'torch', 'lightning', 'transformers', 'litdata', 'jsonargparse'}"
    script = (
        "import sys; from tst_lightning.__main__ import main; code = main(sys.argv[1:]);"
        f" assert not {heavy} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, word], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    assert said.startswith(f"usage: tst {command} ")
    for option in ("--run_dir", "--ckpt_path", "--data.seq_len", "--model.phases", "--trainer.max_steps", "--config"):
        assert option in said


# -- runs that are there already --------------------------------------------------------------------------------------


def test_finished_run_is_reused_and_a_longer_one_refused(fit: Any, tmp_path: Path) -> None:
    short = {"trainer__max_steps": 4, "trainer__val_check_interval": 2}
    code, said = fit("run", **short)
    assert code == 0
    assert re.search(rf"finished  {tmp_path}/run: 4 steps, validation loss \d\.\d{{4}}\n$", said)
    code, said = fit("run", "--ckpt_path", "last", **short)
    assert (code, said) == (0, f"reusing   the finished run in {tmp_path}/run (4 steps)\n")
    # Phases are shares of the run, so a longer run is another one.
    config = (tmp_path / "run" / "config.yaml").read_text()
    code, said = fit("run", "--ckpt_path", "last", trainer__max_steps=8, trainer__val_check_interval=2)
    assert code == 2 and "they differ in the 4 batches already read" in said
    assert (tmp_path / "run" / "config.yaml").read_text() == config  # a refused start leaves it alone


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_other_settings_is_neither_reused_nor_gone_on_with(fit: Any, tmp_path: Path, finished: bool) -> None:
    stop = () if finished else signal_at(7)
    assert fit("run", *stop)[0] == (0 if finished else 128 + signal.SIGTERM)
    arguments = ("--model.optimizer.init_args.lr", "0.05", "--seed_everything", "9", "--trainer.precision", "64-true")
    code, said = fit("run", "--ckpt_path", "last", *arguments)
    assert code == 2
    for difference in ("lr was 0.003, now 0.05", "seed_everything was 1, now 9", "precision was 32-true, now 64-true"):
        assert difference in said
    # What is no part of the run's identity may change.
    assert fit("run", "--ckpt_path", "last", "--callbacks.progress.init_args.refresh_rate", "5")[0] == 0


def test_scoring_leaves_the_run_as_it_was(fit: Any, tmp_path: Path) -> None:
    assert fit("run")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for command in ("validate", "test"):
        assert main([command, "--config", str(tmp_path / "run" / "config.yaml")]) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_time_limit_leaves_a_stopped_run_that_goes_on(fit: Any, tmp_path: Path) -> None:
    long = {"trainer__max_steps": 100_000, "trainer__val_check_interval": 50_000}
    code, said = fit("run", "--trainer.max_time", "00:00:00:01", **long)
    step = json.loads((tmp_path / "run" / "run.json").read_text())["step"]
    assert code == 0 and f"stopped   {tmp_path}/run: {step:,} of 100,000 steps" in said
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step


# -- signals ------------------------------------------------------------------------------------------------------


def test_interrupt_prints_one_line_and_the_run_goes_on(tmp_path: Path, shards: Path) -> None:
    changes = {"trainer__max_steps": 500, "trainer__val_check_interval": 20, "trainer__log_every_n_steps": 20}
    path = write(tmp_path / "run.yaml", tiny_config(tmp_path / "run", shards, **changes))
    process = start("fit", "--config", path)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    stopped = re.fullmatch(
        rf"error: stopped by SIGINT after step (\d+) of 500; checkpoint {last}\. Go on with the same command and"
        r" --ckpt_path last\n",
        err,
    )
    assert stopped, err  # and so nothing else on stderr: no warning, no deprecation
    assert torch.load(last, weights_only=True)["global_step"] == int(stopped[1])
    labels = {line.split()[0].lower().rstrip(":") for line in re.split("[\r\n]+", out) if line.strip()}
    bar = {"training", "epoch", "superposition", "recovery"}
    assert labels - bar == {"run", "model", "phase", "data", "compute"}, out
    assert main(["fit", "--config", path, "--ckpt_path", "last"]) == 0
    assert torch.load(last, weights_only=True)["global_step"] == 500


class TwoInterrupts(Callback):
    """Sends two real SIGINTs within one step."""

    def on_train_batch_start(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_second_interrupt_kills(tmp_path: Path, shards: Path) -> None:
    path = write(tmp_path / "run.yaml", tiny_config(tmp_path / "run", shards))
    twice = f'--trainer.callbacks+={{"class_path": "{__name__}.TwoInterrupts"}}'
    done = run("fit", "--config", path, twice)
    assert done.returncode == -signal.SIGINT
    assert "Traceback" not in done.stderr


class InterruptIn(Callback):
    """Sends a real signal outside of training: while validating, or while setting up."""

    def __init__(self, hook: str, number: int) -> None:
        setattr(self, hook, lambda *_, **__: os.kill(os.getpid(), number))


@pytest.mark.parametrize("hook", ["on_sanity_check_start", "on_fit_start"])
def test_interrupt_before_training(fit: Any, hook: str) -> None:
    # A shell starts what runs in its background with this signal ignored.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = f'{{"class_path": "{__name__}.InterruptIn", "init_args": {{"hook": "{hook}", "number": 2}}}}'
    try:
        code, said = fit("run", f"--trainer.callbacks+={arguments}", trainer__num_sanity_val_steps=1)
    finally:
        signal.signal(signal.SIGINT, previous)  # Lightning ignores it from its first one on
    assert code == 130
    assert said.endswith(
        "error: stopped by SIGINT outside of training, nothing was saved; give the same command again\n"
    )


# -- our own defects keep their traceback ---------------------------------------------------------------------------


class Defect(Callback):
    """Raises what no user can mend."""

    def on_train_start(self, *_: Any) -> None:
        raise TypeError("a defect")


def test_defect_is_not_hidden(fit: Any) -> None:
    with pytest.raises(TypeError, match="a defect"):
        fit("run", f'--trainer.callbacks+={{"class_path": "{__name__}.Defect"}}')


def test_defect_in_a_constructor_is_not_hidden(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tst_lightning.data.datamodule.open_corpora", None)
    with pytest.raises(TypeError, match="not callable"):
        fit("run")


def test_a_library_that_we_use_wrongly_is_not_hidden(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The innermost line is json's, but it was ours that called it."""
    monkeypatch.setattr("tst_lightning.callbacks.run_record.version", json.loads)
    with pytest.raises(json.JSONDecodeError):
        fit("run")
