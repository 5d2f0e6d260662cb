"""The LightningModule: hands each step to the phase that it belongs to, and validates on next tokens in every phase."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedConfig

from tst_lightning.continuation import (
    model_settings,
    optimizer_settings,
    random_state,
    refuse_another,
    refuse_other_weights,
    restore_random_state,
)
from tst_lightning.errors import ConfigError, RunError
from tst_lightning.fully_sharded import FullyShardedStrategy
from tst_lightning.metrics import LossByPosition, NextTokenMetrics, score_mixture
from tst_lightning.modeling import (
    ActivationCheckpointing,
    CausalLM,
    build_causal_lm,
    check_fits,
    check_same_tokenizer,
    check_trainable,
    checkpoint_activations,
    compile_layers,
    initialise,
    load_weights,
    read_config,
    weights_sha256,
)
from tst_lightning.optim import HIDDEN, WarmupStableDecay, decay_groups
from tst_lightning.phases import NextTokenByPosition, NextTokenPhase, PhaseSchedule, PhaseStrategy, ScheduledPhase


class SuperpositionModule(LightningModule):
    """Trains a Hugging Face causal LM through an ordered schedule of phases.

    Weights, optimizer state and learning-rate schedule carry on across a phase switch; only what a row means and what
    is predicted change.

    Args:
        phases: name to phase, in the order of training; names appear in the log.
        config: Hugging Face configuration of the model, such as ``transformers.LlamaConfig``, whose weights are drawn.
        initial_weights: a local Hugging Face folder, such as ``tst export`` writes, to take configuration and first weights
            from, in place of ``config``: config.json and safetensors alone. A run that goes on from a checkpoint reads no
            weights there.
        optimizer: any torch optimizer; matrices take its weight decay, vectors none.
        lr_schedule: learning-rate schedule over all optimizer steps, or over each phase's.
        compile: compile each transformer layer, in half precision also the loss, by torch.compile at its first call (needs
            a C++ compiler, on a GPU Triton); checkpoints are the same with and without it.
        activation_checkpointing: ``full`` keeps of each layer its input alone, and runs it forward again when its gradient
            is due: a fraction of the memory for about a quarter more work, the same numbers; ``selective`` keeps also what
            matrix products and attention gave, and computes none of them twice: about half the memory; ``none`` keeps
            everything.

    Attributes:
        begun_from: of first weights that were read: ``folder``, ``sha256`` of its safetensors, and ``tokenizer_compared``,
            whether it had one to hold against the shards'; None if they were drawn.
        has_checkpoint: set it where a checkpoint is about to be restored, so that first weights are not read before.
        scores: of the last ``validate`` or ``test``, by the names of :func:`~tst_lightning.metrics.score_mixture`.
        loss_by_position: of the same, (L,) nats a token of each corpus, by its name.
    """

    def __init__(
        self,
        phases: dict[str, PhaseStrategy],
        config: PreTrainedConfig | None = None,
        initial_weights: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_schedule: WarmupStableDecay = WarmupStableDecay(),  # noqa: B008 - immutable, and shown by --help
        compile: bool = False,
        activation_checkpointing: ActivationCheckpointing = "none",
    ) -> None:
        super().__init__()
        if (config is None) == (initial_weights is None):
            raise ConfigError(
                "model.config and model.initial_weights are both "
                + ("not given" if config is None else "given")
                + "; give one of them: a configuration, or the folder of a model to go on from"
            )
        self.config: PreTrainedConfig = config or read_config(str(initial_weights))
        self.initial_weights = initial_weights
        self.begun_from: dict[str, Any] | None = None
        self.has_checkpoint = False
        self.phases = phases
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.compile_layers = compile
        self.activation_checkpointing = activation_checkpointing
        self.validation: NextTokenPhase = NextTokenPhase()
        self.scores: dict[str, Tensor] = {}
        self.loss_by_position: dict[str, Tensor] = {}
        self.model: CausalLM
        self._schedule: PhaseSchedule | None = None
        self._corpus_loss: Tensor = torch.zeros(())
        self._corpus_rows: list[int] = []
        self._planned_steps: int | None = None
        self._planned_switches: list[int] = []
        self._gradient_norm: Tensor | None = None
        self._norm_to_log: Tensor = torch.zeros(())

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
        """Builds the model, once, where the strategy wants it.

        Raises:
            ConfigError: it can't be built, trained as it is meant to be, its activations not checkpointed, or it not be
                sharded; or the first weights can't be had from ``initial_weights``, or were learned with another tokenizer.
        """
        if not hasattr(self, "model"):
            check_trainable(self.config)
            with torch.device("meta"):
                model = build_causal_lm(self.config)
                model.equip(self.phases.values())
            checkpoint_activations(model.lm, self.activation_checkpointing)
            if self.compile_layers and self.trainer.state.fn == "fit":  # scoring alone would not win its time back
                compile_layers(model.lm)
                model.compiled = True
            strategy = self.trainer.strategy
            if isinstance(strategy, FullyShardedStrategy):
                strategy.shard(model)
            if self.initial_weights is None or self.has_checkpoint:
                initialise(model.lm, strategy.root_device)  # a checkpoint's weights take their place
            else:
                self._begin_from(self.initial_weights, model, strategy.root_device)
            if model.extra_head is not None:
                model.extra_head.initialise(strategy.root_device)
            self.model = model  # not before: Lightning would move it when it takes down what was refused

    def _begin_from(self, folder: str, model: CausalLM, device: torch.device) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        compared = check_same_tokenizer(folder, data.hashes["tokenizer_sha256"])
        load_weights(model.lm, folder, device)
        self.begun_from = {"folder": folder, "sha256": weights_sha256(folder), "tokenizer_compared": compared}

    def setup(self, stage: str) -> None:
        """Checks the model against the data, and readies the metrics.

        Raises:
            ConfigError: an id of the shards is outside the model's vocabulary, rows are longer than its positions, a phase
                can't train such a model, or gradients are to be clipped other than by norm.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        check_fits(self.config, data, self.initial_weights)
        algorithm = self.trainer.gradient_clip_algorithm
        if algorithm not in (None, "norm"):
            raise ConfigError(
                f"trainer.gradient_clip_algorithm is '{str.__str__(algorithm)}'; only 'norm' is supported"
            )
        if stage == "fit":  # any model can be scored, whatever the phases could train
            for phase in self.phases.values():
                phase.setup(data.tokenizer.end_of_document_id, self.config)
        self.val_metrics = nn.ModuleDict(
            {corpus.name: NextTokenMetrics(corpus.manifest.val.bytes_per_token) for corpus in data.corpora}
        )
        self.position_metrics = nn.ModuleDict()
        if stage != "fit":  # there validations are many, and are to cost nothing more
            self.validation = NextTokenByPosition()
            self.position_metrics.update({corpus.name: LossByPosition(data.seq_len) for corpus in data.corpora})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, and the schedule stepped with it."""
        total, switches = self.trainer.max_steps, self.schedule.switches
        self.lr_schedule.check_fits({entry.name: entry.steps for entry in self.schedule})
        optimizer = self.new_optimizer()
        scheduler = LambdaLR(optimizer, lambda step: self.lr_schedule.factor(step, total, switches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def new_optimizer(self) -> Optimizer:
        """The optimizer over decay and no-decay groups, as before the first step.

        Raises:
            ConfigError: it refuses its values.
        """
        groups = decay_groups(self.model.named_parameters(), self.model.embeddings)
        try:
            optimizer = self.optimizer(groups)
        except (ValueError, TypeError, RuntimeError, OverflowError, AssertionError) as error:
            raise ConfigError(f"model.optimizer refuses its values: {str(error) or type(error).__name__}") from error
        for group in optimizer.param_groups:
            group.pop(HIDDEN, None)
        return optimizer

    @property
    def consequence(self) -> str | None:
        """What it means for the learning rate that the run goes on with another number of steps than it was laid out
        for; None where it is the same.
        """
        was, now = self._planned_steps, self.trainer.max_steps
        if was in (None, now):
            return None
        step, factor = self.trainer.global_step, self.lr_schedule.factor
        laid_out = (was, self._planned_switches), (now, self.schedule.switches)
        before, after = (factor(step, *steps) for steps in laid_out)
        if all(factor(k, *laid_out[0]) == factor(k, *laid_out[1]) for k in range(step)):
            return f"{now:,} steps instead of {was:,}: the learning rate had not begun to decay and is none the worse"
        return (
            f"{now:,} steps instead of {was:,}: the learning rate had begun to decay, and goes from {before:.0%} of its"
            f" peak back to {after:.0%}; this is not the run that one laid out for {now:,} steps would have been"
        )

    # -- training -----------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Keeps the step under which loggers write: Lightning's is one short after a checkpoint of a final validation
        that ``val_check_interval`` does not name.
        """
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """The phase's loss on a batch of its rows.

        Args:
            batch: ``tokens`` (B, phase.row_tokens(L)) int64, and the phase that the stream cut them for.
            batch_idx: micro-batch of the run.

        Returns:
            ``loss`` in nats a position, to be minimised; ``row_losses`` (B,), the cross-entropy of each row; and of a
            mixture of experts ``balance_loss`` and ``expert_loads`` (see :class:`~tst_lightning.losses.Balance`).

        Raises:
            RunError: stream and run disagree about the phase.
        """
        name, phase, first_step, steps = self.current
        if (batch["phase"], batch["bag_size"]) != (name, phase.bag_size):
            raise RunError(
                f"step {self.trainer.global_step} belongs to phase '{name}' (bag size {phase.bag_size}), but its batch was"
                f" cut for '{batch['phase']}' (bag size {batch['bag_size']}): data stream and run are out of step"
            )
        phase.begin_step((self.trainer.global_step - first_step) / steps)
        loss = self.model(batch["tokens"], phase)
        results = {"loss": loss.mean, "row_losses": loss.parts.detach() * len(loss.parts) / loss.divisor}
        if loss.balance is not None:
            results |= {"balance_loss": loss.balance.loss.detach(), "expert_loads": loss.balance.loads}
        return results

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        """Logs the step's loss, the mean over its micro-batches and ranks, under the phase's own tag; of a mixture also
        each corpus' own, where the step read it; and the norm of its gradient before clipping.

        After the last step it has the final model validated, whether or not ``val_check_interval`` divides the run. The
        step's gradients are let go.

        Straight to the loggers: LightningModule.log goes on repeating a finished phase's last value, and takes its time
        at every step, logged or not.
        """
        accumulate = self.trainer.accumulate_grad_batches
        corpora = torch.arange(len(batch["corpus_rows"]), device=self.device)
        of_corpus = (batch["corpus"] == corpora[:, None]).to(outputs["row_losses"])
        self._corpus_loss = self._corpus_loss + of_corpus @ outputs["row_losses"]
        self._corpus_rows = [
            a + b for a, b in zip(self._corpus_rows or [0] * len(corpora), batch["corpus_rows"], strict=True)
        ]
        if (batch_idx + 1) % accumulate:
            return
        # Lightning would hold them through the next forward pass, at whose end memory is at its height.
        self.trainer.optimizers[0].zero_grad()
        if self.trainer.global_step >= self.trainer.max_steps:
            self.trainer.should_stop = True  # has Lightning validate the final model, wherever the interval falls
        loss, rows = self._corpus_loss, self._corpus_rows
        self._corpus_loss, self._corpus_rows = torch.zeros((), device=self.device), []
        if (batch_idx + 1) % (accumulate * self.trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            # All ranks draw the corpora in the same order, so their rows agree.
            sums = self.trainer.strategy.reduce(loss, reduce_op="mean").tolist()
            tag = f"train/{batch['phase']}/loss"
            values = {tag: sum(sums) / sum(rows), "train/grad_norm": float(self._norm_to_log)}
            if len(rows) > 1:
                names = [corpus.name for corpus in self.trainer.datamodule.corpora]  # type: ignore[attr-defined]
                values |= {f"{tag}/{n}": s / r for n, s, r in zip(names, sums, rows, strict=True) if r}
            for logger in self.loggers:
                logger.log_metrics(values, step=self.trainer.fit_loop.epoch_loop._batches_that_stepped)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by global norm if asked to; the norm before clipping is logged with the step's loss."""
        self._norm_to_log = self.gradient_norm()
        self._gradient_norm = None
        if gradient_clip_val is not None:
            clip_grads_with_norm_(self.model.parameters(), gradient_clip_val, self._norm_to_log)

    def gradient_norm(self) -> Tensor:
        """Global norm of the step's gradient before clipping, a scalar; taken once a step, for all who ask.

        The first to ask is the NonFiniteGuard: a callback that changes gradients has to stand before it.
        """
        if self._gradient_norm is None:
            norm = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
            self._gradient_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return self._gradient_norm

    # -- validation ---------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Next-token loss of ``tokens`` (B, L + 1) of one corpus, whatever the phase."""
        metrics: Any = list(self.val_metrics.values())[dataloader_idx]
        loss = self.model(batch["tokens"], self.validation)
        if "again" not in batch:  # run to keep the other ranks company
            metrics.update(loss)
            if self.position_metrics:
                by_position: Any = list(self.position_metrics.values())[dataloader_idx]
                by_position.update(loss)

    def on_validation_epoch_end(self) -> None:
        """Logs loss (nats a token), perplexity and bits per byte over the validation splits."""
        self._log_metrics("val")

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """As :meth:`validation_step`."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """As :meth:`on_validation_epoch_end`, under ``test/``."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        shares = {corpus.name: corpus.share for corpus in data.corpora}
        metrics: Any = dict(self.val_metrics.items())
        scores = score_mixture(metrics, shares)
        by_position: Any = dict(self.position_metrics.items())
        if by_position:
            self.scores = scores
            self.loss_by_position = {name: metric.compute() for name, metric in by_position.items()}
        for metric in (*metrics.values(), *by_position.values()):
            metric.reset()
        self.log_dict({f"{stage}/{name}": value.float() for name, value in scores.items()}, prog_bar=True)

    # -- checkpoint ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the run is made with and laid out for, and the random state, so that dropout goes on as it would."""
        checkpoint["total_steps"] = self.trainer.max_steps
        checkpoint["switches"] = self.schedule.switches
        checkpoint["made_with"] = {
            "model.config": model_settings(self.config),
            "model.optimizer": optimizer_settings(self.trainer.optimizers[0]),
        }
        if self.begun_from is not None:
            checkpoint["begun_from"] = self.begun_from
        checkpoint["rng"] = random_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the random state until training begins; set-up still draws from it.

        Raises:
            ConfigError: the checkpoint is of another model, or model, first weights or optimizer were configured otherwise.
        """
        # A sharded checkpoint's weights have been read by the strategy already.
        refuse_other_weights(self.state_dict(), checkpoint.get("state_dict", self.state_dict()))
        self.begun_from = checkpoint.get("begun_from")
        if self.initial_weights is not None and self.begun_from is None:
            raise ConfigError(
                f"the checkpoint's run did not begin from model.initial_weights ('{self.initial_weights}'), which would be"
                " recorded but not used; leave it out, or start a new run"
            )
        made_with, config = checkpoint.get("made_with", {}), model_settings(self.config)
        refuse_another("model.config", made_with.get("model.config", config), config)
        if self.trainer.state.fn == "fit":  # before a state is loaded into another's optimizer
            optimizer = optimizer_settings(self.new_optimizer())
            refuse_another("model.optimizer", made_with.get("model.optimizer", optimizer), optimizer)
        self._rng = checkpoint.get("rng")
        self._planned_steps = int(checkpoint.get("total_steps", self.trainer.max_steps))
        # Older checkpoints lack them, and know no schedule that asks.
        self._planned_switches = [int(switch) for switch in checkpoint.get("switches", [])]

    def on_train_start(self) -> None:
        """Restores the random state of a resumed run.

        Raises:
            ConfigError: clipping would be wrong under this optimizer and precision.
        """
        optimizer = self.trainer.optimizers[0]
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ConfigError(
                f"trainer.precision is {self.trainer.precision}, under which a fused optimizer takes its loss scale out"
                " only after gradients are clipped; use bf16-mixed, or set model.optimizer.init_args.fused to false"
            )
        self._corpus_loss, self._corpus_rows = torch.zeros((), device=self.device), []
        if self._planned_steps is not None:
            # The saved rate is of the schedule that the checkpoint's run was laid out for.
            factor = self.lr_schedule.factor(self.trainer.global_step, self.trainer.max_steps, self.schedule.switches)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        if rng := getattr(self, "_rng", None):
            restore_random_state(rng)
