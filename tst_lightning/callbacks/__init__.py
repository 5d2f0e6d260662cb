"""What watches a run: compute, progress, record, checkpoints and guards. None of them knows the module's class."""

from tst_lightning.callbacks.at_switch import ReinitialiseEmbeddings, ResetOptimizer
from tst_lightning.callbacks.expert_load import ExpertLoad
from tst_lightning.callbacks.flops_meter import FlopsMeter
from tst_lightning.callbacks.graceful_stop import GracefulStop
from tst_lightning.callbacks.non_finite import NonFiniteGuard
from tst_lightning.callbacks.progress import PhaseProgressBar
from tst_lightning.callbacks.run_record import RunRecord
from tst_lightning.callbacks.switch_checkpoint import SwitchCheckpoint

__all__ = [
    "ExpertLoad",
    "FlopsMeter",
    "GracefulStop",
    "NonFiniteGuard",
    "PhaseProgressBar",
    "ReinitialiseEmbeddings",
    "ResetOptimizer",
    "RunRecord",
    "SwitchCheckpoint",
]
