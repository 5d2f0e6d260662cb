"""What a variant does at a phase switch, where the method itself carries everything on."""

import inspect
import os
from abc import abstractmethod
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed.fsdp import FSDPModule

from tst_lightning.errors import ConfigError
from tst_lightning.modeling import redraw_embeddings


class AtSwitch(Callback):
    """Acts once before the first step of a phase, on all processes alike.

    It keeps no state: a run that goes on from the checkpoint at the switch acts as one that never stopped, and one that
    goes on from a later checkpoint finds it done.

    Args:
        phases: names of the phases to act before; None takes every phase but the first.
    """

    def __init__(self, phases: list[str] | None = None) -> None:
        self.phases = phases

    def acts_before(self, pl_module: Any) -> list[str]:
        """The phases of a run before which it acts."""
        following = [entry.name for entry in pl_module.schedule][1:]
        return [name for name in following if self.phases is None or name in self.phases]

    def settings(self) -> dict[str, Any]:
        """What it was built with, by the names of its arguments; a subclass keeps each under its name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Checks the names, and says where there is nothing to act at.

        Raises:
            ConfigError: one is of no phase that follows another.
        """
        known = list(pl_module.phases)[1:]
        for name in self.phases or ():
            if name not in known:
                raise ConfigError(
                    f"{type(self).__name__}.phases names '{name}', before which there is no switch; those with one are"
                    f" {', '.join(known) or 'none'}"
                )
        if stage == "fit" and not self.acts_before(pl_module):
            rank_zero_warn(f"{type(self).__name__} has no phase switch to act at in this run")

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Acts before the first micro-batch of a phase."""
        first = trainer.global_step in pl_module.schedule.switches and batch_idx % trainer.accumulate_grad_batches == 0
        if first and pl_module.current.name in self.acts_before(pl_module):
            self.act(trainer, pl_module)

    @abstractmethod
    def act(self, trainer: Trainer, pl_module: Any) -> None:
        """What is done at the switch."""


class ResetOptimizer(AtSwitch):
    """Begins a phase with the optimizer as it was before the run's first step: no moments, no counts of steps.

    Weights, learning-rate schedule and weight decay go on. The method carries the state on; a public ablation at 100M
    found the reset worse (loss 2.303 against 2.214). Adam's first steps after it go by one or a few gradients:
    ``lr_schedule.rewarm_steps`` keeps them small. Costs nothing.
    """

    def act(self, trainer: Trainer, pl_module: Any) -> None:
        """Puts the state of a new optimizer in the place of the old one's."""
        state = trainer.optimizers[0].state
        state.clear()
        state.update(pl_module.new_optimizer().state)


class ReinitialiseEmbeddings(AtSwitch):
    """Draws input embedding and LM head anew before a phase, by the architecture's own rules: a control.

    The method's phases share them. Without that its gain is gone (paper, Table 2: 3B, 2.938 against 2.676, baseline
    2.808). Everything else goes on, the optimizer's state of these weights too, unless :class:`ResetOptimizer` stands
    beside it. The values follow from the run's seed and the step: the same on every layout. Other random numbers of the
    run (dropout) are not moved. Costs a draw of the two matrices on the CPU.
    """

    def act(self, trainer: Trainer, pl_module: Any) -> None:
        """Draws them."""
        for module in pl_module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # after a validation they are still gathered, and would be used once more as they were
        redraw_embeddings(pl_module.model.lm, int(os.environ.get("PL_GLOBAL_SEED", 0)) + trainer.global_step)
