"""Losses through the LM head. Each returns a sum and a count; the caller divides: by the count of its micro-batch, or,
where ignored targets are to weigh alike over micro-batches and ranks, by that of the step.

Shapes: N positions, s targets a position, d residual width, V vocabulary.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tst_lightning.fused_cross_entropy import IGNORED, fused_cross_entropy

__all__ = ["IGNORED", "LossSum", "bag_mass_cross_entropy", "multi_hot_cross_entropy", "next_token_cross_entropy"]


@dataclass(frozen=True)
class Balance:
    """How evenly a mixture used its experts in one forward: those of one micro-batch of one process.

    Attributes:
        loss: by the architecture's own measure, a scalar with gradients; its least value, where all are used alike, is the
            number of experts a position.
        loads: (layers, experts) int64, positions that were sent to each expert.
    """

    loss: Tensor
    loads: Tensor


@dataclass(frozen=True)
class LossSum:
    """A loss before division.

    Attributes:
        total: nats over all positions, a scalar with gradients; float32 or wider. What a model is balanced by is in it.
        parts: (P,) the cross-entropy alone, by position or by row, without gradients.
        count: positions that were scored, a scalar on the device; one with ignored targets by the weight of the others.
        balance: of a mixture's experts in training; None elsewhere.
    """

    total: Tensor
    parts: Tensor
    count: Tensor
    balance: Balance | None = None

    def by_row(self, rows: int) -> "LossSum":
        """The same with one part a row, for positions that lie row after row."""
        return replace(self, parts=self.parts.view(rows, -1).sum(1))

    def balanced(self, balance: Balance, coefficient: float) -> "LossSum":
        """The same for a mixture of experts: :attr:`mean` grows by ``coefficient * balance.loss``."""
        total = self.total + coefficient * self.count * balance.loss if coefficient else self.total
        return replace(self, total=total, balance=balance)

    @property
    def divisor(self) -> Tensor:
        """The count, or 1 where nothing was scored."""
        return self.count.where(self.count > 0, 1)

    @property
    def mean(self) -> Tensor:
        """Nats per position, a scalar with gradients; 0 where nothing was scored."""
        return self.total / self.divisor


def multi_hot_cross_entropy(
    hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, softcap: float | None = None, compiled: bool = False
) -> LossSum:
    """Cross-entropy of each position against a weighted bag of targets.

    ``loss = logsumexp(z) - sum_i w_i z[y_i]`` with ``z = hidden @ head.T`` (arXiv 2605.06546, section 3). It is the
    mean (by weight) of s ordinary cross-entropies, so a token that appears twice in a bag counts twice, and with s = 1
    it is the ordinary one. Time and memory do not grow with s: the V-wide work is that of one target
    (:mod:`tst_lightning.fused_cross_entropy`).

    Args:
        hidden: (N, d) outputs of the transformer's body.
        head: (V, d) LM-head weight.
        targets: (N, s) ids; an ``IGNORED`` one counts neither in the sum nor, by its weight, in the count.
        weights: (s,) summing to 1, on the device of the hidden states.
        softcap: of the logits, as for :func:`fused_cross_entropy`.
        compiled: likewise.

    Returns:
        A part a position, in nats.
    """
    total, losses, scored = fused_cross_entropy(hidden, head, targets, weights, _multi_hot, softcap, compiled=compiled)
    return LossSum(total, losses, scored.sum())


def bag_mass_cross_entropy(
    hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None = None, compiled: bool = False
) -> LossSum:
    """How little probability the bag's tokens have together: the paper's MCE-alt.

    ``loss = logsumexp(z) - logsumexp(z over the distinct tokens of the bag)`` (arXiv 2605.06546). Order and
    repeats within a bag do not matter; with s = 1 it is the ordinary cross-entropy.

    Args:
        hidden: (N, d) outputs of the transformer's body.
        head: (V, d) LM-head weight.
        targets: (N, s) ids; ``IGNORED`` ones are not of the bag.
        softcap: of the logits, as for :func:`fused_cross_entropy`.
        compiled: likewise.

    Returns:
        A part a position, in nats; the count is of bags with at least one token.
    """
    weights = hidden.new_ones(targets.shape[1])
    total, losses, scored = fused_cross_entropy(hidden, head, targets, weights, _bag_mass, softcap, compiled=compiled)
    return LossSum(total, losses, scored.sum())


def next_token_cross_entropy(
    hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None = None, compiled: bool = False
) -> LossSum:
    """Ordinary cross-entropy.

    Args:
        hidden: (N, d) outputs of the transformer's body.
        head: (V, d) LM-head weight.
        targets: (N,) ids; ``IGNORED`` ones are not scored.
        softcap: of the logits, as for :func:`fused_cross_entropy`.
        compiled: likewise.

    Returns:
        A part a position, in nats.
    """
    return multi_hot_cross_entropy(hidden, head, targets[:, None], hidden.new_ones(1), softcap, compiled)


def _multi_hot(log_probs: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    # What has no weight does not matter, however improbable.
    return -(weights * log_probs.where(weights > 0, 0)).sum(1), -weights


def _bag_mass(log_probs: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    ids, order = targets.where(weights > 0, -1).sort(1)
    first = (ids >= 0) & (ids != torch.nn.functional.pad(ids, (1, 0), value=-1)[:, :-1])
    kept = torch.zeros_like(first).scatter(1, order, first)  # each token once
    # A bag without a token keeps its log-probabilities, and has them scored by nothing.
    masked = log_probs.masked_fill(~kept & kept.any(1, keepdim=True), float("-inf"))
    any_kept = kept.any(1).to(log_probs)
    return -torch.logsumexp(masked, 1) * any_kept, -torch.softmax(masked, 1) * any_kept[:, None]
