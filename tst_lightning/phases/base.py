"""The contract between a training objective and everything around it."""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import TYPE_CHECKING

from torch import Tensor

from tst_lightning.errors import ConfigError
from tst_lightning.losses import LossSum

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from tst_lightning.modeling import CausalLM


class PhaseStrategy(ABC):
    """How a row of tokens becomes hidden states and a loss, during one phase of training.

    Args:
        share: share of all optimizer steps, 0 to 1; None takes what the other phases leave.

    Raises:
        ConfigError: the share is outside [0, 1].

    Attributes:
        row_multiple: rows of a micro-batch for each row of an ordinary one.
        uses_extra_head: whether the loss asks the model for its extra head, which predicts one position further than the
            main one; a model is given it where some phase of the run does.
    """

    row_multiple: int = 1
    uses_extra_head: bool = False

    def __init__(self, share: float | None = None) -> None:
        if share is not None and not 0.0 <= share <= 1.0:
            raise ConfigError(f"a phase's share of the steps is {share}; it must lie between 0 and 1")
        self.share = share

    @property
    @abstractmethod
    def bag_size(self) -> int:
        """Tokens that one position of the transformer reads."""

    @abstractmethod
    def row_tokens(self, seq_len: int) -> int:
        """Tokens in a row, the lookahead of its last target included.

        Args:
            seq_len: L, positions of an ordinary row.
        """

    def row_stride(self, seq_len: int) -> int:
        """Tokens from the beginning of a row to that of the next one in its block; fewer than a row's where the lookahead
        is read once more.
        """
        return self.row_tokens(seq_len)

    def row_positions(self, seq_len: int) -> int:
        """Positions of a row: L, unless the phase has rows of another length."""
        return seq_len

    def work(self, seq_len: int) -> tuple[Hashable, ...]:
        """What a micro-batch costs goes by: phases that agree in it cost the same.

        Args:
            seq_len: L, positions of an ordinary row.
        """
        return type(self), self.bag_size, self.row_tokens(seq_len), self.row_multiple

    def setup(self, end_of_document_id: int, config: "PreTrainedConfig") -> None:  # noqa: B027 - most need not know
        """Tells the phase, before training, which id ends a document in the shards, and what is to be trained.

        Raises:
            ConfigError: the phase can't train such a model.
        """

    def begin_step(self, progress: float) -> None:  # noqa: B027 - most are the same at every step
        """Tells the phase, before each micro-batch, how much of its steps is done, from 0 up to but not including 1."""

    @abstractmethod
    def forward(self, model: "CausalLM", tokens: Tensor) -> Tensor:
        """Reads rows.

        Args:
            model: embeddings, body and LM head.
            tokens: (B, row_tokens(L)) int64 ids.

        Returns:
            (B, L, d) hidden states after the final norm.
        """

    @abstractmethod
    def loss(self, model: "CausalLM", hidden: Tensor, tokens: Tensor, ahead: int = 0) -> LossSum:
        """Scores what the hidden states predict.

        Args:
            model: for its LM-head weight.
            hidden: (B, L - ahead, d), from :meth:`forward` of the same tokens.
            tokens: (B, row_tokens(L)) int64 ids.
            ahead: 0, or by how many positions further what a position is scored by lies than what it predicts as ever.

        Returns:
            The sum in nats, which is differentiated; its parts by row (B,); and the count of positions, a scalar tensor.
        """
