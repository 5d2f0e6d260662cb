"""Accuracies at equal FLOPs: of which checkpoints, over seeds, and nothing where there is none."""

import json
from pathlib import Path

import pytest

from tests.compare.run_folders import write_run
from tst_lightning.compare.arms import arms_of
from tst_lightning.compare.evaluations import FOLDER, equal_accuracy
from tst_lightning.compare.report import judge
from tst_lightning.compare.runs import read_runs
from tst_lightning.compare.terminal import table_text
from tst_lightning.errors import ConfigError, RunError


def keep(path, flops, dtype="float32", **accuracies):
    """An evaluation as `tst evaluate` keeps it in a run's folder."""
    entries = {
        task: {"accuracy": accuracy, "metric": "acc", "n": 100, "version": 1.0} for task, accuracy in accuracies.items()
    }
    content = {"format": 1, "checkpoint": {"flops": flops}, "dtype": dtype, "num_fewshot": 0, "tasks": entries}
    folder = Path(path) / FOLDER
    folder.mkdir(exist_ok=True)
    (folder / f"{len(list(folder.iterdir()))}.json").write_text(json.dumps(content))


def write_runs(folder, names=("base", "tst"), seeds=(1, 2)):
    """Runs of 1000 FLOPs, by name and seed."""
    return {
        (name, seed): write_run(folder / f"{name}-{seed}", seed=seed, optimizer=name)
        for name in names
        for seed in seeds
    }


def compared(paths):
    runs = read_runs(list(paths.values()))
    return equal_accuracy(runs, arms_of(runs))


def test_over_seeds(tmp_path):
    paths = write_runs(tmp_path)
    for (name, seed), path in paths.items():
        gain = 0.1 * (name == "tst")
        keep(path, 1000, piqa=0.5 + gain + 0.02 * seed, boolq=0.6)
        keep(path, 500, piqa=0.99, boolq=0.99)
    found = compared(paths)
    assert (found["flops"], found["averaged"], found["notes"]) == (1000, ["piqa", "boolq"], [])
    assert found["runs"]["tst-1"] == pytest.approx({"average": 0.61, "piqa": 0.62, "boolq": 0.6})
    piqa = found["arms"]["tst"]["piqa"]
    assert (piqa["n"], piqa["mean"], piqa["sd"]) == (2, pytest.approx(0.63), pytest.approx(0.02 / 2**0.5))
    assert piqa["difference"]["mean"] == pytest.approx(0.1) and piqa["difference"]["method"] == "paired by seed"
    assert found["arms"]["base"]["average"]["difference"] is None
    runs = read_runs(list(paths.values()))
    assert "accuracy at equal FLOPs (1.00 kFLOP, mean of 2 tasks): base 0.5650" in table_text(
        judge(runs, arms_of(runs))
    )


def test_the_nearest_checkpoint_within_half_a_percent_counts(tmp_path):
    paths = write_runs(tmp_path, seeds=(1,))
    for path, (flops, accuracy) in zip(paths.values(), [(996, 0.3), (1005, 0.4)], strict=True):
        keep(path, flops, piqa=accuracy)
        keep(path, 2000 - flops, piqa=accuracy + 0.1)
    keep(paths["base", 1], 1001, piqa=0.8)
    keep(paths["base", 1], 1006, boolq=0.9)
    found = compared(paths)
    assert found["runs"]["base-1"]["piqa"] == 0.8 and found["tasks"] == ["piqa"]
    assert found["runs"]["tst-1"]["piqa"] in (0.4, 0.5), "both lie 5 FLOPs off"


def test_nothing_is_invented(tmp_path):
    paths = write_runs(tmp_path)
    assert compared(paths) is None
    keep(paths["base", 1], 1000, piqa=0.5, boolq=0.6)
    keep(paths["base", 2], 1000, piqa=0.6)
    keep(paths["tst", 1], 1000, piqa=0.7, boolq=0.8)
    keep(paths["tst", 2], 900, piqa=0.9, boolq=0.9)
    found = compared(paths)
    assert found["averaged"] == ["piqa"] and "tst-2" in found["runs"] and found["runs"]["tst-2"] == {}
    assert found["arms"]["base"]["average"]["mean"] == pytest.approx(0.55)
    for arm, task in (("base", "boolq"), ("tst", "piqa"), ("tst", "average")):
        assert found["arms"][arm][task] == {"n": 2, "mean": None, "sd": None, "ci": None, "difference": None}
    assert found["notes"][0].startswith("Without an evaluation at 1.00 kFLOP: 'tst-2'. Accuracies there aren't known;")
    assert found["notes"][1] == "Not scored in every evaluated run, and not in the average accuracy: boolq."


def test_scores_under_other_settings_are_not_compared(tmp_path):
    paths = write_runs(tmp_path, seeds=(1,))
    keep(paths["base", 1], 1000, piqa=0.5)
    keep(paths["tst", 1], 1000, dtype="bfloat16", piqa=0.6)
    found = compared(paths)
    assert found["tasks"] == [] and found["arms"] == {"base-1": {}, "tst-1": {}}
    assert found["notes"][0].startswith("Scored unlike in some runs, and left out: piqa.")


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ('{"format": 1, ', RunError, "is damaged (JSONDecodeError"),
        ('{"format": 1, "tasks": {}}', RunError, "is damaged (KeyError('checkpoint'))"),
        ("[]", RunError, "is damaged (TypeError"),
        ('{"format": 2}', ConfigError, "has format 2; this version reads format 1"),
    ],
)
def test_files_that_are_none(tmp_path, text, error, said):
    paths = write_runs(tmp_path, seeds=(1,))
    keep(paths["tst", 1], 1000)
    (tmp_path / "tst-1" / FOLDER / "0.json").write_text(text)
    with pytest.raises(error) as refused:
        compared(paths)
    assert said in str(refused.value)
