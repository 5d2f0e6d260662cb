"""A callback that writes down what a run began with and what it read, rank by rank."""

import hashlib
import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from torch.distributed.tensor import DTensor

RECORD = ('--trainer.callbacks+={"class_path": "tests.callbacks.recorder.Recorder"}',)


class Recorder(Callback):
    """Keeps a hash of the weights at the start, and every batch's tokens; ``recorded-RANK.json`` in the run's folder."""

    def __init__(self) -> None:
        self.weights = ""
        self.batches: list[list[list[int]]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        digest = hashlib.sha256()
        for name, value in sorted(pl_module.state_dict().items()):
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            digest.update(name.encode() + whole.detach().cpu().numpy().tobytes())
        self.weights = digest.hexdigest()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch["tokens"].tolist())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        path = Path(trainer.default_root_dir) / f"recorded-{trainer.global_rank}.json"
        path.write_text(json.dumps({"weights": self.weights, "batches": self.batches}))


def recorded(folder: Path, rank: int = 0) -> dict[str, Any]:
    """``weights``, a hash, and ``batches``, each a list of rows of ids."""
    return json.loads((folder / f"recorded-{rank}.json").read_text())
