"""Which bag size and superposition ratio, from the published results: read off, interpolated, or said to be far away.

The grids lie at three places of (parameters, positions): 270M over 42B and 210B positions, 600M over 42B. Between them
the difference to the baseline is taken to be linear in the logarithms of both. Nothing is fitted; outside, the nearest
published value stands, and how far away it is.
"""

import math
from dataclasses import dataclass
from typing import Literal

from tst_lightning.published import Cell, Grid, PublishedRun, load_grids, load_runs

# Neighbouring cells of the grids, one run each, jump by as much; so cells this near to the best count as equally good,
# and the one that reads the least data is taken. Nats a token.
INDISTINCT = 0.002
# How far outside the published range, as a factor of parameters or positions, a published difference is still given as
# the expected one. Beyond it none is: small models trained shortly have been seen to lose.
FARTHEST = 4.0
POWER_LAW_FROM = (
    8  # the bag size from which power-law weights did better than uniform ones (paper, ablation of weights)
)


@dataclass(frozen=True)
class Recommendation:
    """What to train, and what that rests on.

    Attributes:
        superposition: full; output_only where unique data is the limit; none where not even the baseline's data is
            unique.
        cell: bag size and ratio of full superposition; None for the other two.
        weighting: of the target bag's tokens, for full superposition.
        expected_difference: final loss less the baseline's at equal FLOPs, nats a token; None where nothing published
            says so.
        nearest_difference: the published one that lies nearest, whatever its distance; None where none was published.
        basis: "published", "interpolated" or "extrapolated", and None without a nearest difference.
        outside: factor by which parameters and positions lie outside the published range, 1 inside.
        reasons: sentences for the reader.
        surface: difference by cell at the nearest place inside the grids.
        surface_basis: as ``basis``, of the surface: a single run may be nearer than any grid.
    """

    superposition: Literal["full", "output_only", "none"]
    cell: Cell | None
    weighting: str | None
    expected_difference: float | None
    nearest_difference: float | None
    basis: str | None
    outside: dict[str, float]
    reasons: list[str]
    surface: dict[Cell, float]
    surface_basis: str


def data_factor(cell: Cell) -> float:
    """Tokens that a run reads over the positions that it computes: ``1 + r (s - 1)``."""
    return 1 + cell.ratio * (cell.bag_size - 1)


def recommend(
    parameters: float, positions: float, mixture_of_experts: bool = False, unique_tokens: float | None = None
) -> Recommendation:
    """Chooses bag size and ratio for a model and a length of training.

    Args:
        parameters: of the model, all experts counted.
        positions: of the whole run; the baseline's tokens.
        mixture_of_experts: whether the model is one.
        unique_tokens: that there are to train on; None for no limit.
    """
    run = _published_run(parameters, mixture_of_experts)
    surface, outside, surface_basis = _surface(parameters, positions)
    basis: str | None = surface_basis
    reasons = [] if run else [_where(outside, surface_basis)]
    if run:
        best, expected, outside, basis = run.cell, *_of_run(run, parameters, positions)
        reasons.append(_why_run(run, expected))
        nearest = expected
        if expected is not None and max(outside.values()) > FARTHEST:
            expected = None
    else:
        best = least_data(surface)
        nearest = surface[best]
        expected = nearest if max(outside.values()) <= FARTHEST else None
        if expected is None:
            reasons.append(
                f"So far outside no difference is expected: {nearest:+.3f} nats is only what the nearest grid saw. Small"
                " models and short runs have been seen to lose; repeat both arms over seeds before you believe either"
            )
    kind: Literal["full", "output_only", "none"] = "full"
    cell: Cell | None = best
    if unique_tokens is not None and positions * data_factor(best) > unique_tokens:
        kind, cell, why = _under_limit(best, surface, positions, unique_tokens)
        reasons.append(why)
        if cell != best:
            fitting = cell is not None and not run
            nearest = surface[cell] if cell is not None and fitting else None
            expected = nearest if expected is not None else None
            basis = basis if nearest is not None else None
    weighting = None if cell is None else weighting_for(cell)
    return Recommendation(kind, cell, weighting, expected, nearest, basis, outside, reasons, surface, surface_basis)


def weighting_for(cell: Cell) -> str:
    """The weights of the target bag's tokens that were published as better at a bag size."""
    return "power_law" if cell.bag_size >= POWER_LAW_FROM else "uniform"


def least_data(surface: dict[Cell, float]) -> Cell:
    """Of the cells that can't be told from the best one, that which reads the least data."""
    lowest = min(surface.values())
    return min(
        (cell for cell, value in surface.items() if value <= lowest + INDISTINCT),
        key=lambda cell: (data_factor(cell), surface[cell]),
    )


def _surface(parameters: float, positions: float) -> tuple[dict[Cell, float], dict[str, float], str]:
    """Differences at the place inside the triangle of the grids that lies nearest, and how far away that is."""
    short, long, large = (_grid(*key) for key in (("270M", 20_000), ("270M", 100_000), ("600M", 20_000)))
    to_large = _share(parameters, short.parameters, large.parameters)
    to_long = _share(positions, short.positions, long.positions)
    inside_large, inside_long = (min(max(share, 0.0), 1.0) for share in (to_large, to_long))
    if (excess := inside_large + inside_long) > 1:  # beyond the line from the long grid to the large one
        inside_large, inside_long = inside_large / excess, inside_long / excess
    cells = short.losses.keys() & long.losses.keys() & large.losses.keys()
    surface = {
        cell: short.differences[cell]
        + inside_large * (large.differences[cell] - short.differences[cell])
        + inside_long * (long.differences[cell] - short.differences[cell])
        for cell in sorted(cells)
    }
    outside = {
        "parameters": _factor(to_large - inside_large, short.parameters, large.parameters),
        "positions": _factor(to_long - inside_long, short.positions, long.positions),
    }
    if max(outside.values()) > 1:
        return surface, outside, "extrapolated"
    return surface, outside, "published" if {inside_large, inside_long} <= {0.0, 1.0} else "interpolated"


def _grid(size: str, steps: int) -> Grid:
    return next(g for g in load_grids() if g.name.startswith(size) and g.steps == steps and g.weighting == "uniform")


def _share(value: float, low: float, high: float) -> float:
    """Where a value lies between two, in its logarithm: 0 at the low one, 1 at the high one."""
    return round(math.log(value / low) / math.log(high / low), 2)  # sizes are known to two figures or three


def _factor(beyond: float, low: float, high: float) -> float:
    """A distance in shares of the logarithm, as a factor of at least 1."""
    return math.exp(abs(beyond) * math.log(high / low))


def _published_run(parameters: float, mixture_of_experts: bool) -> PublishedRun | None:
    """The single run to go by, where no grid is as near."""
    runs = [run for run in load_runs() if run.method == "tst"]
    if mixture_of_experts:
        return next(run for run in runs if run.model.startswith("moe"))
    dense = next(run for run in runs if run.model == "dense-3B")
    largest = max(grid.parameters for grid in load_grids())
    return dense if _share(parameters, largest, dense.parameters) > 0 else None


def _of_run(
    run: PublishedRun, parameters: float, positions: float
) -> tuple[float | None, dict[str, float], str | None]:
    """Difference at the run's cell: the run's own, or between it and the largest grid, at their length of training."""
    baseline = next(
        (b for b in load_runs() if (b.model, b.method, b.steps) == (run.model, "baseline", run.steps)), None
    )
    outside = {
        "parameters": max(parameters / run.parameters, run.parameters / parameters),
        "positions": max(positions / run.positions, run.positions / positions),
    }
    if baseline is None:  # its baseline was trained for longer
        return None, outside, None
    large = _grid("600M", 20_000)
    share = _share(parameters, large.parameters, run.parameters)
    mine, theirs = run.final_loss - baseline.final_loss, large.differences[run.cell]
    difference = theirs + min(share, 1.0) * (mine - theirs)
    outside["parameters"] = max(1.0, parameters / run.parameters)
    if max(outside.values()) > 1.05:  # sizes are rounded in the tables
        return difference, outside, "extrapolated"
    return difference, dict.fromkeys(outside, 1.0), "published" if share == 1 else "interpolated"


def _where(outside: dict[str, float], basis: str) -> str:
    far = [f"{name} are {factor:,.3g} times outside" for name, factor in outside.items() if factor > 1]
    if far:
        return f"The published grids cover 270M to 600M parameters and 42B to 210B positions: {' and '.join(far)}"
    how = "of a published grid itself" if basis == "published" else "interpolated between the published grids"
    return f"The differences are {how} (270M to 600M parameters, 42B to 210B positions; one run a cell, no spread)"


def _why_run(run: PublishedRun, expected: float | None) -> str:
    cell = f"s = {run.cell.bag_size}, r = {run.cell.ratio:g}"
    if expected is None:
        return (
            f"Of mixtures of experts one run is published, {run.model} with {cell}: no grid, and no baseline of equal"
            " FLOPs. It reached a slightly lower loss than its baseline in 2.6 times fewer B200-hours (4,768 and 12,311)"
        )
    return f"Above 600M parameters one published run is near, {run.model} with {cell} over 42B positions: no grid"


def _under_limit(
    best: Cell, surface: dict[Cell, float], positions: float, unique_tokens: float
) -> tuple[Literal["full", "output_only", "none"], Cell | None, str]:
    """What is left where the best cell would read the data more than once."""
    passes = positions * data_factor(best) / unique_tokens
    much = (
        f"s = {best.bag_size}, r = {best.ratio:g} would read the data {passes:.2f} times, and its gain rests on fresh"
    )
    if positions > unique_tokens:
        return (
            "none",
            None,
            f"{much} data; the baseline alone reads it {positions / unique_tokens:.2f} times. Nothing is published"
            " about superposition over repeated data: get more, or train for fewer steps",
        )
    fitting = {cell: value for cell, value in surface.items() if positions * data_factor(cell) <= unique_tokens}
    if fitting and best in surface and min(fitting.values()) <= surface[best] / 2:
        cell = least_data(fitting)
        return (
            "full",
            cell,
            f"{much} data: of the cells that read it at most once, this one keeps at least half of the gain",
        )
    return (
        "output_only",
        None,
        f"{much} data. Output-only superposition reads no more than the baseline; it was published as better than the"
        " baseline and worse than full superposition",
    )
