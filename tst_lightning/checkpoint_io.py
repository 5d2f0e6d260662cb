"""Checkpoints are written whole or not at all; those in a folder are read by a single process too."""

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from tst_lightning.errors import RunError
from tst_lightning.sharded_checkpoint import PARTIAL, REPLACED, read_sharded


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and then replaces it: a full disk or a killed run leaves the previous one as it was.

    Lightning's own builds a second copy in memory, writes to the system's temporary folder and moves, which from one
    file system to another is a copy. To train on when the disk is full, name this class in the YAML::

        trainer:
          plugins:
            class_path: tst_lightning.checkpoint_io.WholeCheckpointIO
            init_args: {on_error: continue}

    Args:
        on_error: what a checkpoint does that the file system refuses: ``stop`` ends the run; ``continue`` warns, keeps
            the earlier ones and trains on. A run whose very last one is refused ends with an error either way.

    Attributes:
        failures: checkpoints refused so far.
        failure: why the last one asked for was refused; None if it was written.
    """

    def __init__(self, on_error: Literal["stop", "continue"] = "stop") -> None:
        self.on_error = on_error
        self.failures = 0
        self.failure: str | None = None
        # A checkpoint never written -> the earlier one that was kept for it.
        self._stands_in: dict[str, str] = {}
        self._refused = ""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Saves a checkpoint; under ``on_error: continue``, or says why not.

        Raises:
            RunError: the file system refuses; names file and reason.
        """
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        try:
            _write_whole(checkpoint, Path(path))
        except OSError as error:
            self.failures += 1
            self.failure = f"checkpoint '{path}' can't be written: {error.strerror}"
            self._refused = str(path)
            if self.on_error == "stop":
                raise RunError(
                    f"{self.failure}; earlier ones are whole. Mend that (free some space), then go on with"
                    " --ckpt_path last"
                ) from error
            print(
                f"warning: {self.failure} (failure {self.failures} of this start); earlier ones are kept, training goes on",
                file=sys.stderr,
                flush=True,
            )
        else:
            self.failure = None

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a file; or of a sharded checkpoint all but the optimizer's state, to score its model.

        Raises:
            RunError: a sharded one is not whole, or was altered.
        """
        return read_sharded(Path(path)) if Path(path).is_dir() else super().load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint that another one has replaced, unless that one could not be written."""
        # The caller believes that every save succeeded: what it removes may be a file that was never there, and another
        # one may lie on disk in its stead.
        there = self._stands_in.pop(str(path), str(path))
        if self.failure is None:
            super().remove_checkpoint(there)
        else:
            self._stands_in[self._refused] = there


def _write_whole(checkpoint: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    beside = path.with_name(path.name + PARTIAL)
    try:
        with open(beside, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        beside.unlink(missing_ok=True)
        refusal = refusal_of(error)
        if refusal is None:
            raise
        raise refusal from None
    sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Removes what runs killed while they wrote have left in a folder of checkpoints, files or sharded ones."""
    for leftover in folder.glob(f"*.ckpt{PARTIAL}"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    for old in folder.glob(f"*.ckpt{REPLACED}"):
        if old.with_name(old.name.removesuffix(REPLACED)).exists():
            shutil.rmtree(old, ignore_errors=True)


def refusal_of(error: BaseException) -> OSError | None:
    """What the file system refused, where an error goes back to that: torch closes its archive on the way out, and
    complains that this failed as well.
    """
    return next((one for one in _chain(error) if isinstance(one, OSError)), None)


def sync_folder(path: Path) -> None:
    """Has the names in a folder reach the disk.

    Raises:
        OSError: they can't.
    """
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems can't sync a folder
            raise
    finally:
        os.close(folder)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__
