"""Causal attention as one op that computes nothing: on the meta device it has shapes, and a price of its own.

Left to itself attention falls apart into matrix products there, and nothing could tell them from those of weights. As an
op it is counted by the convention asked for, and apart from the rest. It saves for its backward what a fused kernel
saves: q, k, v, the output and one log-sum-exp a row of scores, but no scores.

Shapes: B batch, H heads, G heads of keys and values, L positions, E and D features a head of keys and of values.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from tst_lightning.errors import ConfigError

AttentionConvention = Literal["full", "causal"]

NAME = "counted_attention"
_FORWARD, _BACKWARD = (f"tst_lightning::causal_attention{suffix}" for suffix in ("", "_backward"))

# No kernel of either is registered: anywhere but on meta tensors a call fails rather than gives numbers.
torch.library.define(_FORWARD, "(Tensor query, Tensor key, Tensor value) -> (Tensor, Tensor)")
torch.library.define(
    _BACKWARD,
    "(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse) -> (Tensor, Tensor, Tensor)",
)


@torch.library.register_fake(_FORWARD)
def _(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    (batch, heads, length, _), features = query.shape, value.shape[-1]
    # Laid out as fused kernels do, (B, L, H, D), so that the layer's own transpose back copies nothing.
    out = query.new_empty(batch, length, heads, features).transpose(1, 2)
    return out, query.new_empty(batch, heads, length, dtype=torch.float32)


@torch.library.register_fake(_BACKWARD)
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.tst_lightning.causal_attention_backward(grad, *ctx.saved_tensors)


torch.library.register_autograd(_FORWARD, _backward, setup_context=_save)


def _counted(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    out, _lse = torch.ops.tst_lightning.causal_attention(query, key, value)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _counted)


def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, convention: AttentionConvention) -> int:
    """FLOPs of attention's two products, scores and weighted values, in one forward; a backward takes twice that.

    ``full``: ``2 B H L^2 (E + D)``. ``causal``: each position over itself and the earlier ones alone, the share
    ``(L + 1) / 2L`` of it.

    Args:
        query: (B, H, L, E).
        key: (B, G, L, E).
        value: (B, G, L, D).
        convention: which pairs of positions are counted.

    Raises:
        ConfigError: the convention is neither.
    """
    if convention not in get_args(AttentionConvention):
        raise ConfigError(f"attention is '{convention}'; choose full or causal")
    batch, heads, length, features = query
    pairs = length * key[2] if convention == "full" else length * (length + 1) // 2
    return 2 * batch * heads * pairs * (features + value[-1])


def attention_formulas(convention: AttentionConvention) -> dict[Any, Callable[..., int]]:
    """The op's two formulas, as FlopCounterMode's ``custom_mapping`` wants them."""

    def forward(query: torch.Size, key: torch.Size, value: torch.Size, **_: Any) -> int:
        return attention_flops(query, key, value, convention)

    def backward(grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *rest: Any, **_: Any) -> int:
        return 2 * attention_flops(query, key, value, convention)

    ops = torch.ops.tst_lightning
    return {ops.causal_attention: forward, ops.causal_attention_backward: backward}
