"""The meter in real runs: rates, what its seconds leave out, totals across a stop, and two processes."""

import csv
import json
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback
from transformers import LlamaConfig

from tests.callbacks.recorder import RECORD, recorded
from tests.conftest import SEQ_LEN, tiny_config
from tests.processes import run
from tests.test_resume import assert_same_run, last, signal_at
from tst_lightning.callbacks import FlopsMeter
from tst_lightning.callbacks.totals import Totals
from tst_lightning.errors import ConfigError
from tst_lightning.flops import closed_form_flops_per_row, convention

ROWS, BAG = 4, 4  # of tests.conftest.tiny_config
QUANTITIES = ("flops", "tokens", "positions", "seconds", "hardware_flops")


class Sleeper(Callback):
    """Sleeps in training, validation and checkpoints, and writes down for how long, and the wall time of the run."""

    def __init__(self) -> None:
        self.slept = {"training": 0.0, "validation": 0.0, "checkpoints": 0.0}
        self.began = 0.0

    def sleep(self, where: str, seconds: float) -> None:
        time.sleep(seconds)
        self.slept[where] += seconds

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.sleep("training", 0.1)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.sleep("validation", 0.5)

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        self.sleep("validation", 0.5)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.sleep("checkpoints", 0.5)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        facts = self.slept | {"wall": time.perf_counter() - self.began}
        (Path(trainer.default_root_dir) / "sleeper.json").write_text(json.dumps(facts))


SLEEPER = '--trainer.callbacks+={"class_path": "tests.callbacks.test_flops_meter.Sleeper"}'


def logged(folder: Path, key: str = "compute/flops", version: int = 0) -> list[dict[str, float]]:
    """The rows of one start's CSV that hold ``key``."""
    with open(folder / "csv" / f"version_{version}" / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get(key)]
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def totals(row: dict[str, float]) -> dict[str, float]:
    return {quantity: row[f"compute/{quantity}"] for quantity in QUANTITIES}


def saved_totals(checkpoint: dict[str, Any]) -> dict[str, float]:
    phases = checkpoint["callbacks"]["FlopsMeter"]["phases"].values()
    return {quantity: sum(phase[quantity] for phase in phases) for quantity in QUANTITIES}


def assert_rates(row: dict[str, float], since: dict[str, float], steps: int) -> None:
    """The row's rates are its totals less ``since``, over the seconds between."""
    step = {quantity: value - since[quantity] for quantity, value in totals(row).items()}
    assert step["seconds"] > 0
    for quantity in ("positions", "tokens", "flops"):
        rate = row[f"throughput/{quantity}_per_second"]
        assert rate * step["seconds"] == pytest.approx(step[quantity], rel=1e-6), quantity
    assert row["throughput/step_seconds"] * steps == pytest.approx(step["seconds"], rel=1e-6)


@pytest.mark.parametrize(("every", "accumulate"), [(1, 1), (2, 3)])
def test_rates_are_what_was_done_over_the_seconds_between(
    fit: Any, tmp_path: Path, every: int, accumulate: int
) -> None:
    changes = {"trainer__log_every_n_steps": every, "trainer__accumulate_grad_batches": accumulate}
    code, said = fit("run", trainer__val_check_interval=5 * accumulate, **changes)
    assert code == 0, said
    rows = logged(tmp_path / "run", "throughput/step_seconds")
    assert [row["compute/step"] for row in rows] == list(range(every, 21, every))
    assert {row["phase/index"] for row in rows} == {0, 1}
    flops = {phase["flops_per_step"] for phase in json.loads((tmp_path / "run" / "run.json").read_text())["phases"]}
    before = dict.fromkeys(QUANTITIES, 0.0)
    for row in rows:
        assert_rates(row, before, every)
        now = totals(row)
        positions = now["positions"] - before["positions"]
        assert positions == every * accumulate * ROWS * SEQ_LEN
        assert now["tokens"] - before["tokens"] == positions * (BAG if row["compute/step"] <= 10 else 1)
        assert {(now["flops"] - before["flops"]) / every} == flops
        before = now


# The phase switches, and its checkpoint is written, halfway. Between two validations, each with checkpoints of its own;
# and at one, which like the next has none.
@pytest.mark.parametrize(("steps", "every", "kept"), [(6, 2, 1), (3, 1, 0)])
def test_seconds_are_of_training_alone(fit: Any, tmp_path: Path, steps: int, every: int, kept: int) -> None:
    changes = {"trainer__max_steps": steps, "trainer__val_check_interval": every, "trainer__limit_val_batches": 1}
    changes |= {f"callbacks__{name}__init_args__save_top_k": kept for name in ("best", "last")}
    code, said = fit("run", SLEEPER, **changes)
    assert code == 0, said
    slept = json.loads((tmp_path / "run" / "sleeper.json").read_text())
    validations = steps // every
    assert slept["training"] == pytest.approx(steps * 0.1)
    assert slept["validation"] == validations * 2 * 0.5
    assert slept["checkpoints"] >= (validations + 1) * 0.5 if kept else slept["checkpoints"] == 0.5
    seconds = logged(tmp_path / "run")[-1]["compute/seconds"]
    assert seconds >= slept["training"]
    assert slept["wall"] - seconds >= slept["validation"] + slept["checkpoints"]


def test_totals_go_on_from_the_checkpoint(fit: Any, tmp_path: Path) -> None:
    code, said = fit("run", *signal_at(11))
    assert code == 128 + signal.SIGTERM, said
    saved = saved_totals(last(tmp_path / "run"))
    assert saved["positions"] == 12 * ROWS * SEQ_LEN
    assert saved["tokens"] == (10 * BAG + 2) * ROWS * SEQ_LEN
    assert saved["seconds"] >= logged(tmp_path / "run", "throughput/step_seconds")[-1]["compute/seconds"]
    began = time.perf_counter()
    assert fit("run", "--ckpt_path", "last")[0] == 0
    wall = time.perf_counter() - began
    rows = logged(tmp_path / "run", "throughput/step_seconds", version=1)
    first, end = totals(rows[0]), totals(rows[-1])
    assert rows[0]["compute/step"] == 13
    assert first["positions"] == 13 * ROWS * SEQ_LEN
    assert first["tokens"] == (10 * BAG + 3) * ROWS * SEQ_LEN
    assert first["flops"] == saved["flops"] * 13 / 12
    assert first["seconds"] > saved["seconds"]
    assert end["seconds"] - saved["seconds"] < wall  # the time between stop and start is nobody's
    assert_rates(rows[0], saved, 1)


def test_hardware_flops_go_on_as_activations_are_kept_or_computed_again(
    fit: Any, tiny_run: Path, tmp_path: Path
) -> None:
    """Checkpointed in all of superposition and a step of recovery, then no more: the same run in every other number."""
    code, said = fit("run", *signal_at(10), model__activation_checkpointing="full")
    assert code == 128 + signal.SIGTERM, said
    phases = json.loads((tmp_path / "run" / "run.json").read_text())["phases"]
    saved = saved_totals(last(tmp_path / "run"))
    assert [saved[key] for key in ("flops", "hardware_flops")] == [
        sum(steps * phase[f"{key}_per_step"] for steps, phase in zip((10, 1), phases, strict=True))
        for key in ("flops", "hardware_flops")
    ]
    # A second forward of 2 layers, 32 wide, but for the last of their products (64 to 32); two FLOPs a multiply-add.
    layer = 4 * 32 * 32 + 2 * 32 * 64
    again = 2 * 2 * (SEQ_LEN * layer + 2 * 32 * SEQ_LEN**2)
    assert saved["hardware_flops"] - saved["flops"] == 11 * ROWS * again
    causal = ("--callbacks.flops_meter.init_args.attention", "causal")
    code, said = fit("run", "--ckpt_path", "last", *causal)
    assert code == 2 and "the checkpoint's FLOPs count attention as full, FlopsMeter.attention is causal" in said
    code, said = fit("run", "--ckpt_path", "last")
    assert code == 0, said
    end = totals(logged(tmp_path / "run", version=1)[-1])
    assert end["flops"] == saved["flops"] * 20 / 11
    assert end["hardware_flops"] - saved["hardware_flops"] == end["flops"] - saved["flops"]
    assert_same_run(tiny_run, tmp_path / "run")


def test_one_switch_counts_causal_attention(fit: Any, tmp_path: Path) -> None:
    causal = ("--callbacks.flops_meter.init_args.attention", "causal")
    assert fit("run", *causal, trainer__max_steps=4, trainer__val_check_interval=4)[0] == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["flops_convention"] == convention("causal") != convention("full")
    # 2 layers 32 wide: 12 FLOPs a pair of positions, of which the causal mask leaves 136 of 256.
    full = closed_form_flops_per_row(LlamaConfig(**record["model"]["config"]), SEQ_LEN)
    by_hand = 4 * ROWS * (full - 2 * 12 * 32 * (256 - 136))
    assert record["flops"] == totals(logged(tmp_path / "run")[-1])["flops"] == pytest.approx(by_hand, rel=1e-3)


def test_rates_by_hand() -> None:
    done = Totals(flops=600, tokens=80, positions=20, seconds=2.0, hardware_flops=800)
    plain = {"positions_per_second": 10, "tokens_per_second": 40, "flops_per_second": 300, "step_seconds": 0.5}
    assert done.rates(4, None) == plain
    assert done.rates(4, 1000.0) == plain | {"mfu": 0.3, "hfu": 0.4}
    done.hardware_flops = 600
    assert done.rates(4, 1000.0) == plain | {"mfu": 0.3}


def test_totals_add_and_subtract() -> None:
    a, b = Totals(flops=10, tokens=8, positions=2, seconds=0.5), Totals(flops=3, tokens=2, positions=1, seconds=0.25)
    assert a + b == Totals(flops=13, tokens=10, positions=3, seconds=0.75)
    assert a - b == Totals(flops=7, tokens=6, positions=1, seconds=0.25)
    assert a == Totals(10, 8, 2, 0.5)


def test_state_from_before_hardware_flops_were_counted() -> None:
    meter = FlopsMeter()
    meter.load_state_dict(
        {"phases": {"a": {"flops": 7, "tokens": 3, "positions": 2, "seconds": 0.5}}, "corpora": {"c": 3}}
    )
    assert meter.per_phase == {"a": Totals(7, 3, 2, 0.5, hardware_flops=7)}
    with pytest.raises(ConfigError, match="count attention as full, FlopsMeter.attention is causal"):
        FlopsMeter("causal").load_state_dict({"phases": {}, "corpora": {}})
    with pytest.raises(ConfigError, match="count attention as causal, .* set it to causal, or start a new run"):
        meter.load_state_dict(FlopsMeter("causal").state_dict())


def test_state_goes_around() -> None:
    one, other = FlopsMeter(), FlopsMeter()
    one.per_phase = {"superposition": Totals(10**24, 8, 2, 0.5), "recovery": Totals(3, 2, 1, 0.25)}
    state = json.loads(json.dumps(one.state_dict()))
    other.load_state_dict(state)
    assert other.per_phase == one.per_phase and list(other.per_phase) == list(one.per_phase)
    assert other.total == Totals(10**24 + 3, 10, 3, 0.75)
    one.per_phase["recovery"].seconds += 1
    assert asdict(other.per_phase["recovery"]) == state["phases"]["recovery"]


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_do_twice_the_work_on_other_rows(fit: Any, tmp_path: Path, shards: Path) -> None:
    assert fit("one", trainer__accelerator="cpu")[0] == 0
    changes = {"trainer__accelerator": "cpu", "trainer__devices": 2, "trainer__strategy": "ddp"}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path / "two", shards, **changes), sort_keys=False))
    done = run("fit", "--config", str(path), *RECORD, ranks=2)
    assert done.returncode == 0, done.stderr
    one, two = (logged(tmp_path / name) for name in ("one", "two"))
    assert [row["compute/step"] for row in one] == [row["compute/step"] for row in two]
    for alone, both in zip(one, two, strict=True):
        for quantity in ("flops", "hardware_flops", "tokens", "positions"):
            assert both[f"compute/{quantity}"] == 2 * alone[f"compute/{quantity}"], quantity
    ranks = [recorded(tmp_path / "two", rank) for rank in (0, 1)]
    assert ranks[0]["weights"] == ranks[1]["weights"]
    # Rows of superposition are whole blocks, long enough to be told apart.
    read = [{tuple(row) for batch in rank["batches"][:10] for row in batch} for rank in ranks]
    assert len(read[0]) == len(read[1]) == 10 * ROWS
    assert not read[0] & read[1]
