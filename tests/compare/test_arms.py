"""Which runs are one experiment, what an arm is called, and which arms are one experiment at several lengths."""

import copy
from dataclasses import replace

import pytest

from tests.compare.run_folders import TST_PHASES, record, run
from tst_lightning.compare.arms import arms_of, families_of

CURVE = [(200, 4.0), (400, 3.0)]


def seeds(name, numbers, **changes):
    return [run(name.format(seed), CURVE, seed=seed, **changes) for seed in numbers]


def names(runs):
    return {arm.name: [run.name for run in arm.runs] for arm in arms_of(runs)}


def test_runs_that_differ_in_seeds_alone_are_an_arm():
    runs = seeds("tst-seed{}", (1, 2), optimizer="SGD") + seeds("baseline-seed{}", (1, 2))
    runs[1:3] = runs[2:0:-1]
    assert names(runs) == {
        "tst": ["tst-seed1", "tst-seed2"],
        "baseline": ["baseline-seed1", "baseline-seed2"],
    }
    assert arms_of(runs)[0].seeds == [1, 2]


def of_elsewhere():
    """A record of the same experiment, made on another machine."""
    here = record(
        stream={"seed": 1, "block_rows": 4},
        batch={"rows_per_step": 8, "micro_batch_rows": 8, "accumulate_grad_batches": 1},
        corpora={"all": {"path": "/here", "share": 1.0, "available": 10, "uneven": 0}},
        precision="32-true",
    )
    there = copy.deepcopy(here) | {"seed": 2, "device": "4 x cuda", "device_name": "H100", "passes": 2.0}
    there |= {"status": "stopped", "step": 50, "versions": {"torch": "3"}, "compiled_layers": True}
    there["stream"]["seed"] = 2
    there["batch"] |= {"micro_batch_rows": 1, "accumulate_grad_batches": 2}
    there["corpora"]["all"] |= {"path": "s3://there", "available": 8, "uneven": 2}
    there["model"]["config"]["transformers_version"] = "6"
    return here, there


def test_another_machine_is_no_other_experiment():
    here, there = of_elsewhere()
    assert len(arms_of([replace(run("a", CURVE), record=one) for one in (here, there)])) == 1


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("learning_rate", 0.5),
        ("precision", "bf16"),
        ("max_steps", 50),
        ("train_sha256", "d"),
        ("something_new", 1),
        ("stream.block_rows", 8),
        ("batch.rows_per_step", 16),
        ("corpora.all.share", 0.5),
        ("model.parameters", 7),
    ],
)
def test_a_setting_makes_another_experiment(path, value):
    here, there = of_elsewhere()
    *parents, last = path.split(".")
    place = there
    for key in parents:
        place = place[key]
    place[last] = value
    assert len(arms_of([replace(run("a", CURVE), record=one) for one in (here, there)])) == 2


def test_a_phases_settings_make_another_experiment():
    one, other = (
        [dict(TST_PHASES[0], settings={"objective": objective}), TST_PHASES[1]]
        for objective in ("bag_mass", "multi_hot")
    )
    assert len(arms_of([run("a", CURVE, phases=one), run("b", CURVE, seed=2, phases=other)])) == 2


def test_a_seed_that_is_there_already_begins_another_arm():
    first, again = seeds("a{}", (1, 2)), seeds("b{}", (1, 2))
    assert names(first + again) == {"a": ["a1", "a2"], "b": ["b1", "b2"]}
    moved = seeds("b{}", (1, 2), stream={"seed": 9})
    assert names(moved[:1] + first[:1]) == {"b1": ["b1"], "a1": ["a1"]}


def test_data_order_is_part_of_the_seed():
    runs = [run(f"a{order}", CURVE, seed=1, stream={"seed": order}) for order in (1, 2)]
    assert list(names(runs)) == ["a"]
    one, other = arms_of([*runs, run("b1", CURVE, optimizer="SGD", seed=1, stream={"seed": 1})])
    assert set(one.by_seed({"a1": 0, "a2": 0})) & set(other.by_seed({"b1": 0})) == {"[1, 1]"}


def test_runs_without_a_seed_are_samples_but_no_pairs():
    a, b = arms_of([*seeds("a{}", (-1,)), *seeds("b{}", (-1,), optimizer="SGD")])
    assert not a.by_seed({"a-1": 0}).keys() & b.by_seed({"b-1": 0}).keys()
    assert len(arms_of([run("a", CURVE, seed=-1), run("b", CURVE, seed=-1)])) == 1


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (["baseline-seed1", "baseline-seed2"], "baseline"),
        (["baseline-seed10", "baseline-seed11"], "baseline"),
        (["tst_s1", "tst_s2"], "tst"),
        (["tst8-1", "tst8-2"], "tst8"),
        (["run1", "run2"], "run"),
        (["base", "base-2"], "base"),
        (["seed1-tst", "seed2-tst"], "tst"),
        (["same", "same"], "same"),
        (["tests-1", "tests-2"], "tests"),
        (["alpha", "alps"], "alpha"),
    ],
)
def test_an_arm_is_called_what_its_runs_share(given, name):
    runs = [replace(run(f"{i}", CURVE, seed=i), record=record(name=each, seed=i)) for i, each in enumerate(given)]
    runs = [replace(one, name=each, path=f"runs/{each}") for one, each in zip(runs, given, strict=True)]
    assert arms_of(runs)[0].name == name


def test_folders_of_seeds_are_called_by_their_parent():
    paths = ["runs/tst/seed1", "runs/tst/seed2"]
    runs = [replace(run(path, CURVE, seed=i), record=record(name=path[-5:], seed=i)) for i, path in enumerate(paths)]
    assert arms_of(runs)[0].name == "tst"


def test_names_of_arms_are_unique():
    runs = [*seeds("a-seed{}", (1, 2)), *seeds("a-seed{}", (3, 4), optimizer="SGD")]
    assert list(names(runs)) == ["a", "a #2"]


def test_the_mean_curve_is_of_the_steps_that_all_validated_at():
    one = run("a", [(100, 5.0), (200, 4.0), (300, 3.0)], seed=1)
    other = run("b", [(100, 3.0), (150, 3.0), (300, 2.0), (400, 1.0)], seed=2, max_steps=300)
    (arm,) = arms_of([one, replace(other, record=other.record | {"step": 300})])
    assert [(point.step, point.loss) for point in arm.mean_curve()] == [(100, 4.0), (300, 2.5)]


def lengths(*max_steps, share=0.25, **changes):
    runs = []
    for steps in max_steps:
        bags = int(steps * share)
        phases = [dict(TST_PHASES[0], steps=bags), dict(TST_PHASES[1], first_step=bags, steps=steps - bags)]
        runs.append(run(f"tst-{steps}", [(steps, 3.0)], phases=phases, **changes))
    return runs


def family_names(runs):
    return {name: [arm.name for arm in family] for name, family in families_of(arms_of(runs)).items()}


def test_arms_of_several_lengths_are_a_family():
    baseline = [run(f"baseline-{steps}", [(steps, 3.0)], phases=[]) for steps in (100, 333)]
    assert family_names(baseline + lengths(100, 333, 401)) == {
        "baseline": ["baseline-100", "baseline-333"],
        "tst": ["tst-100", "tst-333", "tst-401"],
    }


def test_another_share_or_setting_is_no_length():
    assert list(family_names(lengths(100) + lengths(300, share=0.3))) == ["tst-100", "tst-300"]
    assert list(family_names(lengths(100) + lengths(300, learning_rate=1))) == ["tst-100", "tst-300"]


def test_two_sweeps_over_one_grid_are_told_apart_by_their_folders():
    runs = []
    for arm, settings in (("baseline", {}), ("tst", {"optimizer": "SGD"})):
        for steps in (100, 200):
            for seed in (1, 2):
                name = f"max_steps{steps}-seed{seed}"
                changes = settings | {"max_steps": steps, "seed": seed}
                runs.append(replace(run(name, CURVE, **changes), path=f"sweeps/{arm}/{name}"))
    arms = arms_of(runs)
    assert [arm.name for arm in arms] == [f"{arm}/max_steps{n}" for arm in ("baseline", "tst") for n in (100, 200)]
    assert list(families_of(arms)) == ["baseline/max_steps", "tst/max_steps"]
