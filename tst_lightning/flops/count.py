"""FLOPs of one row: counted from the graph that is trained, and by the closed form that the count is checked with."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from tst_lightning.modeling import CausalLM, all_alike, build_causal_lm, decoder_layers
from tst_lightning.modeling.attention import NAME as MASK_FREE
from tst_lightning.phases import PhaseStrategy


def count_flops_per_row(config: PreTrainedConfig, phase: PhaseStrategy, seq_len: int) -> int:
    """Runs the phase's own forward, loss and backward once on a meta copy of the model, and counts.

    On the meta device attention falls apart into plain matrix products, so PyTorch's counter sees it; on CPU it
    would miss the fused kernel. Nothing is allocated. Where all layers are alike, one and two of them are counted, and
    the rest cost what the second did: counting takes a tenth of a second a layer.

    Args:
        config: the model's configuration.
        phase: whose row is counted.
        seq_len: L, positions a row.

    Returns:
        FLOPs of forward and backward for one row of L positions.
    """
    with torch.device("meta"):
        # Windows are counted as full attention, like causality; transformers' masks can't be built on this device.
        model = build_causal_lm(config, attention=MASK_FREE)
        tokens = torch.zeros(1, phase.row_tokens(seq_len), dtype=torch.int64)
    layers = decoder_layers(model.lm)
    if layers is None or len(layers) <= 2 or not all_alike(layers):
        return _count(model, phase, tokens)
    more = len(layers) - 2
    del layers[2:]
    two = _count(model, phase, tokens)
    del layers[1:]
    return two + more * (two - _count(model, phase, tokens))


def _count(model: CausalLM, phase: PhaseStrategy, tokens: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(tokens, phase).total.backward()
    return counter.get_total_flops()


def closed_form_flops_per_row(config: PreTrainedConfig, seq_len: int) -> int:
    """``(6 N + 12 * layers * heads * d_head * L) * L``, with N the weights of all matrix products.

    N leaves the input embedding out and counts the LM head, tied or not. A bag of tokens costs what a token costs, so
    the phase does not enter. Holds for dense decoders; the meter uses it only to notice a count that missed something.

    Args:
        config: the model's configuration.
        seq_len: L, positions a row.

    Returns:
        FLOPs of forward and backward for one row of L positions.
    """
    with torch.device("meta"):
        lm = build_causal_lm(config).lm
    products = sum(
        weight.numel()
        for layer in lm.modules()
        if not isinstance(layer, nn.Embedding)
        for weight in layer.parameters(recurse=False)
        if weight.ndim == 2
    )
    heads = getattr(config, "num_attention_heads", None) or 0
    head_dim = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    attention = 12 * config.num_hidden_layers * heads * head_dim * seq_len
    return (6 * products + attention) * seq_len
