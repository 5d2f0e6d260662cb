"""Ctrl-C, SIGTERM and a scheduler's warning: finish the step, write a checkpoint, say how to go on."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from tst_lightning.checkpoint_io import WholeCheckpointIO
from tst_lightning.errors import RunError, Stopped
from tst_lightning.fully_sharded import FullyShardedStrategy

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_KILLS_WHEN_REPEATED = (signal.SIGINT, signal.SIGTERM)


class GracefulStop(Checkpoint):
    """On the first SIGINT, SIGTERM, SIGUSR1 or SIGUSR2, ends the run at the next whole step with ``last.ckpt``.

    A second SIGINT, or a second SIGTERM, kills at once, and the run's record then still says "running". A warning and
    the SIGTERM after it (SLURM: ``--signal=USR1@90``) do not: the checkpoint may still be on its way to the disk. The
    exit code is 128 + the signal's number, by which a job script can tell that it is to queue the same command again,
    with ``--ckpt_path last``.

    Of several processes, any one may be signalled: all stop, with one checkpoint. A validation that is due at that
    step is taken first, and every other callback has its turn, so that a resumed run lacks nothing: name this one after
    the run's other checkpoint callbacks.

    Args:
        dirpath: folder of the checkpoints; that of the run's ModelCheckpoint, so that ``--ckpt_path last`` finds it.
    """

    def __init__(self, dirpath: str) -> None:
        self.dirpath = Path(dirpath)
        self._received: list[int] = []
        self._previous: dict[int, Any] = {}
        self._saved: Path | None = None
        self._stop_later = False

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Takes over the signals; Lightning's own handlers leave no checkpoint, or requeue the job themselves."""
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number in self._received and number in _KILLS_WHEN_REPEATED:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._received.append(number)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Gives the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves after a whole step, unless its validation is still to come; has others end the run there only."""
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        # A time limit or early stopping ends the run at once; within a step it could not go on from there.
        self._stop_later = self._stop_later or trainer.should_stop
        trainer.should_stop = self._stop_later and whole_step
        validation_due = (batch_idx + 1) % (trainer.val_check_batch or float("inf")) == 0
        if whole_step and not validation_due:
            self._save_if_asked(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Stops, once the step that was saved has been logged as well.

        Raises:
            Stopped: a signal had asked for it.
            RunError: a signal had asked for it, and the checkpoint could not be written.
        """
        if self._saved is None:
            return
        # The first that reached any process, so that all say the same.
        first = torch.tensor(float(self._received[0] if self._received else 0), device=pl_module.device)
        number = int(trainer.strategy.reduce(first, reduce_op="max"))
        stopped = f"stopped by {signal.Signals(number).name} after step {trainer.global_step} of {trainer.max_steps}"
        self._refuse_unwritten(trainer, stopped)
        raise Stopped(f"{stopped}; checkpoint {self._saved}. Go on with the same command and --ckpt_path last", number)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Saves a run that something else (a time limit, early stopping) ends before its last step.

        Raises:
            RunError: the run's last checkpoint could not be written.
        """
        if trainer.global_step < trainer.max_steps:
            self._save(trainer)
        self._refuse_unwritten(trainer, f"ended after step {trainer.global_step} of {trainer.max_steps}")

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Saves after a validation that was due."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save_if_asked(trainer)

    def _save_if_asked(self, trainer: Trainer) -> None:
        # Every rank must save, or none: any rank's signal stops all.
        asked = trainer.strategy.reduce_boolean_decision(bool(self._received), all=False)
        if asked and trainer.global_step < trainer.max_steps:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._saved = self.dirpath / f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}.ckpt"
        trainer.save_checkpoint(self._saved, weights_only=False)

    @staticmethod
    def _refuse_unwritten(trainer: Trainer, ended: str) -> None:
        """A checkpoint that may fail on the way, and be written later, may not at the end."""
        if isinstance(trainer.strategy, FullyShardedStrategy):
            trainer.strategy.finish_saving()
        io = trainer.strategy.checkpoint_io
        # Only the first process writes.
        failure = trainer.strategy.broadcast(io.failure if isinstance(io, WholeCheckpointIO) else None)
        if failure:
            raise RunError(
                f"{ended}, but {failure}; earlier ones are whole. Mend that (free some space), then go on from there with"
                " the same command and --ckpt_path last"
            )
