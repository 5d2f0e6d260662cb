"""Memory of one device: states from the model's own parameters, activations measured on a model that takes no memory.

What backward needs is not estimated but measured (:mod:`tst_lightning.plan.activations`), by the CPU's kernels. Fused
attention on a GPU keeps the same (query, key, value, output and one number a row), so the figure holds there too; what
allocators and libraries take on top is not in it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tst_lightning.errors import ConfigError
from tst_lightning.fused_cross_entropy import chunk_rows
from tst_lightning.modeling import build_causal_lm, decoder_layers
from tst_lightning.optim import HIDDEN, decay_groups
from tst_lightning.phases import PhaseStrategy
from tst_lightning.plan.activations import measure_activations
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
        recomputed: where activations are checkpointed, what one layer computes again for its backward.
        logits: of the chunk that the fused loss has at hand, in all the forms it takes; compiled on a GPU, a third more.
        whole_logits: what the same would be without chunks, for comparison; not part of any sum.
        peak: of a step: at the end of a forward pass, where the logits are, while a layer is recomputed, or with all
            gradients when the activations are gone. A step begins without gradients, so all of them stand together with
            activations only where it has several micro-batches. What a layer's backward or an optimizer that is not fused
            takes for a moment is left out: up to a tenth in small models.
        checkpoint: of the whole run on disk: weights and optimizer state.
    """

    parameters: int
    gradients: int
    optimizer_state: int
    communication: int
    activations: int
    recomputed: int
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
        ConfigError: a precision that is not known, or an architecture whose activations can't be checkpointed.
    """
    if setting.precision not in PRECISIONS:
        raise ConfigError(f"precision is '{setting.precision}'; memory can be told for {', '.join(PRECISIONS)}")
    dtype, autocast = PRECISIONS[setting.precision]
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build_causal_lm(setting.config, experts="batched_mm")
        phases = list(phases)
        model.equip(phases)
        model.routers = None  # what the balance of experts keeps, a number an expert and position, is next to nothing
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        weights = sum(p.numel() for p in model.parameters())
        layers = list(decoder_layers(model.lm) or ())
        of_layers = sum(p.numel() for layer in layers for p in layer.parameters())
        activations = measure_activations(model, phases, setting, autocast)
    rows = setting.batch_size * setting.seq_len
    width = (autocast or dtype).itemsize
    wide = max(4, width)
    share = setting.devices if setting.layout == "fsdp" else 1
    parameters = -(-weights * dtype.itemsize // share)
    decay, *_ = decay_groups(model.named_parameters(), model.embeddings)
    hidden = sum(p.numel() for p, is_hidden in zip(decay["params"], decay[HIDDEN], strict=True) if is_hidden)
    state = hidden * state_bytes_per_parameter(setting.optimizer, dtype)
    state += (weights - hidden) * state_bytes_per_parameter(setting.optimizer, dtype, hidden=False)
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
    states = parameters + round(state / share) + communication
    height = activations.kept + max(logits, activations.recomputed)
    # Gradients that have yet to be added up: of a tied head its two parts, of a later micro-batch at least the largest one.
    tied = model.head is model.lm.get_input_embeddings().weight
    beside = (2 * tied + (setting.accumulate > 1)) * model.head.numel() * dtype.itemsize // share
    if setting.accumulate > 1:  # those of earlier micro-batches stand already when the next one is at its height
        height = parameters + max(height, beside)
    else:
        height = max(height, parameters + activations.recomputed + beside)
    return Memory(
        parameters=parameters,
        gradients=parameters,
        optimizer_state=round(state / share),
        communication=communication,
        activations=activations.kept,
        recomputed=activations.recomputed,
        logits=logits,
        whole_logits=rows * per_position + of_head,
        peak=states + height,
        checkpoint=round(weights * dtype.itemsize + state),
    )


def state_bytes_per_parameter(
    optimizer: Callable[..., torch.optim.Optimizer], dtype: torch.dtype, hidden: bool = True
) -> float:
    """What an optimizer keeps for a parameter, from a step of it over one matrix.

    Args:
        optimizer: from parameters to the optimizer.
        dtype: of the parameter.
        hidden: whether it is told that the matrix is of the hidden layers.

    Returns:
        Bytes a parameter, the step counter left out.
    """
    matrix = nn.Parameter(torch.zeros(64, 64, dtype=dtype))
    built = optimizer([{"params": [matrix], HIDDEN: [hidden]}])
    matrix.grad = torch.zeros_like(matrix)
    built.step()
    kept = [value for value in built.state[matrix].values() if isinstance(value, Tensor) and value.numel() > 1]
    return sum(value.numel() * value.element_size() for value in kept) / matrix.numel()
