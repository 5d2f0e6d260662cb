"""Measures compute, so that runs are compared at equal FLOPs: cumulative, per phase, across resume."""

import resource
import sys
import time
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from tst_lightning.callbacks.tensorboard_charts import add_axes, write_layout
from tst_lightning.callbacks.totals import Totals
from tst_lightning.errors import ConfigError
from tst_lightning.flops import (
    AttentionConvention,
    closed_form_flops_per_row,
    count_flops_per_row,
    peak_flops_per_second,
)


class FlopsMeter(Callback):
    """Accumulates FLOPs, tokens, positions and seconds per phase, logs them, and keeps them in the checkpoint.

    FLOPs are counted once per phase by running its own loss on a meta copy of the model (see
    :mod:`tst_lightning.flops` for the convention). Seconds are those of training and its wait for data; validation
    and the writing of checkpoints, up to the next batch, are left out. Logged every
    ``trainer.log_every_n_steps`` steps and at every validation under ``compute/`` and ``throughput/``; losses also go to
    TensorBoard over compute and over data (see :mod:`tst_lightning.callbacks.tensorboard_charts`).

    Args:
        attention: whether attention is counted over all pairs of positions (``full``, the custom of published figures)
            or over those that the causal mask leaves (``causal``), for model and hardware FLOPs, MFU and every axis. Runs
            of different conventions are not compared, and a run keeps the one that it was begun with.
    """

    def __init__(self, attention: AttentionConvention = "full") -> None:
        self.attention = attention
        self.per_phase: dict[str, Totals] = {}
        self.per_corpus: dict[str, int] = {}
        self.flops_per_row: dict[str, int] = {}
        self.hardware_flops_per_row: dict[str, int] = {}
        self._mark = 0.0
        self._paused = False
        self._logged = Totals()
        self._peak: float | None = None

    @property
    def total(self) -> Totals:
        """The whole run so far."""
        return sum(self.per_phase.values(), Totals())

    # -- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Totals per phase, tokens per corpus, and the convention that they were counted by."""
        return {
            "attention": self.attention,
            "phases": {name: asdict(totals) for name, totals in self.per_phase.items()},
            "corpora": dict(self.per_corpus),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from saved totals.

        Raises:
            ConfigError: they were counted by the other convention.
        """
        was = state_dict.get("attention", "full")
        if was != self.attention:
            raise ConfigError(
                f"the checkpoint's FLOPs count attention as {was}, FlopsMeter.attention is {self.attention}: totals would"
                f" mix both; set it to {was}, or start a new run"
            )
        # Older checkpoints lack hardware FLOPs: nothing was computed twice.
        self.per_phase = {
            name: Totals(**({"hardware_flops": totals["flops"]} | totals))
            for name, totals in state_dict["phases"].items()
        }
        self.per_corpus = dict(state_dict["corpora"])

    # -- counting -----------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Counts what a row of each phase costs, and gives TensorBoard its axes of compute and data."""
        if stage != "fit":
            return
        add_axes(trainer, lambda: self.total)
        config, seq_len = pl_module.config, trainer.datamodule.seq_len  # type: ignore[attr-defined]
        for name, phase, _, _ in pl_module.schedule:
            expected = closed_form_flops_per_row(
                config, phase.row_positions(seq_len), self.attention, phase.uses_extra_head
            )
            flops = hardware_flops = count_flops_per_row(config, phase, seq_len, self.attention)
            if pl_module.activation_checkpointing != "none":
                hardware_flops = count_flops_per_row(
                    config, phase, seq_len, self.attention, pl_module.activation_checkpointing
                )
            self.flops_per_row[name], self.hardware_flops_per_row[name] = flops, hardware_flops
            if abs(flops / expected - 1) > 0.01:
                rank_zero_warn(
                    f"phase '{name}' counts {flops:.4g} FLOPs a row, the closed form for decoders with softmax attention"
                    f" gives {expected:.4g}: either the architecture is none, or the counter missed a kernel"
                )
        self._peak = peak_flops_per_second(trainer.strategy.root_device, str(trainer.precision))
        if self._peak is None and trainer.strategy.root_device.type == "cuda":
            rank_zero_warn("the peak of this device at this precision is not known: no MFU is logged")

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Starts the clock."""
        write_layout(trainer)
        self._logged = self.total
        self._mark = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Books the time up to here, so that validation is left out."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not self._paused:
            self._book_time(pl_module.schedule.at(max(0, trainer.global_step - 1)).name)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Stops the clock until the next step."""
        self._paused = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Starts the clock again after a validation or a checkpoint."""
        if self._paused:
            self._mark, self._paused = time.perf_counter(), False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Adds one micro-batch of every rank; logs every ``log_every_n_steps`` steps."""
        name = batch["phase"]
        rows = len(batch["tokens"]) * trainer.world_size
        positions = pl_module.phases[name].row_positions(trainer.datamodule.seq_len)  # type: ignore[attr-defined]
        self.per_phase[name] = self.per_phase.get(name, Totals()) + Totals(
            flops=rows * self.flops_per_row[name],
            tokens=rows * positions * batch["bag_size"],
            positions=rows * positions,
            hardware_flops=rows * self.hardware_flops_per_row[name],
        )
        for corpus, mine in zip(trainer.datamodule.corpora, batch["corpus_rows"], strict=True):  # type: ignore[attr-defined]
            tokens = mine * trainer.world_size * positions * batch["bag_size"]
            self.per_corpus[corpus.name] = self.per_corpus.get(corpus.name, 0) + tokens
        self._book_time(name)
        if (batch_idx + 1) % (trainer.accumulate_grad_batches * trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            self._log(trainer, pl_module, self._throughput(trainer) | self._where(pl_module, batch))

    def _book_time(self, phase: str) -> None:
        now = time.perf_counter()
        self.per_phase.setdefault(phase, Totals()).seconds += now - self._mark
        self._mark = now

    # -- logging ------------------------------------------------------------------------------------------------

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Logs the totals beside the validation metrics."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._paused = True
        self._log(trainer, pl_module, {})
        for logger in trainer.loggers:
            # A killed run must not lose log rows that lie before the checkpoint it goes on from.
            logger.save()

    def _log(self, trainer: Trainer, pl_module: Any, more: dict[str, float]) -> None:
        values = {f"compute/{key}": value for key, value in asdict(self.total).items()} | more
        values["compute/step"] = trainer.global_step
        if len(self.per_corpus) > 1:
            values |= {f"compute/tokens/{name}": tokens for name, tokens in self.per_corpus.items()}
        # Straight to the loggers: LightningModule.log rounds to float32, and these are counts of up to 1e24.
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def _throughput(self, trainer: Trainer) -> dict[str, float]:
        since, self._logged = self.total - self._logged, self.total
        peak = None if self._peak is None else self._peak * trainer.world_size
        rates = since.rates(trainer.log_every_n_steps, peak)  # type: ignore[attr-defined]
        return {f"throughput/{key}": value for key, value in rates.items()} | self._memory(trainer)

    def _memory(self, trainer: Trainer) -> dict[str, float]:
        if trainer.strategy.root_device.type == "cuda":
            return {"memory/device_peak_bytes": torch.cuda.max_memory_allocated(trainer.strategy.root_device)}
        unit = 1 if sys.platform == "darwin" else 1024
        return {"memory/process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}

    @staticmethod
    def _where(pl_module: Any, batch: dict[str, Any]) -> dict[str, float]:
        names = [entry.name for entry in pl_module.schedule]
        return {"phase/index": names.index(batch["phase"]), "phase/bag_size": batch["bag_size"]}
