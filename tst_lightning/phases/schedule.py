"""A schedule of phases is data: named phases, in order, each with its share of the optimizer steps."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tst_lightning.errors import ConfigError
from tst_lightning.phases.base import PhaseStrategy


class ScheduledPhase(NamedTuple):
    """A phase with its place in the run: steps ``first_step`` to ``first_step + steps - 1``."""

    name: str
    phase: PhaseStrategy
    first_step: int
    steps: int


class PhaseSchedule:
    """Lays phases over a run's optimizer steps.

    The boundary after the first k phases is floor(total steps x sum of their shares): with shares r and 1 - r,
    superposition takes steps 0 to floor(r T) - 1. Phases that get no step are dropped.

    Args:
        phases: name to phase, in the order of training.
        total_steps: T, optimizer steps of the run.

    Raises:
        ConfigError: no phases, shares that do not sum to 1, more than one share left open.
    """

    def __init__(self, phases: Mapping[str, PhaseStrategy], total_steps: int) -> None:
        shares = _complete_shares(phases)
        self.total_steps = total_steps
        self.entries: list[ScheduledPhase] = []
        begin, done = 0, 0.0
        names = list(phases)
        for name, share in zip(names, shares, strict=True):
            phase = phases[name]
            done += share
            # The tolerance keeps 0.1 + 0.2 from losing a step to binary fractions.
            end = total_steps if name == names[-1] else min(total_steps, math.floor(total_steps * done + 1e-9))
            if end > begin:
                self.entries.append(ScheduledPhase(name, phase, begin, end - begin))
            begin = end

    def __iter__(self) -> Iterator[ScheduledPhase]:
        return iter(self.entries)

    def at(self, step: int) -> ScheduledPhase:
        """The phase that optimizer step ``step`` (from 0) belongs to; the last one from the end of the run on."""
        return next(entry for entry in reversed(self.entries) if entry.first_step <= step)

    @property
    def switches(self) -> list[int]:
        """The steps at which a new phase begins, the run's start left out."""
        return [entry.first_step for entry in self.entries[1:]]

    @property
    def largest_bag(self) -> int:
        """The largest bag size of the schedule."""
        return max(entry.phase.bag_size for entry in self.entries)


def _complete_shares(phases: Mapping[str, PhaseStrategy]) -> list[float]:
    if not phases:
        raise ConfigError("model.phases is empty; name at least one phase, such as NextTokenPhase")
    given = {name: phase.share for name, phase in phases.items()}
    total = sum(share for share in given.values() if share is not None)
    shown = ", ".join(f"{name} {'the rest' if share is None else share}" for name, share in given.items())
    open_ended = [name for name, share in given.items() if share is None]
    if len(open_ended) > 1:
        raise ConfigError(
            f"only one phase can take the rest of the steps, but {' and '.join(open_ended)} name no share"
        )
    if open_ended and total <= 1.0 + 1e-9:
        return [max(0.0, 1.0 - total) if share is None else share for share in given.values()]
    if open_ended or not math.isclose(total, 1.0, abs_tol=1e-6):
        raise ConfigError(f"the phases' shares of the steps sum to {total:g}, not 1 ({shown}); change them to sum to 1")
    return [share for share in given.values() if share is not None]
