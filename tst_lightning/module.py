"""The LightningModule: hands each step to the phase that it belongs to, and validates on next tokens in every phase."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedConfig

from tst_lightning.errors import ConfigError, RunError
from tst_lightning.metrics import NextTokenMetrics
from tst_lightning.modeling import CausalLM, build_causal_lm
from tst_lightning.optim import WarmupStableDecay, decay_groups
from tst_lightning.phases import NextTokenPhase, PhaseSchedule, PhaseStrategy, ScheduledPhase


class SuperpositionModule(LightningModule):
    """Trains a Hugging Face causal LM through an ordered schedule of phases.

    Weights, optimizer state and learning-rate schedule carry on across a phase switch; only what a row means and what
    is predicted change.

    Args:
        config: Hugging Face configuration of the model, such as ``transformers.LlamaConfig``.
        phases: name to phase, in the order of training; names appear in the log.
        optimizer: any torch optimizer; matrices take its weight decay, vectors none.
        schedule: learning-rate schedule over all optimizer steps.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        phases: dict[str, PhaseStrategy],
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_schedule: WarmupStableDecay = WarmupStableDecay(),  # noqa: B008 - immutable, and shown by --help
    ) -> None:
        super().__init__()
        self.config = config
        self.phases = phases
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.validation = NextTokenPhase()
        self.model: CausalLM
        self._schedule: PhaseSchedule | None = None
        self._step_loss: Tensor = torch.zeros(())

    # -- set-up -------------------------------------------------------------------------------------------------

    @property
    def schedule(self) -> PhaseSchedule:
        """The phases laid over the run's steps.

        Raises:
            ConfigError: the run has no fixed number of steps.
        """
        if self._schedule is None:
            steps = self.trainer.max_steps
            if steps < 1:
                raise ConfigError(
                    f"trainer.max_steps is {steps}; phases are shares of a fixed number of steps, name it"
                )
            self._schedule = PhaseSchedule(self.phases, steps)
        return self._schedule

    @property
    def current(self) -> ScheduledPhase:
        """The phase of the step that is being taken."""
        return self.schedule.at(self.trainer.global_step)

    def configure_model(self) -> None:
        """Builds the model, once, where the strategy wants it."""
        if not hasattr(self, "model"):
            self.model = build_causal_lm(self.config)

    def setup(self, stage: str) -> None:
        """Checks the model against the data, and readies the metrics.

        Raises:
            ConfigError: an id of the shards is outside the model's vocabulary, rows are longer than its positions, or
                gradients are to be clipped other than by norm.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.manifest.vocab_size > self.config.vocab_size:
            raise ConfigError(
                f"the shards' tokenizer has {data.manifest.vocab_size:,} ids, the model's vocabulary"
                f" {self.config.vocab_size:,}; set model.config.vocab_size to {data.manifest.vocab_size} or more"
            )
        positions = getattr(self.config, "max_position_embeddings", None)
        if positions is not None and data.seq_len > positions:
            raise ConfigError(
                f"data.seq_len is {data.seq_len:,}, but the model has {positions:,} positions; lower data.seq_len or raise"
                " model.config.max_position_embeddings"
            )
        algorithm = self.trainer.gradient_clip_algorithm
        if algorithm not in (None, "norm"):
            raise ConfigError(
                f"trainer.gradient_clip_algorithm is '{str.__str__(algorithm)}'; only 'norm' is supported"
            )
        self.val_metrics = NextTokenMetrics(data.manifest.val.bytes_per_token)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over decay and no-decay groups, and the schedule stepped with it."""
        total = self.trainer.max_steps
        if self.lr_schedule.warmup_steps >= total > 0:
            raise ConfigError(
                f"lr_schedule.warmup_steps is {self.lr_schedule.warmup_steps}, but the run has only {total} steps;"
                " lower it, or raise trainer.max_steps"
            )
        try:
            optimizer = self.optimizer(decay_groups(self.model.named_parameters()))
        except ValueError as error:
            raise ConfigError(f"model.optimizer refuses its values: {error}") from error
        scheduler = LambdaLR(optimizer, lambda step: self.lr_schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # -- training -----------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The phase's loss, in nats a position, of a batch of its rows.

        Args:
            batch: ``tokens`` (B, phase.row_tokens(L)) int64, and the phase that the stream cut them for.
            batch_idx: micro-batch of the run.

        Raises:
            RunError: stream and run disagree about the phase.
        """
        name, phase, _, _ = self.current
        if (batch["phase"], batch["bag_size"]) != (name, phase.bag_size):
            raise RunError(
                f"step {self.trainer.global_step} belongs to phase '{name}' (bag size {phase.bag_size}), but its batch was"
                f" cut for '{batch['phase']}' (bag size {batch['bag_size']}): data stream and run are out of step"
            )
        return self.model(batch["tokens"], phase).mean

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        """Logs the step's loss, the mean over its micro-batches and ranks, under the phase's own tag.

        Straight to the loggers: LightningModule.log goes on repeating a finished phase's last value.
        """
        accumulate = self.trainer.accumulate_grad_batches
        self._step_loss = self._step_loss + outputs["loss"].detach()  # Lightning has divided it by `accumulate`
        if (batch_idx + 1) % accumulate:
            return
        loss, self._step_loss = self._step_loss, torch.zeros((), device=self.device)
        if (batch_idx + 1) % (accumulate * self.trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            mean = float(self.trainer.strategy.reduce(loss, reduce_op="mean"))
            for logger in self.loggers:
                step = self.trainer.fit_loop.epoch_loop._batches_that_stepped
                logger.log_metrics({f"train/{batch['phase']}/loss": mean}, step=step)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by global norm if asked to, and logs the norm before clipping; one pass over the gradients for both."""
        limit = float("inf") if gradient_clip_val is None else gradient_clip_val
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.log("train/grad_norm", norm)

    # -- validation ---------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Next-token loss of ``tokens`` (B, L + 1), whatever the phase."""
        self.val_metrics.update(self.model(batch["tokens"], self.validation))

    def on_validation_epoch_end(self) -> None:
        """Logs loss (nats a token), perplexity and bits per byte over the whole split."""
        self._log_metrics("val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """As :meth:`validation_step`."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As :meth:`on_validation_epoch_end`, under ``test/``."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        metrics = self.val_metrics.compute()
        self.val_metrics.reset()
        self.log_dict({f"{stage}/{name}": value.float() for name, value in metrics.items()}, prog_bar=True)

    # -- checkpoint ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the random state, so that dropout goes on as it would have."""
        checkpoint["rng"] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            checkpoint["rng"]["cuda"] = torch.cuda.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the random state until training begins; set-up still draws from it.

        Raises:
            ConfigError: the checkpoint is of another model.
        """
        here = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        saved = {name: tuple(value.shape) for name, value in checkpoint.get("state_dict", here).items()}
        for name in sorted(here.keys() | saved.keys()):
            if here.get(name) != saved.get(name):
                raise ConfigError(
                    f"the checkpoint is of another model: '{name}' has shape {saved.get(name, 'none')} in it,"
                    f" {here.get(name, 'none')} here; restore model.config, or start a new run"
                )
        self._rng = checkpoint.get("rng")

    def on_train_start(self) -> None:
        """Restores the random state of a resumed run.

        Raises:
            ConfigError: the run was begun with another optimizer.
        """
        optimizer = self.trainer.optimizers[0]
        if missing := sorted(optimizer.defaults.keys() - optimizer.param_groups[0].keys()):
            raise ConfigError(
                f"the checkpoint is of another optimizer: {type(optimizer).__name__} needs {', '.join(missing)}, which it"
                " does not hold; restore model.optimizer, or start a new run"
            )
        self._step_loss = torch.zeros((), device=self.device)
        if rng := getattr(self, "_rng", None):
            torch.set_rng_state(rng["cpu"])
            if "cuda" in rng and torch.cuda.is_available():
                torch.cuda.set_rng_state(rng["cuda"])
