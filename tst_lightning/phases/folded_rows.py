"""Superposition over ordinary rows: folded, they are s times shorter, and a step may have more of them."""

from typing import Literal

from tst_lightning.bags import PowerLaw
from tst_lightning.errors import ConfigError
from tst_lightning.phases.superposition import SuperpositionPhase


class FoldedRowsPhase(SuperpositionPhase):
    """Full superposition whose rows stretch over L tokens, not L bags: L / s positions each.

    By default a step has s times the rows, and so as many positions and as much text as one of
    :class:`~tst_lightning.phases.SuperpositionPhase`, at a little less cost: attention goes over L / s positions. The
    paper names this as a faster alternative and did not try it (arXiv 2605.06546). With ``row_multiple: 1`` a step has the
    rows of an ordinary one, reads as much text as it and costs about 1 / s: equal data in place of equal FLOPs, the recipe
    of patch-level training (arXiv 2407.12665).

    Rows overlap by their lookahead of s tokens: no token is read twice as an input. What a block has beyond them is left
    out, fewer than ``data.block_rows`` tokens (``tokens_cut`` of run.json).

    Args:
        bag_size: tokens a bag, s; must divide L.
        share: share of all optimizer steps, 0 to 1; None takes what the other phases leave.
        weighting: as for SuperpositionPhase.
        objective: as there.
        row_multiple: rows of a micro-batch for each row of an ordinary one; None takes s.

    Raises:
        ConfigError: as there; ``row_multiple`` below 1.
    """

    def __init__(
        self,
        bag_size: int,
        share: float | None = None,
        weighting: str | PowerLaw = "uniform",
        objective: Literal["multi_hot", "bag_mass"] = "multi_hot",
        row_multiple: int | None = None,
    ) -> None:
        super().__init__(bag_size, share, weighting, objective)
        if row_multiple is not None and row_multiple < 1:
            raise ConfigError(f"row_multiple is {row_multiple}; it must be at least 1")
        self.row_multiple = bag_size if row_multiple is None else row_multiple

    def row_positions(self, seq_len: int) -> int:
        """L / s.

        Raises:
            ConfigError: s does not divide L.
        """
        if seq_len % self.bag_size:
            raise ConfigError(
                f"rows of {seq_len} tokens (data.seq_len) can't be folded into bags of {self.bag_size}; choose a bag_size"
                " that divides data.seq_len"
            )
        return seq_len // self.bag_size

    def row_tokens(self, seq_len: int) -> int:
        """L + s: the last bag is only a target."""
        return super().row_tokens(self.row_positions(seq_len))

    def row_stride(self, seq_len: int) -> int:
        """L: the next row reads what is lookahead here."""
        return self.row_positions(seq_len) * self.bag_size
