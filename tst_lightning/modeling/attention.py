"""Causal attention without a mask tensor, for every Hugging Face architecture that attends to all earlier positions.

Given a mask, PyTorch's fused attention loses its causal fast path; and transformers' mask code can't run on the meta
device, where models are sized and the FLOPs counted. Training rows have no padding, so the causal flag is all that is
needed, unless positions are to attend within their documents alone: that takes a mask, one for all layers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, PreTrainedConfig

from tst_lightning.errors import ConfigError

NAME = "causal_sdpa"
# For models without storage: of the shape of attention, whatever an architecture asks of it.
SHAPE_NAME = "causal_shape"

# What some architectures ask of attention beyond causality: bounded scores, sinks, a bias of positions.
_MORE = ("softcap", "s_aux", "position_bias")


def causal_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    document_mask: Tensor | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention of each position over itself and all earlier ones, or those of its document.

    Args:
        module: the attention layer.
        query: (B, heads, L, d_head).
        key: (B, kv_heads, L, d_head).
        value: (B, kv_heads, L, d_head).
        attention_mask: None; rows are unpadded.
        dropout: probability, zero in evaluation.
        scaling: factor of the scores; 1 / sqrt(d_head) when None.
        document_mask: of :func:`document_mask`, handed down by the body; None attends to all earlier positions.
        given: what else the architecture hands over.

    Returns:
        (B, L, heads, d_head) and None in place of the attention weights.

    Raises:
        ConfigError: the architecture asks for more than causality.
    """
    more = [name for name in _MORE if given.get(name) is not None]
    if attention_mask is not None:
        more.append("attention_mask")
    if not getattr(module, "is_causal", True):
        more.append("is_causal=False")
    if more:
        raise ConfigError(
            f"{type(module).__name__} wants {', '.join(more)} of attention, but here all positions see themselves and all"
            " earlier ones alike; choose another architecture"
        )
    return _attend(query, key, value, dropout, scaling, document_mask)


def _causal_shape(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    return _attend(query, key, value, 0.0, None)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, mask: Tensor | None = None
) -> tuple[Tensor, None]:
    if mask is not None and key.shape[1] != query.shape[1]:
        # Given a mask and shared heads, CUDA has no kernel but the one that writes all scores out.
        key, value = (shared.repeat_interleave(query.shape[1] // key.shape[1], 1) for shared in (key, value))
    grouped = key.shape[1] != query.shape[1]
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=grouped,
    )
    return out.transpose(1, 2).contiguous(), None


def document_mask(documents: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention's scores so that positions see themselves and the earlier ones of their document alone.

    Added rather than boolean, and in the dtype of queries and keys: PyTorch would turn any other into this one in every
    layer, and each layer would keep its own for the backward.

    Args:
        documents: (B, L) ids of the positions' documents; only their equality within a row matters.
        dtype: in which attention multiplies.

    Returns:
        (B, 1, L, L): 0 for the pairs that are left, minus infinity elsewhere; L^2 numbers a row, once for all layers.
    """
    seen = (documents[:, :, None] == documents[:, None, :]).tril()
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, float("-inf"))[:, None]


AttentionInterface.register(NAME, causal_sdpa)
AttentionInterface.register(SHAPE_NAME, _causal_shape)


def attention_for(config: PreTrainedConfig) -> str | None:
    """The mask-free implementation, unless the architecture needs more than causality.

    Args:
        config: the model's configuration.

    Returns:
        A name for ``attn_implementation``; None leaves the choice to transformers. Bounded scores (Gemma 2) need ``eager``,
        the formula as published: fused attention would leave the bound out without a word.
    """
    if getattr(config, "attn_logit_softcapping", None):
        return "eager"
    windows = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    fused = kind is not None and kind._supports_sdpa
    return NAME if fused and not windows and layer_types == {"full_attention"} else None
