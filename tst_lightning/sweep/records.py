"""What is kept of each case in its run's folder: how its last start ended, and a lock while it runs."""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tst_lightning.errors import RunError
from tst_lightning.sweep.cases import Case
from tst_lightning.whole_file import write_whole

CASE_FILE, LOG_FILE, LOCK_FILE = "case.json", "log.txt", "lock"
Status = Literal["finished", "failed", "waiting"]


@dataclass(frozen=True)
class Ending:
    """How a run's process ended.

    Attributes:
        status: finished or failed.
        exit_code: of ``tst fit``; negative where a signal ended it.
        message: the last line that it printed, an error's where there was one.
        seconds: from its start.
    """

    status: Status
    exit_code: int
    message: str
    seconds: float


def write_ending(run_dir: Path, case: Case, ending: Ending) -> None:
    """Keeps how a case ended.

    Raises:
        OSError: the file system refuses.
    """
    record = {"settings": case.settings, "fingerprint": fingerprint(case)} | asdict(ending)
    write_whole(run_dir / CASE_FILE, json.dumps(record, indent=2, default=str) + "\n")


def read_ending(run_dir: Path, case: Case) -> Ending | None:
    """How a case ended when it was last started; None where it was not, or with other settings or YAML files.

    A finished run is taken as such only if its own record says so too.

    Raises:
        RunError: a record is damaged.
        OSError: a file can't be read.
    """
    record = _read(run_dir / CASE_FILE)
    if record.get("fingerprint") != fingerprint(case):
        return None
    try:
        ending = Ending(*(record[key] for key in ("status", "exit_code", "message", "seconds")))
    except KeyError as error:
        raise RunError(f"'{run_dir / CASE_FILE}' is damaged, it has no {error}; remove it") from error
    if ending.status == "finished" and not is_finished(run_dir):
        return None
    return ending


def is_finished(run_dir: Path) -> bool:
    """Whether a run's own record says that it took all its steps.

    Raises:
        RunError: the record is damaged.
    """
    return _read(run_dir / "run.json").get("status") == "finished"


def fingerprint(case: Case) -> str:
    """Of all that the sweep gives to a run: what the YAML files hold, and the values beside them.

    What ``tst fit`` makes of it, with its defaults and the data, it checks itself whenever it is started.
    """
    files = [hashlib.sha256(Path(config).read_bytes()).hexdigest() for config in case.configs]
    return hashlib.sha256(json.dumps([files, case.overrides()], default=str).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise ValueError("it holds no table of keys")
    except (ValueError, RecursionError) as error:
        raise RunError(f"'{path}' is damaged ({error}); remove it") from error
    return record


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[int | None]:
    """Holds a run's folder, on every machine that shares it.

    Yields:
        A file descriptor to hand on to the run's process, which then holds the folder as well, should this one be
        killed; None if another holds it.

    Raises:
        RunError: the file system knows no locks.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / LOCK_FILE, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        except OSError as error:
            raise RunError(
                f"'{run_dir}' can't be locked ({error.strerror}), so a run could be started twice; put --out where files"
                " can be locked"
            ) from error
        yield file.fileno()


def is_held(run_dir: Path) -> bool:
    """Whether some process works on a run."""
    if not (run_dir / LOCK_FILE).exists():
        return False
    with locked(run_dir) as lock:
        return lock is None
