"""Whose fault an exception is: values that a library refuses become one line, a defect of ours keeps its traceback.

Libraries refuse values with whatever exception their code happens to hit, at building, at set-up or in the first step.
Who was at work is read from the traceback: the innermost frame that is ours or the user's own code, or of an object of an
installed library that the user configured.
"""

import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch
from huggingface_hub.errors import StrictDataclassError
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import tst_lightning
from tst_lightning.commands.parser import one_line
from tst_lightning.errors import ConfigError, RunError, UserError

_PACKAGE = Path(tst_lightning.__file__).parent
_STDLIB = sysconfig.get_path("stdlib")
_INSTALLED = {"site-packages", "dist-packages"}
_COMMANDS = _PACKAGE / "commands"
_LONGEST = 400
_NO_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc", "Cannot allocate memory", "unable to mmap")


def as_user_error(
    error: Exception, configured: Sequence[object] | None = None, begun: bool = False, sizes: str = ""
) -> UserError | None:
    """What to tell the user about an exception.

    Args:
        error: as caught in ``commands``.
        configured: loggers, callbacks and optimizers, which the user chose and gave values; None while they are built.
        begun: whether a step has been taken; from then on, only what a configured object itself refuses is the user's.
        sizes: of model and batches, to be named where memory is short.

    Returns:
        The error to raise in its place; None if it is a defect, or not known to be anything else.
    """
    if _is_out_of_memory(error):
        return RunError(
            f"out of memory{f' with {sizes}' if sizes else ''} ({_reason(error)}); make model.config, data.batch_size or"
            " data.seq_len smaller, or free some memory"
        )
    if isinstance(error, MisconfigurationException):
        return ConfigError(one_line(str(error)))
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return ConfigError(
            f"the model's layers or loss can't be compiled ({_reason(error)}); install a C++ compiler (for a GPU, Triton),"
            " or set model.compile to false"
        )
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if _is_below(frames[-1], _PACKAGE):
        return None
    for frame in reversed(frames):
        if not _is_below(frame, _COMMANDS) and (_is_below(frame, _PACKAGE) or not _is_library(frame)):
            return None
        if any(frame.f_locals.get("self") is each for each in configured or ()):
            return ConfigError(f"{type(frame.f_locals['self']).__qualname__} fails with its values: {_reason(error)}")
    if begun:
        return None
    if configured is not None:
        return ConfigError(f"the run can't begin: {_reason(error)}")
    built = next((frame.f_locals["self"] for frame in frames if "self" in frame.f_locals and not _builds(frame)), None)
    return ConfigError(f"{type(built).__qualname__ if built else 'a class'} refuses its values: {_reason(error)}")


def is_of_restoring(error: Exception) -> bool:
    """Whether an exception arose while a run took up the state that its checkpoint holds."""
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(part in name for name in names for part in ("load_state", "load_checkpoint", "set_rng_state", "restore"))


def _is_below(frame: FrameType, folder: Path) -> bool:
    return Path(frame.f_code.co_filename).is_relative_to(folder)


def _is_library(frame: FrameType) -> bool:
    """Whether a frame is of installed code, and not of a class that the user is writing."""
    path = Path(frame.f_code.co_filename)
    return not path.is_absolute() or path.is_relative_to(_STDLIB) or not _INSTALLED.isdisjoint(path.parts)


def _builds(frame: FrameType) -> bool:
    """Whether a frame only brings about that objects are built."""
    return _is_below(frame, _COMMANDS) or frame.f_globals["__name__"].startswith(
        ("jsonargparse.", "lightning.pytorch.cli")
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, StrictDataclassError) and error.__cause__:
        error = error.__cause__
    text = one_line(str(error).rpartition("DefaultCPUAllocator: ")[2])
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _NO_MEMORY)
    )
