"""What architectures do to their logits between LM head and softmax."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig

# Names of it in transformers' configurations.
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_FACTORS = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)


@dataclass(frozen=True)
class LogitTransform:
    """``c * tanh(z * factor / divisor / c)`` of logits z.

    Attributes:
        factor: multiplies them (Cohere, Falcon H1).
        divisor: divides them (Granite).
        softcap: c (Gemma 2, arXiv 2408.00118); None leaves out the tanh.
    """

    factor: float = 1.0
    divisor: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "LogitTransform":
        """What a configuration asks for; the identity for most."""

        def named(names: tuple[str, ...]) -> float | None:
            values = (getattr(config, name, None) for name in names)
            return next((float(value) for value in values if isinstance(value, int | float) and value), None)

        return cls(named(_FACTORS) or 1.0, named(_DIVISORS) or 1.0, named(_SOFTCAPS))

    @property
    def scale(self) -> float:
        """Factor and divisor in one; hidden states scaled by it give scaled logits."""
        return self.factor / self.divisor

    def __call__(self, logits: Tensor) -> Tensor:
        """Transforms whole logits, as the architectures do; training transforms them a chunk at a time."""
        if self.factor != 1:
            logits = logits * self.factor
        if self.divisor != 1:
            logits = logits / self.divisor
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits
