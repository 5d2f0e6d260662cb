"""Learning-rate schedule and parameter groups."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

from tst_lightning.errors import ConfigError

# Key of a parameter group, there while an optimizer is built, and not part of its state.
HIDDEN = "hidden_matrices"
# Arguments of WarmupStableDecay that runs of before it had them lack, and the values by which they were made.
LATER_SETTINGS = {"shape": "linear", "rewarm_steps": 0, "per_phase": False}


class WarmupStableDecay:
    """Warmup-stable-decay: up, flat, down to a floor; one schedule across all phases unless told otherwise. Where a rise
    and the fall overlap, they multiply.

    With ``decay_share: 1`` and ``shape: cosine`` it is the cosine schedule; with ``per_phase: true`` each phase has one of
    its own, as the two stages of patch-level training have (Shao et al., arXiv 2407.12665).

    Args:
        warmup_steps: optimizer steps of the linear rise; step 0 already moves, by 1 / (warmup_steps + 1).
        decay_share: share of all steps that the fall takes, 0 to 1; with ``per_phase``, of the phase's.
        floor: the factor at the end of the fall, 0 to 1.
        shape: of the fall, ``linear`` or ``cosine``.
        rewarm_steps: optimizer steps over which the rate rises from near 0 again after every phase switch, as after the
            start, to what it would be without.
        per_phase: rise, plateau and fall in every phase, over its own steps.

    Raises:
        ConfigError: a value outside its range, or both ``rewarm_steps`` and ``per_phase``.
    """

    def __init__(
        self,
        warmup_steps: int = 0,
        decay_share: float = 0.1,
        floor: float = 0.0,
        shape: Literal["linear", "cosine"] = "linear",
        rewarm_steps: int = 0,
        per_phase: bool = False,
    ) -> None:
        for name, count in (("warmup_steps", warmup_steps), ("rewarm_steps", rewarm_steps)):
            if count < 0:
                raise ConfigError(f"lr_schedule.{name} is {count}; it must not be negative")
        for name, value in (("decay_share", decay_share), ("floor", floor)):
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"lr_schedule.{name} is {value}; it must lie between 0 and 1")
        if rewarm_steps and per_phase:
            raise ConfigError(
                f"lr_schedule.rewarm_steps is {rewarm_steps}, but with lr_schedule.per_phase every phase begins with"
                " warmup_steps; set one of the two"
            )
        self.warmup_steps = warmup_steps
        self.decay_share = decay_share
        self.floor = floor
        self.shape = shape
        self.rewarm_steps = rewarm_steps
        self.per_phase = per_phase

    def factor(self, step: int, total_steps: int, switches: Sequence[int] = ()) -> float:
        """What the learning rate is multiplied by.

        Args:
            step: optimizer step, from 0.
            total_steps: of the run.
            switches: the steps at which a new phase begins, ascending, the run's start left out.

        Returns:
            A factor in (0, 1], or the floor from ``total_steps`` on.
        """
        begin = max((switch for switch in switches if switch <= step), default=0)
        rise = self._rise(step - begin, self.rewarm_steps) if begin else 1.0
        if self.per_phase:
            total_steps = min((switch for switch in switches if switch > step), default=total_steps) - begin
            step -= begin
        rise *= self._rise(step, self.warmup_steps)
        decay_steps = round(self.decay_share * total_steps)
        left = total_steps - step
        fall = 1.0 if left > decay_steps else max(0.0, left / (decay_steps + 1))
        if self.shape == "cosine":
            fall = math.sin(math.pi / 2 * fall) ** 2  # (1 - cos(pi fall)) / 2, exact near 0 too
        return rise * (self.floor + (1.0 - self.floor) * fall)

    def check_fits(self, phases: Mapping[str, int]) -> None:
        """Checks that every rise ends within what it is the rise of.

        Args:
            phases: name to optimizer steps, in order.

        Raises:
            ConfigError: ``warmup_steps`` takes the whole run, or with ``per_phase`` a whole phase, or ``rewarm_steps`` a
                whole phase that it begins.
        """
        total, rewarmed = sum(phases.values()), list(phases.items())[1:]
        if self.warmup_steps >= total and not self.per_phase:
            raise ConfigError(
                f"lr_schedule.warmup_steps is {self.warmup_steps}, but the run has only {total} steps; lower it, or raise"
                " trainer.max_steps"
            )
        spans = phases.items() if self.per_phase else rewarmed
        key = "warmup_steps" if self.per_phase else "rewarm_steps"
        for name, steps in spans:
            if getattr(self, key) >= steps:
                raise ConfigError(
                    f"lr_schedule.{key} is {getattr(self, key)}, but phase '{name}' has only {steps} steps; lower it, or"
                    " raise the phase's share or trainer.max_steps"
                )

    @staticmethod
    def _rise(step: int, steps: int) -> float:
        return min(1.0, (step + 1) / (steps + 1))


def decay_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], embeddings: Iterable[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """Splits trainable parameters into matrices, which decay, and vectors (norms, biases), which don't.

    Args:
        parameters: names and parameters.
        embeddings: those of them that look ids up, or score them.

    Returns:
        Parameter groups ``decay`` and ``no_decay``; the second overrides the optimizer's ``weight_decay`` by 0. Under
        :data:`HIDDEN` the first says of each of its parameters whether it is a matrix of the hidden layers: 2-D, and no
        embedding. A group without parameters is left out.
    """
    trainable = [parameter for _, parameter in parameters if parameter.requires_grad]
    matrices, apart = [p for p in trainable if p.ndim >= 2], {id(parameter) for parameter in embeddings}
    groups: list[dict[str, Any]] = [
        {"name": "decay", "params": matrices, HIDDEN: [p.ndim == 2 and id(p) not in apart for p in matrices]},
        {"name": "no_decay", "params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
