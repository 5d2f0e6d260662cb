"""Equal loss between completed runs: an experiment repeated at several lengths, each run read only where it ended.

A point within a run lies before its learning-rate decay, so a speedup read there is of unequal things. The end points of
an experiment's runs of several lengths (its family of arms) are equal: each had a full schedule of its own. Between them
the loss is interpolated, linearly in log FLOPs; beyond the shortest or the longest run nothing is read.
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, geometric_mean
from typing import Any

from tst_lightning.compare.arms import Arm, families_of
from tst_lightning.compare.intervals import ratio
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
        are common to all lengths, each seed's run is held against the frontier of its own seed: ``loss`` is then the mean
        of these seeds alone, and the FLOPs on the frontier and the speedup are geometric means of theirs. Where there are
        none, or one of them lies outside its frontier, the mean loss of all seeds is held against the frontier of mean
        losses, and there is no interval. Outside that the speedup is None, and ``reason`` says why.
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
    by_length = [_ends_by_seed(other) for other in frontier]
    ends = {seed: end for seed, end in _ends_by_seed(arm).items() if all(seed in length for length in by_length)}
    read = {seed: flops_on_frontier([length[seed] for length in by_length], end[1]) for seed, end in ends.items()}
    means = [_end(other) for other in frontier]
    if len(ends) < 2 or None in read.values():
        ends = {"mean": _end(arm)}
        read = {"mean": flops_on_frontier(means, ends["mean"][1])}
    spent = {seed: end[0] for seed, end in ends.items()}
    found = {seed: flops for seed, flops in read.items() if flops is not None}
    # Completed runs of one arm spent the same FLOPs, so any mean of these will do.
    flops, loss = fmean(spent.values()), fmean(end[1] for end in ends.values())
    on_frontier = geometric_mean(found.values()) if found else None
    speedup = (ratio(spent, found) if inverse else ratio(found, spent)) if found else None
    return {
        "family": family,
        "arm": arm.name,
        "steps": arm.runs[0].final.step,
        "loss": loss,
        "reference_flops": flops if inverse else on_frontier,
        "flops": on_frontier if inverse else flops,
        "speedup": speedup,
        "reason": None if speedup else ALREADY_BELOW if means[0][1] < loss else NOT_REACHED,
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
