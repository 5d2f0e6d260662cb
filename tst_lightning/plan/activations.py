"""What a forward pass leaves behind for its backward, measured: run once, and see which of its tensors are still there.

On fake tensors, which take no memory, as the CPU's kernels would run it. Whoever holds a tensor, it counts: autograd, or a
checkpoint of activations for when the layer runs again, which autograd's own hooks do not show.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from tst_lightning.fused_cross_entropy import in_one_chunk
from tst_lightning.modeling import CausalLM, checkpoint_activations, decoder_layers, experts_a_position
from tst_lightning.phases import PhaseStrategy
from tst_lightning.plan.setting import Setting


class Activations(NamedTuple):
    """Bytes over one micro-batch, copies of weights in autocast's dtype included.

    Attributes:
        kept: after the forward pass, for the backward.
        recomputed: what the layer with most of it computes again for its backward; 0 without checkpointing.
    """

    kept: int
    recomputed: int


def measure_activations(
    model: CausalLM, phases: Iterable[PhaseStrategy], setting: Setting, autocast: torch.dtype | None
) -> Activations:
    """What activations take of a device, of the phase that keeps most.

    Args:
        model: of fake tensors; its activations are checkpointed as the setting says from then on.
        phases: of the runs.
        setting: micro-batch and checkpointing.
        autocast: dtype of autocast's products; None for none.

    Raises:
        ConfigError: the architecture's activations can't be checkpointed.
    """
    distinct = {phase.work(setting.seq_len): phase for phase in phases}.values()
    copies = _expert_copies(model, setting, autocast)
    whole = [_kept(model, phase, setting, autocast).with_copies(copies) for phase in distinct]
    if setting.checkpointing == "none":
        return Activations(max(kept.total for kept in whole), 0)
    checkpoint_activations(model.lm, setting.checkpointing)
    parts = [_kept(model, phase, setting, autocast) for phase in distinct]
    return max(
        Activations(part.total, max(a - b for a, b in zip(all_.layers, part.layers, strict=True)))
        for all_, part in zip(whole, parts, strict=True)
    )


@dataclass(frozen=True)
class _Kept:
    """Bytes that are there after a forward pass: in all, and of each layer."""

    total: int
    layers: list[int]

    def with_copies(self, copies: list[int]) -> "_Kept":
        """The same, and so many bytes more of each layer."""
        return _Kept(self.total + sum(copies), [sum(pair) for pair in zip(self.layers, copies, strict=True)])


def _expert_copies(model: CausalLM, setting: Setting, autocast: torch.dtype | None) -> list[int]:
    """Bytes of each layer's experts in autocast's dtype, which grouped products keep for the backward; the plain formula,
    which is measured, keeps others. Sharded weights are gathered in that dtype.
    """
    layers = decoder_layers(model.lm)
    if layers is None:
        return [0]
    if autocast is None or setting.layout == "fsdp" or not experts_a_position(model.lm.config):
        return [0] * len(layers)
    return [sum(p.numel() for p in layer.parameters() if p.ndim == 3) * autocast.itemsize for layer in layers]


def _kept(model: CausalLM, phase: PhaseStrategy, setting: Setting, autocast: torch.dtype | None) -> _Kept:
    """Of passes with each kind of layer once and twice: another one keeps what the second did, positions are shared."""
    rows = setting.batch_size * phase.row_multiple
    tokens = torch.zeros(rows, phase.row_tokens(setting.seq_len), dtype=torch.int64)
    positions = rows * phase.row_positions(setting.seq_len)
    layers = decoder_layers(model.lm)
    if layers is None:
        total = kept_bytes(model, phase, tokens, positions, autocast)
        return _Kept(total, [total])
    every = list(layers)
    of_kind: dict[str, int] = {}
    of_layers: list[int] = []
    outside = 0
    for layer in every:
        kind = str([type(layer), *((name, weight.shape) for name, weight in layer.named_parameters())])
        if kind not in of_kind:
            del layers[:]
            layers.append(layer)
            once = kept_bytes(model, phase, tokens, positions, autocast)
            layers.append(layer)
            of_kind[kind] = kept_bytes(model, phase, tokens, positions, autocast) - once
            outside = once - of_kind[kind]
        of_layers.append(of_kind[kind])
    del layers[:]
    layers.extend(every)
    return _Kept(outside + sum(of_layers), of_layers)


def kept_bytes(
    model: CausalLM, phase: PhaseStrategy, tokens: Tensor, positions: int, autocast: torch.dtype | None
) -> int:
    """What a forward pass made that is there until its backward; each storage once.

    Args:
        model: real, or of fake tensors; its layers not compiled.
        phase: whose loss is taken.
        tokens: (B, phase.row_tokens(L)) ids.
        positions: of all rows.
        autocast: dtype of autocast on the CPU; None for none.

    Returns:
        Bytes.
    """
    sent = positions * (experts_a_position(model.lm.config) or 0)
    stacks = {(sent, *p.shape[1:]) for p in model.parameters() if p.ndim == 3}
    enabled = autocast is not None
    with (
        in_one_chunk() if isinstance(tokens, FakeTensor) else nullcontext(),
        # Without its cache, or a layer that stands twice would keep one copy of its weights for both.
        torch.autocast("cpu", autocast or torch.bfloat16, enabled=enabled, cache_enabled=False),
        # The plain formula for experts keeps a copy of its expert's weights for each position; grouped products do not.
        _Made(lambda tensor: tuple(tensor.shape) not in stacks) as made,
    ):
        loss = model(tokens, phase).total  # as long as it is held, what its backward needs is there
    given = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers(), tokens, loss)}
    return sum(storage.nbytes() for storage in made.storages if storage._cdata not in given)


class _Made(TorchDispatchMode):
    """Notes the storages of all that is made while it is on, and holds none of them."""

    def __init__(self, counts: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.counts = counts
        self.storages: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor) and self.counts(value):
                self.storages[value.untyped_storage()] = None
        return made
