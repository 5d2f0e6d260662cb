"""The published tables agree with themselves and with what the paper says in its text."""

import pytest

from tst_lightning.published import Cell, Grid, PublishedRun, load_grids, load_runs


@pytest.mark.parametrize("grid", load_grids(), ids=lambda grid: grid.name)
def test_a_grid_is_whole(grid: Grid) -> None:
    sizes, ratios = ({cell[axis] for cell in grid.losses} for axis in (0, 1))
    assert ratios == {round(0.1 * k, 1) for k in range(1, 10)}
    assert sizes == set(range(2, max(sizes) + 1)) and max(sizes) in (13, 16)
    assert len(grid.losses) == len(sizes) * len(ratios)
    assert grid.losses[grid.best] < grid.baseline
    assert grid.differences[grid.best] == min(grid.differences.values()) < 0


def test_the_main_table_repeats_the_grids() -> None:
    runs = {(run.model, run.steps, run.method): run for run in load_runs()}
    for grid in load_grids():
        if grid.weighting == "uniform":
            model = f"dense-{grid.name.partition(',')[0]}"
            assert runs[model, grid.steps, "baseline"].final_loss == pytest.approx(grid.baseline, abs=6e-4)
            assert runs[model, grid.steps, "tst"].final_loss == pytest.approx(grid.losses[Cell(6, 0.3)], abs=1e-3)


@pytest.mark.parametrize("run", load_runs(), ids=lambda run: f"{run.model}-{run.method}-{run.steps}")
def test_tokens_follow_from_steps_and_cell(run: PublishedRun) -> None:
    # The table rounds to whole billions.
    tokens = run.positions * (1 + run.cell.ratio * (run.cell.bag_size - 1))
    assert tokens == pytest.approx(run.tokens, rel=0.01)
