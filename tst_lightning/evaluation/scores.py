"""Scores by lm-evaluation-harness itself, of a model object at hand: likelihoods of answers, with no examples before."""

import math
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from tst_lightning.evaluation.tasks import harness_log, reason
from tst_lightning.export.opened import Opened

# The first of these that a task has is its accuracy: the share of questions whose right answer has the greatest
# log-likelihood, for acc_norm that divided by the answer's characters. The paper does not name its metric.
ACCURACIES = ("acc_norm", "acc")


class Scorer:
    """Runs tasks on one model.

    Args:
        opened: the model and its tokenizer.
        manager: the harness's.
        batch_size: answers at a time.
        limit: questions of each task to score, from its first; None scores all.
    """

    def __init__(self, opened: Opened, manager: TaskManager, batch_size: int, limit: int | None) -> None:
        with harness_log():
            self._lm = HFLM(
                pretrained=opened.lm,
                tokenizer=opened.tokenizer,
                batch_size=batch_size,
                softmax_dtype="float32",  # in bfloat16 answers would tie
            )
        self._manager, self._limit = manager, limit

    def score(self, objects: list[Task | Group]) -> tuple[dict[str, dict[str, Any]], str | None]:
        """Scores a task, a group, or the tasks under a tag.

        Args:
            objects: what :func:`tst_lightning.evaluation.tasks.load_tasks` gives for one name.

        Returns:
            For each task, or for a group that the harness averages, by name: ``accuracy``, the ``metric`` that it is, and
            its ``stderr`` (None where the task has none); all ``metrics`` that the harness reports; ``n``, the questions
            scored; ``cut``, how often the harness cut off the beginning of a question that was longer than the model's
            context, for one answer or for several of one token; the
            task's ``version``; and the harness's ``seeds``. And None, or in one line why the task's own code, or
            memory, did not let it be scored.
        """
        try:
            with harness_log() as log:
                found: Any = simple_evaluate(
                    model=self._lm,
                    tasks=objects,
                    num_fewshot=0,
                    limit=self._limit,
                    task_manager=self._manager,
                    log_samples=False,
                )
        except Exception as error:
            return {}, reason(error)
        seeds = {key: found["config"][f"{key}_seed"] for key in ("random", "numpy", "torch", "fewshot")}
        more = {"cut": log.cut, "seeds": seeds}
        return {name: _entry(name, found) | more for each in objects for name in _names(each)}, None


def _names(each: Task | Group) -> list[str]:
    if not isinstance(each, Group):
        return [each.task_name]
    return [each.name] if each.has_aggregation else [task.task_name for task in each.get_all_tasks()]


def _entry(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """What the harness reports of a task, its keys ``metric,filter`` without a filter that does nothing."""
    reported = {
        key.removesuffix(",none"): value if isinstance(value, int | float) and math.isfinite(value) else None
        for key, value in found["results"][name].items()
        if "," in key
    }
    metric = next((key for key in ACCURACIES if key in reported), None)
    return {
        "accuracy": reported.get(metric) if metric else None,
        "metric": metric,
        "stderr": reported.get(f"{metric}_stderr"),
        "metrics": reported,
        "n": found["results"][name]["sample_len"],
        "version": found["versions"].get(name),
    }
