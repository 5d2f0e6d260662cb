"""A run's folder as the command line sees it: which run it holds, whether it is the same one, where it can go on."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from tst_lightning.checkpoint_file import read_step
from tst_lightning.commands.config_file import check_config_file
from tst_lightning.commands.run_lock import locked
from tst_lightning.errors import ConfigError, RunError
from tst_lightning.optim import LATER_SETTINGS
from tst_lightning.sharded_checkpoint import PARTIAL, REPLACED, read_sharded_step
from tst_lightning.whole_file import write_whole

# What makes a run the run it is; everything else (logging, where shards lie, reading processes, compiled layers, which
# only round otherwise, activations kept or computed again) may change on the way.
# Batch size, workers and ranks are guarded by the stream's own state.
_TRAINER_KEYS = {"max_steps", "accumulate_grad_batches", "gradient_clip_val", "precision", "limit_val_batches"}
_FREE_MODEL_KEYS = {"compile", "activation_checkpointing"}
# Callbacks watch a run, but for those that change what is trained.
_CALLBACKS = ("ResetOptimizer", "ReinitialiseEmbeddings")
# Settings that older runs could not have other than so; their configuration does not name them.
_LATER: dict[str, Any] = {f"model.lr_schedule.init_args.{key}": value for key, value in LATER_SETTINGS.items()}
_FREE_DATA_KEYS = {"shards", "num_workers", "cache_dir", "cache_bytes"}
# A run may be made longer; the phases still to come then take other shares, which the stream's state checks.
_STEPS = "trainer.max_steps"
_DATA_HASHES = {
    "train_sha256": "training shards or their weights",
    "val_sha256": "validation shards or their weights",
    "tokenizer_sha256": "tokenizer",
}


@dataclass(frozen=True)
class RunStatus:
    """What a run's record says of it.

    Attributes:
        status: ``running``, ``stopped`` or ``finished``.
        step: at the last record.
        max_steps: that it was laid out for.
        data: hashes of the data that it was begun with, by the record's keys.
    """

    status: str
    step: int
    max_steps: int
    data: dict[str, str]


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
        step, max_steps = record["step"], record["max_steps"]
        if type(step) is not int or type(max_steps) is not int:
            raise ValueError(f"step is {step!r} of {max_steps!r}")
        return RunStatus(str(record["status"]), step, max_steps, {key: str(record[key]) for key in _DATA_HASHES})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RunError(f"'{path}' is damaged ({error!r}); restore it, or name another --run_dir") from error


def holds_checkpoints(run_dir: Path) -> bool:
    """Whether there is a checkpoint in a run's folder, which a new run there would overwrite."""
    return bool(_checkpoints(run_dir / "checkpoints"))


def _checkpoints(folder: Path) -> set[Path]:
    # A sharded one, killed while it was replaced, lies there under another name.
    return {*folder.glob("*.ckpt"), *folder.glob(f"*.ckpt{REPLACED}")}


def check_same_data(run_dir: Path, status: RunStatus, data: dict[str, str]) -> None:
    """Refuses to go on with a run, or to reuse it, on other data than its own, wherever that lies.

    Args:
        run_dir: folder of the run.
        status: its record.
        data: hashes of the data asked for, by the record's keys.

    Raises:
        ConfigError: names what differs.
    """
    differing = [_DATA_HASHES[key] for key, value in status.data.items() if data[key] != value]
    if differing:
        raise ConfigError(
            f"'{run_dir}' holds a run on other data ({' and '.join(differing)} are not what it was begun with); restore"
            " data.shards, or name another --run_dir"
        )


def check_same_run(run_dir: Path, config: dict[str, Any]) -> None:
    """Refuses to go on with a run, or to reuse it, under other settings than its own.

    Optimizer state and schedule come from the checkpoint, so a changed learning rate would be recorded but not used.
    More steps than the run was laid out for are no other run.

    Args:
        run_dir: folder of the run; without a ``config.yaml`` there is nothing to compare.
        config: the resolved configuration asked for.

    Raises:
        ConfigError: names every setting that differs, as it was and as it is asked for.
    """
    path = run_dir / "config.yaml"
    if not path.exists():
        return
    was, now = (_flat(_identity(each)) for each in (check_config_file(path), config))
    was = {key: value for key, value in _LATER.items() if key in now} | was
    differing = [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
    if (now.get(_STEPS) or 0) > (was.get(_STEPS) or 0):
        differing = [key for key in differing if not re.fullmatch(rf"{_STEPS}|model\.phases\..*\.share", key)]
    if differing:
        listed = "; ".join(f"{key} was {was.get(key)}, now {now.get(key)}" for key in differing)
        raise ConfigError(
            f"'{run_dir}' holds a run of other settings ({listed}); restore them (steps may be added, not taken away),"
            " or name another --run_dir"
        )


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "seed_everything": config.get("seed_everything"),
        "model": {key: value for key, value in (config.get("model") or {}).items() if key not in _FREE_MODEL_KEYS},
        "data": {key: value for key, value in (config.get("data") or {}).items() if key not in _FREE_DATA_KEYS},
        "trainer": {key: value for key, value in (config.get("trainer") or {}).items() if key in _TRAINER_KEYS},
        "callbacks": {
            name: str(callback.get("init_args"))
            for callback in _callbacks(config)
            if (name := callback["class_path"].rpartition(".")[2]) in _CALLBACKS
        },
    }


def _callbacks(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Those with names, and the trainer's own."""
    own = (config.get("trainer") or {}).get("callbacks") or []
    return [*(config.get("callbacks") or {}).values(), *([own] if isinstance(own, dict) else own)]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: inner for name, part in value.items() for key, inner in _flat(part, f"{prefix}.{name}".strip(".")).items()
    }


@rank_zero_only
def mark_finished(run_dir: Path, step: int) -> None:
    """Completes the record of a run that was killed after its last checkpoint and before it could say so.

    Raises:
        ConfigError: it was not killed, another process is about to say so.
    """
    path = run_dir / "run.json"
    with locked(run_dir):
        record = json.loads(path.read_bytes()) | {"status": "finished", "step": step}
        write_whole(path, json.dumps(record, indent=2) + "\n")


class FoundCheckpoint(NamedTuple):
    """A whole checkpoint and the step that it was written at."""

    path: Path
    step: int


def find_checkpoint(run_dir: Path, name: str | None) -> FoundCheckpoint | None:
    """The checkpoint that ``--ckpt_path`` names, looked through.

    Where ``last`` is damaged or gone, the newest whole one of the run takes its place, which is said.

    Args:
        run_dir: folder of the run.
        name: a path, or ``last`` for the run's own last one.

    Returns:
        None if none was named, or if the run has none yet.

    Raises:
        ConfigError: there is no such checkpoint.
        RunError: it can't be read, or was not written by this program; for ``last``, none of the run's can.
    """
    if name is None:
        return None
    if name == "last":
        return _newest_whole(run_dir / "checkpoints")
    path = Path(name)
    if not path.exists():
        raise ConfigError(f"there is no checkpoint at '{path}' (--ckpt_path); name a file, or `last`")
    try:
        return _look_through(path)
    except RunError as error:
        raise RunError(f"{error}; name another --ckpt_path") from error


def _look_through(path: Path) -> FoundCheckpoint:
    return FoundCheckpoint(path, read_sharded_step(path) if path.is_dir() else read_step(path))


def _newest_whole(folder: Path) -> FoundCheckpoint | None:
    last = folder / f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}.ckpt"
    damaged = f"there is no '{last}'"
    if last.exists():
        try:
            return _look_through(last)
        except RunError as error:
            damaged = str(error)
    others = sorted(_checkpoints(folder) - {last}, key=lambda path: path.stat().st_mtime)
    whole: list[FoundCheckpoint] = []
    for path in others:
        try:
            whole.append(_look_through(path))
        except RunError as error:
            damaged += f"; {error}"
    for path in folder.glob(f"*.ckpt{PARTIAL}"):
        if path.is_dir():  # of a run killed while it wrote; whole if that was at the very end
            with suppress(RunError):
                whole.append(_look_through(path))
    if whole:
        # Of two at one step the later one: it has seen that step's validation.
        newest = max(reversed(whole), key=lambda found: found.step)
        _say(f"note      {damaged}; '{newest.path}', of step {newest.step:,}, is taken in its place")
        return newest
    if others or last.exists():
        raise RunError(f"no checkpoint of the run is whole: {damaged}; name another --ckpt_path, or another --run_dir")
    return None


@rank_zero_only
def _say(line: str) -> None:
    print(line, flush=True)
