"""What is kept of each case in its run's folder: how its last start ended, and a lock while it runs."""

import contextlib
import fcntl
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from tst_lightning.errors import RunError
from tst_lightning.sweep.cases import Case
from tst_lightning.whole_file import write_whole

CASE_FILE, LOG_FILE, LOCK_FILE = "case.json", "log.txt", "lock"
Status = Literal["finished", "failed"]
# How long a lock is asked for: who only looks at a folder, or starts a process, holds it for a moment.
_PATIENCE_SECONDS = 1.0


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
def locked(run_dir: Path, patience: float | None = None) -> Iterator[int | None]:
    """Holds a run's folder, or the sweep's, on every machine that shares it.

    Args:
        run_dir: the folder; made if it is not there.
        patience: for how many seconds to ask, a moment unless given.

    Yields:
        A file descriptor to hand on to the run's process, which then holds the folder as well, should this one be
        killed; None if another holds it, for longer than a moment.

    Raises:
        RunError: the file system knows no locks.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / LOCK_FILE, "ab") as file:
        deadline = time.monotonic() + (_PATIENCE_SECONDS if patience is None else patience)
        while not (is_ours := _try_lock(file, fcntl.LOCK_EX)) and time.monotonic() < deadline:
            time.sleep(0.02)
        yield file.fileno() if is_ours else None


def is_held(run_dir: Path) -> bool:
    """Whether some process works on a run.

    Raises:
        RunError: the file system knows no locks.
    """
    if not (run_dir / LOCK_FILE).exists():
        return False
    # Shared, so that of two that look neither takes the other for one at work; over NFS it needs a file open to read.
    with open(run_dir / LOCK_FILE, "rb") as file:
        return not _try_lock(file, fcntl.LOCK_SH)


def _try_lock(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RunError(
            f"'{Path(file.name).parent}' can't be locked ({error.strerror}), so a run could be started twice; put --out"
            " where files can be locked"
        ) from error
    return True
