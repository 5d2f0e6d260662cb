"""Final loss over bag size s and share r, and how it ranks beside the published grid."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tst_lightning.published import Cell, Grid, load_grids
from tst_lightning.sweep.cases import PHASES
from tst_lightning.sweep.results import Setting

_LEAST_COMMON = 4  # cells, below which a rank correlation says nothing


@dataclass(frozen=True)
class Surface:
    """Losses over s and r, nats a token.

    Attributes:
        losses: mean over seeds by cell, the best where a cell was run with several values of other keys; NaN unless every
            seed has finished.
        deviations: over seeds, by cell; NaN where there is one.
        baseline: mean final loss of the baseline; None without one.
        others: other swept keys, over which each cell is the best.
    """

    losses: dict[Cell, float]
    deviations: dict[Cell, float]
    baseline: float | None
    others: tuple[str, ...]

    @property
    def sizes(self) -> list[int]:
        """Bag sizes, ascending."""
        return sorted({cell.bag_size for cell in self.losses})

    @property
    def ratios(self) -> list[float]:
        """Shares of steps in superposition, ascending."""
        return sorted({cell.ratio for cell in self.losses})


def axes_of(settings: Iterable[Setting]) -> tuple[str, str] | None:
    """The swept keys of bag size and share; None unless there is one of each, in every setting."""
    keys = [set(setting.settings) for setting in settings]
    common = set.intersection(*keys) if keys else set()
    found = [[key for key in common if _is_of_phase(key, name)] for name in ("bag_size", "share")]
    return (found[0][0], found[1][0]) if all(len(each) == 1 for each in found) else None


def _is_of_phase(key: str, name: str) -> bool:
    return any(part.startswith(f"{PHASES}.") and part.endswith(f".{name}") for part in key.split(","))


def surface_of(settings: Sequence[Setting], baseline: Setting | None) -> Surface | None:
    """The surface of the settings that are no baseline.

    Returns:
        None where bag size and share were not both swept, or are no numbers.
    """
    axes = axes_of(settings)
    if axes is None:
        return None
    losses: dict[Cell, float] = {}
    deviations: dict[Cell, float] = {}
    for setting in settings:
        size, ratio = (setting.settings[key] for key in axes)
        if not isinstance(size, int) or not isinstance(ratio, int | float):
            return None
        cell = Cell(size, float(ratio))
        mean = setting.mean if setting.complete and setting.mean is not None else math.nan
        if cell not in losses or math.isnan(losses[cell]) or mean < losses[cell]:
            losses[cell] = mean
            deviations[cell] = math.nan if setting.deviation is None else setting.deviation
    others = sorted({key for setting in settings for key in setting.settings} - set(axes))
    return Surface(losses, deviations, baseline.mean if baseline else None, tuple(others))


def nearest_grid(parameters: float, positions: float, weighting: str | dict[str, float] = "uniform") -> Grid:
    """The published grid nearest in size and length.

    Args:
        parameters: of the swept model.
        positions: that a run computes.
        weighting: of its target bags; decides between grids that are equally near.
    """
    return min(
        load_grids(),
        key=lambda grid: (
            abs(math.log(grid.parameters / parameters)) + abs(math.log(grid.positions / positions)),
            grid.weighting != weighting,
        ),
    )


def weighting_of(run_dir: str) -> str | dict[str, float]:
    """The weighting of a run's superposition phase, by its resolved configuration: a name, or a power law's constants;
    uniform where that has none.
    """
    path = Path(run_dir) / "config.yaml"
    config: Any = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    phases = ((config.get("model") or {}).get("phases") or {}).values()
    found = [phase["init_args"]["weighting"] for phase in phases if "weighting" in (phase.get("init_args") or {})]
    return found[0] if found else "uniform"


@dataclass(frozen=True)
class Agreement:
    """How two grids rank their common cells.

    Attributes:
        cells: number of cells with a loss in both.
        spearman: rank correlation, 1 for the same order; None under four common cells, or where all losses are one.
    """

    cells: int
    spearman: float | None


def agreement(surface: Surface, grid: Grid) -> Agreement:
    """Spearman's rank correlation of final losses over the cells that both have."""
    ours = {_rounded(cell): loss for cell, loss in surface.losses.items() if math.isfinite(loss)}
    theirs = {_rounded(cell): loss for cell, loss in grid.losses.items()}
    common = sorted(ours.keys() & theirs.keys())
    if len(common) < _LEAST_COMMON:
        return Agreement(len(common), None)
    mine, other = ([losses[cell] for cell in common] for losses in (ours, theirs))
    if len(set(mine)) == 1 or len(set(other)) == 1:
        return Agreement(len(common), None)
    return Agreement(len(common), float(np.corrcoef(_ranks(mine), _ranks(other))[0, 1]))


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Places in ascending order; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _rounded(cell: Cell) -> Cell:
    return Cell(cell.bag_size, round(cell.ratio, 6))
