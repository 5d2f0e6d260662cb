"""A run that was stopped and resumed ends with the weights of one that never stopped, bit for bit."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from tests.conftest import ROOT, tiny_config
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
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def training_losses(folder: Path) -> dict[tuple[int, str], str]:
    """Step to training loss and gradient norm, over all starts of the run."""
    losses: dict[tuple[int, str], str] = {}
    for path in sorted((folder / "csv").glob("version_*/metrics.csv")):
        with open(path) as file:
            for row in csv.DictReader(file):
                for key in ("train/superposition/loss", "train/recovery/loss", "train/grad_norm"):
                    if row.get(key):
                        losses[int(row["step"]), key] = row[key]
    assert len(losses) == 40
    return losses


def assert_same_state(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["global_step"] == b["global_step"]
    for key, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][key]), key
    for index, state in a["optimizer_states"][0]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, b["optimizer_states"][0]["state"][index][key]), (index, key)
    assert a["lr_schedulers"][0]["last_epoch"] == b["lr_schedulers"][0]["last_epoch"]
    meters = [c["callbacks"]["FlopsMeter"] for c in (a, b)]
    for phase in meters[0]:
        for quantity in ("flops", "tokens", "positions"):
            assert meters[0][phase][quantity] == meters[1][phase][quantity], (phase, quantity)


# Before, at and after the switch (step 10 of 20), at a validation (every 4 steps), and with accumulation.
@pytest.mark.parametrize(
    ("steps", "accumulate"),
    [((2,), 1), ((9,), 1), ((10,), 1), ((3,), 1), ((15,), 1), ((2, 9, 10, 17), 1), ((5,), 3), ((9, 10), 3)],
)
def test_resumed_run_is_bit_equal(fit: Any, tmp_path: Path, steps: tuple[int, ...], accumulate: int) -> None:
    changes = {"trainer__accumulate_grad_batches": accumulate, "trainer__val_check_interval": 4 * accumulate}
    changes["data__num_workers"] = 0
    assert fit("whole", **changes)[0] == 0
    for stop in steps:
        code, said = fit("pieces", "--ckpt_path", "last", *signal_at(stop), **changes)
        assert code == 128 + signal.SIGTERM
        assert f"stopped by SIGTERM after step {stop + 1} of 20" in said
    assert fit("pieces", "--ckpt_path", "last", **changes)[0] == 0
    assert_same_state(last(tmp_path / "whole"), last(tmp_path / "pieces"))
    whole, pieces = read_runs([str(tmp_path / "whole"), str(tmp_path / "pieces")])
    assert [(p.flops, p.loss) for p in whole.curve] == [(p.flops, p.loss) for p in pieces.curve]
    assert training_losses(tmp_path / "whole") == training_losses(tmp_path / "pieces")
    kept = {name: sorted(p.name for p in (tmp_path / name / "checkpoints").iterdir()) for name in ("whole", "pieces")}
    assert kept["whole"] == kept["pieces"]  # the best and the one at the switch too


@pytest.mark.slow
def test_killed_run_loses_nothing(fit: Any, tmp_path: Path, shards: Path) -> None:
    """SIGKILL in superposition and in recovery, between validations: the checkpoint of the last one is gone on from."""
    changes = {"trainer__val_check_interval": 4, "trainer__log_every_n_steps": 2}
    assert fit("whole", **changes)[0] == 0
    path = tmp_path / "killed.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path / "killed", shards, **changes), sort_keys=False))
    for step in (7, 14):
        command = [sys.executable, "-m", "tst_lightning", "fit", "--config", str(path), "--ckpt_path", "last"]
        done = subprocess.run([*command, *signal_at(step, signal.SIGKILL)], cwd=ROOT, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert fit("killed", "--ckpt_path", "last", **changes)[0] == 0
    assert_same_state(last(tmp_path / "whole"), last(tmp_path / "killed"))
    whole, killed = read_runs([str(tmp_path / "whole"), str(tmp_path / "killed")])
    assert [(p.step, p.flops, p.loss) for p in whole.curve] == [(p.step, p.flops, p.loss) for p in killed.curve]
    assert [p.step for p in whole.curve] == [4, 8, 12, 16, 20]


def test_one_seed_repeats_bit_for_bit(fit: Any, tmp_path: Path) -> None:
    assert fit("one")[0] == fit("two")[0] == 0
    assert_same_state(last(tmp_path / "one"), last(tmp_path / "two"))
    assert fit("three", "--seed_everything", "2")[0] == 0
    other = last(tmp_path / "three")["state_dict"]
    assert any(not torch.equal(value, other[key]) for key, value in last(tmp_path / "one")["state_dict"].items())
