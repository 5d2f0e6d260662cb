"""A model by its shape alone: Llama for dense ones, Qwen3-MoE for mixtures of experts, as the published runs used."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tst_lightning.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Args:
        hidden_size: d, residual width.
        layers: transformer layers.
        heads: attention heads.
        ffn: width of the feed-forward layer; of one expert in a mixture.
        kv_heads: heads of key and value; as many as heads when None.
        head_dim: width of a head; hidden_size / heads when None.
        vocab_size: V.
        tied: whether the LM head is the input embedding.
        experts: of each layer; 0 for a dense model.
        experts_per_token: that work on a token.
    """

    hidden_size: int
    layers: int
    heads: int
    ffn: int
    kv_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int = 128_256
    tied: bool = False
    experts: int = 0
    experts_per_token: int = 0


def config_of_shape(shape: Shape, positions: int) -> "PreTrainedConfig":
    """The configuration of a shape.

    Args:
        shape: sizes.
        positions: the longest row.

    Raises:
        ConfigError: a size below 1, heads that do not divide the width, experts without their number per token, or sizes
            that transformers refuses.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import LlamaConfig, Qwen3MoeConfig  # late, so that the options can be read without it

    for key, size in vars(shape).items():
        if size is not None and key not in ("tied", "experts", "experts_per_token") and size < 1:
            raise ConfigError(f"shape.{key} is {size}; it must be at least 1")
    if shape.head_dim is None and shape.hidden_size % shape.heads:
        raise ConfigError(
            f"shape.heads {shape.heads} does not divide shape.hidden_size {shape.hidden_size}; give shape.head_dim"
        )
    shared: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads or shape.heads,
        "head_dim": shape.head_dim or shape.hidden_size // shape.heads,
        "max_position_embeddings": positions,
        "tie_word_embeddings": shape.tied,
    }
    dense = not shape.experts and not shape.experts_per_token
    if not dense and not 1 <= shape.experts_per_token <= shape.experts:
        raise ConfigError(
            f"shape.experts_per_token is {shape.experts_per_token} of {shape.experts} experts; it must lie between 1 and"
            " shape.experts"
        )
    try:
        if dense:
            return LlamaConfig(**shared, intermediate_size=shape.ffn)
        return Qwen3MoeConfig(
            **shared,
            intermediate_size=shape.ffn,
            moe_intermediate_size=shape.ffn,
            num_experts=shape.experts,
            num_experts_per_tok=shape.experts_per_token,
        )
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConfigError(f"the shape makes no model ({type(error).__name__}: {str(error).splitlines()[0]})") from error
