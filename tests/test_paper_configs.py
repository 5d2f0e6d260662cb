"""The configurations of the published runs: shapes, batches, tokens and recipe are the paper's."""

import csv
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from transformers import PreTrainedConfig

from tests.conftest import ROOT
from tst_lightning import phases
from tst_lightning.__main__ import main
from tst_lightning.modeling import build_on_meta, count_parameters
from tst_lightning.phases import PhaseSchedule

PAPER = ROOT / "configs" / "paper"
# Folder -> the main table's name, parameters in all and active as design figures, those of the name, learning rate, batch.
SCALES: dict[str, tuple[str, float, float, float, float, float, int]] = {
    "270m": ("dense-270M", 267.2e6, 267.2e6, 270e6, 270e6, 2e-3, 2**21),
    "600m": ("dense-600M", 600.2e6, 600.2e6, 600e6, 600e6, 1e-3, 2**21),
    "3b": ("dense-3B", 3338e6, 3338e6, 3e9, 3e9, 2e-4, 2**21),
    "10b_a1b": ("moe-10B-A1B", 10_316e6, 1256e6, 10e9, 1e9, 3e-4, 2**23),
}


def read(folder: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((PAPER / folder / f"{name}.yaml").read_text())


def model_config(folder: str) -> PreTrainedConfig:
    spec = read(folder, "tst")["model"]["config"]
    kind = getattr(transformers, spec["class_path"].removeprefix("transformers."))
    return kind(**spec["init_args"], **spec.get("dict_kwargs", {}))


def published_runs() -> list[dict[str, str]]:
    with files("tst_lightning.published").joinpath("main_results.csv").open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["method"] in ("baseline", "tst")]


@pytest.mark.parametrize("folder", SCALES)
def test_parameters(folder: str) -> None:
    _, total, active, named, named_active, _, _ = SCALES[folder]
    config = model_config(folder)
    counted = count_parameters(config)
    assert counted.total == pytest.approx(total, rel=2e-4) and counted.active == pytest.approx(active, rel=5e-4)
    # Names are rounded: SmolLM3's shape has 3.3B with the larger vocabulary and a head of its own.
    assert counted.total == pytest.approx(named, rel=0.12)
    model = build_on_meta(config)
    embedding = model.lm.get_input_embeddings().weight
    # Of what is active, the mixture's name leaves the lookup out.
    assert counted.active == pytest.approx(
        named_active, rel=0.12
    ) or counted.active - embedding.numel() == pytest.approx(named_active, rel=0.12)
    assert model.head is not embedding and model.head.shape == embedding.shape == (128_256, config.hidden_size)


@pytest.mark.parametrize("row", published_runs(), ids=lambda row: "-".join(list(row.values())[:4]))
def test_steps_and_tokens_of_the_main_table(row: dict[str, str]) -> None:
    folder = next(folder for folder, (name, *_) in SCALES.items() if name == row["model"])
    config, steps = read(folder, row["method"]), int(row["total_steps"])
    if steps != config["trainer"]["max_steps"]:
        config["trainer"] |= read(folder, f"{steps // 1000}k_steps")["trainer"]
    assert config["trainer"]["max_steps"] == steps
    built = {
        name: getattr(phases, spec["class_path"].rpartition(".")[2])(**spec["init_args"])
        for name, spec in config["model"]["phases"].items()
    }
    entries = list(PhaseSchedule(built, steps))
    superposed = [entry for entry in entries if entry.phase.bag_size > 1]
    assert sum(entry.steps for entry in superposed) == int(row["superposition_steps"])
    assert max(entry.phase.bag_size for entry in entries) == int(row["bag_size"])
    trainer, data = config["trainer"], config["data"]
    rows = trainer["devices"] * trainer["num_nodes"] * data["batch_size"] * trainer["accumulate_grad_batches"]
    assert rows * data["seq_len"] == SCALES[folder][-1]
    tokens = {name: steps * rows * data["seq_len"] * phase.bag_size for name, phase, _, steps in entries}
    # The table has two or three figures.
    assert sum(tokens.values()) / 1e9 == pytest.approx(float(row["total_tokens_b"]), rel=0.01)
    assert tokens.get("superposition", 0) / 1e9 == pytest.approx(float(row["superposition_tokens_b"]), rel=0.01)
    assert all(data["block_rows"] % entry.phase.bag_size == 0 for entry in entries)
    # Every 500 steps, in micro-batches.
    assert trainer["val_check_interval"] == 500 * trainer["accumulate_grad_batches"]


@pytest.mark.parametrize("folder", SCALES)
def test_recipe(folder: str) -> None:
    model = read(folder, "tst")["model"]
    assert model["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert (model["optimizer"]["init_args"]["lr"], model["optimizer"]["init_args"]["betas"]) == (
        SCALES[folder][5],
        [0.9, 0.95],
    )
    assert model["lr_schedule"] == {"warmup_steps": 2000, "decay_share": 0.1}


def test_power_law_changes_the_weights_of_the_dense_runs_alone() -> None:
    option = yaml.safe_load((PAPER / "power_law.yaml").read_text())["model"]["phases"]
    assert option["superposition"]["init_args"].pop("weighting") == "power_law"
    for folder in ("270m", "600m", "3b"):
        assert option == read(folder, "tst")["model"]["phases"]


def test_a_plan_is_made_of_another_machines_configuration(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """64 devices, shards that are not there, a mixture of corpora and of experts."""
    monkeypatch.chdir(tmp_path)
    # The layout first, so that the model's numbers of devices hold.
    paths = [ROOT / "configs" / "trainer" / "fsdp2.yaml", PAPER / "10b_a1b" / "tst.yaml"]
    assert main(["plan", *(word for path in paths for word in ("--config", str(path))), "--device", "H100"]) == 0
    said = capsys.readouterr().out
    assert "64 x 32 rows of 2,048, accumulated 2 times" in said and "memory of a device (fsdp, bf16-mixed" in said
    # Not laid out a second time for the difference between 0.24975 and 0.25.
    assert "superposition   16  12,483   1.68T" in said and "recommended  " not in said
