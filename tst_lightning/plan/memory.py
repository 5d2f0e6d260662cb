"""Memory of one device: states from the model's own parameters, activations measured on a model that takes no memory.

What backward needs is not estimated but read off: one micro-batch runs forward on fake tensors, as the CPU's kernels
would run it, and autograd's hooks say what it keeps. Fused attention on a GPU keeps the same (query, key, value, output
and one number a row), so the figure holds there too; what allocators and libraries take on top is not in it.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tst_lightning.errors import ConfigError
from tst_lightning.fused_cross_entropy import chunk_rows
from tst_lightning.modeling import CausalLM, all_alike, build_causal_lm, decoder_layers
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

    def as_dict(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


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
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        weights = sum(p.numel() for p in model.parameters())
        layers = list(decoder_layers(model.lm) or ())
        of_layers = sum(p.numel() for layer in layers for p in layer.parameters())
        kept = max((_kept(model, phase, setting, autocast) for phase in phases), key=lambda kept: kept.total)
    rows = setting.batch_size * setting.seq_len
    activations = kept.total
    if setting.checkpointing == "full":
        # One layer's activations at a time, and every layer's input.
        activations = kept.outside + kept.a_layer + len(layers) * rows * setting.config.hidden_size * dtype.itemsize
    width = (autocast or dtype).itemsize
    wide = max(4, width)
    share = setting.devices if setting.layout == "fsdp" else 1
    parameters = -(-weights * dtype.itemsize // share)
    state = weights * state_bytes_per_parameter(setting.optimizer, dtype)
    communication = {
        "single": 0,
        "ddp": weights * dtype.itemsize,
        # The next layer is gathered while one is at work; embeddings and head are the root's, and stay.
        "fsdp": (2 * of_layers // max(len(layers), 1) + weights - of_layers) * width,
    }[setting.layout]
    # Logits in the products' dtype, log-probabilities in float32; the CPU's softmax widens its input first.
    per_position = setting.config.vocab_size * (
        width + wide + (wide if width < wide and setting.device_type == "cpu" else 0)
    )
    logits = min(chunk_rows(setting.device_type), rows) * per_position
    if width < wide:  # the head and its gradient of a chunk, in the products' dtype
        logits += 2 * setting.config.vocab_size * setting.config.hidden_size * width
    # Gradients of earlier micro-batches stand already when the next one is at its height.
    standing = 2 * parameters + round(state / share) + communication
    return Memory(
        parameters=parameters,
        gradients=parameters,
        optimizer_state=round(state / share),
        communication=communication,
        activations=activations,
        logits=logits,
        whole_logits=rows * per_position,
        peak=standing + activations + logits,
        checkpoint=round(weights * dtype.itemsize + state),
    )


@dataclass(frozen=True)
class _Kept:
    """Bytes that autograd keeps: in all, of one layer, and outside of the layers."""

    total: int
    a_layer: int
    outside: int


def _kept(model: CausalLM, phase: PhaseStrategy, setting: Setting, autocast: torch.dtype | None) -> _Kept:
    tokens = torch.zeros(setting.batch_size, phase.row_tokens(setting.seq_len), dtype=torch.int64)
    layers = decoder_layers(model.lm)
    if layers is None or len(layers) < 2 or not all_alike(layers):
        total = saved_bytes(model, phase, tokens, autocast)
        count = max(len(layers or ()), 1)
        return _Kept(total, total // count, 0)
    every = list(layers)
    del layers[2:]
    two = saved_bytes(model, phase, tokens, autocast)
    del layers[1:]
    one = saved_bytes(model, phase, tokens, autocast)
    layers.extend(every[1:])
    a_layer = two - one
    return _Kept(one + (len(every) - 1) * a_layer, a_layer, one - a_layer)


def saved_bytes(model: nn.Module, phase: PhaseStrategy, tokens: Tensor, autocast: torch.dtype | None) -> int:
    """What autograd keeps of a forward pass until backward, parameters left out; each storage once.

    Args:
        model: a :class:`CausalLM`, real or of fake tensors.
        phase: whose loss is taken.
        tokens: (B, phase.row_tokens(L)) ids.
        autocast: dtype of autocast on the CPU; None for none.

    Returns:
        Bytes.
    """
    known = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    # Storages are held, so that none takes the address of one that is gone.
    found: dict[int, Any] = {}
    stacks = {p.shape[1:] for p in model.parameters() if p.ndim == 3}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # The plain formula for experts keeps a copy of its expert's weights for each position; grouped products do not.
        if storage._cdata not in known and not (tensor.ndim == 3 and tensor.shape[1:] in stacks):
            found[storage._cdata] = storage
        return tensor

    enabled = autocast is not None
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", autocast or torch.bfloat16, enabled=enabled),
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
