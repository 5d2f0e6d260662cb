"""A run that was stopped and resumed ends with the weights of one that never stopped, bit for bit."""

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.conftest import tiny_config
from tests.processes import run
from tst_lightning.__main__ import main
from tst_lightning.commands.run_folder import find_checkpoint
from tst_lightning.compare.runs import read_runs


class SignalAt(Callback):
    """Sends this process a real signal while step ``step`` is being taken."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number, self.sent = step, number, False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and not self.sent:
            self.sent = True  # a second one would kill
            os.kill(os.getpid(), self.number)


def signal_at(step: int, number: int = signal.SIGTERM) -> tuple[str, ...]:
    callback = f'{{"class_path": "tests.test_resume.SignalAt", "init_args": {{"step": {step}, "number": {number}}}}}'
    return ("--trainer.callbacks+=" + callback,)


def last(folder: Path) -> dict[str, Any]:
    """All that the last checkpoint holds; of a sharded one the parts of all processes put together by torch's own tool."""
    path = folder / "checkpoints" / "last.ckpt"
    if path.is_file():
        return torch.load(path, weights_only=True)
    whole = folder.with_suffix(".whole.pt")
    dcp_to_torch_save(path, whole)
    tensors = torch.load(whole, weights_only=True)
    state = torch.load(path / "meta.pt", weights_only=True)
    return state | {"state_dict": tensors["state_dict"], "optimizer_states": [tensors["optimizer_0"]]}


def training_losses(folder: Path, logged: int = 20) -> dict[tuple[int, str], str]:
    """Step to training loss and gradient norm, over all starts of the run; of so many logged steps."""
    losses: dict[tuple[int, str], str] = {}
    for path in sorted((folder / "csv").glob("version_*/metrics.csv")):
        with open(path) as file:
            for row in csv.DictReader(file):
                for key in ("train/superposition/loss", "train/recovery/loss", "train/grad_norm"):
                    if row.get(key):
                        losses[int(row["step"]), key] = row[key]
    assert len(losses) == 2 * logged
    return losses


def assert_same_state(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["global_step"] == b["global_step"]
    for key, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][key]), key
    for index, state in a["optimizer_states"][0]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, b["optimizer_states"][0]["state"][index][key]), (index, key)
    assert torch.equal(a["rng"]["cpu"], b["rng"]["cpu"])
    assert a["loops"]["fit_loop"]["state_dict"] == b["loops"]["fit_loop"]["state_dict"]  # the place in the data
    assert a["lr_schedulers"][0]["last_epoch"] == b["lr_schedulers"][0]["last_epoch"]
    meters = [c["callbacks"]["FlopsMeter"]["phases"] for c in (a, b)]
    for phase in meters[0]:
        for quantity in ("flops", "tokens", "positions"):
            assert meters[0][phase][quantity] == meters[1][phase][quantity], (phase, quantity)


def accumulating(batches: int) -> dict[str, Any]:
    """A validation every 4 steps."""
    return {"trainer__accumulate_grad_batches": batches, "trainer__val_check_interval": 4 * batches}


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> dict[int, Path]:
    """Finished runs by their accumulation."""
    folder = tmp_path_factory.mktemp("whole")
    for batches in (1, 3):
        path = folder / f"{batches}.yaml"
        config = tiny_config(folder / str(batches), shards, **accumulating(batches))
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        assert main(["fit", "--config", str(path)]) == 0
    return {batches: folder / str(batches) for batches in (1, 3)}


# Before, at and after the switch (step 10 of 20), at a validation, several times, and with accumulation.
@pytest.mark.parametrize(
    ("steps", "accumulate"), [((3,), 1), ((10,), 1), ((15,), 1), ((2, 9, 10, 17), 1), ((5,), 3), ((9, 10), 3)]
)
def test_resumed_run_is_bit_equal(
    fit: Any, whole_runs: dict[int, Path], tmp_path: Path, steps: tuple[int, ...], accumulate: int
) -> None:
    changes = accumulating(accumulate)
    for stop in steps:
        code, said = fit("pieces", "--ckpt_path", "last", *signal_at(stop), **changes)
        assert code == 128 + signal.SIGTERM
        assert f"stopped by SIGTERM after step {stop + 1} of 20" in said
    assert fit("pieces", "--ckpt_path", "last", **changes)[0] == 0
    assert_same_run(whole_runs[accumulate], tmp_path / "pieces")


class KillAt(Callback):
    """Kills this process and those that it started with SIGKILL, in one situation of step ``step``.

    Args:
        step: the step to die at.
        situation: ``training``, ``validation`` (its first batch is done), or the name of a checkpoint file, which then
            is written but has not taken its place.
    """

    def __init__(self, step: int, situation: str = "training") -> None:
        self.step, self.situation = step, situation

    def die_if(self, trainer: Any, situation: str) -> None:
        if (trainer.global_step, situation) == (self.step, self.situation):
            os.killpg(0, signal.SIGKILL)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.die_if(trainer, "training")

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        self.die_if(trainer, "validation")

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        replace = os.replace

        def die_or_replace(source: Any, target: Any) -> None:
            self.die_if(trainer, Path(target).name)
            replace(source, target)

        os.replace = die_or_replace


def killed_at(folder: Path, shards: Path, step: int, situation: str, ranks: int = 1, **changes: Any) -> dict[str, Any]:
    """Starts or goes on with a run in processes of its own, in which it is killed; its last checkpoint, if any."""
    kill = {"class_path": "tests.test_resume.KillAt"}
    kill["init_args"] = {"step": step, "situation": situation}
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(tiny_config(folder, shards, **changes), sort_keys=False))
    callback = f"--trainer.callbacks+={json.dumps(kill)}"
    done = run("fit", "--config", str(path), "--ckpt_path", "last", callback, ranks=ranks)
    assert done.returncode == -signal.SIGKILL, done.stderr
    checkpoints = folder / "checkpoints"
    partial = [path for path in checkpoints.glob("*.partial") if path.is_file()]  # folders are written beside training
    assert bool(partial) == situation.endswith(".ckpt") or any(checkpoints.glob("*.replaced"))
    for checkpoint in checkpoints.glob("*.ckpt"):
        find_checkpoint(folder, str(checkpoint))
    return last(folder) if (checkpoints / "last.ckpt").exists() else {"global_step": 0}


def assert_same_run(one: Path, other: Path, logged: int = 20) -> None:
    """Last checkpoints, curves, and the names of all checkpoints; of runs that logged so many steps."""
    assert_same_state(last(one), last(other))
    runs = read_runs([str(one), str(other)])
    curves = [[(p.step, p.flops, p.tokens, p.loss) for p in run.curve] for run in runs]
    assert curves[0] == curves[1]
    assert training_losses(one, logged) == training_losses(other, logged)
    kept = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (one, other)]
    assert kept[0] == kept[1]  # the best and the one at the switch too


# Several kills in a row each: the step, the situation, and the step of the checkpoint that is left to go on from. The
# switch is at step 10, a validation with its checkpoints every 4 steps.
KILLS = [(7, "training", 4), (8, "last.ckpt", 4), (12, "validation", 8), (15, "training", 12)]
KILLS_ACCUMULATING = [(4, "best-step=4.ckpt", 0), (10, "switch-recovery-step=10.ckpt", 8), (10, "training", 8)]


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "workers", "kills"), [(1, 0, KILLS), (3, 2, KILLS_ACCUMULATING)])
def test_killed_run_loses_nothing(
    fit: Any, tmp_path: Path, shards: Path, accumulate: int, workers: int, kills: list[tuple[int, str, int]]
) -> None:
    changes = accumulating(accumulate)
    changes |= {"data__num_workers": workers, "model__config__init_args__attention_dropout": 0.1 * (accumulate > 1)}
    assert fit("whole", **changes)[0] == 0
    for step, situation, left in kills:
        found = killed_at(tmp_path / "killed", shards, step, situation, **changes)
        assert found["global_step"] == left, (step, situation)
    assert fit("killed", "--ckpt_path", "last", **changes)[0] == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_last_checkpoint_is_the_last_also_where_the_loss_rises(fit: Any, tmp_path: Path) -> None:
    """A run goes on from its last validation, and ends with its last weights, not from and with its best."""
    rising = {"model__optimizer__init_args__lr": 10.0, "model__lr_schedule": {"warmup_steps": 18, "decay_share": 0.05}}
    assert fit("run", **rising)[0] == 0
    steps = {
        path.name: torch.load(path, weights_only=True)["global_step"]
        for path in (tmp_path / "run" / "checkpoints").iterdir()
    }
    assert steps.pop("last.ckpt") == 20
    assert max(steps.values()) < 20, "the last weights were to be worse than earlier ones"


def test_one_seed_repeats_bit_for_bit(fit: Any, tiny_run: Path, tmp_path: Path) -> None:
    assert fit("again")[0] == 0
    assert_same_state(last(tiny_run), last(tmp_path / "again"))
    assert fit("other", "--seed_everything", "2")[0] == 0
    other = last(tmp_path / "other")["state_dict"]
    assert any(not torch.equal(value, other[key]) for key, value in last(tiny_run)["state_dict"].items())
