"""Ordinary next-token training: the baseline's only phase, and recovery after superposition."""

from typing import TYPE_CHECKING

from torch import Tensor

from tst_lightning.losses import LossSum, next_token_cross_entropy
from tst_lightning.phases.base import PhaseStrategy

if TYPE_CHECKING:
    from tst_lightning.modeling import CausalLM


class NextTokenPhase(PhaseStrategy):
    """Each position reads one token and predicts the next one (arXiv 2605.06546, phase 2).

    Args:
        share: share of all optimizer steps, 0 to 1; None takes what the other phases leave.
    """

    def __init__(self, share: float | None = None) -> None:
        super().__init__(share)

    @property
    def bag_size(self) -> int:
        """One token a position."""
        return 1

    def row_tokens(self, seq_len: int) -> int:
        """L + 1: the last token is only a target."""
        return seq_len + 1

    def forward(self, model: "CausalLM", tokens: Tensor) -> Tensor:
        """(B, L + 1) ids to (B, L, d) hidden states."""
        return model.body(model.embed(tokens[:, :-1]))

    def loss(self, model: "CausalLM", hidden: Tensor, tokens: Tensor, ahead: int = 0) -> LossSum:
        """Cross-entropy of (B, L, d) hidden states against tokens 1 to L of (B, L + 1)."""
        return _by_position(model, hidden, tokens, ahead).by_row(len(tokens))


class NextTokenByPosition(NextTokenPhase):
    """As :class:`NextTokenPhase`, at the same cost, with a part for each position: to see what a context is worth."""

    def loss(self, model: "CausalLM", hidden: Tensor, tokens: Tensor, ahead: int = 0) -> LossSum:
        """As inherited, with parts (B * (L - ahead),), row after row."""
        return _by_position(model, hidden, tokens, ahead)


def _by_position(model: "CausalLM", hidden: Tensor, tokens: Tensor, ahead: int) -> LossSum:
    targets = tokens[:, 1 + ahead :].flatten()
    return next_token_cross_entropy(hidden.flatten(0, 1), model.head, targets, model.softcap, model.compiled)
