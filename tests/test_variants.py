"""Every variant of configs/variants trains to its end at toy size, goes on bit for bit from its phase switch, and leaves an
ordinary model.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.conftest import ROOT
from tests.test_resume import assert_same_state, last
from tst_lightning.compare.arms import experiment
from tst_lightning.compare.runs import read_run
from tst_lightning.export.trained import read_trained

VARIANTS = sorted((ROOT / "configs" / "variants").glob("*.yaml"))
SMALLER = {"rewarm": ["--model.lr_schedule.rewarm_steps", "3"]}  # what is laid out for more than 20 steps
QUICKSTART = yaml.safe_load((ROOT / "configs" / "quickstart" / "tst.yaml").read_text())


def test_variants_change_what_they_name_alone() -> None:
    """An overlay that repeated other values of the quickstart would take the place of a user's own."""
    assert len(VARIANTS) >= 5
    for path in VARIANTS:
        variant = yaml.safe_load(path.read_text())
        assert variant.pop("run_dir") == f"runs/variants/{path.stem}"
        assert variant.keys() <= {"model", "data", "trainer"}, path
        assert variant.get("trainer", {}).keys() <= {"callbacks"}, path
        assert variant.get("data", {}).keys() <= {"block_rows"}, path
        for key, value in variant.get("model", {}).items():
            assert value != QUICKSTART["model"].get(key), (path, key)


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_variant(path: Path, tmp_path: Path, fit: Callable[..., tuple[int, str]]) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    words = ["--config", str(path), *SMALLER.get(path.stem, [])]
    code, printed = fit("whole", *words, "--run_dir", str(whole))
    assert code == 0, printed
    switches = sorted((whole / "checkpoints").glob("switch-*.ckpt"))
    assert switches, printed
    at = switches[-1]
    code, printed = fit("resumed", *words, "--run_dir", str(resumed), "--ckpt_path", str(at))
    assert code == 0, printed
    assert_same_state(last(whole), last(resumed))
    records = [experiment(read_run(str(run)).record) for run in (whole, resumed)]
    assert records[0] == records[1], "a resumed run is no other arm"
    code, printed = fit("whole", "--run_dir", str(whole), "--ckpt_path", "last")
    assert code != 0 and "holds a run of other settings" in printed, "what a variant changes is part of the run"

    trained = read_trained(whole / "checkpoints" / "last.ckpt")
    with torch.device("meta"):
        untouched = AutoModelForCausalLM.from_config(LlamaConfig(**trained.settings))
    assert {name: value.shape for name, value in trained.weights.items()} == {
        name: value.shape for name, value in untouched.state_dict().items()
    }


def test_the_page_names_every_variant_and_its_own_phase_trains(
    tmp_path: Path, fit: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "variants.md").read_text()
    results = json.loads((ROOT / "benchmarks" / "results" / "variants.json").read_text())
    for name, content in results["tables"].items():
        assert f"<!-- {name} -->\n{content}\n<!-- end -->" in page
    assert {path.stem for path in VARIANTS} <= {arm["name"] for arm in results["arms"]}
    assert [path.stem for path in VARIANTS if f"`{path.stem}`" not in page] == []
    code, configuration = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("python", "yaml"))
    assert code and configuration
    (tmp_path / "my_phases.py").write_text(code[1])
    (tmp_path / "my.yaml").write_text(configuration[1])
    monkeypatch.syspath_prepend(tmp_path)
    exit_code, printed = fit("own", "--config", str(tmp_path / "my.yaml"))
    assert exit_code == 0 and "finished" in printed, printed
