"""Who runs which case: a list in this process, or an Optuna study that any number of machines share."""

import hashlib
import json
import threading
from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from tst_lightning.errors import ConfigError
from tst_lightning.sweep.cases import Case
from tst_lightning.sweep.plan import Plan
from tst_lightning.sweep.records import fingerprint, is_held, read_ending

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

JOURNAL = "journal:"


class CaseQueue(Protocol):
    """Hands out each case once; every method may be called from several threads."""

    def take(self) -> Case | None:
        """The next case for the caller to run; None when none is left."""

    def done(self, case: Case, loss: float | None) -> None:
        """The case that was taken has ended: with its loss, or failed."""

    def put_back(self, case: Case) -> None:
        """The case that was taken was stopped on the way, and is to be handed out again."""


class LocalQueue:
    """Cases in their order, for this process alone."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = deque(cases)

    def take(self) -> Case | None:
        """As the protocol says."""
        try:
            return self._cases.popleft()
        except IndexError:
            return None

    def done(self, case: Case, loss: float | None) -> None:
        """Nothing: the run's folder says it all."""

    def put_back(self, case: Case) -> None:
        """Nothing: a case is put back only when the sweep ends."""


class StudyQueue:
    """Cases as trials of an Optuna study, each taken by one worker.

    A case is first of all what its run's folder says: a finished one is never run again, whatever the study knows.
    Where two workers entered a case at the same time, its earlier trial counts.

    Args:
        plan: the sweep.
        storage: ``journal:PATH`` of a file that all machines see, or the address of a database, as Optuna takes it.
        cases: to enter, if no worker has yet.
        lost: cases that may be entered again although a worker has them, because that worker is gone.

    Raises:
        ConfigError: Optuna is not installed, or the storage can't be opened.
    """

    def __init__(self, plan: Plan, storage: str, cases: Sequence[Case], lost: Collection[str] = ()) -> None:
        self._plan = plan
        self._cases = {case.name: case for case in plan.cases}
        self._taken: dict[str, Trial] = {}
        self._lock = threading.Lock()
        self._study = _open_study(plan, storage)
        from optuna.trial import TrialState, create_trial

        self._states = TrialState
        self._create = create_trial
        for trial in self._trials(TrialState.RUNNING):
            if trial.user_attrs.get("case") in lost:
                self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        there = {trial.user_attrs.get("case") for trial in self._trials(TrialState.WAITING, TrialState.RUNNING)}
        for case in cases:
            if case.name not in there:
                self._enter(case)

    def take(self) -> Case | None:
        """As the protocol says; trials that need no run are concluded on the way."""
        while self._trials(self._states.WAITING):
            trial = self._study.ask()
            name = trial.user_attrs.get("case")
            if name is None:  # the last one was taken by another meanwhile, and Optuna has made up a new one
                self._study.tell(trial, state=self._states.PRUNED)
                continue
            earlier = self._trials(self._states.WAITING, self._states.RUNNING)
            if any(other.user_attrs.get("case") == name and other.number < trial.number for other in earlier):
                self._study.tell(trial, state=self._states.PRUNED)
                continue
            case = self._cases[name]
            ending = read_ending(self._plan.run_dir(case), case)
            if ending and ending.status == "finished":
                self._study.tell(trial, state=self._states.PRUNED)
                continue
            with self._lock:
                self._taken[name] = trial
            return case
        return None

    def done(self, case: Case, loss: float | None) -> None:
        """As the protocol says."""
        with self._lock:
            trial = self._taken.pop(case.name)
        if loss is None:
            self._study.tell(trial, state=self._states.FAIL, skip_if_finished=True)
        else:
            self._study.tell(trial, loss, skip_if_finished=True)

    def put_back(self, case: Case) -> None:
        """As the protocol says."""
        self.done(case, None)
        self._enter(case)

    def _enter(self, case: Case) -> None:
        settings = json.loads(json.dumps(case.settings, default=str))
        attributes = {"case": case.name, "settings": settings}
        self._study.add_trial(self._create(state=self._states.WAITING, user_attrs=attributes))

    def _trials(self, *states: object) -> "list[FrozenTrial]":
        return self._study.get_trials(deepcopy=False, states=states)  # type: ignore[arg-type]


def lost_cases(plan: Plan, cases: Sequence[Case]) -> set[str]:
    """Names of the cases whose folder no process holds."""
    return {case.name for case in cases if not is_held(plan.run_dir(case))}


def _open_study(plan: Plan, storage: str) -> "Study":
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "--storage needs Optuna, which is not installed; install the extra: pip install 'tst-lightning[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Of this very sweep: under other YAML files or values no trial of it may be taken.
    marks = sorted(f"{case.name} {fingerprint(case)}" for case in plan.cases)
    name = f"{plan.out.resolve().name}-{hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:12]}"
    try:
        if storage.startswith(JOURNAL):
            from optuna.storages.journal import JournalFileBackend

            backend = JournalFileBackend(storage.removeprefix(JOURNAL))
            opened = optuna.storages.JournalStorage(backend)
            return optuna.create_study(storage=opened, study_name=name, load_if_exists=True)
        return optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    except (OSError, ValueError, ImportError, optuna.exceptions.OptunaError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"--storage '{storage}' can't be opened ({reason}); give journal:PATH on a file system that all workers share,"
            " or a database such as sqlite:///PATH"
        ) from error
