"""Whether what is trained is the architecture's own loss.

The losses see a model as embedding layer, body, LM head and routers. An architecture may do more in its own forward: to ids
that a body given embeddings never sees, to logits, to its loss. Then another model would be trained than the one that is
exported, without a sign of it. So both are run on a model without storage, and what they do is compared operation by
operation, with the numbers that go into each.
"""

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig

from tst_lightning.errors import ConfigError
from tst_lightning.modeling.attention import NAME, SHAPE_NAME, attention_for
from tst_lightning.modeling.causal_lm import (
    CausalLM,
    balance_coefficient,
    build_on_meta,
    running,
)
from tst_lightning.modeling.logits import LogitTransform

# What changes no number: other views of the same ones, copies, room for results; and the shift of targets, which some
# architectures leave to their users.
_NOTHING = set(
    "_to_copy _unsafe_view alias as_strided clone constant_pad_nd copy detach empty expand lift_fresh permute reshape"
    " select slice split split_with_sizes squeeze t transpose unbind unsqueeze view zeros".split()
)
_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
_LAYERS, _TOKENS, _SHOWN = 2, 3, 4


def check_trainable(config: PreTrainedConfig) -> None:
    """Checks that the losses are of the model that the architecture's own forward is.

    Apart from :func:`build_causal_lm`, so that a model that can't be trained can be sized, and its FLOPs counted.

    Args:
        config: of any model; left as it is.

    Raises:
        ConfigError: a mixture is to be balanced by a loss that can't be had; the architecture does something in its own
            forward that the losses do not; or it can't run.
    """
    # Ours says where it is asked for more than it does; others want masks, which can't be built without storage.
    attention = NAME if attention_for(config) == NAME else SHAPE_NAME
    coefficients = {key: getattr(config, key, None) for key in _COEFFICIENTS}
    # What is looked for lies before, behind and beside the layers; but the first ones of a mixture may all be dense.
    few = copy.deepcopy(config)
    if hasattr(few, "num_hidden_layers"):
        few.num_hidden_layers = min(few.num_hidden_layers, _LAYERS)
    model = build_on_meta(few, attention)
    if model.routers is None and any(coefficients.values()):
        model = build_on_meta(config, attention)
    name = type(model.lm).__name__
    for key, coefficient in coefficients.items():
        if coefficient and (model.routers is None or key != "router_aux_loss_coef"):
            raise ConfigError(
                f"{name} balances its experts by an auxiliary loss ({key}={coefficient}) that can't be had from its"
                f" routers: training would silently go without. Choose another architecture, or set {key}: 0 to train"
                " without balancing"
            )
    tokens = torch.zeros(1, _TOKENS, dtype=torch.int64, device="meta")
    with running(config):
        own, ours = _operations(lambda: _own_loss(model, tokens)), _operations(lambda: _our_loss(model, tokens))
    if own != ours:
        does = [f"does {_listed(own - ours)}"] if own - ours else []
        does += [f"does not {_listed(ours - own)}"] if ours - own else []
        raise ConfigError(
            f"{name} is more than embedding layer, body and LM head, which the losses are taken from: its own forward"
            f" {' and '.join(does)}. Another model would be trained than the one that is exported; choose another"
            " architecture"
        )


def _own_loss(model: CausalLM, tokens: Tensor) -> Tensor:
    asked = {} if model.routers is None else {"output_router_logits": True}
    return model.lm(input_ids=tokens, labels=tokens, use_cache=False, return_dict=True, **asked).loss


def _our_loss(model: CausalLM, tokens: Tensor) -> Tensor:
    transform, model.logit_transform = model.logit_transform, LogitTransform()  # of logits, as architectures have it
    with model.routers.listening() if model.routers else nullcontext():
        logits = transform(F.linear(model.body(model.embed(tokens)), model.head))
    loss = model.lm.loss_function(logits, tokens, logits.shape[-1])
    if model.routers is None:
        return loss
    return loss + balance_coefficient(model.lm.config) * model.routers.measure(model.routers.decisions())


class _Operations(TorchDispatchMode):
    """Counts operations that change numbers, by their names and the numbers that they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        numbers = [arg for arg in args if isinstance(arg, int | float)]
        if name not in _NOTHING and not (name in ("mul", "div") and 1 in numbers):
            self.counts[" ".join(map(str, [name, *numbers]))] += 1
        if name == "bincount":  # how transformers before 5.23 measure balance; its shape is not known without storage
            return torch.empty(args[-1], dtype=torch.int64, device="meta")
        return func(*args, **(kwargs or {}))


def _operations(loss: Callable[[], Tensor]) -> Counter[str]:
    with _Operations() as operations:
        loss()
    return operations.counts


def _listed(counts: Counter[str]) -> str:
    shown = [f"{name} ({count} times)" if count > 1 else name for name, count in counts.items()]
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")
