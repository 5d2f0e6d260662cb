"""One short run of each arm through the real command, and everything that it leaves behind."""

import csv
import json
import math
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.callbacks.recorder import RECORD, recorded
from tests.conftest import SEQ_LEN, tiny_config
from tst_lightning.__main__ import main
from tst_lightning.bags import PowerLaw
from tst_lightning.callbacks.run_record import _public as public
from tst_lightning.compare.arms import arms_of
from tst_lightning.compare.runs import read_runs
from tst_lightning.flops import closed_form_flops_per_row
from tst_lightning.phases import MultiTokenPhase, NextTokenPhase, SuperpositionPhase

ROWS = 4
STEPS = 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> dict[str, Path]:
    """A TST run of 20 steps (r = 0.5, s = 4) and its baseline."""
    root = tmp_path_factory.mktemp("runs")
    phases = {"next_token": {"class_path": "tst_lightning.phases.NextTokenPhase", "init_args": {}}}
    for name, changes in (("tst", {}), ("baseline", {"model__phases": phases})):
        path = root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tiny_config(root / name, shards, **changes), sort_keys=False))
        assert main(["fit", "--config", str(path), *RECORD]) == 0
    return {name: root / name for name in ("tst", "baseline")}


def test_what_a_phase_was_built_with_is_told_apart() -> None:
    """Two settings that read alike in a record would be averaged as seeds of one."""

    class Kind(Enum):
        A = 1
        B = 2

    def record(value: Any) -> str:
        phase = NextTokenPhase()
        phase.value = value  # type: ignore[attr-defined]
        return json.dumps(public(MultiTokenPhase(phase)), default=str)

    for one, other in [
        (Kind.A, Kind.B),
        (torch.tensor([0.1, 0.9]), torch.tensor([0.9, 0.1])),
        (PowerLaw(0.0, 1.0, -1.0), PowerLaw(0.0, 1.0, -2.0)),
        (SuperpositionPhase(2, weighting="first"), SuperpositionPhase(2)),
    ]:
        assert record(one) == record(one) != record(other)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "csv" / "version_0" / "metrics.csv") as file:
        return list(csv.DictReader(file))


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def test_flops_tokens_and_positions_by_hand(folders: dict[str, Path]) -> None:
    shape = yaml.safe_load((folders["tst"] / "config.yaml").read_text())["model"]["config"]["init_args"]
    per_step = ROWS * closed_form_flops_per_row(LlamaConfig(**shape), SEQ_LEN)
    for name, tokens in (("baseline", STEPS * ROWS * SEQ_LEN), ("tst", STEPS * ROWS * SEQ_LEN * (1 + 0.5 * 3))):
        last = [row for row in rows(folders[name]) if row.get("compute/flops")][-1]
        assert float(last["compute/flops"]) == pytest.approx(STEPS * per_step, rel=1e-3)
        assert float(last["compute/tokens"]) == tokens
        assert float(last["compute/positions"]) == STEPS * ROWS * SEQ_LEN
        assert float(last["compute/step"]) == STEPS
        assert float(last["compute/seconds"]) > 0


def test_training_loss_is_logged_under_the_phase_of_its_step(folders: dict[str, Path]) -> None:
    for phase, steps in (("superposition", range(0, 10)), ("recovery", range(10, 20))):
        logged = [int(row["step"]) for row in rows(folders["tst"]) if row.get(f"train/{phase}/loss")]
        assert logged == list(steps)


def test_validation_is_next_token_loss_of_the_weights_in_every_phase(folders: dict[str, Path], shards: Path) -> None:
    """The last validation, redone with transformers alone from the checkpoint and the tokens on disk."""
    checkpoint = torch.load(folders["tst"] / "checkpoints" / "last.ckpt", weights_only=True)
    shape = yaml.safe_load((folders["tst"] / "config.yaml").read_text())["model"]["config"]["init_args"]
    plain = AutoModelForCausalLM.from_config(LlamaConfig(**shape))
    plain.load_state_dict({key.removeprefix("model.lm."): value for key, value in checkpoint["state_dict"].items()})
    info = json.loads((shards / "val" / "index.json").read_text())["chunks"][0]
    raw = (shards / "val" / info["filename"]).read_bytes()[4 * (info["chunk_size"] + 2) :]
    tokens = torch.frombuffer(bytearray(raw), dtype=torch.uint16).long()
    batch = tokens[: 64 * (SEQ_LEN + 1)].view(64, SEQ_LEN + 1)  # limit_val_batches 2 x val_batch_size 32
    with torch.no_grad():
        loss = plain.eval()(input_ids=batch, labels=batch).loss.item()
    last = [row for row in rows(folders["tst"]) if row.get("val/loss")][-1]
    assert float(last["val/loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(last["val/perplexity"]) == pytest.approx(math.exp(loss), rel=1e-4)
    val = json.loads((shards / "manifest.json").read_text())["val"]
    per_byte = loss / math.log(2) * val["tokens"] / val["bytes"]
    assert float(last["val/bits_per_byte"]) == pytest.approx(per_byte, rel=1e-4)


def test_tensorboard_holds_everything(folders: dict[str, Path]) -> None:
    tags = set(events(folders["tst"]).Tags()["scalars"])
    assert tags >= {
        *("train/superposition/loss", "train/recovery/loss", "train/grad_norm"),
        *("val/loss", "val/perplexity", "val/bits_per_byte", "val_by_gflop/loss", "val_by_token/loss"),
        *("train_by_gflop/superposition/loss", "train_by_token/recovery/loss"),
        *("lr-AdamW/decay", "lr-AdamW/no_decay", "phase/index", "phase/bag_size"),
        *("compute/flops", "compute/hardware_flops", "compute/tokens", "compute/positions", "compute/seconds"),
        *("throughput/positions_per_second", "throughput/tokens_per_second", "memory/process_peak_bytes"),
    }
    assert "throughput/mfu" not in tags  # the peak of this processor is not known
    plugins = events(folders["tst"]).summary_metadata
    assert any(data.plugin_data.plugin_name == "hparams" for data in plugins.values())


def test_runs_line_up_at_equal_compute_and_at_equal_data(folders: dict[str, Path]) -> None:
    steps = {
        name: [[event.step for event in events(folder).Scalars(f"val_by_{axis}/loss")] for axis in ("gflop", "token")]
        for name, folder in folders.items()
    }
    assert len(steps["tst"][0]) == 4 and steps["tst"][0] == steps["baseline"][0]
    assert steps["baseline"][1] == [5 * k * ROWS * SEQ_LEN for k in (1, 2, 3, 4)]
    assert steps["tst"][1] == [5 * k * ROWS * SEQ_LEN for k in (4, 8, 9, 10)]


def test_checkpoints_last_best_and_at_the_switch(folders: dict[str, Path]) -> None:
    found = sorted(path.name for path in (folders["tst"] / "checkpoints").iterdir())
    assert found[1:] == ["last.ckpt", "switch-recovery-step=10.ckpt"] and found[0].startswith("best-step=")
    shapes = []
    for name in found:
        checkpoint = torch.load(folders["tst"] / "checkpoints" / name, weights_only=True)
        shapes.append({key: value.shape for key, value in checkpoint["state_dict"].items()})
    # The same parameters before, at and after the switch, and as in a model that never heard of phases.
    shape = yaml.safe_load((folders["tst"] / "config.yaml").read_text())["model"]["config"]["init_args"]
    plain = AutoModelForCausalLM.from_config(LlamaConfig(**shape)).state_dict()
    assert shapes == [{f"model.lm.{key}": value.shape for key, value in plain.items()}] * 3
    switch = torch.load(folders["tst"] / "checkpoints" / "switch-recovery-step=10.ckpt", weights_only=True)
    assert switch["global_step"] == 10
    assert all(state["step"] == 10 for state in switch["optimizer_states"][0]["state"].values())


def test_optimizer_state_and_schedule_carry_on_across_the_switch(folders: dict[str, Path]) -> None:
    last = torch.load(folders["tst"] / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(state["step"] == STEPS for state in last["optimizer_states"][0]["state"].values())
    rates = [float(row["lr-AdamW/decay"]) for row in rows(folders["tst"]) if row.get("lr-AdamW/decay")]
    baseline = [float(row["lr-AdamW/decay"]) for row in rows(folders["baseline"]) if row.get("lr-AdamW/decay")]
    assert len(rates) == STEPS and rates == baseline


def test_both_arms_start_from_the_same_weights(folders: dict[str, Path], fit: Any, tmp_path: Path) -> None:
    weights = {name: recorded(folder)["weights"] for name, folder in folders.items()}
    assert weights["tst"] == weights["baseline"]
    assert fit("other", "--seed_everything", "2", *RECORD)[0] == 0
    assert recorded(tmp_path / "other")["weights"] != weights["tst"]
    # The order of data is data.seed's alone.
    assert recorded(tmp_path / "other")["batches"] == recorded(folders["tst"])["batches"]


def test_both_arms_read_the_same_blocks(folders: dict[str, Path]) -> None:
    """Rows are permuted within a pool of 8 blocks: the pools agree as bags of next-token rows, one after another."""
    pool, row = 8, SEQ_LEN + 1
    block = 4 * row
    arms = {name: recorded(folder)["batches"] for name, folder in folders.items()}
    assert all(len(ids) == block for batch in arms["tst"][:10] for ids in batch)
    assert all(len(ids) == row for batch in arms["baseline"] for ids in batch)
    # A pool is 8 batches of the baseline's, 2 of superposition's; 20 batches of the baseline are 2.5 pools.
    for first in (0, 1, 2):
        superposed = [ids for batch in arms["tst"][2 * first :][:2] for ids in batch]
        read = Counter(tuple(ids[k : k + row]) for ids in superposed for k in range(0, block, row))
        baseline = Counter(tuple(ids) for batch in arms["baseline"][8 * first :][:8] for ids in batch)
        assert read.total() == 4 * pool and baseline.total() == (4 * pool if first < 2 else 2 * pool)
        assert baseline == read if first < 2 else baseline < read


@pytest.mark.parametrize("accumulate", [1, 3])
def test_switch_happens_at_its_step(fit: Any, tmp_path: Path, accumulate: int) -> None:
    """7 steps at r = 0.5: floor(3.5) = 3 in superposition, whatever the accumulation."""
    code, said = fit(
        "run",
        trainer__max_steps=7,
        trainer__accumulate_grad_batches=accumulate,
        trainer__val_check_interval=7 * accumulate,
    )
    assert code == 0, said
    logged = rows(tmp_path / "run")
    phases = {
        phase: [int(row["step"]) for row in logged if row.get(f"train/{phase}/loss")]
        for phase in ("superposition", "recovery")
    }
    assert phases == {"superposition": [0, 1, 2], "recovery": [3, 4, 5, 6]}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [phase["steps"] for phase in record["phases"]] == [3, 4]
    settings = {"share": 0.5, "weighting": "uniform", "objective": "multi_hot"}
    assert [phase["settings"] for phase in record["phases"]] == [settings, {"share": None}]
    assert record["device_name"] and record["compiled_layers"] is False
    last = [row for row in logged if row.get("compute/tokens")][-1]
    assert float(last["compute/tokens"]) == (3 * 4 + 4) * accumulate * ROWS * SEQ_LEN


def test_the_final_model_is_validated_whatever_the_interval(fit: Any, tmp_path: Path) -> None:
    """And the same run made longer validates at multiples of the interval again, and at its end."""
    changes = {"trainer__accumulate_grad_batches": 2, "trainer__val_check_interval": 6}
    for version, (steps, expected) in enumerate([(7, [3, 6, 7]), (11, [9, 11])]):
        share = {"model__phases__superposition__init_args__share": 3.01 / steps}
        code, said = fit("run", "--ckpt_path", "last", trainer__max_steps=steps, **share, **changes)
        assert code == 0, said
        with open(tmp_path / "run" / "csv" / f"version_{version}" / "metrics.csv") as file:
            validated = [(int(row["step"]) + 1, row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
        assert [step for step, _ in validated] == expected
        assert f"{steps} steps, validation loss {float(validated[-1][1]):.4f}" in said


def test_a_run_that_reads_its_data_twice_says_so(fit: Any, tmp_path: Path) -> None:
    note = "note      the data is read more than once"
    code, said = fit("run", data__batch_size=256, trainer__max_steps=40, trainer__val_check_interval=40)
    assert code == 0, said
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["passes"] == record["tokens_needed"] / record["tokens_available"] > 1.5
    assert f"needed: {record['passes']:.2f} passes" in said and note in said
    code, said = fit("once")
    assert code == 0 and json.loads((tmp_path / "once" / "run.json").read_text())["passes"] < 1
    assert note not in said


def test_two_seeds_are_one_arm_to_the_referee(fit: Any, tmp_path: Path) -> None:
    """Whatever a run records of itself is either of the experiment or known not to be."""
    for seed in (1, 2):
        code, said = fit(f"tst-seed{seed}", seed_everything=seed, data__seed=seed, trainer__max_steps=5)
        assert code == 0, said
    first, second = read_runs([str(tmp_path / "tst-seed1"), str(tmp_path / "tst-seed2")])
    (arm,) = arms_of([first, second])
    assert (arm.name, arm.seeds) == ("tst", [1, 2])


def test_weights_by_constants_of_ones_own_are_told_everywhere(fit: Any, tmp_path: Path, tiny_run: Path) -> None:
    law = {"constant": 0.25, "factor": 1.5, "exponent": -0.75}
    weighting = {"model__phases__superposition__init_args__weighting": law}
    code, said = fit("run", trainer__max_steps=10, **weighting)
    assert code == 0, said
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["phases"][0]["settings"]["weighting"] == {"class": "PowerLaw", **law}

    page = tmp_path / "report"
    assert main(["compare", str(tiny_run), str(tmp_path / "run"), "--out", str(page)]) == 0
    assert "&quot;exponent&quot;: -0.75" in (page / "report.html").read_text()
