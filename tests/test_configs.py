"""Every YAML in configs/ parses and prints itself back; pairs differ in the phases alone; configurations compose."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, tiny_config
from tests.test_resume import assert_same_state, last
from tst_lightning.__main__ import main

# Sweeps are another command's: tests/commands/test_sweep.py.
CONFIGS = sorted(path for path in (ROOT / "configs").glob("**/*.yaml") if path.parent.name != "sweeps")
PAIRS = [path for path in CONFIGS if path.name == "tst.yaml" and (path.parent / "baseline.yaml").exists()]
# Of the paper's, printed and parsed again: one with a mixture of corpora, a model of experts and several machines.
ROUND_TRIPS = [path for path in CONFIGS if "paper" not in path.parts or path.parts[-2:] == ("10b_a1b", "tst.yaml")]


def test_configs_are_found() -> None:
    assert len(CONFIGS) >= 2 and {path.parent.name for path in PAIRS} >= {"quickstart", "3b", "10b_a1b"}


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    """What ``tst fit ... --print_config`` prints."""

    def run(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["fit", *arguments, "--print_config"])
        assert stopped.value.code == 0
        return yaml.safe_load(capsys.readouterr().out)

    return run


def assert_holds(printed: Any, given: Any, where: str) -> None:
    """Every value that was given stands in what was printed; the rest are defaults."""
    if isinstance(given, dict) and "class_path" in printed and "class_path" not in given:
        printed = printed["init_args"]  # one class fits: the YAML names its arguments alone
    if isinstance(given, dict):
        for key, value in given.items():
            assert_holds(printed[key], value, f"{where}.{key}")
    elif isinstance(given, list) and given and isinstance(given[0], dict):
        assert len(printed) == len(given), where
        for index, (a, b) in enumerate(zip(printed, given, strict=True)):
            assert_holds(a, b, f"{where}.{index}")
    else:
        assert printed == given, where


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_parses_and_round_trips(printed: Any, path: Path, tmp_path: Path) -> None:
    resolved = printed("--config", str(path))
    assert_holds(resolved, yaml.safe_load(path.read_text()), "")
    if path not in ROUND_TRIPS:
        return
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(resolved, sort_keys=False))
    assert printed("--config", str(again)) == resolved


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_baseline_and_tst_differ_in_phases_and_run_name_alone(path: Path) -> None:
    """As written: what is left out has one default for both."""
    pair = [yaml.safe_load((path.parent / name).read_text()) for name in ("baseline.yaml", "tst.yaml")]
    assert pair[0]["model"].pop("phases") != pair[1]["model"].pop("phases")
    assert pair[0].pop("run_dir") != pair[1].pop("run_dir")
    assert pair[0] == pair[1]


def test_configs_compose_and_the_command_line_wins(printed: Any, tmp_path: Path) -> None:
    changes = tmp_path / "changes.yaml"
    changes.write_text("trainer: {max_steps: 40, log_every_n_steps: 5}\ndata: {batch_size: 2}\n")
    path = str(ROOT / "configs" / "quickstart" / "tst.yaml")
    config = printed("--config", path, "--config", str(changes), "--trainer.max_steps", "60", "--data.seed", "3")
    assert config["trainer"]["max_steps"] == 60
    assert config["trainer"]["log_every_n_steps"] == 5
    assert config["data"]["batch_size"] == 2 and config["data"]["seed"] == 3
    phases = ["--model.phases.superposition.init_args.bag_size", "2", "--model.config.init_args.hidden_size", "48"]
    config = printed("--config", path, *phases, "--model.optimizer.init_args.lr", "0.5")
    assert config["model"]["phases"]["superposition"]["init_args"]["bag_size"] == 2
    assert config["model"]["phases"]["superposition"]["init_args"]["share"] == 0.2
    assert config["model"]["config"]["init_args"]["hidden_size"] == 48
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.5
    assert config["model"]["optimizer"]["init_args"]["weight_decay"] == 0.1


def test_saved_config_repeats_the_run_and_scores_it(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_config(first, shards, trainer__max_steps=10), sort_keys=False))
    assert main(["fit", "--config", str(path), "--ckpt_path", "last", "--model.lr_schedule.warmup_steps", "3"]) == 0
    before = sorted(path.relative_to(first) for path in first.rglob("*"))

    saved = first / "config.yaml"
    assert main(["fit", "--config", str(saved), "--run_dir", str(second)]) == 0
    assert_same_state(last(first), last(second))
    assert sorted(path.relative_to(first) for path in first.rglob("*")) == before, "the first run is untouched"
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (first, second)]
    assert configs[0] | {"run_dir": str(second)} == configs[1]

    with open(first / "csv" / "version_0" / "metrics.csv") as file:
        logged = [row["val/loss"] for row in csv.DictReader(file) if row["val/loss"]][-1]
    checkpoint = str(first / "checkpoints" / "last.ckpt")
    third = ["--run_dir", str(tmp_path / "third")]
    for command in ("validate", "test"):
        for arguments in (["--ckpt_path", checkpoint, *third], ["--ckpt_path", "last"], []):
            capsys.readouterr()
            limits = ["--trainer.limit_test_batches", "2"]  # as many as for validation
            assert main([command, "--config", str(saved), *limits, *arguments]) == 0
            tag = "val" if command == "validate" else "test"
            line = next(line for line in capsys.readouterr().out.splitlines() if f"{tag}/loss" in line)
            assert line.replace("│", " ").split() == [f"{tag}/loss", logged]


def test_whole_numbers_stay_whole() -> None:
    """``limit_val_batches: 1`` is one batch, 1.0 all of them, whatever order of a union typing has cached."""
    # In a process of its own, where nothing was parsed before.
    script = """
import contextlib
from tst_lightning.__main__ import main
for value in ("1", "2", "0.5"):
    with contextlib.suppress(SystemExit):
        main(["fit", "--config", "configs/quickstart/tst.yaml", "--trainer.limit_val_batches", value, "--print_config"])
import gc
assert gc.isenabled() and gc.get_freeze_count() > 100_000, "what was imported is left out of garbage collection, no more"
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    shown = [line.strip() for line in done.stdout.splitlines() if "limit_val_batches" in line]
    assert shown == ["limit_val_batches: 1", "limit_val_batches: 2", "limit_val_batches: 0.5"], done.stderr
    assert done.returncode == 0, done.stderr
