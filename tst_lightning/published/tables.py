"""The tables read: grids of final loss over bag size and superposition ratio, and single runs beside their baselines."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

# Batch of every dense run: 2,097,152 positions a step ("2M" in the paper; 42B tokens in 20,000 steps of its table).
POSITIONS_PER_STEP = 2**21
_MOE_POSITIONS_PER_STEP = 2**23


class Cell(NamedTuple):
    """A place in a grid: bag size s, and r, the share of steps in superposition."""

    bag_size: int
    ratio: float


@dataclass(frozen=True)
class Grid:
    """Final losses of one model size, training length and weighting.

    Attributes:
        name: such as "270M, 20k steps, uniform".
        parameters: of the model, as this project counts the published shape.
        steps: optimizer steps of every run.
        weighting: of the target bag's tokens, by this project's names.
        baseline: final loss of ordinary training, nats a token.
        losses: final losses, nats a token, by cell; r = 1, training without recovery, is left out.
    """

    name: str
    parameters: float
    steps: int
    weighting: str
    baseline: float
    losses: dict[Cell, float]

    @property
    def positions(self) -> int:
        """Positions of a run, which for the baseline are its tokens."""
        return self.steps * POSITIONS_PER_STEP

    @property
    def differences(self) -> dict[Cell, float]:
        """Final loss less the baseline's, nats a token: below 0 where superposition won."""
        return {cell: loss - self.baseline for cell, loss in self.losses.items()}

    @property
    def best(self) -> Cell:
        """The cell of the lowest loss."""
        return min(self.losses, key=self.losses.__getitem__)


@dataclass(frozen=True)
class PublishedRun:
    """One run of the paper's main table.

    Attributes:
        model: such as "dense-3B".
        parameters: of the model, as this project counts the published shape.
        method: baseline, tst, or the control of re-initialised embeddings.
        cell: bag size and superposition ratio; (1, 0) for a baseline.
        steps: optimizer steps.
        positions: computed over the run.
        tokens: read over the run.
        device_hours: on B200.
        final_loss: nats a token.
    """

    model: str
    parameters: float
    method: str
    cell: Cell
    steps: int
    positions: int
    tokens: float
    device_hours: float
    final_loss: float


_PARAMETERS = {"270m": 267.2e6, "600m": 600.2e6, "dense-3B": 3338e6, "moe-10B-A1B": 10316e6} | {
    "dense-270M": 267.2e6,
    "dense-600M": 600.2e6,
}
_GRIDS = [
    ("270m", 20_000, "uniform"),
    ("270m", 100_000, "uniform"),
    ("600m", 20_000, "uniform"),
    ("600m", 20_000, "power_law"),
]


@cache
def load_grids() -> tuple[Grid, ...]:
    """The four published grids."""
    return tuple(_load_grid(*key) for key in _GRIDS)


def _load_grid(size: str, steps: int, weighting: str) -> Grid:
    rows = _rows(f"final_loss_{size}_{steps // 1000}k_steps_{weighting}.csv")
    cells = {Cell(int(row["bag_size"]), float(row["superposition_ratio"])): float(row["final_loss"]) for row in rows}
    name = f"{size.upper()}, {steps // 1000}k steps, {weighting.replace('_', ' ')} weights"
    baseline = cells.pop(Cell(1, 0.0))
    losses = {cell: loss for cell, loss in cells.items() if cell.ratio < 1}
    return Grid(name, _PARAMETERS[size], steps, weighting, baseline, losses)


@cache
def load_runs() -> tuple[PublishedRun, ...]:
    """The paper's main table."""
    return tuple(_load_run(row) for row in _rows("main_results.csv"))


def _load_run(row: dict[str, str]) -> PublishedRun:
    steps, superposed = int(row["total_steps"]), int(row["superposition_steps"])
    return PublishedRun(
        model=row["model"],
        parameters=_PARAMETERS[row["model"]],
        method=row["method"],
        cell=Cell(int(row["bag_size"]), round(superposed / steps, 2)),
        steps=steps,
        positions=steps * (_MOE_POSITIONS_PER_STEP if row["model"].startswith("moe") else POSITIONS_PER_STEP),
        tokens=float(row["total_tokens_b"]) * 1e9,
        device_hours=float(row["b200_hours"]),
        final_loss=float(row["final_loss"]),
    )


def _rows(name: str) -> list[dict[str, str]]:
    with files(__package__).joinpath(name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
