"""What a reader must know before believing the numbers: what weakens this comparison, and what no comparison can check."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from tst_lightning.compare.arms import Arm, data_seed, experiment
from tst_lightning.compare.referee import (
    BEFORE_FIRST,
    TOLERANCE,
    Axis,
    ends_at,
    loss_at,
    why_no_equal_time,
    why_unread,
)
from tst_lightning.compare.runs import Run
from tst_lightning.compare.units import flops_text, seconds_text, tokens_text

OPTIMIZATION = ("optimizer", "learning_rate", "optimizer_settings", "lr_schedule", "gradient_clip_val")
UNITS: dict[Axis, Callable[[float], str]] = {
    "flops": flops_text,
    "tokens": lambda tokens: f"{tokens_text(tokens)} tokens",
    "seconds": seconds_text,
}


def notes(runs: Sequence[Run], arms: Sequence[Arm]) -> list[str]:
    """Collects the notes.

    Args:
        runs: all of them, the reference first.
        arms: the same runs, by experiment.

    Returns:
        One or two sentences each, the gravest first.
    """
    return [
        *_unfinished(runs),
        *_common_points(runs, arms),
        *_data(runs, arms),
        *_begun_from(runs, arms),
        *_unlike_settings(arms),
        *_time(runs, arms),
        "A point within a run lies before its learning-rate decay. So a speedup read from the other run's curve is "
        "conservative, and a reverse one, read from the reference's curve, flatters the other run. The paper's figure "
        "needs the reference continued to that loss with a full schedule of its own: name runs of several lengths, and "
        "their end points are compared.",
        "How each arm was tuned can't be seen from its runs. A baseline below its best makes any method look good: say "
        "beside every figure how it was tuned.",
        *_seeds(arms),
    ]


def _unfinished(runs: Sequence[Run]) -> list[str]:
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
    return found


def _common_points(runs: Sequence[Run], arms: Sequence[Arm]) -> list[str]:
    """Curves that a budget cuts, and budgets and losses at which a curve has no value."""
    found = []
    axes: list[Axis] = ["flops", "tokens"] if why_no_equal_time(runs) else ["flops", "tokens", "seconds"]
    for axis in axes:
        budget, text = min(getattr(run.final, axis) for run in runs), UNITS[axis]
        beyond = [run for run in runs if not ends_at(run, budget, axis)]
        if beyond:
            found.append(
                f"Beyond {text(budget)}: {_named(beyond, arms)}. The learning rate had not finished its decay there, "
                "and a curve cut before its decay reads high."
            )
        late = [run for run in runs if loss_at(run, budget, axis) is None]
        if late:
            found.append(
                f"Without a validation up to {text(budget)}: {_named(late, arms)}. The loss there isn't known, and "
                "nothing is extrapolated; validate earlier, or leave the shortest run out."
            )
    early = [run for run in runs if any(why_unread(run, other.final.loss) == BEFORE_FIRST for other in runs)]
    if early:
        found.append(
            f"Below another run's final loss at the first validation already: {_named(early, arms)}. The FLOPs to that "
            "loss aren't known, and nothing is extrapolated; validate earlier."
        )
    return found


def _data(runs: Sequence[Run], arms: Sequence[Arm]) -> list[str]:
    found = []
    data = min(run.final.tokens for run in runs)
    midway = [run for run in runs if (switches := run.switches()) and switches[-1]["tokens"] >= data]
    if midway:
        found.append(
            f"{_named(midway, arms)} had done no step of the last phase at {tokens_text(data)} tokens; equal data finds "
            "it in mid-course. To settle that question, give the other runs as much data as it read."
        )
    for run in runs:
        available = run.record.get("tokens_available")
        if isinstance(available, int | float) and 0 < available < run.final.tokens:
            found.append(f"'{run.name}' read its training data {run.final.tokens / available:.1f} times over.")
    return found


def _begun_from(runs: Sequence[Run], arms: Sequence[Arm]) -> list[str]:
    begun = [run for run in runs if run.record.get("initial_weights")]
    if not begun:
        return []
    return [
        f"Begun from a trained model's weights: {_named(begun, arms)}. What that model took (FLOPs, tokens, seconds) is "
        "not counted here."
    ]


def _unlike_settings(arms: Sequence[Arm]) -> list[str]:
    """What differs between arms, and is not of the phases."""
    found = []
    records = [experiment(arm.runs[0].record) for arm in arms]
    if _differ(records, "train_sha256"):
        found.append("Training data differ: a difference in loss is then not of the phases alone.")
    if _differ(records, "batch"):
        found.append("Batches differ: a difference in loss is then not of the phases alone.")
    unlike = [key for key in OPTIMIZATION if _differ(records, key)]
    # The learning rate stands among the optimizer's settings too.
    unlike = [key for key in unlike if key != "optimizer_settings" or "learning_rate" not in unlike]
    if unlike:
        found.append(
            f"Optimization differs ({', '.join(unlike)}): a difference in loss may be of the tuning. Say how each arm "
            "was tuned, and that each was given as much of it."
        )
    return found


def _time(runs: Sequence[Run], arms: Sequence[Arm]) -> list[str]:
    reason, records = why_no_equal_time(runs), [run.record for run in runs]
    found = []
    if _differ(records, "device") or _differ(records, "device_name"):
        found.append("Devices differ: seconds are not comparable.")
    if reason:
        found.append(f"Equal time is not asked: {reason}.")
    else:
        budget = min(run.final.seconds for run in runs)
        longer = [run for run in runs if budget < run.final.seconds and ends_at(run, budget, "seconds")]
        if longer:
            found.append(
                f"Taken as equal to {seconds_text(budget)}, with final losses: {_named(longer, arms)} (up to "
                f"{seconds_text(max(run.final.seconds for run in longer))}). Equal time has a tolerance of "
                f"{TOLERANCE['seconds']:.0%}, since step times vary by as much."
            )
    if _differ(records, "versions"):
        found.append("Versions of the software differ between runs; the report lists them.")
    return found


def _seeds(arms: Sequence[Arm]) -> list[str]:
    found = []
    for arm in arms:
        orders = {json.dumps(data_seed(run)) for run in arm.runs}
        if len(arm.runs) > 1 and len(orders) == 1 and orders != {"null"}:
            found.append(
                f"Every run of '{arm.name}' read its data in the same order (data.seed {orders.pop()}): their spread is "
                "that of the initialization alone."
            )
    if len({json.dumps(arm.seeds) for arm in arms}) > 1:
        listed = ", ".join(f"'{arm.name}' {', '.join(json.dumps(seed) for seed in arm.seeds)}" for arm in arms)
        found.append(f"Seeds differ: {listed}.")
    for place, arm in enumerate(arms):
        found += [
            f"'{earlier.name}' and '{arm.name}' have the same recorded settings and a seed in common; they are kept apart."
            for earlier in arms[:place]
            if experiment(earlier.runs[0].record) == experiment(arm.runs[0].record)
        ]
    if min(len(arm.runs) for arm in arms) < 2:
        found.append(
            "One seed per arm proves nothing: a difference within the spread of seeds is not evidence. Repeat each arm "
            "with other seeds."
        )
    return found


def _named(runs: Sequence[Run], arms: Sequence[Arm]) -> str:
    """Runs by name, and those that are a whole arm by the arm's."""
    names = []
    for arm in arms:
        of_arm = [run for run in arm.runs if run in runs]
        names += [arm.name] if len(of_arm) == len(arm.runs) else [run.name for run in of_arm]
    return ", ".join(f"'{name}'" for name in names)


def _differ(records: Sequence[dict[str, Any]], key: str) -> bool:
    return any(record.get(key) != records[0].get(key) for record in records)
