"""Speedups between completed runs, worked by hand: read between end points, and never beyond them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.compare.run_folders import run
from tst_lightning.compare.arms import arms_of
from tst_lightning.compare.frontier import ALREADY_BELOW, equal_loss_completed, flops_on_frontier
from tst_lightning.compare.intervals import NO_INTERVAL, PAIRED
from tst_lightning.compare.referee import NOT_REACHED

ENDS = [(100, 4.0), (200, 3.5), (800, 2.5)]


def test_a_frontier_is_linear_in_log_flops():
    assert flops_on_frontier(ENDS, 4.0) == 100
    assert flops_on_frontier(ENDS, 3.0) == pytest.approx(400)
    assert flops_on_frontier(ENDS, 2.5) == pytest.approx(800)
    assert flops_on_frontier(ENDS, 4.1) is None and flops_on_frontier(ENDS, 2.4) is None
    assert flops_on_frontier(ENDS[:1], 3.9) is None
    # A longer run that ended higher: the first crossing counts.
    assert flops_on_frontier([(100, 4.0), (200, 4.5), (400, 3.5)], 4.2) == pytest.approx(200 * 2**0.3)


@given(st.lists(st.floats(1, 9), min_size=2, max_size=6, unique=True), st.floats(0, 1))
def test_a_frontier_is_read_within_itself_only(losses, share):
    ends = [(100 * 2.0**i, loss) for i, loss in enumerate(losses)]
    loss = 0.5 + 9 * share
    found = flops_on_frontier(ends, loss)
    if found is None:
        assert loss > losses[0] or loss < min(losses)
    else:
        assert ends[0][0] <= found <= ends[-1][0] * (1 + 1e-9)


def baseline(seed=1, shift=0.0):
    return [run(f"baseline-{f}-seed{seed}", [(50, 9.0), (f, loss + shift)], seed=seed) for f, loss in ENDS]


def tst(flops, loss, seed=1):
    return run(f"tst-{flops}-seed{seed}", [(50, 9.0), (flops, loss)], seed=seed, optimizer="SGD")


def test_the_papers_question():
    """TST of 200 FLOPs ends at 3.0, to which the baseline needs a schedule of 400."""
    found = equal_loss_completed(arms_of([*baseline(), tst(200, 3.0)]))
    assert found["reference"] == "baseline"
    assert [end["steps"] for end in found["families"]["baseline"]] == [100, 200, 800]
    (row,) = found["speedups"]
    assert row["speedup"] == {"mean": pytest.approx(2.0), "ci": None, "pairs": None, "method": NO_INTERVAL}
    assert (row["loss"], row["flops"], row["reference_flops"]) == (3.0, 200, pytest.approx(400))


def test_seeds_are_held_against_the_frontier_of_their_own():
    """Seed 2 lies 0.1 higher in both arms, so it says the same: a speedup of 2, with no spread."""
    runs = [*baseline(), *baseline(2, 0.1), tst(200, 3.0), tst(200, 3.1, seed=2)]
    (row,) = equal_loss_completed(arms_of(runs))["speedups"]
    assert row["speedup"]["mean"] == pytest.approx(2) and row["speedup"]["ci"] == pytest.approx([2, 2])
    assert (row["speedup"]["pairs"], row["speedup"]["method"]) == (2, PAIRED)
    spread = [*baseline(), *baseline(2), tst(200, 3.0), tst(200, 2.5, seed=2)]
    (row,) = equal_loss_completed(arms_of(spread))["speedups"]
    assert row["speedup"]["mean"] == pytest.approx(math.sqrt(2 * 4))  # geometric
    assert row["speedup"]["ci"][0] < 2 and row["speedup"]["ci"][1] > 4


def test_a_row_is_of_the_seeds_that_its_speedup_is_of():
    """Seed 3 is in one arm alone: it is no pair, so the row's loss and FLOPs are without it, both ways."""
    pair = [tst(flops, loss, seed) for seed in (1, 2) for flops, loss in ((200, 3.0), (600, 2.3))]
    alone = [tst(200, 2.0, seed=3), run("baseline-200-seed4", [(50, 9.0), (200, 9.0)], seed=4)]
    rows = equal_loss_completed(arms_of([*baseline(), *baseline(2), *pair, *alone]))["speedups"]
    (row,) = (row for row in rows if row["arm"] == "tst-200")
    assert row["loss"] == 3.0 and row["speedup"]["pairs"] == 2
    for row in rows:
        if row["speedup"]:
            assert row["speedup"]["mean"] == pytest.approx(row["reference_flops"] / row["flops"])
    (hollow,) = (row for row in rows if row["arm"].startswith("baseline-800"))
    assert hollow["loss"] == 2.5 and hollow["speedup"]["pairs"] == 2


def test_a_seed_outside_its_frontier_leaves_the_means():
    runs = [*baseline(), *baseline(2), tst(200, 3.6), tst(200, 2.4, seed=2)]
    (row,) = equal_loss_completed(arms_of(runs))["speedups"]
    assert row["speedup"] == {"mean": pytest.approx(2.0), "ci": None, "pairs": None, "method": NO_INTERVAL}


def test_nothing_is_read_beyond_the_lengths():
    low, high = tst(200, 2.4), tst(300, 4.1)
    rows = {row["arm"]: row for row in equal_loss_completed(arms_of([*baseline(), low, high]))["speedups"]}
    assert rows["tst-200-seed1"]["speedup"] is None and rows["tst-200-seed1"]["reason"] == NOT_REACHED
    assert rows["tst-300-seed1"]["speedup"] is None and rows["tst-300-seed1"]["reason"] == ALREADY_BELOW


def test_the_reference_is_asked_of_the_others_lengths_too():
    found = equal_loss_completed(arms_of([run("baseline", [(50, 9.0), (400, 3.0)]), tst(100, 3.5), tst(400, 2.5)]))
    (row,) = found["speedups"]
    assert (row["family"], row["arm"]) == ("tst", "baseline")
    assert row["speedup"]["mean"] == pytest.approx(2.0) and row["flops"] == pytest.approx(200)


def test_swapping_the_experiments_turns_the_speedup_over():
    # Both ways over pairs of seeds, so that the logarithm's sign is tried too.
    runs = [*baseline(), *baseline(2, 0.1), *(tst(*end, seed) for end in ((150, 3.8), (500, 2.6)) for seed in (1, 2))]
    there = equal_loss_completed(arms_of(runs))["speedups"]
    back = equal_loss_completed(arms_of(runs[::-1]))["speedups"]
    assert {row["arm"]: row["speedup"]["mean"] for row in there if row["speedup"]} == {
        row["arm"]: pytest.approx(1 / row["speedup"]["mean"]) for row in back if row["speedup"]
    }
    methods = {(row["arm"].split("-")[0], row["speedup"]["method"]) for row in there if row["speedup"]}
    assert methods == {("tst", PAIRED), ("baseline", PAIRED)}


def test_unfinished_runs_are_no_end_points():
    runs = baseline()
    runs[1].record["status"] = "stopped"
    found = equal_loss_completed(arms_of([*runs, tst(200, 3.0)]))
    assert [end["steps"] for end in found["families"]["baseline"]] == [100, 800]
    runs[2].record["step"] = 900  # validated before its end
    assert equal_loss_completed(arms_of([*runs, tst(200, 3.0)])) is None


def test_one_length_each_is_no_frontier():
    assert equal_loss_completed(arms_of([baseline()[0], tst(200, 3.0)])) is None
    assert equal_loss_completed(arms_of(baseline())) is None
