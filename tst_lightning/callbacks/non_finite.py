"""Stops a run whose loss or weights are no longer numbers, before a checkpoint of it is written."""

from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from tst_lightning.errors import RunError


class NonFiniteGuard(Callback):
    """Remembers, on the device, the first step whose loss was NaN or infinite, and looks at it now and then.

    Looking costs a synchronisation with the device, so it happens every ``every_n_steps`` steps, and before any
    checkpoint is written: those on disk stay good.

    Args:
        every_n_steps: optimizer steps between two looks; None takes ``trainer.log_every_n_steps``.
    """

    _NEVER = 2**62

    def __init__(self, every_n_steps: int | None = None) -> None:
        self.every_n_steps = every_n_steps
        self._first_bad: Tensor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Makes room for the first bad step on the model's device."""
        self._first_bad = torch.tensor(self._NEVER, device=pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Notes a bad loss; looks every so many steps.

        Raises:
            RunError: a loss was not finite; names step and phase.
        """
        assert self._first_bad is not None
        step = batch_idx // trainer.accumulate_grad_batches
        bad = torch.where(torch.isfinite(outputs["loss"].detach()), self._NEVER, step)
        self._first_bad = torch.minimum(self._first_bad, bad)
        if (step + 1) % (self.every_n_steps or trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            self._look(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Looks, so that no validation of a broken model is recorded."""
        self._look(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Looks, at the weights too, so that no broken model is written.

        Raises:
            RunError: loss or weights are not finite; names step and phase.
        """
        self._look(trainer, pl_module)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in pl_module.parameters()):
            self._stop(trainer, pl_module, "weights", max(0, trainer.global_step - 1))

    def _look(self, trainer: Trainer, pl_module: Any) -> None:
        step = self._NEVER if self._first_bad is None else int(self._first_bad)
        if step < self._NEVER:
            self._first_bad = None
            self._stop(trainer, pl_module, "loss", step)

    def _stop(self, trainer: Trainer, pl_module: Any, what: str, step: int) -> NoReturn:
        folder = Path(getattr(trainer.checkpoint_callback, "dirpath", None) or ".")
        written = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
        kept = f"the last good checkpoint is {written[-1]}" if written else "no checkpoint had been written yet"
        raise RunError(
            f"the {what} {'was' if what == 'loss' else 'were'} not finite at step {step}, phase"
            f" '{pl_module.schedule.at(step).name}'; {kept}. Lower the learning rate, lengthen the warmup or clip gradients"
            " (trainer.gradient_clip_val)"
        )
