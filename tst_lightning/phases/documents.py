"""Superposition whose bags end where documents end, with and without attention across documents."""

from collections.abc import Hashable
from typing import TYPE_CHECKING, Literal

from torch import Tensor
from torch.nn.functional import pad

from tst_lightning.bags import PowerLaw, inputs_and_targets, pad_documents
from tst_lightning.losses import IGNORED, LossSum
from tst_lightning.modeling.documents import check_masks_documents
from tst_lightning.phases.superposition import SuperpositionPhase

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from tst_lightning.modeling import CausalLM


class DocumentBagsPhase(SuperpositionPhase):
    """Superposition in which no bag holds tokens of two documents; this project's own.

    Rows, shards and positions are those of :class:`SuperpositionPhase`. Bags begin anew with each document, so its last one
    may hold fewer than s tokens; each border pushes on average (s - 1) / 2 tokens out of its row, which are read from the
    data, counted as its tokens, and left out (see :func:`~tst_lightning.bags.pad_documents`). A bag of n tokens enters as
    the mean of their n embeddings. After a document's last bag the next one's first is predicted, as everywhere where
    documents are packed.

    As a target each token keeps the weight that it has in a full bag: a bag of n tokens weighs n / s of a position (by any
    weighting, the sum of its first n weights), and the loss is per whole bag. Were all bags to weigh alike, tokens of short
    ones would weigh more, most of all the one that ends a document: it is in every short bag, and would count
    1 + 1/2 + ... + 1/s times as much, twice for s = 4. A micro-batch is divided by its own count, so over micro-batches and
    ranks tokens weigh alike but for the difference in their counts.

    With ``mask_attention`` positions attend within their document alone, a bag's being that of its tokens. Positions go on
    counting through the row. With a bag size of 1 it is next-token training with such masks: for recovery, or a baseline.
    Validation is plain next-token prediction without masks in every phase: a model trained with masks alone has never
    read across a border, and reads across them there.

    Cost: FLOPs a row as SuperpositionPhase, by the meter's convention also where masked, which counts the pairs that a mask
    takes out. One mask of L^2 numbers a row serves all layers; with it attention goes by PyTorch's kernels for masks of any
    kind, which skip no pair, where those for causality skip half.

    Args:
        bag_size: tokens a full bag, s.
        share: share of all optimizer steps, 0 to 1; None takes what the other phases leave.
        weighting: as for SuperpositionPhase.
        objective: as for SuperpositionPhase; in bag_mass each bag weighs alike.
        mask_attention: attend within documents alone.

    Raises:
        ConfigError: as SuperpositionPhase.
    """

    def __init__(
        self,
        bag_size: int,
        share: float | None = None,
        weighting: str | PowerLaw = "uniform",
        objective: Literal["multi_hot", "bag_mass"] = "multi_hot",
        mask_attention: bool = False,
    ) -> None:
        super().__init__(bag_size, share, weighting, objective)
        self.mask_attention = mask_attention
        self._end: int | None = None

    def setup(self, end_of_document_id: int, config: "PreTrainedConfig") -> None:
        """Tells which id ends a document. Before, where FLOPs and memory are counted, a row is one document.

        Raises:
            ConfigError: attention is to be masked, and the architecture's can't be.
        """
        if self.mask_attention:
            check_masks_documents(config)
        self._end = end_of_document_id

    def work(self, seq_len: int) -> tuple[Hashable, ...]:
        """A mask takes memory."""
        return *super().work(seq_len), self.mask_attention

    def forward(self, model: "CausalLM", tokens: Tensor) -> Tensor:
        """(B, s * (L + 1)) ids to (B, L, d) hidden states."""
        bags, _ = inputs_and_targets(self._padded(tokens), self.bag_size)
        embedded = model.embed_partial_bags(bags)
        if not self.mask_attention:
            return model.body(embedded)
        ends = (bags == (IGNORED if self._end is None else self._end)).any(-1)
        return model.body(embedded, documents=pad(ends, (1, 0))[:, :-1].cumsum(1))

    def loss(self, model: "CausalLM", hidden: Tensor, tokens: Tensor, ahead: int = 0) -> LossSum:
        """The objective of (B, L, d) hidden states against bags 1 to L of each row, missing tokens left out."""
        return super().loss(model, hidden, self._padded(tokens), ahead)

    def _padded(self, tokens: Tensor) -> Tensor:
        return pad_documents(tokens, self.bag_size, self._end)
