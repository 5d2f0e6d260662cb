"""Trained in both phases, exported, loaded by transformers alone, gone on with from the folder, exported again: the losses
are one at each joint.
"""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.commands.test_export import MOE
from tests.conftest import SEQ_LEN, tiny_config
from tests.processes import run
from tests.test_fully_sharded import SHARDED
from tst_lightning.__main__ import main
from tst_lightning.export.trained import read_trained

MIXTURE = MOE | {"router_aux_loss_coef": 0.001}
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "mixture": {"model__config": {"class_path": "transformers.Qwen3MoeConfig", "init_args": MIXTURE}},
}
# One step in each phase and a validation after each, with nothing learned: the loss is that of the first weights.
STILL: dict[str, Any] = {
    "model__optimizer__init_args__lr": 0.0,
    "model__lr_schedule": {"warmup_steps": 0},
    "trainer__max_steps": 2,
    "trainer__val_check_interval": 1,
}


def start(folder: Path, shards: Path, *words: str, **changes: Any) -> Path:
    """Runs ``tst fit`` on the tiny configuration; gives the run's folder."""
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(tiny_config(folder, shards, **changes), sort_keys=False))
    assert main(["fit", "--config", str(path), *words]) == 0
    return folder


def export(folder: Path, *words: str) -> Path:
    out = folder.with_suffix(".hf")
    assert main(["export", str(folder / "checkpoints" / "last.ckpt"), "--out", str(out), *words]) == 0
    return out


def validations(folder: Path) -> list[str]:
    """As logged, to the last digit."""
    with open(folder / "csv" / "version_0" / "metrics.csv") as file:
        return [row["val/loss"] for row in csv.DictReader(file) if row.get("val/loss")]


def loss_by_transformers(model_folder: Path, shards: Path) -> float:
    """Of the rows that the tiny configuration validates on, 2 batches of 32, from the tokens on disk."""
    info = json.loads((shards / "val" / "index.json").read_text())["chunks"][0]
    raw = (shards / "val" / info["filename"]).read_bytes()[4 * (info["chunk_size"] + 2) :]
    tokens = torch.frombuffer(bytearray(raw), dtype=torch.uint16).long()
    rows = tokens[: 64 * (SEQ_LEN + 1)].view(64, SEQ_LEN + 1)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        logits = model(input_ids=rows[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return read_trained(checkpoint).weights


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A finished run of both phases; its export lies beside it."""
    folder = start(tmp_path_factory.mktemp("round") / request.param, shards, **KINDS[request.param])
    export(folder)
    return folder


def test_losses_agree_at_each_joint(trained: Path, shards: Path, tmp_path: Path) -> None:
    folder = trained.with_suffix(".hf")
    last = validations(trained)[-1]
    # Another implementation adds up in another order.
    assert loss_by_transformers(folder, shards) == pytest.approx(float(last), rel=1e-6)

    # The YAML's model is the quickstart's tiny one, whichever was trained.
    begin = ["--model.initial_weights", str(folder)]
    still = start(tmp_path / "still", shards, *begin, **STILL)
    assert validations(still) == [last, last]  # in superposition, and in recovery
    for name, value in weights(still / "checkpoints" / "last.ckpt").items():
        assert torch.equal(value, weights(trained / "checkpoints" / "last.ckpt")[name]), name


@pytest.mark.parametrize("trained", ["dense"], indirect=True)
def test_trained_on_and_exported_again(trained: Path, shards: Path, tmp_path: Path) -> None:
    folder = trained.with_suffix(".hf")
    onward = start(tmp_path / "onward", shards, "--model.initial_weights", str(folder))
    assert float(validations(onward)[-1]) < float(validations(trained)[-1])
    again = export(onward)
    assert loss_by_transformers(again, shards) == pytest.approx(float(validations(onward)[-1]), rel=1e-6)
    still = start(tmp_path / "again", shards, "--model.initial_weights", str(again), **STILL)
    assert validations(still) == [validations(onward)[-1]] * 2
    # Another round changes nothing but what was learned.
    configs = [json.loads((each / "config.json").read_text()) for each in (folder, again)]
    assert configs[0] == configs[1]
    record = json.loads((onward / "run.json").read_text())["initial_weights"]
    card = (again / "README.md").read_text()
    assert f"pretrained on from the weights of {folder.name} (sha256 of its safetensors `{record['sha256']}`)" in card


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", {"class_path": SHARDED}], ids=["ddp", "sharded"])
def test_two_processes_begin_from_it(trained: Path, shards: Path, tmp_path: Path, strategy: Any) -> None:
    path = tmp_path / "two.yaml"
    layout = {"trainer__accelerator": "cpu", "trainer__devices": 2, "trainer__strategy": strategy}
    config = tiny_config(tmp_path / "two", shards, data__pool_blocks=4, **STILL, **layout)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    done = run("fit", "--config", str(path), "--model.initial_weights", str(trained.with_suffix(".hf")), ranks=2)
    assert done.returncode == 0, done.stderr
    begun, expected = (weights(each / "checkpoints" / "last.ckpt") for each in (tmp_path / "two", trained))
    assert begun.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in begun.items())
    assert validations(tmp_path / "two")[0] == validations(tmp_path / "two")[1]
