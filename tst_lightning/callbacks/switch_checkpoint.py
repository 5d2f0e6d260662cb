"""A checkpoint at every phase switch, to branch other recoveries from."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint


class SwitchCheckpoint(Checkpoint):
    """Saves ``switch-PHASE-step=N.ckpt`` after the last step before each new phase, and the validation due there.

    Args:
        dirpath: folder of the checkpoints.
    """

    def __init__(self, dirpath: str) -> None:
        self.dirpath = Path(dirpath)
        self._waiting = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves where the next step belongs to another phase, unless a validation is still to come."""
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if whole_step and trainer.global_step in pl_module.schedule.switches:
            self._waiting = (batch_idx + 1) % (trainer.val_check_batch or float("inf")) == 0
            if not self._waiting:
                self._save(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Saves after the validation: a run that goes on from here does not take it again."""
        if self._waiting:
            self._waiting = False
            self._save(trainer, pl_module)

    def _save(self, trainer: Trainer, pl_module: Any) -> None:
        name = f"switch-{pl_module.current.name}-step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(self.dirpath / name, weights_only=False)
