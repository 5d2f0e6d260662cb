"""The three comparisons, on curves computed by hand and on invariants."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.compare.run_folders import TST_PHASES, record
from tst_lightning.compare.referee import equal_budget, equal_loss, flops_to_reach, loss_at, notes
from tst_lightning.compare.runs import Point, Run


def run(name, curve, tokens_per_flop=10.0, **changes):
    points = [Point(int(f), loss, float(f), f * tokens_per_flop, 0, 0) for f, loss in curve]
    step = points[-1].step
    return Run(name, name, record(**({"name": name, "step": step, "max_steps": step} | changes)), tuple(points))


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
    assert flops_to_reach(BASELINE, 5.5) == 100  # there at its first validation
    assert flops_to_reach(BASELINE, 2.9) is None
    spiked = run("spiked", [(100, 4.0), (200, 5.0), (300, 3.0)])
    assert flops_to_reach(spiked, 3.5) == 275


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
        "runs": {"tst": {"flops": 350.0, "speedup": 400 / 350}},
        "reverse": {"tst": {"loss": 2.5, "reference_flops": None, "speedup": None}},
    }
    assert equal_loss([TST, BASELINE]) == {
        "loss": 2.5,
        "speedup": None,
        "runs": {"baseline": {"flops": None, "speedup": None}},
        "reverse": {"baseline": {"loss": 3.0, "reference_flops": 350.0, "speedup": 350 / 400}},
    }


def test_a_reference_run_on_to_the_others_loss_gives_the_papers_speedup():
    long = run("long", [(400, 3.4), (720, 2.5)])
    assert equal_loss([long, TST])["speedup"] == 1.8
    assert equal_loss([long, TST])["reverse"]["tst"] == {"loss": 2.5, "reference_flops": 720, "speedup": 1.8}


CURVES = st.lists(st.floats(0.5, 12), min_size=1, max_size=12).map(
    lambda losses: run("one", [(100 * (i + 1), loss) for i, loss in enumerate(losses)])
)


@given(CURVES)
def test_a_run_and_its_copy_are_even(one):
    copy = replace(one, name="copy")
    for axis in ("flops", "tokens"):
        assert equal_budget([one, copy], axis)["difference"] == 0
    found = equal_loss([one, copy])
    assert found["speedup"] == found["reverse"]["copy"]["speedup"] == 1


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


def noted(*runs):
    return "\n".join(notes(runs))


def test_notes_of_a_plain_pair():
    found = noted(BASELINE, BASELINE)
    assert "One seed per arm proves nothing" in found
    assert "conservative" in found
    assert not any(
        word in found for word in ("UNFINISHED", "Beyond", "Seeds differ", "Batches", "Devices", "times over")
    )


def test_notes_name_what_weakens_the_comparison():
    odd = run(
        "odd",
        [(100, 5.0), (800, 2.0)],
        status="stopped",
        step=900,
        max_steps=1000,
        seed=0,
        batch={"rows": 16},
        device="cuda",
        tokens_available=4000,
    )
    found = noted(BASELINE, odd)
    assert "UNFINISHED: 'odd' is stopped at step 900 of 1000; its last validation (step 800)" in found
    assert "Beyond 400 FLOP: 'odd'." in found
    assert "Beyond 4.00k tokens: 'odd'." in found
    assert "'odd' read its training data 2.0 times over." in found
    assert "Batches differ" in found
    assert "Devices differ" in found
    assert "Seeds differ: 'baseline' 1, 'odd' 0." in found


def test_note_of_a_final_loss_read_before_the_end():
    assert "'short' was last validated at step 400 of 450" in noted(
        BASELINE, replace(run("short", [(400, 3)], step=450))
    )


def test_note_of_equal_data_before_the_switch():
    phases = [dict(TST_PHASES[0], steps=300), dict(TST_PHASES[1], first_step=300, steps=100)]
    assert "'tst' had done no step of its last phase at 4.00k tokens" in noted(
        BASELINE, replace(TST, record=record(name="tst", phases=phases, step=400))
    )


def test_several_seeds_of_every_arm_silence_the_note_on_seeds():
    arms = [
        run(f"{name}{seed}", [(400, 3.0)], seed=seed, learning_rate=rate)
        for name, rate in (("a", 1), ("b", 2))
        for seed in (0, 1)
    ]
    assert "proves nothing" not in noted(*arms)
    assert "proves nothing" in noted(*arms[:3])
