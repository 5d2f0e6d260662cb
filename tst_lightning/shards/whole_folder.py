"""A folder that appears only when it is complete, written by one process at a time."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tst_lightning.errors import RunError


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """Gives an empty folder beside the target, this process' own until the end; it is removed unless published.

    Args:
        target: where the folder is to appear, by :func:`publish`.

    Raises:
        RunError: another process is writing there.
        OSError: the folder can't be made.
    """
    partial = _beside(target, ".partial")
    if partial.is_symlink():
        partial.unlink()
    partial.mkdir(parents=True, exist_ok=True)
    busy = f"another process is writing '{target}' at this moment: wait for it, or choose another --out"
    try:
        # The lock is the folder's own, so that a killed process leaves none, but for what it had written.
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError as error:  # removed a moment ago
        raise RunError(busy) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(busy) from error
        except OSError:  # a file system without locks: one at a time is the user's care there
            pass
        if not _is(partial, descriptor):  # published or removed before it was locked
            raise RunError(busy)
        for leftover in [*partial.iterdir(), _beside(target, ".replaced")]:
            _remove(leftover)
        try:
            yield partial
        finally:
            if _is(partial, descriptor):  # not published: what stands there else is another process' own
                shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(descriptor)


def publish(partial: Path, target: Path) -> None:
    """Makes the finished folder durable, then moves it into place at once, in place of one that is there.

    Args:
        partial: from :func:`partial_folder`.
        target: where to.

    Raises:
        OSError: the file system refuses; what was there is there still.
    """
    for parent, _, files in os.walk(partial):
        for path in [*(Path(parent, name) for name in files), Path(parent)]:
            _fsync(path)
    replaced = _beside(target, ".replaced")
    if target.exists():
        target.rename(replaced)
    partial.rename(target)
    _fsync(target.absolute().parent)
    _remove(replaced)


def _beside(target: Path, suffix: str) -> Path:
    target = target.absolute()
    return target.with_name(target.name + suffix)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    """Removes a file or folder; of a link, the link alone."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
