"""The referee's answers for arms: what its answers for runs come to over seeds, and what a difference is worth."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tst_lightning.compare.arms import Arm
from tst_lightning.compare.intervals import difference, ratio, summary
from tst_lightning.compare.referee import BEFORE_FIRST, NOT_REACHED, flops_to_reach, why_unread
from tst_lightning.compare.runs import Run


def arm_entries(arms: Sequence[Arm], losses: Mapping[str, Mapping[str, float | None] | None]) -> list[dict[str, Any]]:
    """Every arm with its answer to every question.

    Args:
        arms: the reference first.
        losses: for each question of an equal budget the losses by run name, or None where it can't be asked.

    Returns:
        For each arm ``name``, ``runs``, ``seeds``, ``max_steps``, ``final_val_loss`` (a summary over seeds; None where
        the runs' last validations lie at different steps), one entry for each question, as of :func:`at_budget`, and
        ``equal_loss`` and ``reverse`` as of :func:`at_loss`; these two are None for the reference.
    """
    reference = arms[0]
    return [
        {
            "name": arm.name,
            "runs": [run.name for run in arm.runs],
            "seeds": arm.seeds,
            "max_steps": arm.runs[0].record["max_steps"],
            "final_val_loss": _final(arm),
            **{key: None if mine is None else at_budget(arm, reference, mine) for key, mine in losses.items()},
            "equal_loss": None if arm is reference else at_loss(arm, reference, common_target(reference)),
            "reverse": None if arm is reference else at_loss(arm, reference, common_target(arm)),
        }
        for arm in arms
    ]


def at_budget(arm: Arm, reference: Arm, losses: Mapping[str, float | None]) -> dict[str, Any]:
    """Loss of an arm at a budget, and its difference from the reference arm.

    Args:
        arm: the arm.
        reference: the arm that it is held against.
        losses: by run name, nats per token; None where a run has no loss at the budget.

    Returns:
        ``n``, ``mean``, ``sd`` and ``ci`` over seeds, and ``difference`` as of :func:`intervals.difference` (None for
        the reference itself). Where any run of an arm has no loss there, nothing is averaged: mean, sd, ci and the
        difference are None.
    """
    mine, base = ({seed: loss for seed, loss in one.by_seed(losses).items()} for one in (arm, reference))
    if any(loss is None for loss in mine.values()):
        return {"n": len(mine), "mean": None, "sd": None, "ci": None, "difference": None}
    found = summary(list(_known(mine).values()))
    whole = arm is not reference and all(loss is not None for loss in base.values())
    return found | {"difference": difference(_known(mine), _known(base)) if whole else None}


def at_loss(arm: Arm, reference: Arm, loss: float) -> dict[str, Any]:
    """How much less compute an arm needed to reach a loss than the reference arm.

    Args:
        arm: the arm.
        reference: the arm that it is held against.
        loss: the target, nats per token.

    Returns:
        ``loss``; ``flops``, the geometric mean over the arm's seeds of the FLOPs at which they first reached it, and
        ``reference_flops``; and the ``speedup``, the reference's FLOPs over the arm's, as of :func:`intervals.ratio`.
        Where any run of an arm has no FLOPs for that loss, the arm has none and there is no speedup: ``reason`` says
        why.
    """
    reached = {one.name: _flops(one, loss) for one in (reference, arm)}
    reason = _reason(reference.runs, loss) or _reason(arm.runs, loss)
    base, mine = reached[reference.name], reached[arm.name]
    return {
        "loss": loss,
        "flops": mine and ratio(mine, {"": 1.0})["mean"],
        "reference_flops": base and ratio(base, {"": 1.0})["mean"],
        "speedup": ratio(base, mine) if base and mine else None,
        "reason": reason,
    }


class SpeedupAt(NamedTuple):
    """A speedup at one target loss (nats per token): geometric mean, least and greatest over seeds."""

    loss: float
    mean: float
    least: float
    greatest: float


def speedup_curve(arm: Arm, reference: Arm, count: int = 200) -> list[SpeedupAt]:
    """Speedup against target loss, over the losses that all runs of both arms came down to after their first validation.

    Args:
        arm: the arm.
        reference: the arm that it is held against.
        count: number of target losses, evenly spaced.

    Returns:
        By falling loss; the seeds' least and greatest speedup are those of pairs where two seeds are common, else those
        of any run of one arm and any of the other. Empty where no loss is common.
    """
    runs = [*arm.runs, *reference.runs]
    high = min(run.curve[0].loss for run in runs)
    low = max(min(point.loss for point in run.curve) for run in runs)
    found = []
    for i in range(count if high > low else 0):
        loss = high + (low - high) * i / (count - 1)
        mine, base = _flops(arm, loss), _flops(reference, loss)
        if not mine or not base:
            continue
        common = mine.keys() & base.keys()
        pairs = [(seed, seed) for seed in common] if len(common) >= 2 else [(a, b) for a in mine for b in base]
        ratios = [base[b] / mine[a] for a, b in pairs]
        found.append(SpeedupAt(loss, ratio(base, mine)["mean"], min(ratios), max(ratios)))
    return found


def common_target(arm: Arm) -> float:
    """The highest final loss among an arm's runs, in nats per token: the lowest that all of them ended at or below."""
    return max(run.final.loss for run in arm.runs)


def _flops(arm: Arm, loss: float) -> dict[str, float] | None:
    """FLOPs by seed, all of them or none; those of a loss met before the first step have no ratio."""
    found = {run.name: flops_to_reach(run, loss) for run in arm.runs}
    return _known(arm.by_seed(found)) if all(found.values()) else None


def _reason(runs: Sequence[Run], loss: float) -> str | None:
    reasons = [why_unread(run, loss) for run in runs]
    missing = reasons.count(NOT_REACHED)
    if missing:
        return NOT_REACHED if missing == len(runs) else f"{NOT_REACHED} by {missing} of {len(runs)}"
    return BEFORE_FIRST if BEFORE_FIRST in reasons else None


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {seed: value for seed, value in values.items() if value is not None}


def _final(arm: Arm) -> dict[str, Any] | None:
    if len({run.final.step for run in arm.runs}) > 1:
        return None
    return summary([run.final.loss for run in arm.runs])
