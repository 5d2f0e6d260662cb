"""Which bag size and superposition ratio, from the published results: read off, interpolated, or said to be far away.

The grids lie at three places of (parameters, positions): 270M over 42B and 210B positions, 600M over 42B. Between them
the difference to the baseline is taken to be linear in the logarithms of both. Nothing is fitted; outside, the nearest
published value stands, and how far away it is.
"""

import math
from dataclasses import dataclass
from typing import Literal

from tst_lightning.published import Cell, Grid, PublishedRun, load_grids, load_runs

# Neighbouring cells of the grids, one value each, jump by as much; so cells this near to the best count as equally good,
# and the one that reads the least data is taken. Nats a token.
INDISTINCT = 0.002
# How far outside the published range, as a factor of parameters or positions, a published difference is still given as
# the expected one. Beyond it none is: small models trained shortly have been seen to lose.
FARTHEST = 4.0
SAME_LENGTH = 1.1  # factor within which two numbers of positions count as one
# The bag size from which power-law weights are the paper's advice (ablation of weights).
POWER_LAW_FROM = 8
USUAL_RATIO = 0.3  # up to which the published best cells lie
_WEIGHTINGS = ("uniform", "power_law")


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
    if run:
        best = run.cell
        nearest, outside, basis = _of_run(run, parameters, positions)
        # How a gain of this size changes with the length of training is published at 270M alone: it shrinks.
        expected = nearest if outside["positions"] <= SAME_LENGTH else None
        reasons = [_why_run(run), _how_far(outside, run)]
    else:
        best = least_data(surface)
        nearest = surface[best]
        expected = nearest if max(outside.values()) <= FARTHEST else None
        reasons = [_where(outside, surface_basis)]
    if max(outside.values()) > FARTHEST:
        expected = None
        reasons.append(
            "So far outside no difference is expected. Small models and short runs have been seen to lose; repeat both arms"
            " over seeds before you believe either"
        )
    kind: Literal["full", "output_only", "none"] = "full"
    cell: Cell | None = best
    if unique_tokens is not None and positions * data_factor(best) > unique_tokens:
        kind, cell, why = _under_limit(best, surface, positions, unique_tokens)
        reasons.append(why)
        nearest = None if cell is None else surface[cell]
        expected = nearest if expected is not None and run is None else None
        basis = None if nearest is None else surface_basis
    weighting = None if cell is None else weighting_for(cell)
    if weighting == "power_law":
        reasons.append(_why_power_law())
    return Recommendation(
        kind, cell, weighting, expected, nearest, basis, outside, [r for r in reasons if r], surface, surface_basis
    )


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
    """Differences at a place inside the triangle of the grids (outside, scaled back to it), and how far away that is."""
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
    outside["parameters"] = max(1.0, parameters / run.parameters)  # 600M was run at this cell and length too
    within = outside["parameters"] <= 1.05 and outside["positions"] <= SAME_LENGTH  # sizes are rounded in the tables
    basis = "extrapolated" if not within else "published" if share == 1 else "interpolated"
    return theirs + min(share, 1.0) * (mine - theirs), outside, basis


def _where(outside: dict[str, float], basis: str) -> str:
    far = [f"{name} are {factor:,.3g} times outside" for name, factor in outside.items() if factor > 1]
    if far:
        return f"The published grids cover 270M to 600M parameters and 42B to 210B positions: {' and '.join(far)}"
    how = "of a published grid itself" if basis == "published" else "interpolated between the published grids"
    return f"The differences are {how} (270M to 600M parameters, 42B to 210B positions; one value a cell, no spread)"


def _why_run(run: PublishedRun) -> str:
    cell = f"s = {run.cell.bag_size}, r = {run.cell.ratio:g}"
    if not run.model.startswith("moe"):
        return (
            f"Above 600M parameters one run is published, {run.model} with {cell} over {run.positions / 1e9:.0f}B"
            " positions: no grid"
        )
    baseline = next(b for b in load_runs() if b.model == run.model and b.method == "baseline")
    return (
        f"Of mixtures of experts one run is published, {run.model} with {cell}: no grid, and no baseline of equal FLOPs. It"
        f" reached a slightly lower loss than its baseline in {baseline.device_hours / run.device_hours:.1f} times fewer"
        f" B200-hours ({run.device_hours:,.0f} and {baseline.device_hours:,.0f})"
    )


def _how_far(outside: dict[str, float], run: PublishedRun) -> str:
    """A sentence where the case is not the run's; "" where it is."""
    far = [f"{factor:,.3g} times away in {name}" for name, factor in outside.items() if factor > SAME_LENGTH]
    if not far:
        return ""
    shrinks = ""
    if outside["positions"] > SAME_LENGTH and not run.model.startswith("moe"):
        short, long = (_grid("270M", steps) for steps in (20_000, 100_000))
        less = 1 - min(long.differences.values()) / min(short.differences.values())
        shrinks = (
            f"; at 270M five times the length shrank the best gain by {less:.0%}, so no difference is expected here"
        )
    return f"This case is {' and '.join(far)} from that run{shrinks}"


def _why_power_law() -> str:
    uniform, power_law = (next(g for g in load_grids() if "600M" in g.name and g.weighting == w) for w in _WEIGHTINGS)
    cells = [cell for cell in uniform.losses.keys() & power_law.losses.keys() if cell.bag_size >= POWER_LAW_FROM]
    most = max(abs(power_law.losses[c] - uniform.losses[c]) for c in cells if c.ratio <= USUAL_RATIO)
    return (
        f"Power-law weights from s = {POWER_LAW_FROM} up are the paper's advice; in its 600M grids they differ from uniform"
        f" ones there by at most {most:.3f} nats up to r = {USUAL_RATIO}, either way"
    )


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
            f"{much} data; the baseline alone reads it {positions / unique_tokens:.2f} times. The tables have"
            " nothing on superposition over repeated data: get more, or train for fewer steps",
        )
    fitting = {cell: value for cell, value in surface.items() if positions * data_factor(cell) <= unique_tokens}
    if fitting and min(fitting.values()) <= min(surface.values()) / 2:
        return (
            "full",
            least_data(fitting),
            f"{much} data: of the cells of the grids (dense models of 270M to 600M) that read it at most once, this one"
            " keeps at least half of the gain",
        )
    return (
        "output_only",
        None,
        f"{much} data. Output-only superposition reads no more than the baseline; it was published as better than the"
        " baseline and worse than full superposition. phases.OutputOnlyPhase trains it, configs/variants/output_only.yaml"
        " is a start",
    )
