"""Storage and first weights for a model that was built on the meta device: the same numbers on every layout.

Weights are drawn on the CPU, whole, by transformers' own rules: one layer at a time in their order, then what lies
outside the layers. Each process draws all of them from the run's seed and keeps its part. So one device, several and
shards of any number begin alike, and no process holds more than a layer, or embeddings and head, beside its part.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tst_lightning.errors import ConfigError
from tst_lightning.modeling.layers import decoder_layers

_CPU = torch.device("cpu")


@torch.no_grad()
def initialise(lm: PreTrainedModel, device: torch.device) -> None:
    """Gives a model on the meta device its storage on another, and draws its weights from the global CPU generator.

    Args:
        lm: on the meta device, in float32; its parameters may be sharded already.
        device: of this process.

    Raises:
        ConfigError: the architecture's rules leave a weight without a value.
    """
    lm.to_empty(device=device)
    lm.tie_weights()  # which the line above undoes, but for sharded weights
    # A few architectures set something of their layers from outside of them: those are drawn in one piece.
    unset = _draw(lm, by_layer=True) and _draw(lm, by_layer=False)
    if unset:
        raise ConfigError(
            f"{type(lm).__name__} has no rule for the first values of '{unset}': it can't be trained from scratch; choose"
            " another architecture"
        )


@torch.no_grad()
def redraw_embeddings(lm: PreTrainedModel, seed: int) -> None:
    """Draws input embedding and LM head anew, by the same rules, in place; of tied ones the embedding.

    Args:
        lm: whose weights have their storage; they may be sharded.
        seed: of the draw. The global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(lm.config, dtype=torch.float32)
        both = [whole.get_input_embeddings(), whole.get_output_embeddings()]
        unset = _draw_some(whole, both, whole.initialize_weights, lm)
    assert unset is None, "the first draw would have refused it"


def _draw(lm: PreTrainedModel, by_layer: bool) -> str | None:
    """Draws all weights, and gives the name of one that was left without a value, if any."""
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(lm.config, dtype=torch.float32)
    layers = list(decoder_layers(whole) or ()) if by_layer else []
    rule = whole.base_model._initialize_weights
    for layer in layers:
        if unset := _draw_some(whole, list(layer.modules()), partial(layer.apply, rule), lm):
            return unset
    drawn = {module for layer in layers for module in layer.modules()}
    # Transformers marks what its rules have been through, and leaves it alone from then on.
    return _draw_some(
        whole, [module for module in whole.modules() if module not in drawn], whole.initialize_weights, lm
    )


def _draw_some(
    whole: PreTrainedModel, modules: list[nn.Module], rule: Callable[[], object], lm: PreTrainedModel
) -> str | None:
    """Applies a rule to some modules of the whole model, and copies what it gave to their namesakes in ``lm``."""
    for module in modules:
        module.to_empty(device=_CPU, recurse=False)
    for value in _own(modules):
        value.fill_(float("nan") if value.is_floating_point() else 0)
    with _CPU:
        rule()
    names, targets = {module: name for name, module in whole.named_modules()}, dict(lm.named_modules())
    given: set[int] = set()
    for module in modules:
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if value.is_floating_point() and bool(value.isnan().any()):
                return f"{names[module]}.{name}"
            target = getattr(targets[names[module]], name)
            if id(target) not in given:  # of tied weights the first, the embedding's, counts
                copy_values(value, target)
            given.add(id(target))
        module.to_empty(device="meta", recurse=False)
    return None


def _own(modules: list[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)


def copy_values(value: Tensor, target: Tensor) -> None:
    """Copies a whole tensor, which each process has, into one that may be sharded: of that a process fills its own part.

    Args:
        value: on the CPU.
        target: of its shape, on any device.
    """
    if isinstance(target, DTensor):
        # Every process has the whole: it cuts out its own part, and nothing is sent.
        part = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
        value, target = part.to_local(), target.to_local()
    target.copy_(value)
