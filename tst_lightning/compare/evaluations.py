"""Accuracy on tasks at equal FLOPs: of the scores that ``tst evaluate`` keeps in runs' folders, over seeds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tst_lightning.compare.across_seeds import at_budget
from tst_lightning.compare.arms import Arm
from tst_lightning.compare.referee import TOLERANCE
from tst_lightning.compare.runs import Run
from tst_lightning.compare.units import flops_text
from tst_lightning.errors import ConfigError, RunError

FOLDER = "evaluations"  # in a run's folder
FORMAT = 1
AVERAGE = "average"


def equal_accuracy(runs: Sequence[Run], arms: Sequence[Arm]) -> dict[str, Any] | None:
    """Accuracies of checkpoints that had spent the smallest final FLOPs among the runs.

    A checkpoint counts whose FLOPs lie within 0.5% of that, of several the nearest; between checkpoints nothing is
    interpolated. A task that was scored under other settings in one run than in another is left out. So is, from the
    average, a task that an evaluated run has no score of.

    Args:
        runs: all of them, the reference first.
        arms: the same runs, by experiment.

    Returns:
        None if no run was evaluated. Else ``flops``; ``tasks``, those compared; ``averaged``, those that ``average`` is
        the mean of; ``runs``, for each run its accuracies by task, and ``average``; ``arms``, for each arm by name the
        same over seeds, as of :func:`tst_lightning.compare.across_seeds.at_budget`; and ``notes``.

    Raises:
        ConfigError: an evaluation of a format unknown here.
        RunError: a damaged one.
    """
    budget = min(run.final.flops for run in runs)
    every = {run.name: _read(run) for run in runs}
    if not any(every.values()):
        return None
    found = {name: _nearest(entries, budget) for name, entries in every.items()}
    names = list(dict.fromkeys(task for scores in found.values() for task in scores))
    unlike = [task for task in names if len({repr(scores[task][1]) for scores in found.values() if task in scores}) > 1]
    tasks = [task for task in names if task not in unlike]
    accuracies = {name: {task: scores[task][0] for task in tasks if task in scores} for name, scores in found.items()}
    evaluated = [scores for scores in accuracies.values() if scores]
    averaged = [task for task in tasks if all(task in scores for scores in evaluated)]
    for scores in evaluated if averaged else ():
        scores[AVERAGE] = fmean(scores[task] for task in averaged)
    asked = [*([AVERAGE] if averaged else []), *tasks]
    by_task = {task: {run.name: accuracies[run.name].get(task) for run in runs} for task in asked}
    return {
        "flops": budget,
        "tasks": tasks,
        "averaged": averaged,
        "runs": accuracies,
        "arms": {arm.name: {task: at_budget(arm, arms[0], by_task[task]) for task in asked} for arm in arms},
        "notes": [*_unlike(unlike), *_missing(accuracies, tasks, averaged, budget)],
    }


def _read(run: Run) -> list[dict[str, Any]]:
    entries = []
    for file in sorted((Path(run.path) / FOLDER).glob("*.json")):
        try:
            content = json.loads(file.read_bytes())
            if content["format"] != FORMAT:
                raise ConfigError(f"{file} has format {content['format']}; this version reads format {FORMAT}")
            flops = content["checkpoint"]["flops"]
            for name, entry in content["tasks"].items():
                settings = [entry["metric"], entry["n"], entry["version"], content["dtype"], content["num_fewshot"]]
                if entry["accuracy"] is not None and flops is not None:
                    entries.append(
                        {
                            "task": name,
                            "flops": float(flops),
                            "accuracy": float(entry["accuracy"]),
                            "settings": settings,
                        }
                    )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise RunError(f"{file} is damaged ({error!r}); evaluate that checkpoint again, or remove it") from error
    return entries


def _nearest(entries: Sequence[Mapping[str, Any]], budget: float) -> dict[str, tuple[float, list[Any]]]:
    """Accuracy and settings by task, of the checkpoint nearest to a budget of FLOPs."""
    within = [entry for entry in entries if abs(entry["flops"] - budget) <= TOLERANCE["flops"] * budget]
    within.sort(key=lambda entry: abs(entry["flops"] - budget), reverse=True)
    return {entry["task"]: (entry["accuracy"], entry["settings"]) for entry in within}


def _unlike(tasks: Sequence[str]) -> list[str]:
    if not tasks:
        return []
    return [
        f"Scored unlike in some runs, and left out: {', '.join(tasks)}. Evaluate all runs alike: metric, questions, version"
        " of the task and dtype are to be the same."
    ]


def _missing(
    accuracies: Mapping[str, Mapping[str, float]], tasks: Sequence[str], averaged: Sequence[str], budget: float
) -> list[str]:
    notes = []
    none = [name for name, scores in accuracies.items() if not scores]
    if none:
        notes.append(
            f"Without an evaluation at {flops_text(budget)}: {', '.join(map(repr, none))}. Accuracies there aren't known;"
            " give `tst evaluate` a checkpoint of these FLOPs."
        )
    if left_out := [task for task in tasks if task not in averaged]:
        notes.append(f"Not scored in every evaluated run, and not in the average accuracy: {', '.join(left_out)}.")
    return notes
