"""Whether an architecture attends within documents where it is asked to, found out before anything is trained."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig

from tst_lightning.errors import ConfigError
from tst_lightning.modeling.attention import NAME, attention_for
from tst_lightning.modeling.causal_lm import build_on_meta, running


def check_masks_documents(config: PreTrainedConfig) -> None:
    """Checks that :meth:`CausalLM.body`, given documents, lets no position read another document's.

    Runs the body once on a model without storage, and sees whether the mask arrives at the attention of every layer. What
    else could carry something from position to position, as state-space layers do, is refused by what transformers says
    of the architecture.

    Args:
        config: of any model; left as it is.

    Raises:
        ConfigError: the architecture's attention is not ours, not every layer masks it, or it keeps a state besides.
    """
    name = type(config).__name__
    advice = "; choose another architecture, or set mask_attention: false"
    if attention_for(config) != NAME:
        raise ConfigError(
            f"mask_attention is on, but {name} does not go by PyTorch's fused attention over all earlier positions in all"
            f" its layers, and no other can be masked by document{advice}"
        )
    model = build_on_meta(config, NAME)
    if model.lm._is_stateful:
        raise ConfigError(
            f"mask_attention is on, but {name} is of an architecture whose positions hand on a state besides attention,"
            f" from document to document too{advice}"
        )
    tokens = torch.zeros(1, 2, dtype=torch.int64, device="meta")
    embedded = model.embed(tokens)
    try:
        with running(config), _Attention() as attention:
            model.body(embedded, tokens)
    except ConfigError as error:
        if "document_mask" not in str(error):
            raise
        masked = 0  # it takes no such argument
    else:
        masked = sum(attention.masked) if all(attention.masked) else 0
    if masked != getattr(config, "num_hidden_layers", None):
        raise ConfigError(
            f"mask_attention is on, but {type(model.lm).__name__} does not hand a mask of documents on to the attention of"
            f" all its layers{advice}"
        )


class _Attention(TorchFunctionMode):
    """Notes of each call of attention whether it was given a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.masked: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.masked.append((kwargs or {}).get("attn_mask") is not None)
        return func(*args, **(kwargs or {}))
