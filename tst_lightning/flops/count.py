"""FLOPs of one row: counted from the graph that is trained, and by the closed form that the count is checked with."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from tst_lightning.errors import ConfigError
from tst_lightning.flops.attention import NAME, AttentionConvention, attention_formulas
from tst_lightning.modeling import (
    ActivationCheckpointing,
    CausalLM,
    active_numbers,
    all_alike,
    build_on_meta,
    checkpoint_activations,
    decoder_layers,
    experts_a_position,
)
from tst_lightning.phases import PhaseStrategy


class RowFlops(NamedTuple):
    """FLOPs of forward and backward for one row.

    Attributes:
        total: of everything.
        attention: of scores and weighted values alone, which ``total`` holds too.
    """

    total: int
    attention: int


def count_flops_per_row(
    config: PreTrainedConfig,
    phase: PhaseStrategy,
    seq_len: int,
    attention: AttentionConvention = "full",
    activation_checkpointing: ActivationCheckpointing = "none",
) -> int:
    """The total of :func:`count_row`."""
    return count_row(config, phase, seq_len, attention, activation_checkpointing).total


def count_row(
    config: PreTrainedConfig,
    phase: PhaseStrategy,
    seq_len: int,
    attention: AttentionConvention = "full",
    activation_checkpointing: ActivationCheckpointing = "none",
) -> RowFlops:
    """Runs the phase's own forward, loss and backward once on a meta copy of the model, and counts.

    On the meta device there are no fused kernels that the counter would miss: attention is an op of our own there (see
    :mod:`tst_lightning.flops.attention`), and of experts those are multiplied that a position is sent to. Nothing is
    allocated, and no random number drawn. Where all layers are alike, one and two of them are counted, and the rest cost
    what the second did: counting takes a tenth of a second a layer.

    Args:
        config: the model's configuration.
        phase: whose row is counted.
        seq_len: L, positions a row.
        attention: pairs of positions that attention is counted over: all L^2, or each with itself and earlier ones.
        activation_checkpointing: counts what layers compute again too: hardware FLOPs, not the model's. ``full`` adds
            their second forward, ``selective`` nothing that costs FLOPs.

    Raises:
        ConfigError: the model can't be built, or its activations not checkpointed, as here is found out first.
    """
    model = build_on_meta(config, attention=NAME)  # windows are counted as attention to all earlier positions
    model.equip([phase])
    model.routers = None  # the balance of experts has no matrix product, and not always a kernel on this device
    tokens = torch.zeros(1, phase.row_tokens(seq_len), dtype=torch.int64, device="meta")
    checkpoint_activations(model.lm, activation_checkpointing)
    layers = decoder_layers(model.lm)
    if layers is None or len(layers) <= 2 or not all_alike(layers):
        return _count(model, phase, tokens, attention)
    more = len(layers) - 2
    del layers[2:]
    two = _count(model, phase, tokens, attention)
    del layers[1:]
    one = _count(model, phase, tokens, attention)
    return RowFlops(*(b + more * (b - a) for a, b in zip(one, two, strict=True)))


def _count(model: CausalLM, phase: PhaseStrategy, tokens: Tensor, attention: AttentionConvention) -> RowFlops:
    formulas = attention_formulas(attention)
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        try:
            model(tokens, phase).total.backward()
        except RuntimeError as error:
            if "cached during selective activation checkpoint has been mutated" not in str(error):
                raise
            raise ConfigError(
                f"model.activation_checkpointing is selective, but {type(model.lm).__name__} changes in place what a matrix"
                " product gave, which is to be kept; set it to full or none"
            ) from error
    by_op = counter.get_flop_counts()["Global"]
    return RowFlops(sum(by_op.values()), sum(by_op.get(op, 0) for op in formulas))


def closed_form_flops_per_row(
    config: PreTrainedConfig, seq_len: int, attention: AttentionConvention = "full", extra_head: bool = False
) -> int:
    """``6 N L + 12 * layers * heads * d_head * pairs``, with N the weights of all matrix products that a position enters;
    and ``6 (V + d) d (L - 1)`` of an extra head.

    N leaves the input embedding out, counts the LM head, tied or not, the router of a mixture, and of its experts the
    share that is chosen. ``pairs`` of positions are L^2, or L (L + 1) / 2 where attention is counted as causal. A bag of
    tokens costs what a token costs, so the phase does not enter. Holds for decoders whose layers all attend with heads of
    one width; the meter uses it only to notice a count that missed something.

    Args:
        config: the model's configuration.
        seq_len: L, positions a row.
        attention: as for :func:`count_row`.
        extra_head: whether one scores all positions but the last.

    Returns:
        FLOPs of forward and backward for one row of L positions.
    """
    lm = build_on_meta(config).lm
    stacked = 3 if experts_a_position(config) else 2
    products = sum(
        active_numbers(layer, weight, config)
        for layer in lm.modules()
        if not isinstance(layer, nn.Embedding | nn.Conv1d)
        for weight in layer.parameters(recurse=False)
        if weight.ndim in (2, stacked)
    )
    heads = getattr(config, "num_attention_heads", None) or 0
    head_dim = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    pairs = seq_len**2 if attention == "full" else seq_len * (seq_len + 1) // 2
    vocabulary, width = lm.get_output_embeddings().weight.shape
    extra = 6 * (vocabulary + width) * width * (seq_len - 1) if extra_head else 0
    return extra + 6 * products * seq_len + 12 * config.num_hidden_layers * heads * head_dim * pairs
