"""What a stretch of training reads and predicts. A new objective is one class here and one block of YAML."""

from tst_lightning.phases.base import PhaseStrategy
from tst_lightning.phases.documents import DocumentBagsPhase
from tst_lightning.phases.folded_rows import FoldedRowsPhase
from tst_lightning.phases.multi_token import MultiTokenPhase
from tst_lightning.phases.next_token import NextTokenByPosition, NextTokenPhase
from tst_lightning.phases.output_only import AnnealedOutputPhase, OutputOnlyPhase
from tst_lightning.phases.schedule import PhaseSchedule, ScheduledPhase
from tst_lightning.phases.superposition import SuperpositionPhase

__all__ = [
    "AnnealedOutputPhase",
    "DocumentBagsPhase",
    "FoldedRowsPhase",
    "MultiTokenPhase",
    "NextTokenByPosition",
    "NextTokenPhase",
    "OutputOnlyPhase",
    "PhaseSchedule",
    "PhaseStrategy",
    "ScheduledPhase",
    "SuperpositionPhase",
]
