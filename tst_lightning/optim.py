"""Learning-rate schedule and parameter groups."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from tst_lightning.errors import ConfigError


class WarmupStableDecay:
    """Warmup-stable-decay: linear up, flat, linear down to a floor; one schedule across all phases.

    Args:
        warmup_steps: optimizer steps of the rise; step 0 already moves, by 1 / (warmup_steps + 1).
        decay_share: share of all steps that the fall takes, 0 to 1.
        floor: the factor at the end of the fall, 0 to 1.

    Raises:
        ConfigError: a value outside its range.
    """

    def __init__(self, warmup_steps: int = 0, decay_share: float = 0.1, floor: float = 0.0) -> None:
        if warmup_steps < 0:
            raise ConfigError(f"lr_schedule.warmup_steps is {warmup_steps}; it must not be negative")
        for name, value in (("decay_share", decay_share), ("floor", floor)):
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"lr_schedule.{name} is {value}; it must lie between 0 and 1")
        self.warmup_steps = warmup_steps
        self.decay_share = decay_share
        self.floor = floor

    def factor(self, step: int, total_steps: int) -> float:
        """What the learning rate is multiplied by.

        Args:
            step: optimizer step, from 0.
            total_steps: of the run.

        Returns:
            A factor in (0, 1], or the floor from ``total_steps`` on.
        """
        rise = min(1.0, (step + 1) / (self.warmup_steps + 1))
        decay_steps = round(self.decay_share * total_steps)
        left = total_steps - step
        fall = 1.0 if left > decay_steps else max(0.0, left / (decay_steps + 1))
        return rise * (self.floor + (1.0 - self.floor) * fall)


def decay_groups(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Splits trainable parameters into matrices, which decay, and vectors (norms, biases), which don't.

    Args:
        parameters: names and parameters.

    Returns:
        Parameter groups ``decay`` and ``no_decay``; the second overrides the optimizer's ``weight_decay`` by 0.
        A group without parameters is left out.
    """
    trainable = [parameter for _, parameter in parameters if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"name": "decay", "params": [parameter for parameter in trainable if parameter.ndim >= 2]},
        {"name": "no_decay", "params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
