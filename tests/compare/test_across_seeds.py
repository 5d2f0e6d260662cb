"""The answers for arms: worked by hand, common points only, and invariants over curves."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.compare.run_folders import run
from tst_lightning.compare.across_seeds import arm_entries, speedup_curve
from tst_lightning.compare.arms import Arm, arms_of
from tst_lightning.compare.intervals import PAIRED
from tst_lightning.compare.referee import BEFORE_FIRST, NOT_REACHED, equal_budget


def entries(runs, arms=None):
    losses = {f"equal_{axis}": equal_budget(runs, axis)["losses"] for axis in ("flops", "tokens")}
    return arm_entries(arms or arms_of(runs), losses | {"equal_time": None})


def arm(name, ends, **changes):
    """Runs of seeds 1, 2, ..., from 5.0 at 100 FLOPs to their ends at 400."""
    return [run(f"{name}-seed{i}", [(100, 5.0), (400, end)], seed=i, **changes) for i, end in enumerate(ends, 1)]


BASELINE = arm("baseline", (3.0, 3.2))
TST = arm("tst", (2.0, 2.6), optimizer="SGD")


def test_equal_budgets_over_seeds():
    baseline, tst = entries(BASELINE + TST)
    assert (baseline["name"], baseline["runs"], baseline["seeds"]) == (
        "baseline",
        ["baseline-seed1", "baseline-seed2"],
        [1, 2],
    )
    assert baseline["equal_flops"]["mean"] == pytest.approx(3.1) and baseline["equal_flops"]["difference"] is None
    assert baseline["equal_flops"]["sd"] == pytest.approx(0.2 / 2**0.5)
    assert tst["equal_flops"]["difference"]["mean"] == pytest.approx(-0.8)
    assert (tst["equal_flops"]["difference"]["pairs"], tst["equal_flops"]["difference"]["method"]) == (2, PAIRED)
    assert tst["equal_tokens"] == tst["equal_flops"] and tst["equal_time"] is None
    assert tst["final_val_loss"]["mean"] == pytest.approx(2.3)


def test_equal_loss_over_seeds():
    """The target is 3.2, where the slower baseline ended; from 5.0 at 100 FLOPs each falls linearly to its end at 400."""
    baseline, tst = entries(BASELINE + TST)
    forward = tst["equal_loss"]
    reference = [100 + 300 * 1.8 / 2.0, 400]
    other = [100 + 300 * 1.8 / 3.0, 100 + 300 * 1.8 / 2.4]
    assert forward["loss"] == 3.2 and forward["reason"] is None
    speedup = (reference[0] / other[0] * reference[1] / other[1]) ** 0.5
    assert forward["speedup"]["mean"] == pytest.approx(speedup)
    assert forward["flops"] == pytest.approx((other[0] * other[1]) ** 0.5)
    assert forward["reference_flops"] == pytest.approx((reference[0] * reference[1]) ** 0.5)
    assert tst["reverse"]["speedup"] is None and tst["reverse"]["reason"] == NOT_REACHED
    assert baseline["equal_loss"] is None and baseline["reverse"] is None


def test_a_loss_that_some_seeds_reached_is_no_speedup():
    (_, tst) = entries(BASELINE + arm("tst", (3.0, 3.5), optimizer="SGD"))
    assert tst["equal_loss"]["speedup"] is None and tst["equal_loss"]["flops"] is None
    assert tst["equal_loss"]["reason"] == "not reached by 1 of 2"


def test_a_run_without_a_loss_at_the_budget_leaves_its_arm_without():
    late = [TST[0], replace(TST[1], curve=(replace(TST[1].curve[1], flops=900.0),))]
    baseline, tst = entries(BASELINE + late)
    assert baseline["equal_flops"]["mean"] == pytest.approx(3.1)
    assert tst["equal_flops"] == {"n": 2, "mean": None, "sd": None, "ci": None, "difference": None}
    assert tst["equal_loss"]["reason"] == BEFORE_FIRST
    (first, second) = entries(late + BASELINE)
    assert second["equal_flops"]["mean"] is not None and second["equal_flops"]["difference"] is None


def test_runs_that_ended_apart_have_no_final_loss_together():
    stopped = replace(BASELINE[1], curve=BASELINE[1].curve[:1])
    assert entries([BASELINE[0], stopped, *TST])[0]["final_val_loss"] is None


def test_a_speedup_curve():
    reference, other = arms_of(BASELINE + TST)
    curve = speedup_curve(other, reference, count=5)
    assert curve[0].loss == 5.0 and curve[-1].loss == 3.2
    assert [at.mean for at in curve] == sorted(at.mean for at in curve)
    assert all(at.least <= at.mean <= at.greatest for at in curve)
    assert curve[0].mean == pytest.approx(1) and curve[-1].mean == pytest.approx(
        entries(BASELINE + TST)[1]["equal_loss"]["speedup"]["mean"]
    )
    apart = [replace(one, curve=one.curve[1:]) for one in TST]
    assert speedup_curve(arms_of(apart)[0], reference) == []


LOSSES = st.lists(st.lists(st.floats(0.5, 12), min_size=3, max_size=3), min_size=1, max_size=4)


def drawn(name, losses):
    curves = [[(100 * (i + 1), loss) for i, loss in enumerate(each)] for each in losses]
    return Arm(name, tuple(run(f"{name}{seed}", curve, seed=seed) for seed, curve in enumerate(curves)))


@given(LOSSES, LOSSES, st.randoms(use_true_random=False))
def test_the_order_of_runs_in_an_arm_does_not_matter(a, b, random):
    arms = [drawn("a", a), drawn("b", b)]
    shuffled = [replace(one, runs=tuple(random.sample(one.runs, len(one.runs)))) for one in arms]
    plain, turned = (entries([run for one in each for run in one.runs], each) for each in (arms, shuffled))
    for one in (*plain, *turned):
        del one["runs"]
    assert plain == turned


@given(LOSSES)
def test_an_arm_and_its_copy_are_even(losses):
    arm = drawn("a", losses)
    copy = Arm("b", tuple(replace(one, name=f"b{i}") for i, one in enumerate(arm.runs)))
    _, entry = entries([*arm.runs, *copy.runs], [arm, copy])
    assert entry["equal_flops"]["difference"]["mean"] == 0
    if len(losses) > 1:
        assert entry["equal_flops"]["difference"]["ci"] == [0, 0]
    for key in ("equal_loss", "reverse"):
        assert entry[key]["speedup"] is None or entry[key]["speedup"]["mean"] == 1


@given(LOSSES, LOSSES)
def test_turning_the_question_round_turns_the_speedup_over(a, b):
    arms = [drawn("a", a), drawn("b", b)]
    runs = [[*arms[0].runs, *arms[1].runs], [*arms[1].runs, *arms[0].runs]]
    there, back = entries(runs[0], arms)[1], entries(runs[1], arms[::-1])[1]
    assert (there["equal_loss"]["speedup"] is None) == (back["reverse"]["speedup"] is None)
    if there["equal_loss"]["speedup"]:
        assert there["equal_loss"]["speedup"]["mean"] * back["reverse"]["speedup"]["mean"] == pytest.approx(1)
    mine, theirs = (one["equal_flops"]["difference"]["mean"] for one in (there, back))
    assert mine == pytest.approx(-theirs)
