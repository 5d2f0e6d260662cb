"""What a sweep's YAML and options may say, and what each refusal says."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tst_lightning.errors import ConfigError
from tst_lightning.sweep.plan import make_plan, pairs

SIZE = "model.phases.superposition.init_args.bag_size"


@pytest.fixture
def fit(tmp_path: Path) -> str:
    config = {
        "model": {"phases": {"superposition": {"init_args": {"bag_size": 4}}, "recovery": {"init_args": {}}}},
        "data": {"block_rows": 4},
    }
    path = tmp_path / "fit.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_a_plan_puts_the_baseline_first(tmp_path: Path, fit: str) -> None:
    plan = make_plan(str(tmp_path / "out"), {"fit": fit, "baseline": [fit], "grid": {SIZE: [2, 4]}}, "here")
    assert [case.name for case in plan.cases] == ["baseline", "bag_size2", "bag_size4"]
    assert plan.run_dir(plan.cases[1]) == tmp_path / "out" / "bag_size2"


def test_numbers_that_yaml_takes_for_text_are_numbers(fit: str) -> None:
    content = yaml.safe_load("{set: {c: 1e3}, grid: {a.b: [1e-3, 2E-3, x1e-3]}}") | {"fit": fit}
    plan = make_plan("out", content, "here")
    assert [case.settings["a.b"] for case in plan.cases] == [0.001, 0.002, "x1e-3"]
    assert plan.cases[0].fixed == {"c": 1000.0}


def test_keys_that_move_together_may_be_set_as_well(fit: str) -> None:
    plan = make_plan("out", {"fit": fit, "set": {"seed_everything,data.seed": 3}, "list": [{}]}, "here")
    assert plan.cases[0].overrides() == {"seed_everything": 3, "data.seed": 3}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"grdi": {}}, "'grdi' is no key of a sweep (in here); the keys are fit, baseline, set, grid, list"),
        ({"fit": None}, "no configuration is given"),
        ({"grid": None}, "there is nothing to sweep"),
        ({"fit": 3}, "fit: expected one YAML file or a list of them, got 3"),
        ({"baseline": "none.yaml"}, "baseline: there is no file 'none.yaml'"),
        ({"grid": {"model": {"lr": [1]}}}, "grid 'model': expected a list of values, got {'lr': [1]}"),
        ({"grid": {"a": []}}, "grid 'a': expected a list of values, got []"),
        ({"grid": [1]}, "grid: expected a mapping of keys to values, got [1]"),
        ({"grid": {"a, b": [1]}}, "'a, b' is no key"),
        ({"grid": {3: [1]}}, "'3' is no key"),
        ({"list": {"a": 1}}, "list: expected a list of cases"),
        ({"list": [3]}, "list: expected a mapping of keys to values, got 3"),
        ({"set": {"run_dir": "x"}}, "'run_dir' is given to each run by the sweep itself"),
        ({"set": {"a": 2}}, "'a' is given twice by set and grid, in here or beside it; it has either one value"),
        ({"grid": {"a,b": [1], "b": [2]}}, "'b' is given twice by set and grid"),
        ({"list": [{"a": 1}]}, "the case a1 is given twice"),
        (
            {"grid": {SIZE: [2, 3, 8]}},
            "data.block_rows is 4, which bag size 3 does not divide; the least that fits every",
        ),
        ({"grid": {SIZE: [2, 3, 8]}}, "is 24: give --set data.block_rows=24"),
    ],
)
def test_refusals(fit: str, content: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_plan("out", {"fit": fit, "grid": {"a": [1]}} | content, "here")
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_block_rows_may_move_with_the_bag_size_or_be_set(fit: str) -> None:
    make_plan("out", {"fit": fit, "grid": {SIZE: [3, 8]}, "set": {"data.block_rows": 24}}, "here")
    make_plan("out", {"fit": fit, "grid": {f"{SIZE},data.block_rows": [3, 8]}}, "here")
    with pytest.raises(ConfigError, match=r"block_rows is 6, which bag size 4 .* is 12"):
        make_plan("out", {"fit": fit, "grid": {"data.block_rows": [4, 6, 12], SIZE: [4, 6]}, "baseline": fit}, "here")


def test_the_baseline_reads_the_same_blocks(tmp_path: Path, fit: str) -> None:
    other = tmp_path / "baseline.yaml"
    other.write_text("data: {shards: x}\n")  # where block_rows is 1
    content = {"fit": fit, "baseline": str(other), "grid": {SIZE: [2, 4]}}
    with pytest.raises(
        ConfigError, match=r"is 4 in the swept runs and 1 in the baseline, .*: give --set data.block_rows=4"
    ):
        make_plan("out", content, "here")
    make_plan("out", content | {"set": {"data.block_rows": 4}}, "here")
    make_plan("out", content | {"grid": {f"{SIZE},data.block_rows": [2, 4]}}, "here")
    other.write_text("data: [")  # is left for fit to refuse
    make_plan("out", content, "here")


def test_bag_sizes_of_a_phase_within_another_are_seen(fit: str) -> None:
    inner = {"class_path": "tst_lightning.phases.SuperpositionPhase", "init_args": {"bag_size": 3}}
    outer = {"class_path": "tst_lightning.phases.MultiTokenPhase", "init_args": {"phase": inner}}
    with pytest.raises(ConfigError, match=r"block_rows is 4, which bag size 3 does not divide; .* is 3"):
        make_plan("out", {"fit": fit, "list": [{"model.phases": {"superposition": outer}}]}, "here")


def test_swept_files_of_several_block_rows_need_one_for_all(tmp_path: Path, fit: str) -> None:
    files = [str(tmp_path / f"rows{rows}.yaml") for rows in (4, 6)]
    for file, rows in zip(files, (4, 6), strict=True):
        Path(file).write_text(f"data: {{block_rows: {rows}}}\n")
    for order in (files, files[::-1]):
        content = {"fit": fit, "grid": {"config": order, SIZE: [2]}}
        with pytest.raises(
            ConfigError, match=r"is 4 or 6, by the files of `config`: .*: give --set data.block_rows=12"
        ):
            make_plan("out", content, "here")
        make_plan("out", content | {"set": {"data.block_rows": 12}}, "here")


@pytest.mark.parametrize("value", [5, None, "data.yaml"])
def test_a_value_in_place_of_the_whole_data_is_left_for_fit(fit: str, value: Any) -> None:
    make_plan("out", {"fit": fit, "grid": {SIZE: [2, 4]}, "set": {"data": value}, "baseline": fit}, "here")
    make_plan("out", {"fit": fit, "grid": {SIZE: [2, 4]}, "set": {"model.phases": value}, "baseline": fit}, "here")


def test_a_file_that_is_no_yaml_is_left_for_fit_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [")
    make_plan("out", {"fit": str(tmp_path / "bad.yaml"), "grid": {SIZE: [3]}}, "here")


def test_pairs() -> None:
    assert pairs("set", ["a.b=1e-3", "c=[1, 2]", "d=x=y", "e="]) == {"a.b": "1e-3", "c": [1, 2], "d": "x=y", "e": None}
    assert pairs("grid", ["a,b=1,2.5,x", "c=[0.9,0.95],[0.8,0.9]"]) == {
        "a,b": [1, 2.5, "x"],
        "c": [[0.9, 0.95], [0.8, 0.9]],
    }


@pytest.mark.parametrize(
    ("option", "words", "says"),
    [
        ("set", ["a"], "--set 'a' is not of the form KEY=VALUE"),
        ("grid", ["=1"], "--grid '=1' is not of the form KEY=V1,V2,..."),
        ("grid", ["a=1", "a=2"], "--grid gives a twice"),
        ("set", ["a=["], "'[' can't be read as YAML"),
    ],
)
def test_pairs_that_are_refused(option: str, words: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        pairs(option, words)
    assert says in str(refused.value)
