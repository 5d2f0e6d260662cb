"""Notes: what weakens a comparison is said, and what doesn't isn't."""

from dataclasses import replace

from tests.compare.run_folders import TST_PHASES, record, run
from tst_lightning.compare.arms import arms_of
from tst_lightning.compare.notes import notes

BASELINE = run("baseline", [(100, 5.0), (200, 4.0), (400, 3.0)])
# Reads twice the data and ends lower.
TST = run("tst", [(100, 6.0), (200, 4.0), (300, 3.5), (400, 2.5)], tokens_per_flop=20.0)


def noted(*runs):
    return "\n".join(notes(runs, arms_of(runs)))


def test_notes_of_a_plain_pair():
    found = noted(BASELINE, BASELINE)
    assert "One seed per arm proves nothing" in found
    assert "conservative" in found
    assert "How each arm was tuned can't be seen" in found
    assert not any(
        word in found
        for word in ("UNFINISHED", "Beyond", "Seeds differ", "Batches", "Devices", "Optim", "time", "Without")
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
    assert "'tst' had done no step of the last phase at 4.00k tokens" in noted(
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


def test_notes_name_optimization_that_differs():
    schedule = {"warmup_steps": 50}
    assert "Optimization differs (learning_rate, lr_schedule)" in noted(
        BASELINE, run("x", [(400, 3.0)], learning_rate=1, optimizer_settings={"lr": 1}, lr_schedule=schedule)
    )
    assert "Optimization differs (optimizer_settings)" in noted(BASELINE, run("x", [(400, 3)], optimizer_settings={}))
    assert "Training data differ" in noted(BASELINE, run("x", [(400, 3.0)], train_sha256="c" * 64))


def test_notes_name_what_a_curve_does_not_hold():
    late = run("late", [(500, 2.5), (600, 2.0)])
    found = noted(BASELINE, late)
    assert "Without a validation up to 400 FLOP: 'late'." in found
    assert "Below another run's final loss at the first validation already: 'late'." in found


def test_notes_say_why_time_is_not_compared():
    found = noted(BASELINE, replace(TST, record=TST.record | {"device": "1 x cuda"}))
    assert "Devices differ" in found and "Equal time is not asked: device or number of processes" in found
    assert "Beyond 4.0 s" not in found


def test_note_of_seconds_taken_as_equal():
    def timed(factor):
        curve = tuple(replace(point, seconds=factor * point.seconds) for point in BASELINE.curve)
        return replace(BASELINE, name=f"x{factor}", curve=curve)

    found = noted(BASELINE, timed(1.1), timed(1.5))
    assert (
        "Taken as equal to 4.0 s, with final losses: 'x1.1' (up to 4.4 s). Equal time has a tolerance of 20%" in found
    )
    assert "Beyond 4.0 s: 'x1.5'." in found


def test_notes_on_seeds():
    fixed = [run(f"a{seed}", [(400, 3.0)], seed=seed, stream={"seed": 5}) for seed in (1, 2)]
    assert "Every run of 'a' read its data in the same order (data.seed 5)" in noted(*fixed)
    moved = [run(f"a{seed}", [(400, 3.0)], seed=seed, stream={"seed": seed}) for seed in (1, 2)]
    assert "same order" not in noted(*moved)
    other = [replace(one, name=f"b{i}", path=f"b{i}") for i, one in enumerate(moved)]
    assert "have the same recorded settings and a seed in common" in noted(*moved, *other)


def test_a_whole_arm_is_named_as_such():
    short = run("short", [(300, 3.0)])
    runs = [run(f"long-seed{seed}", [(100, 5.0), (400, 3.0)], seed=seed, optimizer="SGD") for seed in (1, 2)]
    assert "Beyond 300 FLOP: 'long'." in noted(short, *runs)
    stopped = [runs[0], replace(runs[1], curve=runs[1].curve[:1] + (replace(runs[1].curve[1], flops=300.0),))]
    assert "Beyond 300 FLOP: 'long-seed1'." in noted(short, *stopped)
