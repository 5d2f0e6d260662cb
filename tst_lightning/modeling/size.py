"""How large a model is, before it is built: absurd sizes are refused in a moment, not after the machine is full."""

import copy

import torch
from transformers import PreTrainedConfig

from tst_lightning.errors import ConfigError
from tst_lightning.modeling.attention import NAME
from tst_lightning.modeling.causal_lm import build_causal_lm, check_sizes


def count_parameters(config: PreTrainedConfig) -> int:
    """Parameters of the model of a config, from meta copies of one and of two layers that are tried out on two tokens.

    Nothing is allocated, and the time does not grow with the number of layers. Exact where all layers are alike.

    Args:
        config: of any causal LM.

    Raises:
        ConfigError: as :func:`build_causal_lm`; or its body fails.
    """
    check_sizes(config)
    layers = getattr(config, "num_hidden_layers", None)
    if layers is None or layers <= 2:
        return _count(config)
    one, two = copy.deepcopy(config), copy.deepcopy(config)
    one.num_hidden_layers, two.num_hidden_layers = 1, 2
    first, second = _count(one), _count(two)
    return first + (layers - 1) * (second - first)


def _count(config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        model = build_causal_lm(config, attention=NAME)
        try:
            model.body(model.embed(torch.zeros(1, 2, dtype=torch.int64)))
        except Exception as error:  # all of it is transformers' and torch's code, on the user's values
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ConfigError(f"the model of {type(config).__name__} can't run with its values ({reason})") from error
    return sum(parameter.numel() for parameter in model.parameters())
