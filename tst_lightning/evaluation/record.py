"""What an evaluation leaves: a JSON file, and in the run's folder the same by task, and points in TensorBoard."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from tst_lightning import __version__
from tst_lightning.compare.evaluations import FOLDER, FORMAT
from tst_lightning.export.opened import Opened
from tst_lightning.export.trained import TrainedModel
from tst_lightning.whole_file import write_whole

_PACKAGES = ("lm_eval", "datasets", "transformers", "torch")
_OF_ALL_TASKS = {"tasks", "failed", "average_accuracy", "averaged"}


@dataclass(frozen=True)
class Settings:
    """What scores depend on beside the model.

    Attributes:
        dtype: of the weights.
        device: by torch's name.
        batch_size: answers at a time.
        limit: questions of each task; None for all.
    """

    dtype: str
    device: str
    batch_size: int
    limit: int | None


def evaluation(
    model: str,
    opened: Opened,
    settings: Settings,
    tasks: Mapping[str, dict[str, Any]],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """An evaluation as data.

    Args:
        model: its path, as it was given.
        opened: the model.
        settings: how it was run.
        tasks: scores by task, as of :meth:`tst_lightning.evaluation.scores.Scorer.score`.
        failed: tasks without a score, and why.

    Returns:
        What the JSON file holds: also ``checkpoint`` (``step``, ``total_steps``, ``flops``, ``tokens``, ``phases``; FLOPs
        and tokens are None if the run had no FlopsMeter), None of an exported folder; and ``average_accuracy``, the mean
        of the accuracies of the tasks in ``averaged``, each task counting as one; None if there is none.
    """
    averaged = [name for name, entry in tasks.items() if entry["accuracy"] is not None]
    return {
        "format": FORMAT,
        "model": model,
        "checkpoint": _checkpoint(opened.trained) if opened.trained else None,
        "num_fewshot": 0,
        **asdict(settings),
        "tasks": dict(tasks),
        "failed": dict(failed),
        "average_accuracy": fmean(tasks[name]["accuracy"] for name in averaged) if averaged else None,
        "averaged": averaged,
        "versions": {"tst-lightning": __version__} | {package: version(package) for package in _PACKAGES},
    }


def _checkpoint(trained: TrainedModel) -> dict[str, Any]:
    phases = trained.phases
    return {
        "step": trained.step,
        "total_steps": trained.total_steps,
        "flops": sum(phase.flops for phase in phases) if phases else None,
        "tokens": sum(phase.tokens for phase in phases) if phases else None,
        "phases": [phase._asdict() | {"bag_size": phase.bag_size} for phase in phases],
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an evaluation, whole or not at all.

    Raises:
        OSError: the file system refuses.
    """
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def keep_in_run(run_dir: Path, content: Mapping[str, Any]) -> None:
    """Keeps scores in the run's folder, where ``tst compare`` reads them, and writes them to its TensorBoard.

    There is a file for each step and task, so that a task scored again replaces its score, and no other's. TensorBoard
    has a folder of its own within the run's: it would leave off reading the file of a run in progress for a newer one
    beside it.

    Args:
        run_dir: folder of the run.
        content: of a checkpoint; see :func:`evaluation`.

    Raises:
        OSError: the file system refuses.
    """
    checkpoint, tasks = content["checkpoint"], content["tasks"]
    shared = {key: value for key, value in content.items() if key not in _OF_ALL_TASKS}
    for name, entry in tasks.items():
        file = f"step={checkpoint['step']}-{re.sub(r'[^-.A-Za-z0-9_]', '_', name)}.json"
        write_json(run_dir / FOLDER / file, shared | {"tasks": {name: entry}})
    axes = {"eval": checkpoint["step"]}
    if checkpoint["flops"] is not None:
        axes |= {"eval_by_gflop": checkpoint["flops"] // 10**9, "eval_by_token": checkpoint["tokens"]}
    scores = {
        f"{name}/{metric}": value
        for name, entry in tasks.items()
        for metric, value in entry["metrics"].items()
        if value is not None and not metric.partition(",")[0].endswith("_stderr")
    }
    if content["average_accuracy"] is not None:
        # By the tasks in it: averages of other suites are other quantities, and would be joined by one line.
        scores[f"average/{'+'.join(sorted(content['averaged']))}"] = content["average_accuracy"]
    with SummaryWriter(str(run_dir / "tensorboard" / FOLDER)) as writer:
        for axis, step in axes.items():
            for tag, value in scores.items():
                writer.add_scalar(f"{axis}/{tag}", value, step)
