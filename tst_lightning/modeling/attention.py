"""Causal attention without a mask tensor, for every Hugging Face architecture that attends to all earlier positions.

Given a mask, PyTorch's fused attention loses its causal fast path; and transformers' mask code can't run on the meta
device, where the FLOPs are counted. Training rows have no padding, so the causal flag is all that is needed.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

NAME = "causal_sdpa"


def causal_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention of each position over itself and all earlier ones.

    Args:
        module: the attention layer (unused).
        query: (B, heads, L, d_head).
        key: (B, kv_heads, L, d_head).
        value: (B, kv_heads, L, d_head).
        attention_mask: None; rows are unpadded.
        dropout: probability, zero in evaluation.
        scaling: factor of the scores; 1 / sqrt(d_head) when None.

    Returns:
        (B, L, heads, d_head) and None in place of the attention weights.
    """
    grouped = key.shape[1] != query.shape[1]
    out = F.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, causal_sdpa)


def attention_for(config: PreTrainedConfig) -> str | None:
    """The mask-free implementation, unless the architecture needs more than causality.

    Args:
        config: the model's configuration.

    Returns:
        A name for ``attn_implementation``; None leaves the choice to transformers.
    """
    windows = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    return NAME if not windows and layer_types == {"full_attention"} else None
