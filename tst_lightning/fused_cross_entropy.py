"""LM head and cross-entropy in one, a chunk of positions at a time: the (positions x vocabulary) logits never exist
whole, and the work over the vocabulary is done once, however many targets a position has.

The gradients are taken in the forward pass, while a chunk's probabilities are at hand; so three matrix products are all
there is over the vocabulary, as in an ordinary LM head, and backward only scales what was kept: (N, d) and (V, d).

Shapes: N positions, C of them a chunk, s targets a position, d residual width, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100  # as in torch's cross_entropy: a target that is not scored

# An objective scores each position by the log-probabilities of its targets alone: (C, s) log-probabilities, targets
# and weights (0 at ignored targets) to (C,) losses and their (C, s) derivatives by the log-probabilities, none above 0.
Objective = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

# Positions a chunk. Every chunk adds to the whole (V, d) gradient, which fewer positions would not be worth; more bring
# nothing but memory. 512 was the fastest on two CPU cores at V = 128,256, and within 10% of it at 1,024 and 32,768.
_CHUNK_ROWS = {"cpu": 512}
_ALL_ROWS = 2**62
_CHUNK_ROWS_ELSEWHERE = 1024  # at V = 128,256 and in bfloat16 about 0.8 GB of logits and float32 log-probabilities
# Compiled, in half precision, a position takes two thirds of that, and the head's gradient half the passes: 1.1 GB.
_COMPILED_ROWS = {"cpu": 512, "cuda": 2048}

_GRAPHS = 256  # of chunks, at most: one for each bag size, number of positions, dtype and objective of a process


def fused_cross_entropy(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    weights: Tensor,
    objective: Objective,
    softcap: float | None = None,
    rows: int | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores hidden states through the LM head.

    Products come in the dtype of a linear layer (that of autocast, where it is on); softmax and sums, that of the head's
    gradient over the chunks too, are in float32, or float64 for such inputs.

    Args:
        hidden: (N, d).
        head: (V, d) LM-head weight.
        targets: (N, s) ids; those that are ``IGNORED`` are not scored.
        weights: (s,) of the targets, handed to the objective; on the device of the hidden states.
        objective: from the targets' log-probabilities to losses.
        softcap: c of logits ``c * tanh(z / c)`` in place of ``z`` (Gemma 2, arXiv 2408.00118), at the cost of more passes
            over the vocabulary and a second chunk of logits; None leaves them as they are.
        rows: positions a chunk; None takes the device's default.
        compiled: where products come in half precision and gradients are taken, have a chunk compiled by torch.compile,
            once a shape: fewer passes over the vocabulary, and without a softcap no float32 numbers of its width in
            memory. In float32 it would win nothing, and the head's gradient be copied at every chunk.

    Returns:
        The losses' sum in nats, a scalar with gradients (first ones only); without, each position's loss (N,) and how
        much of each was scored (N,): minus the sum of its derivatives, 1 for a whole bag, 0 for an ignored one.
    """
    dtype = product_dtype(hidden)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    differentiate = torch.is_grad_enabled()
    compiled = compiled and differentiate and _worth_compiling(dtype)
    rows = rows or chunk_rows(hidden.device.type, compiled)
    return _FusedCrossEntropy.apply(
        hidden, head, targets, weights.to(wide), objective, softcap, dtype, differentiate, rows, compiled
    )


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype in which autocast has products of a tensor come; None where it is off, or leaves such a tensor alone."""
    device = tensor.device.type
    # The meta device has none, and refuses the question; torch.amp.is_autocast_available can't be compiled by PyTorch 2.11.
    if device == "meta" or not torch.is_autocast_enabled(device) or tensor.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(device)


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which products of a tensor come here and now: that of autocast, where it is on, or its own."""
    return autocast_dtype(tensor) or tensor.dtype


def chunk_rows(device_type: str, compiled: bool = False) -> int:
    """Positions a chunk.

    Args:
        device_type: such as "cuda".
        compiled: whether chunks are compiled, which they are in half precision alone.
    """
    rows = _COMPILED_ROWS if compiled else _CHUNK_ROWS
    return rows.get(device_type, _CHUNK_ROWS_ELSEWHERE)


@contextmanager
def in_one_chunk() -> Iterator[None]:
    """All positions at once on any device: for tensors without storage, whose only cost is the number of operations."""
    kept = dict(_CHUNK_ROWS)
    _CHUNK_ROWS.update(cpu=_ALL_ROWS, meta=_ALL_ROWS)
    try:
        yield
    finally:
        _CHUNK_ROWS.clear()
        _CHUNK_ROWS.update(kept)


def _chunk(
    states: Tensor,
    matrix: Tensor,
    targets: Tensor,
    weights: Tensor,
    grad_head: Tensor | None,
    objective: Objective,
    softcap: float | None,
    for_states: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores a chunk and takes its gradients.

    Args:
        states: (C, d) in the products' dtype.
        matrix: (V, d) in the products' dtype.
        targets: (C, s) ids.
        weights: (s,) in float32 or wider, as everything between the products is.
        grad_head: (V, d) that the head's gradient is added to; None where it is not wanted.
        objective: as for :func:`fused_cross_entropy`.
        softcap: likewise.
        for_states: whether the states' gradient is wanted.

    Returns:
        (C,) losses, (C,) how much of each was scored, and the states' (C, d) gradient or None.
    """
    dtype, wide = states.dtype, weights.dtype
    shown = targets != IGNORED
    ids = targets.where(shown, 0)
    logits = states @ matrix.T
    capped = None
    if softcap is not None:
        capped = logits.to(wide).div_(softcap).tanh_()
        logits = capped * softcap
    log_probs = torch.log_softmax(logits, -1, dtype=wide)
    del logits
    losses, slopes = objective(log_probs.gather(1, ids), ids, weights * shown)
    mass = -slopes.sum(1, keepdim=True)
    if grad_head is None and not for_states:
        return losses, mass.squeeze(1), None
    # d loss / d logits = mass * probabilities + slopes at the targets. The mass is left to the narrow sides of the
    # products below: it is 1 but for ignored targets, and V-wide it would cost a pass.
    slopes = slopes / mass.clamp_min(torch.finfo(wide).tiny)
    by_logits = _add_slopes(log_probs, ids, slopes, capped, dtype)
    del log_probs, capped
    grad_states = mass * (by_logits @ matrix) if for_states else None
    if grad_head is not None:
        states = (mass * states).to(dtype)
        if dtype == wide:  # in place, by the name that PyTorch's FLOP counter knows
            torch.addmm(grad_head, by_logits.T, states, out=grad_head)
        else:
            grad_head += by_logits.T @ states
    return losses, mass.squeeze(1), grad_states


def _add_slopes(log_probs: Tensor, ids: Tensor, slopes: Tensor, capped: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Probabilities plus the slopes at the targets, through the bound of the logits: (C, V) in the products' dtype."""
    if not torch.compiler.is_compiling():  # step by step, in the memory of the log-probabilities
        probs = log_probs.exp_().scatter_add_(1, ids, slopes)
        if capped is not None:
            probs.mul_(capped.square_().neg_().add_(1))  # the derivative of the tanh
        return probs.to(dtype)
    # One pass from logits to what the products read, and then s places of a row written over. Adding to them would need
    # them wide, and so all. A target that a bag holds several times is given the same number several times.
    alike = ids[:, :, None] == ids[:, None, :]
    at_targets = log_probs.gather(1, ids).exp() + (alike * slopes[:, None, :]).sum(2)
    probs = log_probs.exp()
    if capped is not None:
        steepness = 1 - capped.square()
        probs, at_targets = probs * steepness, at_targets * steepness.gather(1, ids)
    return probs.to(dtype).scatter(1, ids, at_targets.to(dtype))


def _worth_compiling(dtype: torch.dtype) -> bool:
    return dtype.itemsize < 4


@cache
def _compiled_chunk() -> Callable[..., Any]:
    # Not on import, which would bring the compiler with it.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
    return torch.compile(_chunk, fullgraph=True, dynamic=False)


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden, head, targets, weights, objective, softcap, dtype, differentiate, rows, compiled
    ) -> tuple[Tensor, Tensor, Tensor]:
        for_hidden, for_head = (needed and differentiate for needed in ctx.needs_input_grad[:2])
        chunk = _compiled_chunk() if compiled and (for_hidden or for_head) else _chunk
        # Detached: around a graph with a parameter in it, DDP would have it cut into pieces.
        matrix, wide = head.detach().to(dtype), weights.dtype
        losses, scored = (hidden.new_empty(len(hidden), dtype=wide) for _ in range(2))
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_head = torch.zeros_like(head, dtype=wide) if for_head else None
        for begin in range(0, len(hidden), rows):
            part = slice(begin, begin + rows)
            losses[part], scored[part], grad_states = chunk(
                hidden[part].to(dtype), matrix, targets[part], weights, grad_head, objective, softcap, for_hidden
            )
            if grad_hidden is not None and grad_states is not None:
                grad_hidden[part] = grad_states
        ctx.save_for_backward(grad_hidden, None if grad_head is None else grad_head.to(head.dtype))
        ctx.mark_non_differentiable(losses, scored)
        return losses.sum(), losses, scored

    @staticmethod
    @once_differentiable
    def backward(ctx, scale, *_) -> tuple[Tensor | None, ...]:
        # Not in place: whoever retains the graph may come again.
        grads = (None if grad is None else grad * scale.to(grad.dtype) for grad in ctx.saved_tensors)
        return (*grads, *[None] * 8)
