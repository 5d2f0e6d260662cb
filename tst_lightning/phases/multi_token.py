"""Multi-token prediction around any phase: a second head predicts what comes one position later still."""

import math
from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from tst_lightning.errors import ConfigError
from tst_lightning.losses import LossSum
from tst_lightning.phases.base import PhaseStrategy

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from tst_lightning.modeling import CausalLM


class MultiTokenPhase(PhaseStrategy):
    """Another phase, with one multi-token-prediction head beside the main one (arXiv 2404.19737, section 2, with n = 2).

    ``loss = inner(h_1..L; targets) + weight * inner(e(h_1..L-1); targets one position later)``, each a mean over its own
    positions, with e the :class:`~tst_lightning.modeling.extra_head.ExtraHead`. Around next-token training position j
    also predicts token j + 2; around superposition the bag after the next one. The losses that are logged are the inner
    phase's alone. The head is trained with the model, saved in checkpoints, and left out of an export.

    Around any phase: it is asked for its own loss ``ahead=1``.

    Cost: a second product with the LM head and one by W for all positions but the last, ``6 (V + d) d (L - 1)`` FLOPs a
    row, forward and backward: 21% of a step for a published 600M model (d = 960, V = 128,256, L = 2,048), 8% for 3B
    (d = 2,048). For the backward a second (V, d) gradient is kept, and three (L - 1, d) states a row. The norm that
    gradients are clipped by has W's gradient in it.

    Args:
        phase: what is trained beside the extra head; the share of the steps is named there.
        weight: of the extra head's mean loss; DeepSeek-V3 begins with 0.3.

    Raises:
        ConfigError: the weight is negative or not finite, or the phase has an extra head itself.
    """

    uses_extra_head = True

    def __init__(self, phase: PhaseStrategy, weight: float = 0.3) -> None:
        super().__init__(phase.share)
        if not 0.0 <= weight < math.inf:
            raise ConfigError(f"MultiTokenPhase.weight is {weight}; it must be a finite number, 0 or more")
        if phase.uses_extra_head:
            raise ConfigError(f"MultiTokenPhase.phase is a {type(phase).__name__}, which has the extra head already")
        self.phase = phase
        self.weight = weight

    @property
    def bag_size(self) -> int:
        """The inner phase's."""
        return self.phase.bag_size

    def row_tokens(self, seq_len: int) -> int:
        """The inner phase's: the last position alone has no second target, and goes without."""
        return self.phase.row_tokens(seq_len)

    def row_stride(self, seq_len: int) -> int:
        """The inner phase's."""
        return self.phase.row_stride(seq_len)

    def row_positions(self, seq_len: int) -> int:
        """The inner phase's.

        Raises:
            ConfigError: fewer than two, which leave the extra head nothing to predict.
        """
        positions = self.phase.row_positions(seq_len)
        if positions < 2:
            raise ConfigError(
                f"data.seq_len is {seq_len}, which gives rows of {positions} position in this phase; MultiTokenPhase"
                " predicts what comes a position later, and needs 2: raise data.seq_len"
            )
        return positions

    @property
    def row_multiple(self) -> int:  # type: ignore[override] # not an attribute of its own, or run.json would name it
        """The inner phase's."""
        return self.phase.row_multiple

    def work(self, seq_len: int) -> tuple[Hashable, ...]:
        """The inner phase's, and the extra head's."""
        return type(self), *self.phase.work(seq_len)

    def setup(self, end_of_document_id: int, config: "PreTrainedConfig") -> None:
        """Tells the inner phase."""
        self.phase.setup(end_of_document_id, config)

    def begin_step(self, progress: float) -> None:
        """Tells the inner phase."""
        self.phase.begin_step(progress)

    def forward(self, model: "CausalLM", tokens: Tensor) -> Tensor:
        """The inner phase's."""
        return self.phase.forward(model, tokens)

    def loss(self, model: "CausalLM", hidden: Tensor, tokens: Tensor, ahead: int = 0) -> LossSum:
        """The inner phase's, its parts and count too; the mean grows by ``weight`` times the extra head's."""
        assert model.extra_head is not None, "built by CausalLM.equip"
        main = self.phase.loss(model, hidden, tokens, ahead)
        extra = self.phase.loss(model, model.extra_head(hidden[:, :-1]), tokens, ahead + 1)
        return replace(main, total=main.total + self.weight * main.count * extra.mean)
