"""The stack of transformer layers inside a Hugging Face model: to compile one by one, to run twice, or to measure."""

from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedModel

from tst_lightning.errors import ConfigError

ActivationCheckpointing = Literal["none", "selective", "full"]

# Matrix products and attention that PyTorch's register of FLOPs lacks; the last is that of tst_lightning.flops.
_UNREGISTERED = {
    "aten::_grouped_mm",
    "transformers::grouped_mm_fallback",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "tst_lightning::causal_attention",
}

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


def checkpoint_activations(lm: PreTrainedModel, what: ActivationCheckpointing) -> None:
    """Has each layer keep less in training, and run forward a second time when its gradient is due.

    Transformers' and PyTorch's own: the same numbers from a fraction of the memory. ``full`` keeps of a layer its input
    alone, for about a quarter more work. ``selective`` keeps also what matrix products and attention gave, so that none is
    computed twice: norms, activations and rotations are, which are cheap but keep as much. Parameters, checkpoints and
    scoring are as they were.

    Args:
        lm: any causal LM.
        what: ``none`` leaves it alone.

    Raises:
        ConfigError: the architecture does not support it.
    """
    if what == "none":
        return
    how: dict[str, Any] = {"use_reentrant": False}
    if what == "selective":
        how["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
    # Renamed between the versions that are supported.
    enable = getattr(lm, "activation_checkpointing_enable", None) or lm.gradient_checkpointing_enable
    try:
        enable(how)
    except ValueError as error:
        raise ConfigError(
            f"model.activation_checkpointing is {what}, but {type(lm).__name__} does not support it; set it to none"
        ) from error
    # Asked for by the other kind of checkpointing alone; it would mark what the embedding gives in validation too.
    lm.disable_input_require_grads()


def _keep_products(_: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """The policy of ``selective``: what an op gave is kept if it costs FLOPs, as the count of them has it."""
    costly = getattr(op, "overloadpacket", op) in flop_registry or op.name() in _UNREGISTERED
    return CheckpointPolicy.MUST_SAVE if costly else CheckpointPolicy.PREFER_RECOMPUTE


def compile_layers(lm: PreTrainedModel) -> None:
    """Has each layer compiled at its first call, in place: names of parameters, checkpoints and exports stay as they are.

    Layers that are alike share their graphs, one for each shape of batch: a phase switch at equal length brings none,
    validation its own, and another for a shorter last batch. Dynamo's limits are raised to hold them for layers of which
    no two are alike.

    Args:
        lm: any causal LM; if its activations are to be checkpointed, they already are.

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
    whole: dict[str, Any] = {"fullgraph": True, "dynamic": False}
    for layer in layers:
        layer.compile(**whole)
        # Before transformers 5.23 a checkpoint lies around the compiled layer, whose ops its policy would not see.
        if (checkpoint := getattr(layer, "_gradient_checkpointing_func", None)) is not None:
            layer._gradient_checkpointing_func = torch.compile(checkpoint, **whole)  # type: ignore[assignment]
