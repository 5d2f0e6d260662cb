"""The recipes of configs/recipes, through both phases of the real command, against float32."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT


def curve(folder: Path) -> list[float]:
    with open(folder / "csv" / "version_0" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    keys = ("train/superposition/loss", "train/recovery/loss", "val/loss")
    return [float(row[key]) for key in keys for row in rows if row.get(key)]


@pytest.mark.parametrize(("recipe", "kept"), [("bf16_mixed", torch.float32), ("bf16_true", torch.bfloat16)])
def test_half_precision_trains_nearly_the_same_model(fit: Any, tmp_path: Path, recipe: str, kept: torch.dtype) -> None:
    assert fit("full")[0] == 0
    code, said = fit("half", "--config", str(ROOT / "configs" / "recipes" / f"{recipe}.yaml"))
    assert code == 0, said
    full, half = curve(tmp_path / "full"), curve(tmp_path / "half")
    assert len(half) == len(full) == 24
    assert half != full and half == pytest.approx(full, rel=0.02)
    content = torch.load(tmp_path / "half" / "checkpoints" / "last.ckpt", weights_only=True)
    assert {value.dtype for value in content["state_dict"].values() if value.is_floating_point()} >= {kept}
    moments = [state["exp_avg"].dtype for state in content["optimizer_states"][0]["state"].values()]
    assert set(moments) == {kept}
