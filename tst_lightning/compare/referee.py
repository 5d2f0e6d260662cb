"""The referee: losses at equal FLOPs, data and time, and FLOPs at equal loss. Pure functions of validation curves.

The first run is the reference (normally the baseline); every other run is compared with it. What several seeds make of
these answers is in :mod:`tst_lightning.compare.across_seeds`.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tst_lightning.compare.runs import Run

Axis = Literal["flops", "tokens", "seconds"]

# A run whose total lies within this share of a budget has spent it. FLOPs and tokens of two schedules differ by a rounding
# of steps. Seconds of the same step vary by a fifth from run to run on one machine, and a cut before the learning-rate
# decay would make a difference in loss of that.
TOLERANCE: dict[Axis, float] = {"flops": 0.005, "tokens": 0.005, "seconds": 0.2}

NOT_REACHED, BEFORE_FIRST = "not reached", "reached before the first validation"

INTERPOLATION = {
    "within_a_run": "linear in the budget, between the two validations around the point; none beyond the first or last "
    "validation",
    "between_completed_runs": "loss linear in the logarithm of FLOPs, between the end points of runs of neighbouring "
    "lengths; none beyond the shortest or longest",
}

# What seconds depend on beside the experiment.
TIME_KEYS = {
    "device": "device or number of processes",
    "device_name": "device",
    "precision": "precision",
    "compiled_layers": "compiled layers",
}


def loss_at(run: Run, budget: float, axis: Axis) -> float | None:
    """Validation loss of a run when it had spent a budget.

    Args:
        run: the run.
        budget: FLOPs, data tokens or training seconds.
        axis: what the budget is counted in.

    Returns:
        The run's final loss, in nats per token, where it ends within the axis' ``TOLERANCE`` of the budget; else the
        linear interpolation between the validations around it; None where the budget lies outside the curve.
    """
    if ends_at(run, budget, axis):
        return run.final.loss
    # A resumed run repeats steps, and may be faster at it, so that its seconds step back a little.
    spent = np.maximum.accumulate([getattr(point, axis) for point in run.curve])
    if not spent[0] <= budget <= spent[-1]:
        return None
    return float(np.interp(budget, spent, [point.loss for point in run.curve]))


def ends_at(run: Run, budget: float, axis: Axis) -> bool:
    """Whether a run's total is within 0.5% of a budget of FLOPs or tokens, or 20% of one of seconds."""
    return bool(abs(getattr(run.final, axis) - budget) <= TOLERANCE[axis] * budget)


def flops_to_reach(run: Run, loss: float) -> float | None:
    """FLOPs at which a run first came down to a loss.

    Args:
        run: the run.
        loss: the target, nats per token.

    Returns:
        FLOPs, interpolated linearly between the last validation above the target and the first at or below it; None
        where the run never reached it, or was below it at its first validation already: see :func:`why_unread`.
    """
    above = None
    for point in run.curve:
        if point.loss <= loss:
            if point.loss == loss:
                return point.flops
            if above is None:
                return None
            return above.flops + (above.loss - loss) / (above.loss - point.loss) * (point.flops - above.flops)
        above = point
    return None


def why_unread(run: Run, loss: float) -> str | None:
    """Why :func:`flops_to_reach` gives no FLOPs: "not reached", "reached before the first validation"; None if it does."""
    if flops_to_reach(run, loss) is not None:
        return None
    return BEFORE_FIRST if run.curve[0].loss < loss else NOT_REACHED


def equal_budget(runs: Sequence[Run], axis: Axis) -> dict[str, Any]:
    """Losses of all runs at the smallest final FLOPs, tokens or seconds among them.

    Returns:
        The budget under the axis' name, ``losses`` by run, ``differences`` from the reference by run, and
        ``difference``, that of the second run; nats per token, None where a curve has no validation before the budget.
    """
    budget = min(getattr(run.final, axis) for run in runs)
    losses = {run.name: loss_at(run, budget, axis) for run in runs}
    base = losses[runs[0].name]
    differences = {
        run.name: None if base is None or (loss := losses[run.name]) is None else loss - base for run in runs[1:]
    }
    return {axis: budget, "losses": losses, "difference": differences[runs[1].name], "differences": differences}


def why_no_equal_time(runs: Sequence[Run]) -> str | None:
    """What keeps the runs' seconds from being compared: device, processes or precision that differ; None if nothing."""
    for key, words in TIME_KEYS.items():
        values = dict.fromkeys(json.dumps(run.record.get(key)) for run in runs)
        if len(values) > 1:
            return f"{words} ({key}) differ: {', '.join(values)}"
    return None


def equal_loss(runs: Sequence[Run]) -> dict[str, Any]:
    """Ratios of the FLOPs that runs needed to reach one loss.

    Returns:
        ``loss``: the reference's final loss, nats per token. ``runs``: for each other run the ``flops`` at which it
        first reached that loss and the ``speedup``, the reference's FLOPs to that loss over these. ``speedup``: that of
        the second run. ``reverse``: for each other run its final ``loss``, the ``reference_flops`` at which the
        reference reached that, and the ``speedup``, those over the run's own FLOPs to it. Where there is no speedup it
        is None, and ``reason`` says why.
    """
    reference, others = runs[0], runs[1:]
    target = reference.final.loss
    base = flops_to_reach(reference, target)
    forward, reverse = {}, {}
    for run in others:
        flops = flops_to_reach(run, target)
        reason = why_unread(reference, target) or why_unread(run, target)
        forward[run.name] = {"flops": flops, "speedup": _ratio(base, flops), "reason": reason}
        loss = run.final.loss
        needed = flops_to_reach(reference, loss)
        reason = why_unread(reference, loss) or why_unread(run, loss)
        speedup = _ratio(needed, flops_to_reach(run, loss))
        reverse[run.name] = {"loss": loss, "reference_flops": needed, "speedup": speedup, "reason": reason}
    return {"loss": target, "speedup": forward[runs[1].name]["speedup"], "runs": forward, "reverse": reverse}


def _ratio(reference: float | None, other: float | None) -> float | None:
    return reference / other if reference is not None and other else None
