"""What is added to a run of ``tst fit`` to measure it: a callback that makes it wait its turn, and a clock for its data.

The callback waits at the end of a batch, so a turn of K steps holds all of K rounds of Lightning's loop: fetching the
batch, every hook of every callback, and the loggers.
"""

import time
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import Profiler
from step_turns import Turns


class FetchClock(Profiler):
    """Sums the seconds that Lightning's loop spends in ``next()`` of the training stream; changes nothing.

    Attributes:
        seconds: since training began.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._began = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self._began = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.perf_counter() - self._began


class StepGate(Callback):
    """Has the run take steps when it is its turn, and report them.

    Args:
        report_fd: file descriptor that reports are written to.
        device: "cpu" or "cuda".
    """

    def __init__(self, report_fd: int, device: str) -> None:
        self.report_fd = report_fd
        self.device = device
        self.turns: Turns

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        clock = trainer.profiler
        assert isinstance(clock, FetchClock)
        self.turns = Turns(self.report_fd, self.device, lambda: clock.seconds)
        self.turns.begin()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.turns.step_done()
