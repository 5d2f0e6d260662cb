"""Losses through the LM head. Each returns a sum and a count; the caller divides, so that gradient accumulation,
data parallelism and ignored labels agree.

Shapes: N positions, s targets a position, d residual width, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossSum:
    """A loss before division.

    Attributes:
        parts: (P,) nats, float32 or wider, one part a position or a row.
        count: positions over all parts.
    """

    parts: Tensor
    count: int

    def by_row(self, rows: int) -> "LossSum":
        """The same with one part a row, for positions that lie row after row."""
        return LossSum(self.parts.view(rows, -1).sum(1), self.count)

    @property
    def total(self) -> Tensor:
        """Nats over all parts, a scalar."""
        return self.parts.sum()

    @property
    def mean(self) -> Tensor:
        """Nats per position."""
        return self.total / self.count


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    """(N, V) logits, at least float32: a sum over V exponentials is not to be taken in half precision."""
    logits = F.linear(hidden, head)
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def multi_hot_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> LossSum:
    """Cross-entropy of each position against a weighted bag of targets.

    ``loss = logsumexp(z) - sum_i w_i z[y_i]`` with ``z = hidden @ head.T`` (arXiv 2605.06546, section 3). It is the
    mean (by weight) of s ordinary cross-entropies, so a token that appears twice in a bag counts twice, and with s = 1
    it is the ordinary one. The V-wide work is done once, whatever s is.

    Args:
        hidden: (N, d) outputs of the transformer's body.
        head: (V, d) LM-head weight.
        targets: (N, s) ids.
        weights: (s,) summing to 1.

    Returns:
        A part a position, in nats, and N.
    """
    logits = _logits(hidden, head)
    target_term = logits.gather(-1, targets) @ weights.to(logits)
    return LossSum(torch.logsumexp(logits, -1) - target_term, targets.shape[0])


def next_token_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> LossSum:
    """Ordinary cross-entropy.

    Args:
        hidden: (N, d) outputs of the transformer's body.
        head: (V, d) LM-head weight.
        targets: (N,) ids.

    Returns:
        A part a position, in nats, and N.
    """
    return LossSum(F.cross_entropy(_logits(hidden, head), targets, reduction="none"), targets.shape[0])
