"""The worker's side of a turn: wait for a word on stdin, take steps, report seconds and memory, wait again.

A word is a line of JSON, ``{"steps": 10, "timed": true}``. Reports are lines of JSON on a pipe of their own, since the
arms print. At the end of stdin the process ends where it stands: what comes after a run's last step, its validation and
checkpoint, is not measured.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATUS = Path("/proc/self/status")


class Memory:
    """Bytes of this process: those that torch has allocated on a GPU, else its resident set.

    Attributes:
        method: where the peak comes from.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.method = "torch.cuda.max_memory_allocated" if self.cuda else "ru_maxrss, since the process began"

    def now(self) -> int:
        if self.cuda:
            return torch.cuda.memory_allocated()
        return _status_bytes("VmRSS") if STATUS.exists() else _maximum_resident_bytes()

    def reset_peak(self) -> None:
        """Forgets the peak so far, where the system lets a process do so."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.method = "VmHWM, reset before each timed turn"
        except OSError:  # not Linux, or not allowed: the peak is that since the process began
            pass

    def peak(self) -> int:
        if self.cuda:
            return torch.cuda.max_memory_allocated()
        return _status_bytes("VmHWM") if self.method.startswith("VmHWM") else _maximum_resident_bytes()


def _status_bytes(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _maximum_resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Turns:
    """Holds a training loop between two steps until its turn comes.

    Args:
        report_fd: file descriptor that reports are written to.
        device: "cpu" or "cuda".
        fetch_seconds: seconds spent waiting for data since the loop began; None where nobody measures it.
    """

    def __init__(self, report_fd: int, device: str, fetch_seconds: Callable[[], float] | None = None) -> None:
        self.memory = Memory(device)
        self._reports = os.fdopen(report_fd, "w", buffering=1)
        self._fetch_seconds = fetch_seconds
        self._steps = self._left = 0
        self._timed = False
        self._began = self._fetched = 0.0

    def begin(self) -> None:
        """To be called with the model built, before the first batch is fetched."""
        self._report({"resident_bytes": self.memory.now()})
        self._wait()

    def step_done(self) -> None:
        """To be called when the optimizer has stepped; waits if that was the last step of the turn."""
        self._left -= 1
        if self._left:
            return
        self._synchronize()
        seconds = time.perf_counter() - self._began
        fetched = None if self._fetch_seconds is None else self._fetch_seconds() - self._fetched
        report = {"steps": self._steps, "seconds": seconds, "fetch_seconds": fetched}
        if self._timed:
            report |= {"peak_bytes": self.memory.peak(), "memory_method": self.memory.method}
        self._report(report)
        self._wait()

    def _report(self, report: dict[str, Any]) -> None:
        self._reports.write(json.dumps(report) + "\n")

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            sys.stdout.flush()
            os._exit(0)
        word = json.loads(line)
        self._steps = self._left = word["steps"]
        self._timed = word["timed"]
        if self._timed:
            self.memory.reset_peak()
        self._fetched = self._fetch_seconds() if self._fetch_seconds else 0.0
        self._synchronize()
        self._began = time.perf_counter()

    def _synchronize(self) -> None:
        if self.memory.cuda:
            torch.cuda.synchronize()
