"""Stops a run, or skips a step, whose loss or gradient is no number, before a checkpoint of it is written."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from tst_lightning.errors import ConfigError, RunError

_NEVER = 2**62


class NonFiniteGuard(Callback):
    """Watches the loss of every micro-batch and the norm of every step's gradient, before clipping, for NaN and infinity.

    ``stop`` notes the first bad step on the device, and looks every so many steps and before any checkpoint is written:
    those on disk stay good. ``skip`` leaves weights and optimizer state as they were at a bad step, on every rank; steps,
    data and learning rate go on. It has to look before each step, which costs one synchronisation with the device, and
    a small one among ranks, a step::

        callbacks:
          non_finite:
            class_path: tst_lightning.callbacks.NonFiniteGuard
            init_args: {action: skip, max_skips: 20}

    Steps skipped over the whole run, resumed or not, are logged as ``train/skipped_steps``. With ``precision:
    16-mixed`` infinite gradients are the ordinary business of the loss scaler, which skips such steps itself: there only
    the loss is watched.

    Args:
        action: ``stop`` or ``skip``.
        max_skips: steps that may be skipped; one more ends the run.
        every_n_steps: of ``stop``, optimizer steps between two looks; None takes ``trainer.log_every_n_steps``.

    Attributes:
        skipped: steps skipped so far.

    Raises:
        ConfigError: ``max_skips`` is negative.
    """

    def __init__(
        self, action: Literal["stop", "skip"] = "stop", max_skips: int = 10, every_n_steps: int | None = None
    ) -> None:
        if max_skips < 0:
            raise ConfigError(f"NonFiniteGuard.max_skips is {max_skips}; it must be 0 or more")
        self.action = action
        self.max_skips = max_skips
        self.every_n_steps = every_n_steps
        self.skipped = 0
        # First bad step, by its loss and by its gradient.
        self._first_bad: Tensor | None = None
        self._bad_loss = torch.tensor(False)

    def state_dict(self) -> dict[str, Any]:
        """Steps skipped so far."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self.skipped = state_dict["skipped"]

    # -- noting -------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Makes room for the first bad step on the model's device."""
        self._first_bad = torch.full((2,), _NEVER, device=pl_module.device)
        self._bad_loss = torch.tensor(False, device=pl_module.device)

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Tensor) -> None:
        """Notes a bad loss."""
        self._bad_loss = self._bad_loss | ~torch.isfinite(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Notes a bad step, or skips it.

        Raises:
            RunError: more than ``max_skips`` steps had to be skipped.
        """
        assert self._first_bad is not None
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        good_gradient = torch.ones_like(self._bad_loss) if scaler else torch.isfinite(pl_module.gradient_norm())
        bad = torch.stack([self._bad_loss, ~good_gradient.to(self._bad_loss.device)])
        self._bad_loss = torch.zeros_like(self._bad_loss)
        if self.action == "stop":
            self._first_bad = torch.minimum(self._first_bad, torch.where(bad, trainer.global_step, _NEVER))
        elif trainer.strategy.reduce_boolean_decision(bool(bad.any()), all=False):
            self._skip(trainer, pl_module, scaler)

    def _skip(self, trainer: Trainer, pl_module: Any, scaler: Any) -> None:
        self.skipped += 1
        if self.skipped > self.max_skips:
            self._stop(
                trainer,
                pl_module,
                trainer.global_step,
                f"the loss or gradient was not finite once more, after {self.max_skips} skipped steps (max_skips),",
            )
        if scaler is None:  # which wants to see the gradients that it is to skip
            for parameter in pl_module.parameters():
                parameter.grad = None

    # -- looking ------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Looks every so many steps.

        Raises:
            RunError: a loss or gradient was not finite; names step and phase.
        """
        if self.action == "skip":
            pl_module.log("train/skipped_steps", float(self.skipped))
        every = trainer.accumulate_grad_batches * (self.every_n_steps or trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if (batch_idx + 1) % every == 0:
            self._look(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Looks, so that no validation of a broken model is recorded."""
        self._look(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Looks, at the weights too, so that no broken model is written.

        Raises:
            RunError: loss, gradient or weights are not finite; names step and phase.
        """
        self._look(trainer, pl_module)
        # Of sharded weights each rank sees its own part.
        parts = (p.to_local() if isinstance(p, DTensor) else p for p in pl_module.parameters())
        if not trainer.strategy.reduce_boolean_decision(all(bool(torch.isfinite(part).all()) for part in parts)):
            self._stop(trainer, pl_module, max(0, trainer.global_step - 1), "the weights were not finite")

    def _look(self, trainer: Trainer, pl_module: Any) -> None:
        if self.action == "skip" or self._first_bad is None:
            return
        loss, gradient = self._first_bad.tolist()
        if min(loss, gradient) < _NEVER:
            self._first_bad = None
            what = "loss" if loss <= gradient else "gradient"
            self._stop(trainer, pl_module, min(loss, gradient), f"the {what} was not finite")

    def _stop(self, trainer: Trainer, pl_module: Any, step: int, what: str) -> NoReturn:
        folder = Path(getattr(trainer.checkpoint_callback, "dirpath", None) or ".")
        written: dict[Path, float] = {}
        for path in folder.glob("*.ckpt"):
            with suppress(FileNotFoundError):  # another takes its place at this moment
                written[path] = path.stat().st_mtime
        last = max(written, key=written.__getitem__, default=None)
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint had been written yet"
        raise RunError(
            f"{what} at step {step}, phase '{pl_module.schedule.at(step).name}'; {kept}. Lower the learning rate, lengthen"
            " the warmup or clip gradients (trainer.gradient_clip_val)"
        )
