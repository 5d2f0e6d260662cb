"""Signals: one checkpoint, a resumable exit, from Ctrl-C to a cluster's scheduler, in one process and several."""

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback

from tests.conftest import tiny_config
from tests.processes import Command
from tests.test_resume import assert_same_state, last, signal_at


class Signals(Callback):
    """Sends this process several real signals within one step."""

    def __init__(self, step: int, numbers: list[int]) -> None:
        self.step, self.numbers = step, numbers

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


def signals_at(step: int, *numbers: int) -> str:
    spec = (
        f'{{"class_path": "{__name__}.Signals", "init_args": {{"step": {step}, "numbers": {list(map(int, numbers))}}}}}'
    )
    return f"--trainer.callbacks+={spec}"


def start(path: Path, config: dict[str, Any], *arguments: str, **settings: Any) -> Command:
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return Command("fit", "--config", str(path), *arguments, **settings)


def wait_for_training(process: Command, folder: Path) -> None:
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def errors(stderr: str) -> list[str]:
    assert "Traceback" not in stderr, stderr
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


LONG = {"trainer__max_steps": 2000, "trainer__val_check_interval": 20, "trainer__log_every_n_steps": 20}


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_schedulers_warning_stops_a_run_that_goes_on(
    fit: Any, tiny_run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    code, said = fit("pieces", *signal_at(12, number))
    assert code == 128 + number
    assert f"stopped by {number.name} after step 13 of 20" in said
    assert {each: signal.getsignal(each) for each in before} == before
    assert fit("pieces", "--ckpt_path", "last")[0] == 0
    assert_same_state(last(tiny_run), last(tmp_path / "pieces"))


def test_a_repeated_warning_and_the_order_to_end_after_it_do_not_kill(fit: Any, tmp_path: Path) -> None:
    warning, order = signal.SIGUSR1, signal.SIGTERM
    code, said = fit("run", signals_at(7, warning, warning, signal.SIGUSR2, order, signal.SIGINT))
    assert code == 128 + warning
    assert "stopped by SIGUSR1 after step 8 of 20" in said
    assert last(tmp_path / "run")["global_step"] == 8


def test_a_second_order_to_end_kills(tmp_path: Path, shards: Path) -> None:
    twice = signals_at(7, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM)
    process = start(tmp_path / "run.yaml", tiny_config(tmp_path / "run", shards), twice)
    _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGTERM and "Traceback" not in err


def test_under_slurm_the_run_is_neither_requeued_nor_saved_elsewhere(tmp_path: Path, shards: Path) -> None:
    """As in a job of one task: Lightning would write a checkpoint of its own, requeue the job and train on."""
    calls = tmp_path / "calls"
    (tmp_path / "bin").mkdir()
    for program in ("scontrol", "srun"):
        path = tmp_path / "bin" / program
        path.write_text(f"#!/bin/sh\necho {program} $* >> {calls}\n")
        path.chmod(0o755)
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NODELIST": "localhost"}
    job |= {
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
    }
    config = tiny_config(tmp_path / "run", shards, **LONG, trainer__strategy="ddp", trainer__accelerator="cpu")
    process = start(tmp_path / "run.yaml", config, environment=os.environ | job)
    wait_for_training(process, tmp_path / "run")
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGUSR1, err
    (said,) = errors(err)
    stopped = re.search(r"stopped by SIGUSR1 after step (\d+) of 2000", said)
    assert stopped, said
    assert last(tmp_path / "run")["global_step"] == int(stopped[1])
    assert not calls.exists()
    assert not list(tmp_path.rglob("hpc_ckpt*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_processes_of_a_run_with_workers(tmp_path: Path, shards: Path, number: signal.Signals) -> None:
    """As Ctrl-C in a terminal and SLURM send it: the processes that read data must not take the run down with them."""
    config = tiny_config(tmp_path / "run", shards, **LONG, data__num_workers=2)
    process = start(tmp_path / "run.yaml", config)
    wait_for_training(process, tmp_path / "run")
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert f"stopped by {number.name} after step" in errors(err)[0]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_signal_to_one_of_two_processes_stops_both(tmp_path: Path, shards: Path) -> None:
    changes = {"trainer__accelerator": "cpu", "trainer__devices": 2, "trainer__strategy": "ddp"}
    process = start(tmp_path / "two.yaml", tiny_config(tmp_path / "two", shards, **LONG, **changes), ranks=2)
    wait_for_training(process, tmp_path / "two")
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGUSR1)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGUSR1, err
    (said,) = errors(err)  # one process speaks for both
    stopped = re.search(r"stopped by SIGUSR1 after step (\d+) of 2000; checkpoint .*last.ckpt", said)
    assert stopped and last(tmp_path / "two")["global_step"] == int(stopped[1])
