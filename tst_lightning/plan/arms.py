"""Runs as they would be: steps, tokens and FLOPs of each phase, by the same counting that the meter does."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm
from typing import Any

from tst_lightning.data.rows import blocks_needed, row_plans
from tst_lightning.flops import count_flops_per_row
from tst_lightning.modeling import ActivationCheckpointing
from tst_lightning.phases import NextTokenPhase, PhaseSchedule, PhaseStrategy, SuperpositionPhase
from tst_lightning.plan.setting import Setting
from tst_lightning.published import Cell


@dataclass(frozen=True)
class PhaseCost:
    """A phase of an arm, in the meter's units: totals over all devices."""

    bag_size: int
    first_step: int
    steps: int
    tokens: int
    positions: int
    flops: int
    hardware_flops: int


@dataclass(frozen=True)
class Arm:
    """A run as it would be.

    Attributes:
        name: baseline, tst, or recommended.
        phases: cost by phase, in order.
        tokens_needed: unique tokens that reading nothing twice takes; whole blocks, over all devices.
        block_rows: that its data must be laid out for.
        passes: over the unique data that there is; None where that is not known.
    """

    name: str
    phases: dict[str, PhaseCost]
    tokens_needed: int
    block_rows: int
    passes: float | None

    def total(self, quantity: str) -> int:
        """Sum over the phases of one of :class:`PhaseCost`'s quantities."""
        return sum(getattr(phase, quantity) for phase in self.phases.values())


def two_phases(cell: Cell, weighting: str) -> dict[str, PhaseStrategy]:
    """Superposition and recovery with a bag size and a ratio."""
    return {
        "superposition": SuperpositionPhase(cell.bag_size, cell.ratio, weighting),
        "recovery": NextTokenPhase(),
    }


class Planner:
    """Lays arms over one setting.

    Args:
        setting: of all arms.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._counted: dict[tuple[Any, ...], int] = {}

    def flops_per_step(self, phase: PhaseStrategy, checkpointing: ActivationCheckpointing = "none") -> int:
        """FLOPs of an optimizer step over all devices, as the meter counts them.

        Args:
            phase: that the step belongs to.
            checkpointing: counts what layers compute again too (hardware FLOPs).
        """
        setting, key = self.setting, (phase.work(self.setting.seq_len), checkpointing)
        if key not in self._counted:
            self._counted[key] = (
                setting.rows_per_step
                * phase.row_multiple
                * count_flops_per_row(setting.config, phase, setting.seq_len, setting.attention, checkpointing)
            )
        return self._counted[key]

    def arm(self, name: str, phases: Mapping[str, PhaseStrategy], steps: int) -> Arm:
        """A run of some phases.

        Args:
            name: of the arm.
            phases: in order, each with its share of the steps.
            steps: optimizer steps in all.

        Raises:
            ConfigError: the shares of the steps do not sum to 1.
        """
        setting, schedule = self.setting, PhaseSchedule(phases, steps)
        costs = {}
        for entry in schedule:
            rows = entry.steps * setting.rows_per_step * entry.phase.row_multiple
            positions = rows * entry.phase.row_positions(setting.seq_len)
            costs[entry.name] = PhaseCost(
                bag_size=entry.phase.bag_size,
                first_step=entry.first_step,
                steps=entry.steps,
                tokens=positions * entry.phase.bag_size,
                positions=positions,
                flops=entry.steps * self.flops_per_step(entry.phase),
                hardware_flops=entry.steps * self.flops_per_step(entry.phase, setting.checkpointing),
            )
        block_rows = lcm(setting.block_rows or 1, *(entry.phase.bag_size for entry in schedule))
        block_tokens = block_rows * (setting.seq_len + 1)
        plans = row_plans(schedule, setting.seq_len, setting.accumulate)
        blocks = blocks_needed(plans, block_tokens, setting.batch_size, setting.pool_blocks) * setting.devices
        return Arm(name, costs, blocks * block_tokens, block_rows, self._passes(blocks, block_tokens))

    def _passes(self, blocks: int, block_tokens: int) -> float | None:
        setting = self.setting
        if setting.unique_tokens is not None:
            return blocks * block_tokens / setting.unique_tokens
        there = [(corpus.share, corpus.blocks(block_tokens)) for corpus in setting.corpora]
        return max((round(share * blocks) / mine if mine else float("inf") for share, mine in there), default=None)
