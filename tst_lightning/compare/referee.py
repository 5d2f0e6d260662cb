"""The referee: losses at equal FLOPs, FLOPs at equal loss, losses at equal data. Pure functions of validation curves.

The first run is the reference (normally the baseline); every other run is compared with it.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tst_lightning.compare.runs import Run
from tst_lightning.compare.units import flops_text, tokens_text

Axis = Literal["flops", "tokens"]

# A run that ends this near to a budget has spent it: phases differ by a rounding of steps.
TOLERANCE = 0.005

DEFINITIONS = {
    "Reference": "The first run named. Every other run is compared with it.",
    "Loss": "Next-token cross-entropy on the validation data, nats per token, in every phase. Training losses are not "
    "comparable across phases and are not used.",
    "Equal FLOPs": "F is the smallest final FLOPs among the runs. The loss of a run at F is read from its validation "
    "curve by linear interpolation in FLOPs; a run that ends within 0.5% of F counts with its final loss. Difference: "
    "loss of the other run minus loss of the reference, so a negative number is in the other run's favour.",
    "Equal loss": "The target is the reference's final loss. Speedup: FLOPs at which the reference first reached it, "
    "over FLOPs at which the other run first reached it, both interpolated linearly between the validations around the "
    "crossing. In reverse, the target is the other run's final loss. 'Not reached' where a run never came down to it.",
    "Equal data": "D is the smallest final number of data tokens read among the runs; losses at D are read as at F, "
    "by interpolation in tokens.",
    "FLOPs": "Cumulative over all phases, on the one convention that the runs recorded; a run counted otherwise "
    "is refused.",
}

# What may differ between two runs of one arm (the same experiment with another seed).
NOT_OF_THE_ARM = {"name", "status", "step", "seed", "versions", "device"}


def loss_at(run: Run, budget: float, axis: Axis) -> float | None:
    """Validation loss of a run when it had spent a budget.

    Args:
        run: the run.
        budget: FLOPs or data tokens, at most 0.5% over the run's own total.
        axis: what the budget is counted in.

    Returns:
        The run's final loss, in nats per token, where it ends within 0.5% of the budget; else the linear interpolation
        between the validations around it; None where the budget lies outside the curve.
    """
    if _ends_at(run, budget, axis):
        return run.final.loss
    spent = [getattr(point, axis) for point in run.curve]
    if not spent[0] <= budget <= spent[-1]:
        return None
    return float(np.interp(budget, spent, [point.loss for point in run.curve]))


def flops_to_reach(run: Run, loss: float) -> float | None:
    """FLOPs at which a run first came down to a loss.

    Args:
        run: the run.
        loss: the target, nats per token.

    Returns:
        FLOPs, interpolated linearly between the last validation above the target and the first at or below it (those
        of the first validation where that one is already there); None where the run never reached it.
    """
    above = None
    for point in run.curve:
        if point.loss <= loss:
            if above is None or point.loss == loss:
                return point.flops
            return above.flops + (above.loss - loss) / (above.loss - point.loss) * (point.flops - above.flops)
        above = point
    return None


def equal_budget(runs: Sequence[Run], axis: Axis) -> dict[str, Any]:
    """Losses of all runs at the smallest final FLOPs, or the smallest final number of tokens, among them.

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


def equal_loss(runs: Sequence[Run]) -> dict[str, Any]:
    """Ratios of the FLOPs that runs needed to reach one loss.

    Returns:
        ``loss``: the reference's final loss, nats per token. ``runs``: for each other run the ``flops`` at which it
        first reached that loss and the ``speedup``, the reference's FLOPs to that loss over these. ``speedup``: that of
        the second run. ``reverse``: for each other run its final ``loss``, the ``reference_flops`` at which the
        reference reached that, and the ``speedup``, those over the run's own FLOPs to it. None where not reached.
    """
    reference, others = runs[0], runs[1:]
    target = reference.final.loss
    reached = {run.name: flops_to_reach(run, target) for run in others}
    base = flops_to_reach(reference, target)
    forward = {name: {"flops": flops, "speedup": _ratio(base, flops)} for name, flops in reached.items()}
    reverse = {}
    for run in others:
        needed = flops_to_reach(reference, run.final.loss)
        speedup = _ratio(needed, flops_to_reach(run, run.final.loss))
        reverse[run.name] = {"loss": run.final.loss, "reference_flops": needed, "speedup": speedup}
    return {"loss": target, "speedup": forward[runs[1].name]["speedup"], "runs": forward, "reverse": reverse}


def notes(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before believing the numbers, one sentence or two each."""
    found = []
    for run in runs:
        record, last = run.record, run.final.step
        if record["status"] != "finished":
            found.append(
                f"UNFINISHED: '{run.name}' is {record['status']} at step {record['step']} of {record['max_steps']}; "
                f"its last validation (step {last}) stands for its final one."
            )
        elif last < record["step"]:
            found.append(
                f"'{run.name}' was last validated at step {last} of {record['step']}; that stands for its final loss."
            )
    for axis, text in (("flops", flops_text), ("tokens", lambda tokens: f"{tokens_text(tokens)} tokens")):
        budget = min(getattr(run.final, axis) for run in runs)
        beyond = [f"'{run.name}'" for run in runs if not _ends_at(run, budget, axis)]  # type: ignore[arg-type]
        if beyond:
            found.append(
                f"Beyond {text(budget)}: {', '.join(beyond)}. The learning rate had not finished its decay there, and "
                "a curve cut before its decay reads high."
            )
    data = min(run.final.tokens for run in runs)
    for run in runs:
        switches = run.switches()
        if switches and switches[-1]["tokens"] >= data:
            found.append(
                f"'{run.name}' had done no step of its last phase at {tokens_text(data)} tokens; equal data finds "
                "it in mid-course. To settle that question, give the other runs as much data as it read."
            )
        available = run.record.get("tokens_available")
        if available and run.final.tokens > available:
            found.append(f"'{run.name}' read its training data {run.final.tokens / available:.1f} times over.")
    found += _unlike(runs, "batch", "Batches differ: a difference in loss is then not of the phases alone.")
    found += _unlike(runs, "device", "Devices differ: seconds are not comparable.")
    found.append(
        "A point within a run lies before its learning-rate decay. So a speedup read from the other run's curve is "
        "conservative, and a reverse one, read from the reference's curve, flatters the other run. The paper's figure "
        "needs the reference continued to that loss with a full schedule of its own."
    )
    seeds = _seeds_by_arm(runs)
    if len({run.record.get("seed") for run in runs}) > 1:
        listed = ", ".join(f"'{run.name}' {json.dumps(run.record.get('seed'))}" for run in runs)
        found.append(f"Seeds differ: {listed}.")
    if min(len(of_arm) for of_arm in seeds.values()) < 2:
        found.append(
            "One seed per arm proves nothing: a difference within the spread of seeds is not evidence. Repeat each arm "
            "with other seeds."
        )
    return found


def _ends_at(run: Run, budget: float, axis: Axis) -> bool:
    total = getattr(run.final, axis)
    return bool(abs(total - budget) <= TOLERANCE * budget)


def _ratio(reference: float | None, other: float | None) -> float | None:
    return reference / other if reference is not None and other else None


def _unlike(runs: Sequence[Run], key: str, sentence: str) -> list[str]:
    return [sentence] if any(run.record.get(key) != runs[0].record.get(key) for run in runs) else []


def _seeds_by_arm(runs: Sequence[Run]) -> dict[str, set[str]]:
    seeds: dict[str, set[str]] = {}
    for run in runs:
        arm = {key: value for key, value in run.record.items() if key not in NOT_OF_THE_ARM}
        seeds.setdefault(json.dumps(arm, sort_keys=True), set()).add(json.dumps(run.record.get("seed")))
    return seeds
