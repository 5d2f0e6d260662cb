"""Runs with an extra head, through the real commands: trained, resumed, sharded, and left behind."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.callbacks.recorder import RECORD
from tests.conftest import tiny_config
from tests.test_distributed import fit_two
from tests.test_fully_sharded import CHANGES, SHARDED, logged_losses, one_process_s
from tests.test_resume import assert_same_run, last, signal_at
from tst_lightning.__main__ import main
from tst_lightning.phases import MultiTokenPhase, NextTokenPhase, SuperpositionPhase

HEAD = "model.extra_head.weight"
PHASE = "tst_lightning.phases.MultiTokenPhase"


def with_head(config: dict[str, Any], name: str, **options: Any) -> dict[str, Any]:
    """The phase of that name in a configuration, with an extra head."""
    return {"class_path": PHASE, "init_args": options | {"phase": config["model"]["phases"][name]}}


def superposed(weight: float = 0.3) -> dict[str, Any]:
    """Changes for a head in superposition alone."""
    return {"model__phases__superposition": with_head(tiny_config(Path(), Path()), "superposition", weight=weight)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A finished run with a head in superposition, none in recovery."""
    folder = tmp_path_factory.mktemp("head") / "whole"
    folder.with_suffix(".yaml").write_text(yaml.safe_dump(tiny_config(folder, shards, **superposed()), sort_keys=False))
    assert main(["fit", "--config", str(folder.with_suffix(".yaml"))]) == 0
    return folder


def test_resumed_run_is_bit_equal(fit: Any, whole: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Stopped within superposition, before its last step, and in recovery."""
    for stop in (3, 9, 15):
        code, said = fit("pieces", "--ckpt_path", "last", *signal_at(stop), **superposed())
        assert code == 128 + 15, said
    assert fit("pieces", "--ckpt_path", "last", **superposed())[0] == 0
    assert_same_run(whole, tmp_path / "pieces")
    assert not [warning for warning in recwarn if "closed form" in str(warning.message)], "the count is as expected"
    assert last(whole)["state_dict"][HEAD].abs().max() > 1e-3


def test_without_weight_it_trains_what_the_inner_phases_train(fit: Any, tiny_run: Path, tmp_path: Path) -> None:
    phases = {name: with_head(tiny_config(Path(), Path()), name, weight=0.0) for name in ("superposition", "recovery")}
    assert fit("run", model__phases=phases)[0] == 0
    with_it, without = last(tmp_path / "run")["state_dict"], last(tiny_run)["state_dict"]
    assert not with_it.pop(HEAD).any() and with_it.keys() == without.keys()
    for name, value in with_it.items():
        assert torch.equal(value, without[name]), name
    assert logged_losses(tmp_path / "run") == logged_losses(tiny_run)


def test_the_bar_shows_what_is_logged(fit: Any, tmp_path: Path) -> None:
    phases = {"only": with_head(tiny_config(Path(), Path()), "recovery")}
    code, said = fit("run", "--callbacks.progress.refresh_rate", "1", model__phases=phases, trainer__max_steps=4)
    assert code == 0, said
    with open(tmp_path / "run" / "csv" / "version_0" / "metrics.csv") as file:
        logged = [float(row["train/only/loss"]) for row in csv.DictReader(file) if row["train/only/loss"]]
    assert "4/4 [" in said and f"loss={logged[-1]:.3f}" in said.split("4/4 [")[-1]


def scored(command: list[str], capfd: pytest.CaptureFixture[str]) -> float:
    capfd.readouterr()
    assert main(["validate", *command]) == 0
    return float(dict(re.findall(r"(val/\w+)\W+([\d.]+)", capfd.readouterr().out))["val/loss"])


def test_the_export_is_an_ordinary_model_that_scores_what_the_run_did(
    whole: Path, tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    checkpoint = whole / "checkpoints" / "last.ckpt"
    assert main(["export", str(checkpoint), "--out", str(out)]) == 0
    exported, trained = AutoModelForCausalLM.from_pretrained(out), last(whole)["state_dict"]
    assert {f"model.lm.{name}" for name in exported.state_dict()} == trained.keys() - {HEAD}
    assert trained.keys() - {HEAD} == last(tiny_run)["state_dict"].keys()
    for name, value in exported.state_dict().items():
        assert torch.equal(value, trained[f"model.lm.{name}"])
    assert "MultiTokenPhase, SuperpositionPhase, uniform, multi_hot, 0.3 |" in (out / "README.md").read_text()
    with open(whole / "csv" / "version_0" / "metrics.csv") as file:
        logged = [row["val/loss"] for row in csv.DictReader(file) if row["val/loss"]][-1]
    assert scored(["--config", str(whole / "config.yaml"), "--ckpt_path", str(checkpoint)], capfd) == pytest.approx(
        float(logged), rel=1e-6
    )
    # What was exported, scored as the checkpoint of a run that never had a head.
    content = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    content["state_dict"] = {f"model.lm.{name}": value for name, value in exported.state_dict().items()}
    torch.save(content, tmp_path / "plain.ckpt")
    plain = ["--config", str(tiny_run / "config.yaml"), "--run_dir", str(tmp_path / "plain")]
    assert scored([*plain, "--ckpt_path", str(tmp_path / "plain.ckpt")], capfd) == pytest.approx(
        float(logged), rel=1e-6
    )
    # The run's own checkpoint is not that run's.
    assert main(["validate", *plain, "--ckpt_path", str(checkpoint)]) == 2
    assert (
        f"'{HEAD}' has shape (32, 32) in it, none here; restore model.config (for an extra head model.phases)"
        in capfd.readouterr().err
    )


def test_plan_and_comparison_count_what_it_costs(
    whole: Path, tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record, without = (json.loads((folder / "run.json").read_text()) for folder in (whole, tiny_run))
    capfd.readouterr()
    assert main(["plan", "--config", str(whole.with_suffix(".yaml")), "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    cost, plain = ([phase["flops_per_step"] for phase in of["phases"]] for of in (record, without))
    assert cost[1] == plain[1]
    assert cost[0] - plain[0] == 4 * 3 * 2 * 15 * (320 + 32) * 32  # rows; positions but the last; V + d; d
    phases = plan["arms"]["tst"]["phases"].values()
    assert [phase["flops"] / phase["steps"] for phase in phases] == cost
    # The head is not of the model.
    assert plan["parameters"]["total"] == record["model"]["parameters"] == without["model"]["parameters"]
    parameters = sum(value.numel() for name, value in last(whole)["state_dict"].items() if name.startswith("model."))
    assert plan["memory"]["bytes"]["parameters"] == 4 * parameters == 4 * (plan["parameters"]["total"] + 32 * 32)
    assert main(["compare", str(tiny_run), str(whole), "--out", str(tmp_path / "compared")]) == 0
    assert record["phases"][0]["settings"]["phase"]["class"] == "SuperpositionPhase"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (superposed(-1.0), "MultiTokenPhase.weight is -1.0; it must be a finite number, 0 or more"),
        (superposed() | {"data__seq_len": 1}, "data.seq_len is 1, which gives rows of 1 position in this phase"),
        (
            {
                "model__phases__superposition": {
                    "class_path": PHASE,
                    "init_args": {"phase": with_head(tiny_config(Path(), Path()), "superposition")},
                }
            },
            "MultiTokenPhase.phase is a MultiTokenPhase, which has the extra head already",
        ),
    ],
)
def test_what_is_refused_in_one_line(fit: Any, changes: dict[str, Any], says: str) -> None:
    code, said = fit("run", **changes)
    assert code == 2
    assert said.count("\n") == 1 and said.startswith("error: ") and says in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"trainer__precision": "bf16-mixed", "model__activation_checkpointing": "full"},
        {"trainer__precision": "bf16-true"},
        {"model__compile": True},
    ],
    ids=["bf16-mixed", "bf16-true", "compiled"],
)
def test_the_recipes_train_nearly_the_same(fit: Any, whole: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    code, said = fit("run", **superposed(), **changes)
    assert code == 0, said
    assert logged_losses(tmp_path / "run") == pytest.approx(logged_losses(whole), rel=0.02)
    assert last(tmp_path / "run")["state_dict"][HEAD].abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", {"class_path": SHARDED}], ids=["ddp", "fsdp2"])
def test_two_processes_train_what_one_does_and_export_it(few: Path, tmp_path: Path, strategy: Any) -> None:
    """Recovery has no use for the head, whose gradient no process may wait for."""
    folder = tmp_path / "run"
    fit_two(folder, few, *RECORD, changes=CHANGES | superposed() | {"trainer__strategy": strategy})
    losses, model = one_process_s(folder, MultiTokenPhase(SuperpositionPhase(4)), NextTokenPhase())
    assert logged_losses(folder) == pytest.approx(losses, rel=2e-5)
    trained = last(folder)["state_dict"]
    assert model.extra_head is not None
    torch.testing.assert_close(trained[HEAD], model.extra_head.weight.detach(), rtol=1e-3, atol=1e-4)
    out = tmp_path / "out"
    assert main(["export", str(folder / "checkpoints" / "last.ckpt"), "--out", str(out)]) == 0
    exported = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert {f"model.lm.{name}" for name in exported} == trained.keys() - {HEAD}
    assert all(torch.equal(value, trained[f"model.lm.{name}"]) for name, value in exported.items())
