"""How large a model is, before it is built: absurd sizes are refused in a moment, not after the machine is full; and
whether its sizes are those that the data ask for.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from tst_lightning.errors import ConfigError
from tst_lightning.modeling.causal_lm import CausalLM, build_on_meta, check_sizes, experts_a_position, running


class Parameters(NamedTuple):
    """Numbers in a model's weights, each tied matrix once.

    Attributes:
        total: all of them.
        active: those that one position makes use of: of a mixture's experts the chosen ones, of all else everything, the
            input embedding too.
    """

    total: int
    active: int


def count_parameters(config: PreTrainedConfig) -> Parameters:
    """Parameters of the model of a config, from meta copies of one and of two layers that are tried out on two tokens.

    Nothing is allocated, and the time does not grow with the number of layers, but for mixtures of experts, where layers
    may differ (dense ones among them): all of theirs are built, 2 ms each. Exact where all layers are alike, and for
    mixtures.

    Args:
        config: of any causal LM.

    Raises:
        ConfigError: as :func:`build_causal_lm`; or its body fails.
    """
    check_sizes(config)
    layers = getattr(config, "num_hidden_layers", None)
    if layers is None or layers <= 2:
        return _count(_tried(config))
    one, two = copy.deepcopy(config), copy.deepcopy(config)
    one.num_hidden_layers, two.num_hidden_layers = 1, 2
    first, second = _count(_tried(one)), _count(_tried(two))
    if experts_a_position(config):
        return _count(build_on_meta(config))
    more = layers - 1
    return Parameters(*(a + more * (b - a) for a, b in zip(first, second, strict=True)))


def active_numbers(layer: nn.Module, weight: Tensor, config: PreTrainedConfig) -> int:
    """Numbers of a weight that one position makes use of.

    Args:
        layer: that the weight belongs to.
        weight: of any shape; that of a layer's experts is stacked, (experts, out, in).
        config: of the model.
    """
    chosen = experts_a_position(config)
    if chosen is None or weight.ndim != 3 or isinstance(layer, nn.Conv1d):
        return weight.numel()
    return weight.numel() // len(weight) * chosen


def _tried(config: PreTrainedConfig) -> CausalLM:
    model = build_on_meta(config)
    with running(config):
        model.body(model.embed(torch.zeros(1, 2, dtype=torch.int64, device="meta")))
    return model


def _count(model: CausalLM) -> Parameters:
    total = active = 0
    seen: set[Tensor] = set()
    for layer in model.modules():
        for weight in layer.parameters(recurse=False):
            if weight not in seen:  # tied ones belong to two layers
                seen.add(weight)
                total += weight.numel()
                active += active_numbers(layer, weight, model.lm.config)
    return Parameters(total, active)


def check_fits(config: PreTrainedConfig, data: Any, folder: str | None = None) -> None:
    """Checks a model against the data that it is to read.

    Args:
        config: of the model.
        data: the data module.
        folder: that the configuration is from, if it is a folder's.

    Raises:
        ConfigError: an id of the shards is outside the model's vocabulary, or rows are longer than its positions.
    """
    ids = data.tokenizer.vocab_size
    if ids > config.vocab_size:
        raise ConfigError(
            f"the shards' tokenizer has {ids:,} ids, the model's vocabulary {config.vocab_size:,}; "
            + (
                f"prepare the text by `tst prepare ... --tokenizer {folder}`"
                if folder
                else f"set model.config.init_args.vocab_size to {ids} or more"
            )
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and data.seq_len > positions:
        key = f"max_position_embeddings in '{folder}/config.json'"
        key = key if folder else "model.config.init_args.max_position_embeddings"
        raise ConfigError(
            f"data.seq_len is {data.seq_len:,}, but the model has {positions:,} positions; lower data.seq_len or raise"
            f" {key}"
        )
