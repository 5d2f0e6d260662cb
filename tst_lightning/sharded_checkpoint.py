"""Checkpoints in a folder, a file from each process: looked through before they are used, and read by any number of
processes, on any machine.

torch's distributed checkpoints keep their table of contents, and the optimizer's settings, as pickles, which could run
code; and tensors are read without a look at the checksums written beside them. Both are seen to here.
"""

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata

from tst_lightning.checkpoint_file import first_altered, read_step
from tst_lightning.errors import RunError

CONTENTS = ".metadata"  # torch's name for the table of what lies where; it is written last
PARTIAL = ".partial"  # added to the name of a checkpoint while it is written
REPLACED = ".replaced"  # and to that of a sharded one while another takes its place
TRAINER_STATE = "meta.pt"  # Lightning's, for all but weights and optimizer state

_WEIGHTS = "state_dict"
_TABLE = "torch.distributed.checkpoint"
_NAMES = {
    (f"{_TABLE}.metadata", "Metadata"),
    (f"{_TABLE}.metadata", "TensorStorageMetadata"),
    (f"{_TABLE}.metadata", "BytesStorageMetadata"),
    (f"{_TABLE}.metadata", "TensorProperties"),
    (f"{_TABLE}.metadata", "ChunkStorageMetadata"),
    (f"{_TABLE}.metadata", "MetadataIndex"),
    (f"{_TABLE}.metadata", "StorageMeta"),
    (f"{_TABLE}.metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_TABLE}.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}


class _Unpickler(pickle.Unpickler):
    """Builds what a table of contents is made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a table of contents")


def read_contents(folder: Path) -> Metadata:
    """The table of contents: what there is, by name, and where it lies.

    Raises:
        RunError: there is none, it can't be read, or it names what would run code.
    """
    try:
        with open(folder / CONTENTS, "rb") as file:
            contents = _Unpickler(file).load()
        if not isinstance(contents, Metadata) or not contents.storage_data:
            raise pickle.UnpicklingError("of another format")
    except FileNotFoundError as error:
        raise RunError(f"checkpoint '{folder}' is not whole (no {CONTENTS} in it)") from error
    except Exception as error:  # pickle has a dozen kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(f"checkpoint '{folder}' can't be read ({CONTENTS}: {reason})") from error
    return contents


def read_sharded_step(folder: Path) -> int:
    """Looks whether a checkpoint is whole: all files there, as long as they should be, and safe to load.

    The tensors' bytes are left to :func:`check_bytes`, since they can be shared out among processes.

    Returns:
        The step that it was written at.

    Raises:
        RunError: something is missing, cut off or altered, or would run code when loaded.
    """
    contents = read_contents(folder)
    lengths: dict[str, int] = {}
    for info in contents.storage_data.values():
        lengths[info.relative_path] = max(lengths.get(info.relative_path, 0), info.offset + info.length)
    for name, length in lengths.items():
        path = folder / name
        if path.resolve().parent != folder.resolve():
            raise RunError(f"checkpoint '{folder}' names the file '{name}', which is not in it")
        if not path.exists() or path.stat().st_size < length:
            there = f"{path.stat().st_size:,}" if path.exists() else "none"
            raise RunError(
                f"checkpoint '{folder}' is not whole: '{name}' should have {length:,} bytes, {there} are there"
            )
    for index, info in contents.storage_data.items():
        if isinstance(contents.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            _check_setting(folder, index.fqn, _slice(folder, info))
    if not (folder / TRAINER_STATE).exists():
        raise RunError(f"checkpoint '{folder}' is not whole (no {TRAINER_STATE} in it)")
    return read_step(folder / TRAINER_STATE, {"global_step": int, "loops": dict})


def check_bytes(folder: Path, process: int, processes: int) -> None:
    """Compares tensors with the checksums written beside them, the files of one process of several.

    Args:
        folder: of a checkpoint that :func:`read_sharded_step` found whole.
        process: which one, from 0.
        processes: that share the files between them.

    Raises:
        RunError: a tensor was altered since it was written.
    """
    contents = read_contents(folder)
    files = sorted({info.relative_path for info in contents.storage_data.values()})[process::processes]
    for index, info in contents.storage_data.items():
        if info.relative_path not in files:
            continue
        try:
            with zipfile.ZipFile(io.BytesIO(_slice(folder, info))) as archive:
                altered = first_altered(archive)
        except Exception as error:
            altered = f"{type(error).__name__}: {error}"
        if altered:
            raise RunError(
                f"checkpoint '{folder}' was altered since it was written ('{index.fqn}' in {info.relative_path})"
            )


def read_sharded(folder: Path) -> dict[str, Any]:
    """All of a checkpoint but the optimizer's state, as a single file holds it: ``state_dict`` by :func:`read_weights`.

    Raises:
        RunError: as there.
    """
    weights = read_weights(folder)
    return torch.load(folder / TRAINER_STATE, map_location="cpu", weights_only=True) | {_WEIGHTS: weights}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The model's weights, put together from the parts of all processes, by their names in the LightningModule.

    Needs no process group and no GPU; holds the weights whole in memory, without the optimizer's state.

    Raises:
        RunError: as :func:`read_sharded_step` and :func:`check_bytes`.
    """
    read_sharded_step(folder)
    check_bytes(folder, 0, 1)
    kept = {
        name.removeprefix(f"{_WEIGHTS}."): value
        for name, value in read_contents(folder).state_dict_metadata.items()
        if name.startswith(f"{_WEIGHTS}.") and isinstance(value, TensorStorageMetadata)
    }
    weights = {name: torch.empty(value.size, dtype=value.properties.dtype) for name, value in kept.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            dcp.load({_WEIGHTS: weights}, checkpoint_id=folder, no_dist=True)
        except CheckpointException as error:  # of the archive's frame, which no checksum covers
            raise RunError(f"checkpoint '{folder}' was altered since it was written ({failure(error)})") from error
    return weights


def failure(error: CheckpointException) -> str:
    """What went wrong, of a process where something did, in a line."""
    (process, (cause, _)), *_ = error.failures.items()
    return f"process {process}: {type(cause).__name__}: {cause}".splitlines()[0]


def _slice(folder: Path, info: Any) -> bytes:
    with open(folder / info.relative_path, "rb") as file:
        file.seek(info.offset)
        return file.read(info.length)


def _check_setting(folder: Path, name: str, content: bytes) -> None:
    """Refuses what torch would load, as pickle without restraint, with code in it."""
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(f"checkpoint '{folder}' can't be read ('{name}': {reason})") from error
