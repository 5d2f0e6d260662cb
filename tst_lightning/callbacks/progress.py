"""The progress bar: which phase, both losses, tokens a second, and the time left."""

import sys
import time
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class PhaseProgressBar(TQDMProgressBar):
    """Lightning's bar over the whole run, described by the phase.

    Both phases take the same time a step, so the bar's own estimate of the time left holds across the switch.

    Args:
        refresh_rate: batches between two refreshes; None takes 10 on a terminal, and a twentieth of the run elsewhere.
    """

    def __init__(self, refresh_rate: int | None = None) -> None:
        super().__init__(refresh_rate=refresh_rate or 10, leave=True)
        self._loss: float | None = None
        self._phase = ""
        self._phase_tokens = 0
        self._phase_start = 0.0
        self._earlier: int | None = None
        self._adapt = refresh_rate is None and not sys.stderr.isatty()

    def init_train_tqdm(self) -> Tqdm:
        """A bar whose fields fit 100 columns."""
        bar = super().init_train_tqdm()
        bar.bar_format = "{desc} {percentage:3.0f}% |{bar:12}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        return bar

    def init_validation_tqdm(self) -> Tqdm:
        """No bar of its own: validations are short and the run's bar goes on."""
        return Tqdm(disable=True)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Opens the bar."""
        if self._adapt:
            self._refresh_rate = max(1, int(trainer.num_training_batches) // 20)
        super().on_train_start(trainer, pl_module)
        # A run that goes on in the middle gets no on_train_epoch_start, where Lightning sets these.
        self.train_progress_bar.reset(int(trainer.num_training_batches))
        self.train_progress_bar.initial = trainer.global_step * trainer.accumulate_grad_batches
        self.train_progress_bar.set_description_str("training")

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Nothing: the bar is over the whole run."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: dict[str, Any], batch_idx: int) -> None:
        """Names the phase."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if batch["phase"] != self._phase:
            self._phase, self._phase_tokens, self._phase_start = batch["phase"], 0, time.perf_counter()
        if self._earlier is None:  # a finished run that is made longer counts its batches from 0 again
            self._earlier = trainer.global_step * trainer.accumulate_grad_batches - batch_idx
        self.train_progress_bar.set_description_str(batch["phase"], refresh=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Counts the tokens of the phase; reads the loss only where the bar is redrawn."""
        self._phase_tokens += batch["tokens"].numel()
        batch_idx += self._earlier or 0
        if self._should_update(batch_idx + 1, self.train_progress_bar.total):
            self._loss = float(outputs["row_losses"].mean())  # as logged: cross-entropy alone
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Ends the bar's line, so that an error stands on its own."""
        if self._train_progress_bar is not None:
            self.train_progress_bar.close()

    def get_metrics(self, trainer: Trainer, pl_module: Any) -> dict[str, Any]:
        """Training loss of the phase, validation loss, tokens a second of this phase."""
        shown = {} if self._loss is None else {"loss": f"{self._loss:.3f}"}
        if (val := trainer.progress_bar_metrics.get("val/loss")) is not None:
            shown["val"] = f"{val:.3f}"
        if self._phase_tokens:
            rate = self._phase_tokens * trainer.world_size / (time.perf_counter() - self._phase_start)
            shown["tokens/s"] = f"{rate:,.0f}"
        return shown
