"""Checkpoints are written whole or not at all."""

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from tst_lightning.errors import RunError


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and then replaces it: a full disk or a killed run leaves the previous one as it was.

    Lightning's own writes to the system's temporary folder and moves, which from one file system to another is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Saves a checkpoint.

        Raises:
            RunError: the file system refuses; names file and reason.
        """
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        beside = Path(f"{path}.partial")
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            beside.parent.mkdir(parents=True, exist_ok=True)
            with open(beside, "wb") as file:
                file.write(buffer.getbuffer())
                os.fsync(file.fileno())
            os.replace(beside, path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise RunError(
                f"checkpoint '{path}' can't be written: {error.strerror}; earlier ones are whole. Mend that (free some"
                " space), then go on with --ckpt_path last"
            ) from error
