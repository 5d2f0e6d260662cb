"""Who runs which case: a list in this process, or an Optuna study that any number of machines share."""

import contextlib
import hashlib
import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from tst_lightning.errors import ConfigError, RunError, UserError
from tst_lightning.sweep.cases import Case
from tst_lightning.sweep.plan import Plan
from tst_lightning.sweep.records import fingerprint, is_held, read_ending

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

JOURNAL = "journal:"
_CASE, _ATTEMPT = "case", "attempt"  # attributes of a trial


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
    Where two workers entered the same attempt at a case, its earlier trial counts.

    Args:
        plan: the sweep.
        storage: ``journal:PATH`` of a file that all machines see, or the address of a database, as Optuna takes it.
        retry_failed: enter failed cases too, and those that a worker has taken which is gone.

    Raises:
        ConfigError: Optuna is not installed, or the storage can't be opened.
        RunError: the storage fails later, in any method.
    """

    def __init__(self, plan: Plan, storage: str, retry_failed: bool = False) -> None:
        self._plan, self._storage = plan, storage
        self._cases = {case.name: case for case in plan.cases}
        self._taken: dict[str, Trial] = {}
        self._lock = threading.Lock()
        self._study = _open_study(plan, storage)
        from optuna.trial import TrialState, create_trial

        self._states = TrialState
        self._create = create_trial
        with self._asking():
            self._enter_all(retry_failed)

    def _enter_all(self, retry_failed: bool) -> None:
        # One look at the study, and the folders only after it: of two workers that look at the same time, both enter the
        # same attempts, and a case that has failed meanwhile is known to have.
        latest = {_name(trial): trial for trial in self._study.get_trials(deepcopy=False)}
        for case in self._cases.values():
            ending = read_ending(self._plan.run_dir(case), case)
            if ending and (ending.status == "finished" or not retry_failed):
                continue
            trial = latest.get(case.name)
            if trial and not trial.state.is_finished():
                is_lost = trial.state == self._states.RUNNING and not is_held(self._plan.run_dir(case))
                if not (is_lost and retry_failed):
                    continue
                self._tell(trial.number, None)
            self._enter(case, trial.user_attrs[_ATTEMPT] + 1 if trial else 1)

    def take(self) -> Case | None:
        """As the protocol says; trials that need no run are concluded on the way."""
        with self._asking():
            while self._study.get_trials(deepcopy=False, states=[self._states.WAITING]):
                trial = self._study.ask()
                name = _name(trial)
                # No name: the last one was taken by another meanwhile, and Optuna has made up a new trial.
                if name is None or self._is_settled(trial):
                    self._study.tell(trial, state=self._states.PRUNED)
                    continue
                with self._lock:
                    self._taken[name] = trial
                return self._cases[name]
        return None

    def _is_settled(self, trial: "Trial") -> bool:
        """Whether the same attempt at the case was entered before, by another worker, or its run has finished."""
        case = self._cases[str(_name(trial))]
        ending = read_ending(self._plan.run_dir(case), case)
        return bool(ending and ending.status == "finished") or any(
            other.number < trial.number and other.user_attrs == trial.user_attrs
            for other in self._study.get_trials(deepcopy=False)
        )

    def done(self, case: Case, loss: float | None) -> None:
        """As the protocol says."""
        with self._lock:
            trial = self._taken.pop(case.name)
        with self._asking():
            self._tell(trial.number, loss)

    def put_back(self, case: Case) -> None:
        """As the protocol says."""
        attempt = self._taken[case.name].user_attrs[_ATTEMPT]
        self.done(case, None)
        with self._asking():
            self._enter(case, attempt + 1)

    def _enter(self, case: Case, attempt: int) -> None:
        settings = json.loads(json.dumps(case.settings, default=str))
        attributes = {_CASE: case.name, _ATTEMPT: attempt, "settings": settings}
        self._study.add_trial(self._create(state=self._states.WAITING, user_attrs=attributes))

    def _tell(self, number: int, loss: float | None) -> None:
        # Another worker may have given the trial up for lost.
        state = self._states.FAIL if loss is None else self._states.COMPLETE
        self._study.tell(number, loss, state=state, skip_if_finished=True)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (UserError, OSError):
            raise
        except Exception as error:  # each database has its own kinds
            raise RunError(
                f"--storage '{self._storage}' can't be used any more ({_first_line(error)}); give the same command again"
            ) from error


def _name(trial: "Trial | FrozenTrial") -> str | None:
    return trial.user_attrs.get(_CASE)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


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

            journal = optuna.storages.JournalStorage(JournalFileBackend(storage.removeprefix(JOURNAL)))
            return optuna.create_study(storage=journal, study_name=name, load_if_exists=True)
        return optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    except Exception as error:  # each database has its own kinds
        raise ConfigError(
            f"--storage '{storage}' can't be opened ({_first_line(error)}); give journal:PATH on a file system that all"
            " workers share, or a database such as sqlite:///PATH"
        ) from error
