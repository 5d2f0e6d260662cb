"""How a mixture of experts uses its experts: what its routers chose, over all micro-batches and ranks."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from tst_lightning.errors import ConfigError

_STATE = "expert_load"


class ExpertLoad(Callback):
    """Logs the loads of experts and the balance loss every ``trainer.log_every_n_steps`` steps, over the steps since.

    A load is the share of a layer's choices that fell on an expert, over the even share: 1 everywhere in a balanced layer.
    Tags are

    - ``experts/load_max/LAYER`` and ``experts/load_min/LAYER``: of the busiest and the least used expert of each layer that
      holds experts, counted from 0; ``experts/load_max`` and ``experts/load_min`` are those of the worst layer;
    - ``experts/unused``: share of all layers' experts that no position was sent to;
    - ``experts/load/EXPERT``: of each expert, the mean over layers;
    - ``experts/balance_loss``: the architecture's own measure of balance, before its coefficient; the mean over
      micro-batches and ranks. Its least value is the number of experts a position. It is taken of all layers together, in
      which the unevenness of single ones cancels: a low measure does not say that their loads are even.

    At validations TensorBoard gets the loads last logged as an image, layers by experts, white at twice the even share.
    Sums stay on the device in between; they are saved with checkpoints, so that a resumed run logs what one that never
    stopped does (with several ranks, to rounding).

    Raises:
        ConfigError: the model has no routers to be listened to.
    """

    def __init__(self) -> None:
        self._loads: Tensor | None = None
        self._balance = torch.zeros(())
        self._micro_batches = 0
        self._logged: Tensor | None = None

    # -- state --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds the sums since the last log, over all ranks."""
        if self._loads is not None and self._micro_batches:
            loads, balance = self._over_ranks(trainer)
            checkpoint[_STATE] = {"loads": loads.cpu(), "balance": balance.cpu(), "micro_batches": self._micro_batches}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Goes on from saved sums, which are the first rank's from then on."""
        if saved := checkpoint.get(_STATE):
            self._loads, self._balance = saved["loads"], saved["balance"]
            self._micro_batches = saved["micro_batches"]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Checks the model, and makes room for the sums on its device.

        Raises:
            ConfigError: it has no routers to be listened to.
        """
        routers = pl_module.model.routers
        if routers is None:
            raise ConfigError(
                f"callbacks has an ExpertLoad, but {type(pl_module.model.lm).__name__} has no experts, or none whose"
                " routers transformers names; remove it"
            )
        if self._loads is None or not trainer.is_global_zero:
            self._loads = torch.zeros(len(routers.modules), routers.experts, dtype=torch.int64)
            self._balance = torch.zeros(())
        self._loads, self._balance = self._loads.to(pl_module.device), self._balance.to(pl_module.device)

    # -- counting -----------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Adds one micro-batch; logs every ``log_every_n_steps`` steps."""
        assert self._loads is not None
        self._loads += outputs["expert_loads"]
        self._balance = self._balance + outputs["balance_loss"]
        self._micro_batches += 1
        if (batch_idx + 1) % (trainer.accumulate_grad_batches * trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            self._log(trainer)

    def _over_ranks(self, trainer: Trainer) -> tuple[Tensor, Tensor]:
        assert self._loads is not None
        reduce = trainer.strategy.reduce
        return reduce(self._loads.clone(), reduce_op="sum"), reduce(self._balance.clone(), reduce_op="sum")

    # -- logging ------------------------------------------------------------------------------------------------

    def _log(self, trainer: Trainer) -> None:
        counts, balance = self._over_ranks(trainer)
        loads = counts.double().cpu()
        loads *= loads.shape[1] / loads.sum(1, keepdim=True)
        most, least, mean = loads.amax(1).tolist(), loads.amin(1).tolist(), loads.mean(0).tolist()
        values = {
            "experts/balance_loss": float(balance) / self._micro_batches / trainer.world_size,
            "experts/unused": float((loads == 0).double().mean()),
            "experts/load_max": max(most),
            "experts/load_min": min(least),
        }
        for layer, (high, low) in enumerate(zip(most, least, strict=True)):
            values |= {f"experts/load_max/{layer}": high, f"experts/load_min/{layer}": low}
        values |= {f"experts/load/{expert}": load for expert, load in enumerate(mean)}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
        self._logged = loads
        self._loads.zero_()  # type: ignore[union-attr]
        self._balance, self._micro_batches = torch.zeros_like(self._balance), 0

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Shows the loads that were logged last."""
        if self._logged is None:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                image = (self._logged / 2).clamp(max=1)
                step = trainer.fit_loop.epoch_loop._batches_that_stepped
                logger.experiment.add_image("experts/loads", image, step, dataformats="HW")
        self._logged = None
