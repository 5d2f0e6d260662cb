"""Superposition of the targets alone: each position reads one token, as ever, and predicts the next several."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from tst_lightning.bags import PowerLaw
from tst_lightning.losses import LossSum
from tst_lightning.phases.superposition import SuperpositionPhase

if TYPE_CHECKING:
    from tst_lightning.modeling import CausalLM


class OutputOnlyPhase(SuperpositionPhase):
    """Ordinary inputs, targets in superposition (arXiv 2605.06546, "output-only").

    Position j reads token j and predicts tokens j + 1 to j + s by the same multi-hot cross-entropy as full superposition,
    ``logsumexp(z) - sum_i w_i z[y_i]``, at the same cost: that of an ordinary step. It reads no more data than an ordinary
    step. Published as better than the baseline and worse than full superposition: the choice where data is the limit.

    Rows overlap by their lookahead: no token is read twice as an input. Of a block's last ``block_rows`` tokens s are only
    targets, and those beyond are left out (``tokens_cut`` of run.json): none where s is ``data.block_rows``.

    Args:
        bag_size: tokens that a position predicts, s; at most ``data.block_rows``.
        share: share of all optimizer steps, 0 to 1; None takes what the other phases leave.
        weighting: as for :class:`~tst_lightning.phases.SuperpositionPhase`; with ``first`` it is next-token training.
        objective: as there.

    Raises:
        ConfigError: as there.
    """

    def __init__(
        self,
        bag_size: int,
        share: float | None = None,
        weighting: str | PowerLaw = "uniform",
        objective: Literal["multi_hot", "bag_mass"] = "multi_hot",
    ) -> None:
        super().__init__(bag_size, share, weighting, objective)
        self.target_tokens = bag_size

    @property
    def bag_size(self) -> int:
        """One token a position."""
        return 1

    def row_tokens(self, seq_len: int) -> int:
        """L + s: the last s are only targets."""
        return seq_len + self.target_tokens

    def row_stride(self, seq_len: int) -> int:
        """L: the next row reads what is lookahead here."""
        return seq_len

    def forward(self, model: "CausalLM", tokens: Tensor) -> Tensor:
        """(B, L + s) ids to (B, L, d) hidden states."""
        return model.body(model.embed(tokens[:, : -self.target_tokens]))

    def loss(self, model: "CausalLM", hidden: Tensor, tokens: Tensor, ahead: int = 0) -> LossSum:
        """The objective of (B, L, d) hidden states, each against the s tokens after its own."""
        return self.score(model, hidden, tokens[:, 1 + ahead :].unfold(1, self.target_tokens, 1))


class AnnealedOutputPhase(OutputOnlyPhase):
    """A smooth passage from bag targets to next-token targets: output-only, with weights that change over its steps.

    When a share p of the phase's steps is done, target i weighs ``(1 - p) w_i``, and the first one p more: bag weights at
    the beginning, nearly next-token training at the last of n steps, where p is (n - 1) / n. Between superposition and
    recovery it takes the place of a hard switch. After the multi-token targets with decaying weights of the public
    modded-nanogpt speed runs; cost and data are those of ordinary steps.

    Args:
        bag_size: tokens that a position predicts, s; at most ``data.block_rows``.
        share: share of all optimizer steps, 0 to 1; None takes what the other phases leave.
        weighting: of the targets at the beginning, as for :class:`~tst_lightning.phases.SuperpositionPhase`.

    Raises:
        ConfigError: as there.
    """

    def __init__(self, bag_size: int, share: float | None = None, weighting: str | PowerLaw = "uniform") -> None:
        super().__init__(bag_size, share, weighting)
        self._progress = 0.0

    def begin_step(self, progress: float) -> None:
        """Sets the weights of the step."""
        self._progress = progress

    def _weights_on(self, device: torch.device) -> Tensor:
        weights = super()._weights_on(device) * (1 - self._progress)
        weights[0] += self._progress
        return weights
