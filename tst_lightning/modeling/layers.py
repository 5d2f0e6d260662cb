"""The stack of transformer layers inside a Hugging Face model: to compile one by one, or to measure a few of them."""

import torch
from torch import nn
from transformers import PreTrainedModel

from tst_lightning.errors import ConfigError

_GRAPHS_A_LAYER = 64  # training, and two of each validated corpus


def decoder_layers(lm: PreTrainedModel) -> nn.ModuleList | None:
    """The list of the model's layers, found by the classes that transformers says are not to be split over devices.

    Args:
        lm: any causal LM.

    Returns:
        The model's own list, or None where it names no such classes, or keeps its layers otherwise.
    """
    names = set(lm._no_split_modules or ())
    lists = [module for module in lm.base_model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    return next((found for found in lists if all(type(layer).__name__ in names for layer in found)), None)


def all_alike(layers: nn.ModuleList) -> bool:
    """Whether the layers are of one class, with parameters of the same names and shapes."""
    kinds = {
        (type(layer), tuple((name, weight.shape) for name, weight in layer.named_parameters())) for layer in layers
    }
    return len(kinds) == 1


def compile_layers(lm: PreTrainedModel) -> None:
    """Has each layer compiled at its first call, in place: names of parameters, checkpoints and exports stay as they are.

    Layers that are alike share their graphs, one for each shape of batch: a phase switch at equal length brings none,
    validation its own, and another for a shorter last batch. Dynamo's limits are raised to hold them for layers of which
    no two are alike.

    Args:
        lm: any causal LM.

    Raises:
        ConfigError: its layers can't be found.
    """
    layers = decoder_layers(lm)
    if layers is None:
        raise ConfigError(f"model.compile is on, but the layers of {type(lm).__name__} can't be found; turn it off")
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _GRAPHS_A_LAYER * len(layers))
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, _GRAPHS_A_LAYER * len(layers))
    for layer in layers:
        layer.compile(fullgraph=True, dynamic=False)
