"""The recipes of configs/recipes, through both phases of the real command, against float32."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from tests.conftest import ROOT
from tst_lightning.losses import LossSum
from tst_lightning.metrics import LossByPosition, NextTokenMetrics
from tst_lightning.modeling import build_causal_lm


def curve(folder: Path) -> list[float]:
    with open(folder / "csv" / "version_0" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    keys = ("train/superposition/loss", "train/recovery/loss", "val/loss")
    return [float(row[key]) for key in keys for row in rows if row.get(key)]


@pytest.mark.parametrize(("recipe", "kept"), [("bf16_mixed", torch.float32), ("bf16_true", torch.bfloat16)])
def test_half_precision_trains_nearly_the_same_model(
    fit: Any, tiny_run: Path, tmp_path: Path, recipe: str, kept: torch.dtype
) -> None:
    code, said = fit("half", "--config", str(ROOT / "configs" / "recipes" / f"{recipe}.yaml"))
    assert code == 0, said
    full, half = curve(tiny_run), curve(tmp_path / "half")
    assert len(half) == len(full) == 24
    assert half != full and half == pytest.approx(full, rel=0.02)
    content = torch.load(tmp_path / "half" / "checkpoints" / "last.ckpt", weights_only=True)
    assert {value.dtype for value in content["state_dict"].values() if value.is_floating_point()} >= {kept}
    moments = [state["exp_avg"].dtype for state in content["optimizer_states"][0]["state"].values()]
    assert set(moments) == {kept}


def test_scores_are_added_up_in_float64_whatever_the_model_is_cast_to() -> None:
    metric = nn.ModuleDict({"all": NextTokenMetrics(1.0)}).to(torch.bfloat16)["all"]
    for _ in range(1000):
        metric.update(LossSum(torch.tensor(256 * 5.0), torch.zeros(1), torch.tensor(256.0)))
    assert metric.compute()["tokens"] == 256_000 and metric.compute()["loss"] == 5.0
    metric.reset()
    assert metric.total.dtype == metric.count.dtype == torch.float64
    by_position = nn.ModuleDict({"all": LossByPosition(2)}).to(torch.bfloat16)["all"]
    for _ in range(1000):
        by_position.update(LossSum(torch.tensor(16.0), torch.tensor([3.0, 5.0, 3.0, 5.0]), torch.tensor(4.0)))
    assert by_position.compute().tolist() == [3.0, 5.0] and by_position.totals.dtype == torch.float64


def test_rare_and_frequent_tokens_learn_alike_in_bfloat16() -> None:
    """4,096 uses of one token: added up in bfloat16, its gradient would stop at a sixteenth of that."""
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = build_causal_lm(config).to(torch.bfloat16)
    weight = model.lm.get_input_embeddings().weight
    for embedded in (
        model.embed(torch.zeros(1, 4096, dtype=torch.int64)),
        model.embed_bags(torch.zeros(1, 4096, 1).long()),
    ):
        (gradient,) = torch.autograd.grad(embedded.sum(), weight)
        assert (gradient[0] == 4096).all()


def test_float16_wants_an_optimizer_whose_gradients_can_be_clipped(fit: Any) -> None:
    scaler = {"class_path": "torch.amp.GradScaler", "init_args": {"device": "cpu"}}
    half = {"precision": "16-mixed", "device": "cpu", "scaler": scaler}
    plugin = {"class_path": "lightning.pytorch.plugins.MixedPrecision", "init_args": half}
    code, said = fit("run", trainer__accelerator="cpu", trainer__precision=None, trainer__plugins=plugin)
    assert code == 2, said
    assert (
        said.strip().splitlines()[-1].startswith("error: trainer.precision is 16-mixed, under which a fused optimizer")
    )
