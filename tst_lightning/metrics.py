"""Validation metrics of next-token prediction, exact over batches and ranks."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from tst_lightning.losses import LossSum


class _Sums(Metric):
    """Sums in float64."""

    full_state_update = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        # Under bf16-true Lightning turns every part of the module to bfloat16, in which a sum stops growing at 256.
        return super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), exclude_state)


class NextTokenMetrics(_Sums):
    """Mean loss, perplexity and bits per byte over a whole validation split.

    torchmetrics' own Perplexity wants (B, L, V) logits, which the loss never keeps; so this one takes the loss's sum
    and count, and leaves synchronisation and reset to torchmetrics.

    Args:
        bytes_per_token: UTF-8 bytes of text a token of the split stands for, from the shards' manifest.
    """

    total: Tensor
    count: Tensor

    def __init__(self, bytes_per_token: float) -> None:
        super().__init__()
        self.bytes_per_token = bytes_per_token
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, loss: LossSum) -> None:
        """Adds a batch's sum (nats) and count (predicted tokens)."""
        self.total += loss.total.detach().double()
        self.count += loss.count

    def compute(self) -> dict[str, Tensor]:
        """``loss`` in nats a token, ``perplexity``, ``bits_per_byte``, and the ``tokens`` that they are over."""
        loss = self.total / self.count
        return {
            "loss": loss,
            "perplexity": loss.exp(),
            "bits_per_byte": loss / math.log(2) / self.bytes_per_token,
            "tokens": self.count,
        }


class LossByPosition(_Sums):
    """Mean loss of each position of the context over a whole validation split; all are scored in every row.

    Args:
        positions: of a row, L.
    """

    totals: Tensor
    rows: Tensor

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.add_state("totals", torch.zeros(positions, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, loss: LossSum) -> None:
        """Adds a batch's parts (B * L,), one a position, row after row."""
        parts = loss.parts.double().view(-1, len(self.totals))
        self.totals += parts.sum(0)
        self.rows += len(parts)

    def compute(self) -> Tensor:
        """(L,) nats a token."""
        return self.totals / self.rows


def score_mixture(metrics: Mapping[str, NextTokenMetrics], shares: Mapping[str, float]) -> dict[str, Tensor]:
    """The metrics of a mixture, from those of its corpora.

    Args:
        metrics: of each corpus.
        shares: of each corpus in the training tokens, summing to 1.

    Returns:
        ``loss``, the mean by share, so that of a token drawn as in training; its perplexity and bits per byte; the
        ``tokens`` in all; and, where there are several, each corpus' own under ``loss/NAME`` and so on. One corpus gives
        its own metrics as they are.
    """
    scores = {name: metric.compute() for name, metric in metrics.items()}
    if len(scores) == 1:
        return dict(*scores.values())
    loss = torch.stack([shares[name] * score["loss"] for name, score in scores.items()]).sum()
    bytes_per_token = sum(shares[name] * metric.bytes_per_token for name, metric in metrics.items())
    whole = {
        "loss": loss,
        "perplexity": loss.exp(),
        "bits_per_byte": loss / math.log(2) / bytes_per_token,
        "tokens": torch.stack([score["tokens"] for score in scores.values()]).sum(),
    }
    return whole | {f"{key}/{name}": value for name, score in scores.items() for key, value in score.items()}
