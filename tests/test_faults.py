"""A full disk and killed processes while a run is under way: what was saved stays whole and is gone on from."""

import csv
import json
import os
import re
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.callbacks.test_non_finite import BadGradient, callback
from tests.conftest import tiny_config
from tests.processes import Command, run
from tests.test_resume import assert_same_state, last, signal_at
from tst_lightning.checkpoint_file import read_step

CONTINUE = {
    "trainer__plugins": {
        "class_path": "tst_lightning.checkpoint_io.WholeCheckpointIO",
        "init_args": {"on_error": "continue"},
    }
}


class FullDisk(Callback):
    """Between two steps, the system itself refuses files as large as a checkpoint; smaller ones, the logs', it takes."""

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(self, step: int) -> None:
        full = self.first <= step < self.end
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, self.before[1]) if full else self.before)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.limit(trainer.global_step + 1)

    def teardown(self, *_: Any, **__: Any) -> None:
        self.limit(self.end)

    def on_exception(self, *_: Any) -> None:
        self.limit(self.end)


def full_disk(first: int, end: int) -> str:
    spec = {"class_path": f"{__name__}.FullDisk", "init_args": {"first": first, "end": end}}
    return f"--trainer.callbacks+={json.dumps(spec)}"


def steps(folder: Path) -> dict[str, int]:
    """The checkpoints of a run, all of them whole, and the step of each."""
    return {path.name: read_step(path) for path in sorted((folder / "checkpoints").iterdir())}


# -- a full disk --------------------------------------------------------------------------------------------------


def test_full_disk_stops_a_run_that_goes_on(fit: Any, tiny_run: Path, tmp_path: Path) -> None:
    code, said = fit("run", full_disk(9, 99))
    (error,) = re.findall("error: .*", said)
    assert code == 1 and "Traceback" not in said
    refused = tmp_path / "run" / "checkpoints" / "best-step=10.ckpt"
    assert f"checkpoint '{refused}' can't be written: File too large; earlier ones are whole" in error
    assert steps(tmp_path / "run") == {"best-step=5.ckpt": 5, "last.ckpt": 5}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"
    assert fit("run", "--ckpt_path", "last")[0] == 0
    assert_same_state(last(tiny_run), last(tmp_path / "run"))


def test_full_disk_is_trained_on_with_and_the_best_one_kept(fit: Any, tiny_run: Path, tmp_path: Path) -> None:
    """Refused at 10 (three files) and 15 (two): the best of step 5 is kept until a better one is on the disk."""
    code, said = fit("run", full_disk(9, 16), *signal_at(16), **CONTINUE)
    assert code == 143, said
    warnings = re.findall("warning: checkpoint '.* can't be written: File too large .failure (.) of this start", said)
    assert warnings == ["1", "2", "3", "4", "5"]
    assert steps(tmp_path / "run") == {"best-step=5.ckpt": 5, "last.ckpt": 17}
    assert fit("run", "--ckpt_path", "last", **CONTINUE)[0] == 0
    assert_same_state(last(tiny_run), last(tmp_path / "run"))

    assert fit("mended", full_disk(9, 16), **CONTINUE)[0] == 0
    assert steps(tmp_path / "mended") == {"best-step=20.ckpt": 20, "last.ckpt": 20}  # the one of step 5 is gone
    assert_same_state(last(tiny_run), last(tmp_path / "mended"))


@pytest.mark.parametrize("stop", [None, 12])
def test_a_run_does_not_end_well_without_its_last_checkpoint(
    fit: Any, tiny_run: Path, tmp_path: Path, stop: int | None
) -> None:
    code, said = fit("run", full_disk(9, 99), *(signal_at(stop) if stop else ()), **CONTINUE)
    ended = "stopped by SIGTERM after step 13 of 20, but" if stop else "ended after step 20 of 20, but"
    (error,) = re.findall("error: .*", said)
    assert code == 1 and ended in error and "last.ckpt' can't be written: File too large" in error
    assert "finished  " not in said
    assert steps(tmp_path / "run") == {"best-step=5.ckpt": 5, "last.ckpt": 5}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"
    assert fit("run", "--ckpt_path", "last", **CONTINUE)[0] == 0
    assert_same_state(last(tiny_run), last(tmp_path / "run"))


# -- killed processes ---------------------------------------------------------------------------------------------


def test_logs_of_a_killed_run_can_be_read(tmp_path: Path, shards: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path / "run", shards), sort_keys=False))
    assert run("fit", "--config", str(path), *signal_at(12, signal.SIGKILL)).returncode == -signal.SIGKILL
    with open(tmp_path / "run" / "csv" / "version_0" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row.get("val/loss")] == [4, 9]
    assert {int(row["step"]) for row in rows if row.get("train/grad_norm")} >= set(range(9))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val/loss")] == [4, 9]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"


DDP = {"trainer__accelerator": "cpu", "trainer__devices": 2, "trainer__strategy": "ddp"}


def start_two(tmp_path: Path, shards: Path, *arguments: str, ranks: int = 1, **changes: Any) -> Command:
    """A run of two processes, of which Lightning starts the second unless both are asked for here."""
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path / "two", shards, **DDP, **changes), sort_keys=False))
    return Command("fit", "--config", str(path), *arguments, ranks=ranks)


def errors(stderr: str) -> list[str]:
    assert "Traceback" not in stderr, stderr
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


class WaitAt(Callback):
    """Each rank says that it has come to a step, between two checkpoints, and goes on when it is told to."""

    def __init__(self, step: int, folder: str) -> None:
        self.step, self.folder = step, Path(folder)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            (self.folder / f"waiting-{trainer.global_rank}").touch()
            while not (self.folder / "go").exists():
                time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_other_one(tmp_path: Path, shards: Path, rank: int) -> None:
    long = {"trainer__max_steps": 2000, "trainer__val_check_interval": 20}
    spec = json.dumps({"class_path": f"{__name__}.WaitAt", "init_args": {"step": 25, "folder": str(tmp_path)}})
    process = start_two(tmp_path, shards, f"--trainer.callbacks+={spec}", **long)
    while not all((tmp_path / f"waiting-{each}").exists() for each in (0, 1)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill((process.pid, int(child))[rank], signal.SIGKILL)
    (tmp_path / "go").touch()
    # Until the survivor has closed its end of stderr as well. A busy machine takes its time.
    _, err = process.communicate(timeout=60)
    (said,) = errors(err)
    assert "another process of the run ended" in said and "--ckpt_path last" in said
    assert process.returncode == (-signal.SIGKILL if rank == 0 else 1)
    assert set(steps(tmp_path / "two").values()) == {20}


class RaiseOn(Callback):
    """A rank that finds, alone, what it can't go on with, while another one takes its time to end."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 7 and trainer.global_rank == self.rank:
            batch["bag_size"] = 3

    def on_exception(self, trainer: Any, *_: Any) -> None:
        if trainer.global_rank != self.rank:
            time.sleep(7)  # Lightning looks after its processes every 5 s


SHARDED = (
    "--trainer.strategy={class_path: tst_lightning.fully_sharded.FullyShardedStrategy, init_args: {asynchronous: true}}"
)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", [(), (SHARDED,)], ids=["ddp", "sharded, with a checkpoint on its way"])
def test_an_error_of_one_process_ends_the_other_one(tmp_path: Path, shards: Path, layout: tuple[str, ...]) -> None:
    spec = json.dumps({"class_path": f"{__name__}.RaiseOn", "init_args": {"rank": 1}})
    process = start_two(tmp_path, shards, f"--trainer.callbacks+={spec}", *layout)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    said = errors(err)
    assert sum("data stream and run are out of step" in line for line in said) == 1, said
    assert sum("another process of the run ended" in line for line in said) == len(said) - 1 <= 1


@pytest.mark.slow
@pytest.mark.distributed
def test_an_error_of_both_processes_is_said_once(tmp_path: Path, shards: Path) -> None:
    process = start_two(tmp_path, shards, callback(BadGradient, steps=[7]), ranks=2)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    (said,) = errors(err)
    assert "the gradient was not finite at step 7" in said
    assert torch.load(tmp_path / "two" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5
