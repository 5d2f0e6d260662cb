"""One process at a time trains in a run's folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tst_lightning.errors import ConfigError

LOCK = ".lock"


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
