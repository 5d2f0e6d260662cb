"""A loss or gradient that is no number stops the run, or costs one step of it."""

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from tests.callbacks.recorder import RECORD, recorded
from tests.conftest import tiny_config
from tests.processes import run
from tests.test_resume import assert_same_state, last, signal_at

SKIP = ("--callbacks.non_finite.init_args.action", "skip")


class BadGradient(Callback):
    """Makes a gradient infinite for real at some steps, on one rank or (-1) on all; keeps the weights of rank 0 and 1
    as they ended.
    """

    def __init__(self, steps: list[int], rank: int = -1) -> None:
        self.steps, self.rank = steps, rank

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step in self.steps and self.rank in (-1, trainer.global_rank):
            next(pl_module.parameters()).grad[0] = float("inf")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.save(pl_module.state_dict(), Path(trainer.default_root_dir) / f"weights-{trainer.global_rank}.pt")


class BadLoss(Callback):
    """Makes the loss NaN for real at one step, and puts the weights that did it back."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.head: torch.Tensor | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and self.head is None:
            self.head = pl_module.model.head.detach().clone()
            pl_module.model.head.data.fill_(3e38)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step + 1 and self.head is not None:
            assert bool((pl_module.model.head == 3e38).all()), "the step was taken"
            pl_module.model.head.data.copy_(self.head)
            self.head = None


class States(Callback):
    """Keeps weights, optimizer state and learning rate as every step began."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        optimizer = trainer.optimizers[0]
        content = {"weights": pl_module.state_dict(), "optimizer": optimizer.state_dict()["state"]}
        rate = optimizer.param_groups[0]["lr"]
        path = Path(trainer.default_root_dir) / f"state-{trainer.global_step}.pt"
        if not path.exists():
            torch.save(content | {"rate": rate}, path)


def callback(kind: type[Callback], **arguments: Any) -> str:
    spec = {"class_path": f"{__name__}.{kind.__name__}", "init_args": arguments}
    return f"--trainer.callbacks+={json.dumps(spec)}"


def skipped_steps(folder: Path) -> dict[int, float]:
    with open(folder / "csv" / "version_0" / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/skipped_steps")]
    return {int(row["step"]): float(row["train/skipped_steps"]) for row in rows}


@pytest.mark.parametrize(("accumulate", "log_every"), [(1, 1), (3, 100)])
def test_a_bad_gradient_stops_before_a_checkpoint_of_it_is_written(
    fit: Any, tmp_path: Path, accumulate: int, log_every: int
) -> None:
    changes = {"trainer__accumulate_grad_batches": accumulate, "trainer__val_check_interval": 5 * accumulate}
    code, said = fit("run", callback(BadGradient, steps=[7]), trainer__log_every_n_steps=log_every, **changes)
    assert code == 1
    kept = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert f"the gradient was not finite at step 7, phase 'superposition'; the last good checkpoint is {kept}" in said
    assert last(tmp_path / "run")["global_step"] == 5


@pytest.mark.parametrize(("bad", "accumulate"), [("gradient", 1), ("loss", 3)])
def test_a_skipped_step_leaves_weights_and_optimizer_state_alone(
    fit: Any, tmp_path: Path, bad: str, accumulate: int
) -> None:
    changes = {"trainer__accumulate_grad_batches": accumulate, "trainer__val_check_interval": 5 * accumulate}
    fault = callback(BadGradient, steps=[7]) if bad == "gradient" else callback(BadLoss, step=7)
    code, said = fit("run", callback(States), fault, *SKIP, *RECORD, **changes)
    assert code == 0, said
    states = [torch.load(tmp_path / "run" / f"state-{step}.pt") for step in (6, 7, 8, 9)]
    for before, after, same in zip(states, states[1:], (False, True, False), strict=False):
        weights = [torch.equal(before["weights"][key], after["weights"][key]) for key in before["weights"]]
        assert all(weights) if same else not any(weights)
        for index, state in before["optimizer"].items():
            for key, value in state.items():
                assert torch.equal(value, after["optimizer"][index][key]) == same, (index, key)
    # All else goes on: the rate, the steps, the data, the log.
    assert fit("whole", callback(States), *RECORD, **changes)[0] == 0
    whole = [torch.load(tmp_path / "whole" / f"state-{step}.pt") for step in (6, 7, 8, 9)]
    assert [state["rate"] for state in states] == [state["rate"] for state in whole]
    assert recorded(tmp_path / "run")["batches"] == recorded(tmp_path / "whole")["batches"]
    assert skipped_steps(tmp_path / "run") == {step: float(step >= 7) for step in range(20)}
    assert skipped_steps(tmp_path / "whole") == {}
    assert last(tmp_path / "run")["global_step"] == 20


def test_skips_are_counted_over_stops_and_capped(fit: Any, tmp_path: Path) -> None:
    fault = callback(BadGradient, steps=[3, 12])
    cap = "--callbacks.non_finite.init_args.max_skips"
    assert fit("whole", fault, *SKIP, cap, "2")[0] == 0
    assert fit("pieces", fault, *SKIP, cap, "2", *signal_at(8))[0] == 128 + signal.SIGTERM
    assert last(tmp_path / "pieces")["callbacks"]["NonFiniteGuard"] == {"skipped": 1}
    code, said = fit("pieces", fault, *SKIP, cap, "1", "--ckpt_path", "last")
    assert code == 1
    assert "was not finite once more, after 1 skipped steps (max_skips), at step 12, phase 'recovery'" in said
    assert fit("pieces", fault, *SKIP, cap, "2", "--ckpt_path", "last")[0] == 0
    assert_same_state(last(tmp_path / "whole"), last(tmp_path / "pieces"))


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_the_loss_scaler_of_half_precision_is_left_to_skip_by_itself(fit: Any, tmp_path: Path, action: str) -> None:
    scaler = {"class_path": "torch.amp.GradScaler", "init_args": {"device": "cpu"}}
    half = {"precision": "16-mixed", "device": "cpu", "scaler": scaler}
    plugin = {"class_path": "lightning.pytorch.plugins.MixedPrecision", "init_args": half}
    changes = {"trainer__accelerator": "cpu", "trainer__precision": None, "trainer__plugins": plugin}
    changes["model__optimizer__init_args__fused"] = False
    fault = callback(BadGradient, steps=[3, 7])
    code, said = fit("run", fault, "--callbacks.non_finite.init_args.action", action, **changes)
    assert code == 0, said
    checkpoint = last(tmp_path / "run")
    assert {float(state["step"]) for state in checkpoint["optimizer_states"][0]["state"].values()} == {18.0}
    assert checkpoint["callbacks"]["NonFiniteGuard"] == {"skipped": 0}


@pytest.mark.parametrize(
    ("arguments", "says"), [({"action": "ignore"}, "got ignore"), ({"max_skips": -1}, "max_skips is -1")]
)
def test_bad_arguments(fit: Any, arguments: dict[str, Any], says: str) -> None:
    code, said = fit("run", callbacks__non_finite__init_args=arguments)
    assert code == 2 and says in said and said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.distributed
def test_all_processes_skip_what_one_of_them_must(tmp_path: Path, shards: Path) -> None:
    changes = {"trainer__accelerator": "cpu", "trainer__devices": 2, "trainer__strategy": "ddp"}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path / "two", shards, **changes), sort_keys=False))
    fault = callback(BadGradient, steps=[7], rank=1)
    done = run("fit", "--config", str(path), fault, *SKIP, ranks=2)
    assert done.returncode == 0, done.stderr
    weights = [torch.load(tmp_path / "two" / f"weights-{rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert all(state["step"] == 19 for state in last(tmp_path / "two")["optimizer_states"][0]["state"].values())
