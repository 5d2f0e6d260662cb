"""Means, spreads, the best setting, and the surface beside the published grid, on losses laid out by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compare.run_folders import run
from tests.sweep.plans import SEED, SHARE, SIZE, finish, plan_of
from tst_lightning.published import Cell, load_grids
from tst_lightning.sweep.cases import Case, Settings
from tst_lightning.sweep.results import (
    Result,
    Setting,
    at_equal_compute,
    best_of,
    by_setting,
    differences,
    read_results,
    split,
)
from tst_lightning.sweep.surface import Agreement, Surface, agreement, axes_of, nearest_grid, surface_of, weighting_of

LR = "model.optimizer.init_args.lr"


def setting(settings: Settings, *losses: float | None, baseline: bool = False, flops: int = 100) -> Setting:
    """By final losses alone; None where the run has failed."""
    case = Case("a", (), settings, baseline=baseline)
    return Setting(
        settings,
        baseline,
        tuple(
            Result(case, "failed") if loss is None else Result(case, "finished", run=run("a", [(flops, loss)]))
            for loss in losses
        ),
    )


def test_mean_and_spread_over_seeds() -> None:
    assert (setting({}, 1.0, 2.0, 3.0).mean, setting({}, 1.0, 2.0, 3.0).deviation) == (2.0, 1.0)
    assert (setting({}, 1.0).mean, setting({}, 1.0).deviation) == (1.0, None)
    assert (setting({}, None).mean, setting({}, None).complete) == (None, False)
    assert (setting({}, 1.0, None).mean, setting({}, 1.0, None).complete) == (1.0, False)


def test_the_best_has_finished_with_every_seed_and_is_no_baseline() -> None:
    lucky, good, poor = setting({"a": 1}, 1.0, None), setting({"a": 2}, 2.0, 2.2), setting({"a": 3}, 2.0, 2.4)
    assert best_of([poor, lucky, good]) is good
    assert best_of([lucky]) is None and best_of([]) is None
    reference = setting({}, 0.5, baseline=True)
    assert split([reference, good]) == ([good], reference)
    assert split([good, setting({}, None, baseline=True)]) == ([good], None)


def test_there_is_no_best_at_unequal_compute() -> None:
    """Where a loss ranks length or size; 0.5% is a rounding of phases."""
    short, long, other = (setting({"a": flops}, 2.0, flops=flops) for flops in (10_000, 10_051, 10_050))
    assert best_of([short, long]) is None and best_of([short, other]) is short
    assert at_equal_compute([]) and at_equal_compute([setting({}, None)])
    unfinished = setting({"a": 1}, 1.0, None, flops=20_000)
    assert best_of([unfinished, short]) is None, "of the runs that have finished, every one counts"
    references = [setting({"a": i}, 1.0, flops=100 * i, baseline=True) for i in (1, 2)]
    assert split([*references, short, other]) == ([short, other], None)


def test_results_are_read_and_grouped(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, grid={SIZE: [2, 4], SEED: [1, 2]}, baseline=str(tmp_path / "fit.yaml"), list=None)
    losses = dict(zip([case.name for case in plan.cases], (3.0, 3.2, 2.0, 2.2, 2.5), strict=False))
    for case in plan.cases:
        if case.name in losses:
            finish(plan, case, losses[case.name])
    results = read_results(plan)
    assert [result.status for result in results] == ["finished"] * 5 + ["waiting"]
    settings = by_setting(results)
    assert [(s.settings, s.baseline, s.losses) for s in settings] == [
        ({}, True, [3.0, 3.2]),
        ({SIZE: 2}, False, [2.0, 2.2]),
        ({SIZE: 4}, False, [2.5]),
    ]
    assert differences(results) == []


def test_runs_on_other_data_can_not_be_ranked(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"a": 1}, {"a": 2})
    finish(plan, plan.cases[0], 3.0)
    finish(plan, plan.cases[1], 2.0, val_sha256="c" * 64, seq_len=64)
    assert differences(read_results(plan)) == ["validation data", "sequence length"]


def test_a_finished_run_without_a_finite_loss_has_failed(tmp_path: Path) -> None:
    (case,) = (plan := plan_of(tmp_path, {"a": 1})).cases
    finish(plan, case, math.nan)
    (result,) = read_results(plan)
    assert result.status == "failed" and "val/loss is nan" in result.message


def test_axes() -> None:
    assert axes_of([setting({SIZE: 2, SHARE: 0.1, LR: 1})]) == (SIZE, SHARE)
    assert axes_of([setting({f"{SIZE},data.block_rows": 2, SHARE: 0.1})]) == (f"{SIZE},data.block_rows", SHARE)
    assert axes_of([setting({SIZE: 2})]) is None
    assert axes_of([setting({SIZE: 2, SHARE: 0.1}), setting({SIZE: 2})]) is None
    assert axes_of([setting({SIZE: 2, "model.phases.b.bag_size": 2, SHARE: 0.1})]) is None
    assert axes_of([]) is None


def test_a_cell_is_the_best_over_other_keys_and_a_gap_unless_every_seed_has_finished() -> None:
    def at(size: int, share: float, lr: float, *losses: float | None) -> Setting:
        return setting({SIZE: size, SHARE: share, LR: lr}, *losses)

    reference = setting({}, 3.0, 3.2, baseline=True)
    surface = surface_of(
        [at(2, 0.1, 1, 2.0, 2.2), at(2, 0.1, 2, 1.9, 2.1), at(2, 0.1, 3, 1.0, None), at(4, 0.1, 1, None, 2.0)],
        reference,
    )
    assert surface is not None
    assert surface.losses[Cell(2, 0.1)] == pytest.approx(2.0)
    assert surface.deviations[Cell(2, 0.1)] == pytest.approx(math.sqrt(0.02))
    assert math.isnan(surface.losses[Cell(4, 0.1)])
    assert (surface.baseline, surface.others, surface.sizes, surface.ratios) == (3.1, (LR,), [2, 4], [0.1])
    assert surface_of([setting({SIZE: "x", SHARE: 0.1}, 1.0)], None) is None


@pytest.mark.parametrize(
    ("parameters", "positions", "weighting", "name"),
    [
        (6.4e5, 2e6, "uniform", "270M, 20k steps, uniform weights"),
        (250e6, 2e11, "uniform", "270M, 100k steps, uniform weights"),
        (3e9, 4e10, "uniform", "600M, 20k steps, uniform weights"),
        (3e9, 4e10, "power_law", "600M, 20k steps, power law weights"),
        (3e9, 4e10, "first", "600M, 20k steps, uniform weights"),
    ],
)
def test_nearest_grid(parameters: float, positions: float, weighting: str, name: str) -> None:
    assert nearest_grid(parameters, positions, weighting).name == name


def test_weighting_of_a_run(tmp_path: Path) -> None:
    assert weighting_of(str(tmp_path)) == "uniform"
    (tmp_path / "config.yaml").write_text(
        "model: {phases: {a: {init_args: {weighting: power_law}}, b: {class_path: x, init_args: null}}}"
    )
    assert weighting_of(str(tmp_path)) == "power_law"
    given = {"constant": 0.1, "factor": 1.2, "exponent": -0.9}
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"model": {"phases": {"a": {"init_args": {"weighting": given}}}}})
    )
    assert weighting_of(str(tmp_path)) == given
    assert nearest_grid(3e9, 4e10, given) == nearest_grid(3e9, 4e10, "first"), "no published grid has such weights"


def surface(losses: dict[Cell, float]) -> Surface:
    return Surface(losses, {}, None, ())


def test_rank_correlation_over_common_cells() -> None:
    grid = load_grids()[0]
    cells: list[Any] = sorted(grid.losses)[:6]
    same = {cell: grid.losses[cell] + 1 for cell in cells}
    assert agreement(surface(same), grid) == Agreement(6, pytest.approx(1.0))
    assert agreement(surface({cell: -loss for cell, loss in same.items()}), grid) == Agreement(6, pytest.approx(-1.0))
    # A share that is 0.1 + 0.2 is 0.3; a cell that the grid lacks, and a gap, do not count.
    extra = {Cell(2, 0.1 + 0.2): 1.0, Cell(32, 0.1): 1.0, cells[0]: math.nan}
    assert agreement(surface(same | extra), grid).cells == 6 - 1 + (Cell(2, 0.3) not in cells)


def test_rank_correlation_by_hand() -> None:
    cells = [Cell(2, 0.1), Cell(3, 0.1), Cell(4, 0.1), Cell(5, 0.1)]  # the grid falls: its ranks are 4, 3, 2, 1
    grid = load_grids()[0]
    mine = dict(zip(cells, (2.0, 3.0, 2.0, 1.0), strict=True))  # ranks 2.5, 4, 2.5, 1
    # Deviations from 2.5: (1.5, 0.5, -0.5, -1.5) and (0, 1.5, 0, -1.5).
    assert agreement(surface(mine), grid).spearman == pytest.approx(3.0 / (5.0 * 4.5) ** 0.5)


def test_no_rank_correlation_of_too_little() -> None:
    grid = load_grids()[0]
    cells = sorted(grid.losses)[:4]
    assert agreement(surface({cell: grid.losses[cell] for cell in cells[:3]}), grid) == Agreement(3, None)
    assert agreement(surface(dict.fromkeys(cells, 1.0)), grid) == Agreement(4, None)
    assert agreement(surface({cell: grid.losses[cell] for cell in cells}), grid).spearman == pytest.approx(1.0)


def test_seeds_alone_are_one_setting() -> None:
    assert Case("x", (), {SEED: 1, "seed_everything": 2, "data.seed": 3, LR: 1}).setting == {LR: 1}
