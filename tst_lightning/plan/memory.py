"""Memory of one device: states from the model's own parameters, activations measured on a model that takes no memory.

What backward needs is not estimated but read off: one micro-batch runs forward on fake tensors, as the CPU's kernels
would run it, and autograd's hooks say what it keeps. Fused attention on a GPU keeps the same (query, key, value, output
and one number a row), so the figure holds there too; what allocators and libraries take on top is not in it.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tst_lightning.errors import ConfigError
from tst_lightning.fused_cross_entropy import chunk_rows, in_one_chunk
from tst_lightning.modeling import CausalLM, build_causal_lm, decoder_layers, experts_a_position
from tst_lightning.phases import PhaseStrategy
from tst_lightning.plan.setting import Setting

# Lightning's name -> dtype of the parameters, and that of autocast's products.
PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "32-true": (torch.float32, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
    "bf16-true": (torch.bfloat16, None),
    "16-true": (torch.float16, None),
    "64-true": (torch.float64, None),
}


@dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
        parameters: weights; under fsdp a device's share.
        gradients: as the parameters.
        optimizer_state: as measured on the configured optimizer.
        communication: gradient buckets of ddp; under fsdp the layers that are gathered whole for their turn.
        activations: kept for backward over one micro-batch, copies of weights in autocast's dtype included.
        logits: of the chunk that the fused loss has at hand, in all the forms it takes.
        whole_logits: what the same would be without chunks, for comparison; not part of any sum.
        peak: all of the above at once, as at the end of a micro-batch's forward pass but the first.
        checkpoint: of the whole run on disk: weights and optimizer state.
    """

    parameters: int
    gradients: int
    optimizer_state: int
    communication: int
    activations: int
    logits: int
    whole_logits: int
    peak: int
    checkpoint: int


def measure(setting: Setting, phases: Iterable[PhaseStrategy]) -> Memory:
    """Memory of one device.

    Args:
        setting: model, micro-batch, precision, optimizer and layout.
        phases: of the runs; the one that keeps most counts.

    Raises:
        ConfigError: a precision that is not known.
    """
    if setting.precision not in PRECISIONS:
        raise ConfigError(f"precision is '{setting.precision}'; memory can be told for {', '.join(PRECISIONS)}")
    dtype, autocast = PRECISIONS[setting.precision]
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build_causal_lm(setting.config, experts="batched_mm")
        model.routers = None  # what the balance of experts keeps, a number an expert and position, is next to nothing
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        weights = sum(p.numel() for p in model.parameters())
        layers = list(decoder_layers(model.lm) or ())
        of_layers = sum(p.numel() for layer in layers for p in layer.parameters())
        distinct = {(type(phase), phase.bag_size): phase for phase in phases}.values()
        kept = max((_kept(model, phase, setting, autocast) for phase in distinct), key=lambda kept: kept.total)
    rows = setting.batch_size * setting.seq_len
    activations = kept.total
    if setting.checkpointing == "full":
        # One layer's activations at a time, and every layer's input.
        activations = (
            kept.outside + kept.largest_layer + len(layers) * rows * setting.config.hidden_size * dtype.itemsize
        )
    width = (autocast or dtype).itemsize
    wide = max(4, width)
    share = setting.devices if setting.layout == "fsdp" else 1
    parameters = -(-weights * dtype.itemsize // share)
    state = weights * state_bytes_per_parameter(setting.optimizer, dtype)
    communication = {
        "single": 0,
        "ddp": weights * dtype.itemsize,
        # The next layer is gathered while one is at work; embeddings and head are the root's, and stay. Gradients are
        # whole until they are shared out.
        "fsdp": (3 * of_layers // max(len(layers), 1) + 2 * (weights - of_layers)) * width,
    }[setting.layout]
    # Logits in the products' dtype, log-probabilities in float32; the CPU's softmax widens its input first. Bounded logits
    # are float32 already, and their tanh is kept.
    softmax = width + wide + (wide if width < wide and setting.device_type == "cpu" else 0)
    per_position = setting.config.vocab_size * (softmax if model.softcap is None else 3 * wide)
    # In half precision also the head, and its gradient of a chunk, in the products' dtype.
    of_head = 2 * setting.config.vocab_size * setting.config.hidden_size * width if width < wide else 0
    logits = min(chunk_rows(setting.device_type), rows) * per_position + of_head
    # Gradients of earlier micro-batches stand already when the next one is at its height.
    standing = 2 * parameters + round(state / share) + communication
    return Memory(
        parameters=parameters,
        gradients=parameters,
        optimizer_state=round(state / share),
        communication=communication,
        activations=activations,
        logits=logits,
        whole_logits=rows * per_position + of_head,
        peak=standing + activations + logits,
        checkpoint=round(weights * dtype.itemsize + state),
    )


@dataclass(frozen=True)
class _Kept:
    """Bytes that autograd keeps: in all, of the layer that keeps most, and outside of the layers."""

    total: int
    largest_layer: int
    outside: int


def _kept(model: CausalLM, phase: PhaseStrategy, setting: Setting, autocast: torch.dtype | None) -> _Kept:
    """Of passes with each kind of layer once and twice: another one keeps what the second did, positions are shared."""
    tokens = torch.zeros(setting.batch_size, phase.row_tokens(setting.seq_len), dtype=torch.int64)
    layers = decoder_layers(model.lm)
    if layers is None:
        total = saved_bytes(model, phase, tokens, autocast)
        return _Kept(total, total, 0)
    every = list(layers)
    of_kind: dict[str, int] = {}
    of_layers: list[int] = []
    outside = 0
    for layer in every:
        kind = str([type(layer), *((name, weight.shape) for name, weight in layer.named_parameters())])
        if kind not in of_kind:
            del layers[:]
            layers.append(layer)
            once = saved_bytes(model, phase, tokens, autocast)
            layers.append(layer)
            of_kind[kind] = saved_bytes(model, phase, tokens, autocast) - once
            outside = once - of_kind[kind]
        of_layers.append(of_kind[kind])
    del layers[:]
    layers.extend(every)
    return _Kept(outside + sum(of_layers), max(of_layers), outside)


def saved_bytes(model: CausalLM, phase: PhaseStrategy, tokens: Tensor, autocast: torch.dtype | None) -> int:
    """What autograd keeps of a forward pass until backward, parameters left out; each storage once.

    Args:
        model: real, or of fake tensors.
        phase: whose loss is taken.
        tokens: (B, phase.row_tokens(L)) ids.
        autocast: dtype of autocast on the CPU; None for none.

    Returns:
        Bytes.
    """
    known = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    # Storages are held, so that none takes the address of one that is gone.
    found: dict[int, Any] = {}
    positions = len(tokens) * (tokens.shape[1] // phase.bag_size - 1)
    sent = positions * (experts_a_position(model.lm.config) or 0)
    stacks = {(sent, *p.shape[1:]) for p in model.parameters() if p.ndim == 3}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # The plain formula for experts keeps a copy of its expert's weights for each position; grouped products do not.
        if storage._cdata not in known and tuple(tensor.shape) not in stacks:
            found[storage._cdata] = storage
        return tensor

    enabled = autocast is not None
    with (
        in_one_chunk() if isinstance(tokens, FakeTensor) else nullcontext(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        # Without its cache, or a layer that stands twice would keep one copy of its weights for both.
        torch.autocast("cpu", autocast or torch.bfloat16, enabled=enabled, cache_enabled=False),
    ):
        model(tokens, phase)
    return sum(storage.nbytes() for storage in found.values())


def state_bytes_per_parameter(optimizer: Callable[..., torch.optim.Optimizer], dtype: torch.dtype) -> float:
    """What an optimizer keeps for a parameter, from a step of it over one matrix.

    Args:
        optimizer: from parameters to the optimizer.
        dtype: of the parameter.

    Returns:
        Bytes a parameter, the step counter left out.
    """
    matrix = nn.Parameter(torch.zeros(64, 64, dtype=dtype))
    built = optimizer([matrix])
    matrix.grad = torch.zeros_like(matrix)
    built.step()
    kept = [value for value in built.state[matrix].values() if isinstance(value, Tensor) and value.numel() > 1]
    return sum(value.numel() * value.element_size() for value in kept) / matrix.numel()
