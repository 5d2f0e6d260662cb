"""The comparison in the terminal: it fits, and tells what comparison.json holds."""

import re

import pytest

from tests.compare.run_folders import TST_PHASES, write_run
from tst_lightning.compare.arms import arms_of
from tst_lightning.compare.report import judge
from tst_lightning.compare.runs import read_runs
from tst_lightning.compare.terminal import table_text


def told(*paths):
    runs = read_runs(paths)
    text = table_text(judge(runs, arms_of(runs)))
    assert max(map(len, text.splitlines())) <= 100
    return text


def test_two_runs(tmp_path):
    baseline = write_run(tmp_path / "baseline", [(0, 9.0), (10, 7.0), (50, 4.0), (100, 3.0)])
    tst = write_run(
        tmp_path / "tst", [(0, 9.0), (20, 6.0), (50, 3.5), (100, 2.5)], bag_steps=20, phases=TST_PHASES, optimizer="x"
    )
    text = told(baseline, tst)
    assert text.startswith("run ")
    assert re.search(r"^baseline +3\.0000 +1\.5000 +1\.00 kFLOP +10\.0k +50\.0 +100 +1 +finished$", text, re.M)
    assert "equal FLOPs (1.00 kFLOP): baseline 3.0000, tst 2.5000 (-0.5000)" in text
    assert "1.33x (at 750 FLOP), reverse not reached" in text
    assert "equal data (10.0k tokens): baseline 3.0000" in text
    assert "equal time (50.0 s): baseline 3.0000, tst 2.5000 (-0.5000)" in text


def test_several_seeds_have_a_table_of_arms(tmp_path):
    paths = [
        write_run(tmp_path / f"{name}-seed{seed}", [(5, 9.0), (100, end + shift)], seed=seed, optimizer=name)
        for name, end in (("baseline", 3.0), ("tst", 3.5))
        for seed, shift in ((1, 0.0), (2, 0.1), (3, 0.2))
    ]
    text = told(*paths)
    assert text.startswith("arm ")
    assert re.search(r"^baseline +3 +3\.1000 ± 0\.1000$", text, re.M)
    assert re.search(r"^tst +3 +3\.6000 ± 0\.1000 +\+0\.5000 \[\+0\.5000, \+0\.5000\] +paired by seed$", text, re.M)
    assert re.search(r"^tst-seed3 +3\.7000 ", text, re.M)
    assert "equal loss (baseline's 3.2000): tst not reached, reverse" in text
    assert "proves nothing" not in text


def test_completed_runs_of_several_lengths(tmp_path):
    def path(name, steps, end, **more):
        phases = [dict(TST_PHASES[1], first_step=0, steps=steps)]
        changes = {"max_steps": steps, "step": steps, "phases": phases} | more
        return write_run(tmp_path / f"{name}-{steps}", [(5, 9.0), (steps, end)], **changes)

    text = told(path("base", 50, 4.0), path("base", 100, 3.0), path("tst", 50, 3.5, optimizer="Muon"))
    assert "equal loss, completed runs (tst-50's 3.5000): tst-50 1.41x" in text


@pytest.mark.parametrize("seeds", [1, 2])
def test_it_fits_with_long_names_and_great_numbers(tmp_path, seeds):
    paths = [
        write_run(tmp_path / f"{letter * 60}-{seed}", flops_per_step=10**20, seed=seed * 123456, optimizer=letter)
        for letter in "abc"
        for seed in range(1, seeds + 1)
    ]
    text = told(*paths)
    assert "1.00 ZFLOP" not in text and "10.0 ZFLOP" in text
