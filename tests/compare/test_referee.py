"""The answers for runs, on curves computed by hand and on invariants."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.compare.run_folders import run
from tst_lightning.compare.referee import (
    BEFORE_FIRST,
    NOT_REACHED,
    equal_budget,
    equal_loss,
    flops_to_reach,
    loss_at,
    why_no_equal_time,
    why_unread,
)

BASELINE = run("baseline", [(100, 5.0), (200, 4.0), (400, 3.0)])
# Reads twice the data and ends lower.
TST = run("tst", [(100, 6.0), (200, 4.0), (300, 3.5), (400, 2.5)], tokens_per_flop=20.0)


def test_loss_at_interpolates_and_does_not_extrapolate():
    assert loss_at(BASELINE, 300, "flops") == 3.5
    assert loss_at(BASELINE, 1500, "tokens") == 4.5
    assert loss_at(BASELINE, 99, "flops") is None
    assert loss_at(BASELINE, 410, "flops") is None


def test_a_run_that_ends_within_half_a_percent_counts_with_its_final_loss():
    assert loss_at(BASELINE, 398.1, "flops") == 3.0
    assert loss_at(BASELINE, 401.9, "flops") == 3.0
    assert loss_at(BASELINE, 396, "flops") == pytest.approx(3.02)


def test_flops_to_reach():
    assert flops_to_reach(BASELINE, 4.5) == 150
    assert flops_to_reach(BASELINE, 4.0) == 200
    assert flops_to_reach(BASELINE, 5.0) == 100
    assert flops_to_reach(BASELINE, 2.9) is None
    assert why_unread(BASELINE, 2.9) == NOT_REACHED and why_unread(BASELINE, 4.5) is None
    spiked = run("spiked", [(100, 4.0), (200, 5.0), (300, 3.0)])
    assert flops_to_reach(spiked, 3.5) == 275


def test_a_loss_met_before_the_first_validation_has_no_flops():
    """Where it was met isn't known; the first validation's FLOPs would be a guess in the run's disfavour."""
    assert flops_to_reach(BASELINE, 5.5) is None
    assert why_unread(BASELINE, 5.5) == BEFORE_FIRST
    late = run("late", [(300, 2.8), (400, 2.5)])
    assert equal_loss([BASELINE, late])["runs"]["late"] == {"flops": None, "speedup": None, "reason": BEFORE_FIRST}
    assert equal_loss([late, BASELINE])["runs"]["baseline"]["reason"] == NOT_REACHED


def test_equal_flops():
    assert equal_budget([BASELINE, TST], "flops") == {
        "flops": 400,
        "losses": {"baseline": 3.0, "tst": 2.5},
        "difference": -0.5,
        "differences": {"tst": -0.5},
    }
    longer = run("longer", [(200, 4.0), (600, 2.0)])
    found = equal_budget([BASELINE, TST, longer], "flops")
    assert found["losses"]["longer"] == 3.0
    assert found["differences"] == {"tst": -0.5, "longer": 0.0}


def test_equal_data():
    # 4,000 tokens are TST's 200 FLOPs.
    assert equal_budget([BASELINE, TST], "tokens") == {
        "tokens": 4000,
        "losses": {"baseline": 3.0, "tst": 4.0},
        "difference": 1.0,
        "differences": {"tst": 1.0},
    }


def test_equal_time():
    slow = replace(TST, curve=tuple(replace(point, seconds=2 * point.seconds) for point in TST.curve))
    assert equal_budget([BASELINE, slow], "seconds") == {
        "seconds": 4.0,
        "losses": {"baseline": 3.0, "tst": 4.0},
        "difference": 1.0,
        "differences": {"tst": 1.0},
    }


@given(st.floats(1 / 1.19, 1.19))
def test_timing_noise_makes_no_difference(noise):
    """Runs of equal steps: the faster must not cut the other before its decay."""
    timed = replace(TST, curve=tuple(replace(point, seconds=noise * point.seconds) for point in TST.curve))
    found = equal_budget([BASELINE, timed], "seconds")
    assert found["losses"] == {"baseline": 3.0, "tst": 2.5} and found["difference"] == -0.5


@pytest.mark.parametrize(("axis", "share"), [("seconds", 0.2), ("flops", 0.005), ("tokens", 0.005)])
def test_beyond_the_tolerance_of_its_axis_a_run_is_cut(axis, share):
    for part, within in ((0.99, True), (1.01, False)):
        longer = [replace(point, **{axis: getattr(point, axis) * (1 + part * share)}) for point in BASELINE.curve]
        loss = equal_budget([BASELINE, replace(BASELINE, name="longer", curve=tuple(longer))], axis)["losses"]["longer"]
        assert (loss == 3.0) == within


def test_a_resumed_runs_seconds_may_step_back():
    """It repeats steps, and faster, so that a validation of the first start may bear more seconds than a later one."""
    seconds = (1.0, 2.5, 2.2, 4.0)
    run = replace(TST, curve=tuple(replace(p, seconds=s) for p, s in zip(TST.curve, seconds, strict=True)))
    assert loss_at(run, 3.25, "seconds") == 3.0
    assert loss_at(run, 1.75, "seconds") == 5.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "2 x cpu"}, 'device or number of processes (device) differ: "cpu", "2 x cpu"'),
        ({"device_name": "H100"}, 'device (device_name) differ: null, "H100"'),
        ({"precision": "bf16-mixed"}, 'precision (precision) differ: null, "bf16-mixed"'),
        ({"seed": 7, "optimizer": "SGD"}, None),
    ],
)
def test_seconds_are_compared_on_one_device_only(changes, reason):
    assert why_no_equal_time([BASELINE, BASELINE, replace(TST, record=TST.record | changes)]) == reason


def test_a_curve_that_begins_after_the_budget_has_no_loss_there():
    late = run("late", [(500, 3.0), (600, 2.0)])
    found = equal_budget([BASELINE, late], "flops")
    assert found["losses"] == {"baseline": 3.0, "late": None}
    assert found["difference"] is None
    assert equal_budget([late, BASELINE], "flops")["difference"] is None


def test_equal_loss_both_ways():
    assert equal_loss([BASELINE, TST]) == {
        "loss": 3.0,
        "speedup": 400 / 350,
        "runs": {"tst": {"flops": 350.0, "speedup": 400 / 350, "reason": None}},
        "reverse": {"tst": {"loss": 2.5, "reference_flops": None, "speedup": None, "reason": NOT_REACHED}},
    }
    assert equal_loss([TST, BASELINE]) == {
        "loss": 2.5,
        "speedup": None,
        "runs": {"baseline": {"flops": None, "speedup": None, "reason": NOT_REACHED}},
        "reverse": {"baseline": {"loss": 3.0, "reference_flops": 350.0, "speedup": 350 / 400, "reason": None}},
    }


def test_a_reference_run_on_to_the_others_loss_gives_the_papers_speedup():
    long = run("long", [(400, 3.4), (720, 2.5)])
    assert equal_loss([long, TST])["speedup"] == 1.8
    reverse = equal_loss([long, TST])["reverse"]["tst"]
    assert reverse == {"loss": 2.5, "reference_flops": 720, "speedup": 1.8, "reason": None}


CURVES = st.lists(st.floats(0.5, 12), min_size=1, max_size=12).map(
    lambda losses: run("one", [(100 * (i + 1), loss) for i, loss in enumerate(losses)])
)


@given(CURVES)
def test_a_run_and_its_copy_are_even(one):
    copy = replace(one, name="copy")
    for axis in ("flops", "tokens", "seconds"):
        assert equal_budget([one, copy], axis)["difference"] == 0
    found = equal_loss([one, copy])
    # A curve that ends above its beginning met its final loss before it was first looked at.
    known = 1 if one.final.loss <= one.curve[0].loss else None
    assert found["speedup"] == found["reverse"]["copy"]["speedup"] == known


def scaled(one, factor):
    return replace(one, curve=tuple(replace(point, flops=point.flops * factor) for point in one.curve))


@given(CURVES, CURVES, st.sampled_from([2.0**-20, 0.5, 4.0, 2.0**40]))
def test_scaling_all_flops_scales_flops_only(one, other, factor):
    # Powers of two scale without rounding, so equality is exact.
    other = replace(other, name="other")
    plain, big = [one, other], [scaled(one, factor), scaled(other, factor)]
    before, after = equal_budget(plain, "flops"), equal_budget(big, "flops")
    assert after.pop("flops") == before.pop("flops") * factor
    assert after == before
    assert equal_budget(plain, "tokens") == equal_budget(big, "tokens")
    before, after = equal_loss(plain), equal_loss(big)
    assert after["speedup"] == before["speedup"]
    flops = before["runs"]["other"]["flops"]
    assert after["runs"]["other"]["flops"] == (None if flops is None else flops * factor)


@given(CURVES, CURVES)
def test_swapping_the_runs_turns_the_difference_round(one, other):
    other = replace(other, name="other")
    there, back = (equal_budget(pair, "flops")["difference"] for pair in ([one, other], [other, one]))
    assert there == -back
