"""Ctrl-C and SIGTERM: finish the step, write a checkpoint, say how to go on."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from tst_lightning.errors import Stopped


class GracefulStop(Checkpoint):
    """On the first SIGINT or SIGTERM, ends the run at the next whole step with ``last.ckpt``; a second one kills.

    A validation that is due at that step is taken first, and every other callback has its turn, so that a resumed run
    lacks nothing: name this one after the run's other checkpoint callbacks.

    Args:
        dirpath: folder of the checkpoints; that of the run's ModelCheckpoint, so that ``--ckpt_path last`` finds it.
    """

    def __init__(self, dirpath: str) -> None:
        self.dirpath = Path(dirpath)
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._saved: Path | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Takes over the two signals; Lightning's own handlers leave no checkpoint."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._signal = number

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Gives the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves after a whole step, unless its validation is still to come."""
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        validation_due = (batch_idx + 1) % (trainer.val_check_batch or float("inf")) == 0
        if whole_step and not validation_due:
            self._save_if_asked(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Stops, once the step that was saved has been logged as well.

        Raises:
            Stopped: a signal had asked for it.
        """
        if self._saved is not None:
            number = self._signal or signal.SIGTERM
            raise Stopped(
                f"stopped by {signal.Signals(number).name} after step {trainer.global_step} of {trainer.max_steps};"
                f" checkpoint {self._saved}. Go on with the same command and --ckpt_path last",
                number,
            )

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Saves a run that something else (a time limit, early stopping) ends before its last step."""
        if trainer.global_step < trainer.max_steps:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Saves after a validation that was due."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save_if_asked(trainer)

    def _save_if_asked(self, trainer: Trainer) -> None:
        # Every rank must save, or none: any rank's signal stops all.
        asked = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        if asked and trainer.global_step < trainer.max_steps:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._saved = self.dirpath / f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}.ckpt"
        trainer.save_checkpoint(self._saved, weights_only=False)
