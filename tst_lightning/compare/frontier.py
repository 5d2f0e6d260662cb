"""Equal loss between completed runs: an experiment repeated at several lengths, each run read only where it ended.

A point within a run lies before its learning-rate decay, so a speedup read there is of unequal things. The end points of
an experiment's runs of several lengths (its family of arms) are equal: each had a full schedule of its own. Between them
the loss is interpolated, linearly in log FLOPs; beyond the shortest or the longest run nothing is read.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from tst_lightning.compare.arms import Arm, families_of
from tst_lightning.compare.intervals import NO_INTERVAL, PAIRED, summary
from tst_lightning.compare.referee import NOT_REACHED

ALREADY_BELOW = "the shortest completed run is below it already"

# FLOPs and final loss (nats per token) of a completed run.
End = tuple[float, float]


def equal_loss_completed(arms: Sequence[Arm]) -> dict[str, Any] | None:
    """Speedups at the final losses of completed runs, read from the end points of the other family's runs.

    Args:
        arms: the reference arm first; its family is the reference.

    Returns:
        None where no family other than the reference's is there, or none of the two has two lengths. Else
        ``reference``; ``families``: by name the ``arm``, ``steps``, ``flops`` and mean ``loss`` of each length; and
        ``speedups``: for each arm whose final loss the other family was asked for the ``family`` that is held against
        the reference, the ``arm``, its ``steps``, ``loss``, the ``reference_flops`` and ``flops`` to that loss, and the
        ``speedup``, the first over the second, with ``mean``, ``ci``, ``pairs`` and ``method``. Where at least two seeds
        are common to all lengths, each seed's run is held against the frontier of its own seed and the mean is
        geometric; where there are none, or one of them lies outside its frontier, the mean loss is held against the
        frontier of mean losses, and there is no interval. Outside that the speedup is None, and ``reason`` says why.
    """
    families = {name: _completed(family) for name, family in families_of(arms).items()}
    reference, *others = families
    rows: list[dict[str, Any] | None] = []
    for other in others:
        rows += [_row(other, arm, families[reference], False) for arm in families[other]]
        rows += [_row(other, arm, families[other], True) for arm in families[reference]]
    asked = [row for row in rows if row is not None]
    if not asked:
        return None
    return {
        "reference": reference,
        "families": {
            name: [
                {"arm": arm.name, "steps": arm.runs[0].final.step, "flops": _end(arm)[0], "loss": _end(arm)[1]}
                for arm in family
            ]
            for name, family in families.items()
        },
        "speedups": asked,
    }


def flops_on_frontier(ends: Sequence[End], loss: float) -> float | None:
    """FLOPs at which a frontier first comes down to a loss.

    Args:
        ends: FLOPs and final losses of completed runs, by increasing FLOPs.
        loss: the target, nats per token.

    Returns:
        FLOPs, from the loss interpolated linearly in log FLOPs between the end points around it; None beyond them.
    """
    for (flops, high), (more, low) in pairwise(ends):
        if high == loss:
            return flops
        if high > loss >= low:
            return flops * (more / flops) ** ((high - loss) / (high - low))
    return None


def _row(family: str, arm: Arm, frontier: Sequence[Arm], inverse: bool) -> dict[str, Any] | None:
    """An arm's final loss, asked of another family; ``inverse`` where the arm is the reference's."""
    if len(frontier) < 2:
        return None
    flops, loss = _end(arm)
    ratios = []
    for seed, (mine, target) in _ends_by_seed(arm).items():
        ends = [by_seed[seed] for other in frontier if seed in (by_seed := _ends_by_seed(other))]
        if len(ends) == len(frontier):
            ratios.append((flops_on_frontier(ends, target) or math.nan) / mine)
    ends = [_end(other) for other in frontier]
    on_frontier = flops_on_frontier(ends, loss)
    speedup: dict[str, Any] | None = None
    if len(ratios) >= 2 and not any(math.isnan(ratio) for ratio in ratios):
        found = summary([-math.log(ratio) if inverse else math.log(ratio) for ratio in ratios])
        interval = [math.exp(end) for end in found["ci"]]
        speedup = {"mean": math.exp(found["mean"]), "ci": interval, "pairs": found["n"], "method": PAIRED}
    elif on_frontier is not None:
        mean = flops / on_frontier if inverse else on_frontier / flops
        speedup = {"mean": mean, "ci": None, "pairs": None, "method": NO_INTERVAL}
    return {
        "family": family,
        "arm": arm.name,
        "steps": arm.runs[0].final.step,
        "loss": loss,
        "reference_flops": flops if inverse else on_frontier,
        "flops": on_frontier if inverse else flops,
        "speedup": speedup,
        "reason": None if speedup else ALREADY_BELOW if ends[0][1] < loss else NOT_REACHED,
    }


def _completed(family: Sequence[Arm]) -> list[Arm]:
    """The arms with their completed runs alone, by length; one without any is left out."""
    kept = []
    for arm in family:
        runs = tuple(
            run for run in arm.runs if run.record["status"] == "finished" and run.final.step == run.record["step"]
        )
        if runs:
            kept.append(Arm(arm.name, runs))
    return sorted(kept, key=lambda arm: arm.runs[0].final.flops)


def _ends_by_seed(arm: Arm) -> dict[str, End]:
    return arm.by_seed({run.name: (run.final.flops, run.final.loss) for run in arm.runs})


def _end(arm: Arm) -> End:
    ends = _ends_by_seed(arm).values()
    return fmean(flops for flops, _ in ends), fmean(loss for _, loss in ends)
