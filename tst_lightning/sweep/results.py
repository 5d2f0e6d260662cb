"""What a sweep's runs came to: a result for each case, their mean and spread over seeds, the best setting."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tst_lightning.compare.referee import ends_at
from tst_lightning.compare.runs import Run, read_run
from tst_lightning.errors import UserError
from tst_lightning.sweep.cases import Case, Settings
from tst_lightning.sweep.plan import Plan
from tst_lightning.sweep.records import is_held, read_ending

# What two runs must share for their losses to be ranked.
_SHARED = {
    "val_sha256": "validation data",
    "val_tokens": "scored validation tokens",
    "tokenizer_sha256": "tokenizer",
    "seq_len": "sequence length",
}


@dataclass(frozen=True)
class Result:
    """What became of one case.

    Attributes:
        case: as planned.
        status: finished, failed, running (some process has it) or waiting.
        exit_code: of its last start, if that has ended.
        message: why it failed.
        run: its folder as read, if it finished.
    """

    case: Case
    status: Literal["finished", "failed", "running", "waiting"]
    exit_code: int | None = None
    message: str = ""
    run: Run | None = None

    @property
    def loss(self) -> float | None:
        """Final validation loss, nats a token."""
        return self.run.final.loss if self.run else None


@dataclass(frozen=True)
class Setting:
    """The cases that differ in their seeds alone.

    Attributes:
        settings: what they share of what is swept.
        baseline: whether they are the reference.
        results: one for each seed.
    """

    settings: Settings
    baseline: bool
    results: tuple[Result, ...]

    @property
    def losses(self) -> list[float]:
        """Final validation losses of the finished runs, nats a token."""
        return [result.loss for result in self.results if result.loss is not None]

    @property
    def mean(self) -> float | None:
        """Mean of :attr:`losses`; None where no run has finished."""
        return statistics.fmean(self.losses) if self.losses else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of :attr:`losses` over seeds (n - 1 in the denominator); None under two runs."""
        return statistics.stdev(self.losses) if len(self.losses) > 1 else None

    @property
    def complete(self) -> bool:
        """Whether every seed has finished."""
        return len(self.losses) == len(self.results)


def read_results(plan: Plan) -> list[Result]:
    """Reads every case's folder.

    Raises:
        RunError: the sweep's own record of a case is damaged.
        OSError: a file can't be read.
    """
    results = [read_result(plan, case) for case in plan.cases]
    return [
        Result(result.case, "running") if result.status != "finished" and is_held(plan.run_dir(result.case)) else result
        for result in results
    ]


def read_result(plan: Plan, case: Case) -> Result:
    """Reads one case's folder, whoever works on it; a finished run without a finite loss to read counts as failed.

    Raises:
        RunError: the sweep's own record of the case is damaged.
    """
    run_dir = plan.run_dir(case)
    ending = read_ending(run_dir, case)
    if ending is None:
        return Result(case, "waiting")
    if ending.status == "failed":
        return Result(case, "failed", ending.exit_code, ending.message)
    try:
        return Result(case, "finished", ending.exit_code, run=read_run(str(run_dir)))
    except UserError as error:
        return Result(case, "failed", ending.exit_code, str(error))


def by_setting(results: Iterable[Result]) -> list[Setting]:
    """Groups results that are repetitions of each other, in the order of their first."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        key = json.dumps([result.case.baseline, result.case.setting], sort_keys=True, default=str)
        groups.setdefault(key, []).append(result)
    return [Setting(each[0].case.setting, each[0].case.baseline, tuple(each)) for each in groups.values()]


def finished_runs(settings: Iterable[Setting]) -> list[Run]:
    """Every finished run of the settings."""
    return [result.run for setting in settings for result in setting.results if result.run]


def at_equal_compute(settings: Iterable[Setting]) -> bool:
    """Whether the finished runs spent the same FLOPs, within the 0.5% that :mod:`tst_lightning.compare` allows."""
    runs = finished_runs(settings)
    least = min((run.final.flops for run in runs), default=0.0)
    return all(ends_at(run, least, "flops") for run in runs)


def best_of(settings: Sequence[Setting]) -> Setting | None:
    """The setting of the lowest mean among those whose every seed has finished.

    Returns:
        None if there is none, or if the settings' runs are not :func:`at_equal_compute`: the longest or largest would win.
    """
    if not at_equal_compute(settings):
        return None
    complete = [(setting.mean, setting) for setting in settings if setting.complete and setting.mean is not None]
    return min(complete, key=lambda pair: pair[0])[1] if complete else None


def split(settings: Sequence[Setting]) -> tuple[list[Setting], Setting | None]:
    """The settings that are swept, and the baseline's best one by :func:`best_of`."""
    baselines = [setting for setting in settings if setting.baseline]
    return [setting for setting in settings if not setting.baseline], best_of(baselines)


def differences(results: Iterable[Result]) -> list[str]:
    """What finished runs do not share although their losses can't be ranked without it."""
    records: list[dict[str, Any]] = [result.run.record for result in results if result.run]
    return [words for key, words in _SHARED.items() if len({str(record.get(key)) for record in records}) > 1]
