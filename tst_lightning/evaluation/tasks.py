"""Tasks of lm-evaluation-harness by name, loaded with their data; those whose data can't be had are told apart."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from huggingface_hub import constants, get_session
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from tst_lightning.errors import ConfigError

PAPER = "paper"
# The tasks of the paper's table of main results, and where the harness keeps them: a look through all of its thousands of
# files takes several seconds.
PAPER_TASKS = {
    "arc_challenge": "arc",
    "arc_easy": "arc",
    "boolq": "super_glue/boolq",
    "hellaswag": "hellaswag",
    "mmlu": "mmlu/default",
    "openbookqa": "openbookqa",
    "piqa": "piqa",
    "winogrande": "winogrande",
}
_HUB_SECONDS = 5.0


@dataclass
class LoadedTasks:
    """Tasks that were asked for.

    Attributes:
        manager: of the harness.
        loaded: the harness's objects by the name asked for: a task, a group of tasks, or those under a tag.
        failed: why a task could not be loaded, in one line, by name.
        offline: whether the hub could not be asked for data.
    """

    manager: TaskManager
    loaded: dict[str, list[Task | Group]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    offline: bool = False


def load_tasks(names: Sequence[str], include: Path | None) -> LoadedTasks:
    """Loads tasks with their data, which the harness takes from the Hugging Face hub or its cache, or from local files.

    Where the hub can't be reached, in 5 seconds at the beginning or for the data of a task, only data that lie here are
    used from then on: the hub's own library goes on trying for over 20 seconds, for every task anew.

    Args:
        names: of tasks, groups or tags of the harness; ``paper`` is the suite of the paper.
        include: folder with more task files (YAML) in the harness's format; functions that they name are run.

    Returns:
        What could be loaded, and what not.

    Raises:
        ConfigError: a name that the harness does not know, or no such folder.
    """
    if include is not None and not include.is_dir():
        raise ConfigError(f"--include_path '{include}' is no folder; name one with task files (YAML)")
    asked = list(dict.fromkeys(task for name in names for task in (PAPER_TASKS if name == PAPER else [name])))
    with harness_log():
        tasks = LoadedTasks(_manager(asked, include))
        unknown = [name for name in asked if name not in tasks.manager.all_tasks]
        if unknown:
            raise ConfigError(
                f"the harness knows no task {', '.join(map(repr, unknown))}; name '{PAPER}', tasks that `lm-eval ls tasks`"
                " lists, or those of a folder given by --include_path"
            )
        with _Hub() as hub:
            for name in asked:
                try:
                    found = tasks.manager.load([name])
                except Exception as error:  # of the hub, of files, of the task's own code: the others go on
                    tasks.failed[name] = reason(error)
                    if isinstance(error, ConnectionError):
                        hub.leave()
                else:
                    groups = found.get("groups", {})
                    tasks.loaded[name] = [groups[name]] if name in groups else list(found["tasks"].values())
            tasks.offline = hub.left
    return tasks


class HarnessLog(logging.Handler):
    """Counts in ``cut`` how often the harness says that it cut a question; passes on errors alone."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Takes one line."""
        message = record.getMessage()
        if "exceeds model's maximum length" in message:
            self.cut += 1
        elif record.levelno >= logging.ERROR:
            print(f"lm_eval: {message}", file=sys.stderr)


@contextmanager
def harness_log() -> Iterator[HarnessLog]:
    """For what the harness is called to do: it warns of its own defaults, and of how it is called."""
    logger, log = logging.getLogger("lm_eval"), HarnessLog()
    was = logger.propagate
    logger.addHandler(log)
    logger.propagate = False
    try:
        yield log
    finally:
        logger.removeHandler(log)
        logger.propagate = was


def reason(error: Exception) -> str:
    """An exception of others' code as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _manager(names: Sequence[str], include: Path | None) -> TaskManager:
    more: list[Path | str] = [] if include is None else [include]
    harness = Path(lm_eval.tasks.__file__).parent
    places = [harness / place for place in dict.fromkeys(PAPER_TASKS.values())]
    few = TaskManager(include_path=[*places, *more], include_defaults=False)
    return few if set(names) <= set(few.all_tasks) else TaskManager(include_path=more)


class _Hub:
    """The hub's libraries, taken offline within a ``with`` where the hub can't be reached, at once or later on."""

    _libraries: tuple[Any, ...] = (constants, datasets.config)

    def __enter__(self) -> "_Hub":
        self._was = [library.HF_HUB_OFFLINE for library in self._libraries]
        self.left = False
        try:
            get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
        except Exception:  # of whichever library speaks HTTP for the hub's; or the hub's own, if it was taken offline
            self.leave()
        return self

    def leave(self) -> None:
        self.left = True
        for library in self._libraries:
            library.HF_HUB_OFFLINE = True

    def __exit__(self, *error: object) -> None:
        for library, value in zip(self._libraries, self._was, strict=True):
            library.HF_HUB_OFFLINE = value
