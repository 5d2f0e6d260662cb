"""One process at a time trains in a run's folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lightning.pytorch import Trainer

from tst_lightning.errors import ConfigError

LOCK = ".lock"
_RECORDS = {"run.json", "run.json.partial", "config.yaml", "config.yaml.partial", LOCK}


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keeps every other process from training in a run's folder, on this machine or on another that shares it.

    The lock ends with the process, however that ends. It is one of POSIX, which processes that read data don't inherit:
    the BSD kind would outlive a killed run by as long as they do.

    Args:
        run_dir: folder of the run; made if it is not there.

    Raises:
        ConfigError: another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / LOCK, "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_in_place(file):
                raise BlockingIOError  # another one's failed start removed it at this moment
        except (BlockingIOError, PermissionError) as error:
            raise ConfigError(
                f"another process is training in '{run_dir}'; wait for its end, stop it, or name another --run_dir"
            ) from error
        except OSError as error:  # some network file systems have no locks, and are trained on all the same
            print(
                f"note      '{run_dir}' can't be locked ({error.strerror}): nothing keeps a second process from training"
                " there",
                flush=True,
            )
        yield


@contextmanager
def trained_in(run_dir: Path, trainer: Trainer, step: int) -> Iterator[None]:
    """:func:`locked`; and leaves the folder as it was when the start fails before its first step: only then did nothing
    happen in it.

    Of what is new there, it removes what we and the loggers write, and folders that are empty; where the folder is another
    process', nothing.

    Args:
        run_dir: folder of the run.
        trainer: of the run's first process, whose loggers write.
        step: at which the run begins or goes on.

    Raises:
        ConfigError: another process is training there.
    """
    ours = {path for path in (run_dir, run_dir / LOCK) if not path.exists()}
    with locked(run_dir):
        before = {run_dir, *run_dir.rglob("*")} - ours
        try:
            yield
        except BaseException:
            if trainer.global_step <= step:
                logs = [Path(folder) for logger in trainer.loggers if (folder := getattr(logger, "log_dir", None))]
                with suppress(OSError):
                    _remove({run_dir, *run_dir.rglob("*")} - before, run_dir, logs)
            raise


def _is_in_place(file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except FileNotFoundError:
        return False


def _remove(new: set[Path], run_dir: Path, logs: list[Path]) -> None:
    for path in sorted(new, reverse=True):
        if path.is_dir():
            with suppress(OSError):  # something is in it
                path.rmdir()
        elif path.parent == run_dir and path.name in _RECORDS or any(map(path.is_relative_to, logs)):
            path.unlink()
