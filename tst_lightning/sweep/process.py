"""One case as a process: ``tst fit`` on one device, its output in a log, and how it ended."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tst_lightning.sweep.cases import Case
from tst_lightning.sweep.devices import Device
from tst_lightning.sweep.records import LOG_FILE, Ending, is_finished

_LONGEST_MESSAGE = 1000
_TAIL_BYTES = 65_536


class RunProcess:
    """A started ``tst fit``, in a process group of its own, so that a terminal's Ctrl-C reaches it through us alone.

    Args:
        case: what it trains.
        run_dir: where; it goes on with what is there.
        device: on which.
        lock: descriptor of the folder's lock, which the process keeps while it lives.

    Raises:
        OSError: the process can't be started.
    """

    def __init__(self, case: Case, run_dir: Path, device: Device, lock: int) -> None:
        self._run_dir = run_dir
        self._log = run_dir / LOG_FILE
        self._begun_at = self._log.stat().st_size if self._log.exists() else 0
        self._started = time.monotonic()
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                command(case, run_dir),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | device.environment,
                pass_fds=[lock],
                start_new_session=True,
            )

    def stop(self, number: int) -> None:
        """Sends a signal, at which the run ends after its current step with a checkpoint."""
        self._process.send_signal(number)  # nothing, if it has ended

    def kill(self) -> None:
        """Ends the run and every process that it started, at once."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> Ending:
        """Waits for its end; a run is finished if its record says that it took all its steps."""
        code = self._process.wait()
        message = last_line(self._log, self._begun_at)
        if code < 0:
            message = f"killed by {_signal_name(-code)}; its last line was: {message}"
        finished = code == 0 and is_finished(self._run_dir)
        return Ending("finished" if finished else "failed", code, message, time.monotonic() - self._started)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # the real-time ones between the first and the last have no name
        return f"signal {number}"


def command(case: Case, run_dir: Path) -> list[str]:
    """The words of the process: this interpreter's ``tst fit``, going on where an earlier start ended."""
    fit = [sys.executable, "-m", "tst_lightning", "fit"]
    return [*fit, *case.arguments(), "--run_dir", str(run_dir), "--ckpt_path", "last"]


def last_line(log: Path, begin: int = 0) -> str:
    """The last error that a log names after a byte, or else its last line; without the traceback before it."""
    size = log.stat().st_size
    with open(log, "rb") as file:
        file.seek(max(begin, size - _TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line for line in map(str.strip, re.split(r"[\r\n]+", text)) if line]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["nothing was printed"])[-1][:_LONGEST_MESSAGE]
