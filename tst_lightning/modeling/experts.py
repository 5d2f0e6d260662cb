"""A mixture's experts by grouped products, in the dtype that autocast asks for.

A grouped product multiplies the positions of all experts by one kernel. PyTorch leaves it out of autocast, so that under
bf16-mixed the experts, most of a mixture's work, would be multiplied in float32. Everything else is transformers' own
implementation.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from tst_lightning.fused_cross_entropy import autocast_dtype

NAME = "autocast_grouped_mm"


class _InDtype:
    """A layer's experts with their weights in another dtype; gradients reach the weights themselves."""

    def __init__(self, experts: nn.Module, dtype: torch.dtype) -> None:
        self._experts = experts
        self._dtype = dtype

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._experts, name)
        return value.to(self._dtype) if isinstance(value, nn.Parameter) else value


def grouped_experts(experts: nn.Module, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """What the chosen experts give for each position, weighted and added up.

    Under autocast both products, and what lies between them, are in its dtype, as a linear layer's are; float64 is left
    alone, as there. Without autocast it is transformers' ``grouped_mm``.

    Args:
        experts: the module that holds a layer's experts; weights are (experts, out, in), or transposed.
        hidden: (N, d).
        chosen: (N, k) indices of experts.
        weights: (N, k) of the chosen.

    Returns:
        (N, d) in the products' dtype.
    """
    if (dtype := autocast_dtype(hidden)) is not None:
        experts, hidden = _InDtype(experts, dtype), hidden.to(dtype)  # type: ignore[assignment]
    return grouped_mm_experts_forward(experts, hidden, chosen, weights)


ALL_EXPERTS_FUNCTIONS.register(NAME, grouped_experts)
