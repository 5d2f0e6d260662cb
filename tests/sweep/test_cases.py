"""Cases: which there are, what each is called, and that values reach `tst fit` as they were given."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from tst_lightning.errors import ConfigError
from tst_lightning.sweep.cases import as_argument, expand, labels, make_baselines, make_cases, value_text

SIZE = "model.phases.superposition.init_args.bag_size"
SHARE = "model.phases.superposition.init_args.share"
LR = "model.optimizer.init_args.lr"
SEED = "seed_everything,data.seed"


def test_a_grid_is_a_product_and_a_list_comes_after_it() -> None:
    assert expand({"a": [1, 2], "b": [3, 4]}, [{"c": 5}]) == [
        {"a": 1, "b": 3},
        {"a": 1, "b": 4},
        {"a": 2, "b": 3},
        {"a": 2, "b": 4},
        {"c": 5},
    ]
    assert expand({}, [{}]) == [{}] and expand({}, []) == []


def test_names_and_arguments() -> None:
    swept = expand({SIZE: [2, 4], SHARE: [0.2], SEED: [1]}, [])
    cases = make_cases(swept, ["a.yaml", "b.yaml"], {"trainer.max_steps": 500})
    assert [case.name for case in cases] == ["bag_size2-share0.2-seed1", "bag_size4-share0.2-seed1"]
    assert cases[1].arguments() == [
        *("--config", "a.yaml", "--config", "b.yaml", "--trainer.max_steps=500"),
        *(f"--{SIZE}=4", f"--{SHARE}=0.2", "--seed_everything=1", "--data.seed=1"),
    ]
    assert cases[1].setting == {SIZE: 4, SHARE: 0.2}


def test_a_case_overrides_what_is_set() -> None:
    (case,) = make_cases([{"a.b": 2}], [], {"a.b": 1, "c": 3})
    assert case.overrides() == {"a.b": 2, "c": 3}


def test_a_swept_file_is_composed_after_those_of_every_run() -> None:
    swept = expand({"config": ["v/one.yaml", ["v/two.yaml", "v/three.yaml"]], SEED: [1]}, [])
    cases = make_cases(swept, ["a.yaml"], {})
    assert [case.name for case in cases] == ["config_one-seed1", "configtwo_three-seed1"]
    assert cases[1].configs == ("a.yaml", "v/two.yaml", "v/three.yaml")
    assert cases[0].arguments() == [
        *("--config", "a.yaml", "--config", "v/one.yaml"),
        *("--seed_everything=1", "--data.seed=1"),
    ]
    (baseline,) = make_baselines(cases, ["b.yaml"])
    assert baseline.configs == ("b.yaml",) and baseline.name == "baseline-seed1"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({LR: 1e-05}, "lr1e-05"),
        ({"model.compile": True}, "compiletrue"),
        ({"x.weighting": "power_law"}, "weighting_power_law"),
        ({"x.betas": [0.9, 0.95]}, "betas0.9_0.95"),
        ({"x.clip": None}, "clipnull"),
        ({"x.y": -1}, "y-1"),
        ({}, "as_configured"),
    ],
)
def test_name_of_a_value(settings: dict[str, Any], name: str) -> None:
    assert make_cases([settings], [], {})[0].name == name


def test_text_that_is_no_file_name_is_told_apart() -> None:
    names = [case.name for case in make_cases([{"data.shards": x} for x in ("../a/b", "../a_b", "x" * 300)], [], {})]
    assert len(set(names)) == 3 and all("/" not in name and not name.startswith(".") for name in names)
    assert max(map(len, names)) < 150


def test_names_stay_when_a_sweep_grows() -> None:
    small, large = (make_cases(expand({LR: values}, []), [], {}) for values in ([1e-3], [5e-4, 1e-3, 2e-3]))
    assert small[0].name in {case.name for case in large}


def test_labels_tell_keys_apart() -> None:
    assert labels([SIZE, LR, SEED]) == {SIZE: "bag_size", LR: "lr", SEED: "seed"}
    two = ["model.phases.a.init_args.bag_size", "model.phases.b.init_args.bag_size", "b.bag_size"]
    assert list(labels(two).values()) == ["a.bag_size", "phases.b.bag_size", "b.bag_size"]


def test_the_same_case_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="the case a1 is given twice"):
        make_cases([{"x.a": 1}, {"x.a": 1}], [], {})


def test_the_baseline_has_every_value_but_those_of_phases() -> None:
    swept = expand({SIZE: [2, 4], f"{SHARE},{LR}": [0.1], SEED: [1, 2]}, [])
    fixed = {"trainer.max_steps": 5, "model.phases.superposition.init_args.weighting": "first"}
    baselines = make_baselines(make_cases(swept, ["tst.yaml"], fixed), ["baseline.yaml"])
    assert [case.name for case in baselines] == ["baseline-lr0.1-seed1", "baseline-lr0.1-seed2"]
    assert baselines[1].overrides() == {"trainer.max_steps": 5, LR: 0.1, "seed_everything": 2, "data.seed": 2}
    assert all(case.baseline and case.configs == ("baseline.yaml",) for case in baselines)


@given(st.floats(allow_nan=False))
def test_floats_come_through_with_all_their_digits(value: float) -> None:
    parser = ArgumentParser()
    parser.add_argument("--x", type=float | None)
    parsed = parser.parse_args([f"--x={as_argument(value)}"]).x
    assert parsed == value and math.copysign(1, parsed) == math.copysign(1, value)
    if math.isfinite(value):
        assert float(value_text(value)) == value


@given(st.none() | st.booleans() | st.integers() | st.lists(st.integers() | st.floats(allow_nan=False), max_size=40))
def test_other_values_come_through(value: Any) -> None:
    parser = ArgumentParser()
    parser.add_argument("--x", type=bool | int | list[int | float] | None)
    text = as_argument(value)
    assert "\n" not in text
    assert parser.parse_args([f"--x={text}"]).x == value
