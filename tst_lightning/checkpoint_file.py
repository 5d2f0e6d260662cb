"""A checkpoint's file, looked through before it is used."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from tst_lightning.errors import RunError

_PARTS = {"state_dict": dict, "global_step": int, "loops": dict}


def read_step(path: Path, parts: Mapping[str, type] = _PARTS) -> int:
    """Looks a checkpoint file through, every byte of it, and gives the step that it was written at.

    torch reads tensors without looking at the checksums that it wrote beside them.

    Args:
        path: of the file.
        parts: what it must hold, and of which type.

    Raises:
        RunError: the file is cut off or altered, would run code when loaded, or is not of `tst fit`.
        OSError: it can't be opened.
    """
    reason = "cut off, or of another format"
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                reason = ""
                altered = first_altered(archive)
            if altered:
                reason = "altered since it was written"
                raise zipfile.BadZipFile(altered)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # zipfile and torch have a dozen kinds, OSError for an absurd offset among them
            reason = reason or f"{type(error).__name__}: {error}".splitlines()[0]
            raise RunError(f"checkpoint '{path}' can't be read ({reason})") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in parts.items()):
        raise RunError(f"'{path}' is no checkpoint of `tst fit` (no {', '.join(parts)} in it)")
    return content["global_step"]


def first_altered(archive: zipfile.ZipFile) -> str | None:
    """The first entry of an archive of torch's that is not what its checksum says; reads all of it."""
    # No checksum covers the mark of a folder, by which torch would take uninitialised memory for the tensor.
    marked = (entry.filename for entry in archive.infolist() if entry.external_attr & 0x10)
    return archive.testzip() or next(marked, None)
