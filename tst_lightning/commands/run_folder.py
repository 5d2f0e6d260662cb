"""A run's folder as the command line sees it: which run it holds, whether it is the same one, where it can go on."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from tst_lightning.errors import ConfigError, RunError

# What makes a run the run it is; everything else (logging, where shards lie, reading processes) may change on the way.
# Batch size, workers and ranks are guarded by the stream's own state.
_TRAINER_KEYS = {"max_steps", "accumulate_grad_batches", "gradient_clip_val", "precision", "limit_val_batches"}
_FREE_DATA_KEYS = {"shards", "num_workers", "verify_train"}


@dataclass(frozen=True)
class RunStatus:
    """How far a run has come: ``running``, ``stopped`` or ``finished``, at ``step`` of ``max_steps``."""

    status: str
    step: int
    max_steps: int


def read_status(run_dir: Path) -> RunStatus | None:
    """What ``run.json`` says; None if there is none.

    Raises:
        RunError: it is damaged.
    """
    path = run_dir / "run.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_bytes())
        return RunStatus(record["status"], record["step"], record["max_steps"])
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"'{path}' is damaged ({error!r}); remove it, or name another --run_dir") from error


def check_same_run(run_dir: Path, config: dict[str, Any]) -> None:
    """Refuses to go on with a run, or to reuse it, under other settings than its own.

    Optimizer state and schedule come from the checkpoint, so a changed learning rate would be recorded but not used.

    Args:
        run_dir: folder of the run; without a ``config.yaml`` there is nothing to compare.
        config: the resolved configuration asked for.

    Raises:
        ConfigError: names every setting that differs, as it was and as it is asked for.
    """
    path = run_dir / "config.yaml"
    if not path.exists():
        return
    was, now = (_flat(_identity(each)) for each in (yaml.safe_load(path.read_text()), config))
    differing = [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
    if differing:
        listed = "; ".join(f"{key} was {was.get(key)}, now {now.get(key)}" for key in differing)
        raise ConfigError(
            f"'{run_dir}' holds a run of other settings ({listed}); restore them, or name another --run_dir"
        )


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "seed_everything": config.get("seed_everything"),
        "model": config.get("model"),
        "data": {key: value for key, value in (config.get("data") or {}).items() if key not in _FREE_DATA_KEYS},
        "trainer": {key: value for key, value in (config.get("trainer") or {}).items() if key in _TRAINER_KEYS},
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: inner for name, part in value.items() for key, inner in _flat(part, f"{prefix}.{name}".strip(".")).items()
    }


def find_checkpoint(run_dir: Path, name: str | None) -> Path | None:
    """The checkpoint that ``--ckpt_path`` names, looked into.

    Args:
        run_dir: folder of the run.
        name: a path, or ``last`` for the run's own last one.

    Returns:
        Its path; None if none was named, or if the run has no last one yet.

    Raises:
        ConfigError: there is no such checkpoint.
        RunError: it can't be read, or was not written by this program.
    """
    if name is None:
        return None
    path = run_dir / "checkpoints" / f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}.ckpt" if name == "last" else Path(name)
    if not path.exists():
        if name == "last":
            return None
        raise ConfigError(f"there is no checkpoint at '{path}' (--ckpt_path); name a file, or `last`")
    if path.is_file():  # a sharded one is a folder
        _check_checkpoint(path)
    return path


def _check_checkpoint(path: Path) -> None:
    """Opens a checkpoint without reading its tensors."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:  # torch's own kinds: RuntimeError, UnpicklingError, EOFError, KeyError
        whole = zipfile.is_zipfile(path)
        reason = f"{type(error).__name__}: {error}".splitlines()[0] if whole else "cut off, or of another format"
        raise RunError(f"checkpoint '{path}' can't be read ({reason}); name another --ckpt_path") from error
    if not isinstance(content, dict) or not {"state_dict", "global_step", "loops"} <= content.keys():
        raise RunError(
            f"'{path}' is no checkpoint of `tst fit` (no state_dict and loops in it); name another --ckpt_path"
        )
