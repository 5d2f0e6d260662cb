"""The stack of transformer layers inside a Hugging Face model: to compile one by one, to run twice, or to measure."""

from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from tst_lightning.errors import ConfigError

ActivationCheckpointing = Literal["none", "full"]

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


def checkpoint_activations(lm: PreTrainedModel) -> None:
    """Has each layer keep its input alone in training, and run forward a second time when its gradient is due.

    Transformers' own: the same numbers, for about a quarter more work and a fraction of the memory. Parameters,
    checkpoints and scoring are as they were.

    Args:
        lm: any causal LM.

    Raises:
        ConfigError: the architecture does not support it.
    """
    # Renamed between the versions that are supported.
    enable = getattr(lm, "activation_checkpointing_enable", None) or lm.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(
            f"model.activation_checkpointing is full, but {type(lm).__name__} does not support it; set it to none"
        ) from error
    # Asked for by the other kind of checkpointing alone; it would mark what the embedding gives in validation too.
    lm.disable_input_require_grads()


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
    # A mixture's routers are noted in a layer's first forward alone, not when it is recomputed for its gradient.
    torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True
    for layer in layers:
        layer.compile(fullgraph=True, dynamic=False)
