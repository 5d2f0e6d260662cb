"""The parent's side of an arm: its process, started, given turns, and ended."""

import contextlib
import json
import os
import re
import select
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from step_setting import Arm, Setting

SCRIPT = Path(__file__).resolve().parent / "step_arms.py"
PATIENCE = 1200  # seconds without a report after which a process counts as hung
LAST_LINES = 20


class ArmFailedError(Exception):
    """The process of an arm ended, or hung.

    Args:
        what: how it ended.
        said: the last lines that it printed.
    """

    def __init__(self, what: str, said: str) -> None:
        super().__init__(f"{what}\n{said}")
        # For the result file: one line, without the folders of this machine.
        last = said.splitlines()[-1] if said else "it printed nothing"
        self.reason = re.sub(r"(?<![\w.])(/[\w.@+-]+)+/", ".../", f"{what}: {last}")


class Worker:
    """The process of one arm, waiting between its turns.

    Args:
        arm: what it runs.
        setting: what it runs on.
        folder: fresh; its log and whatever the arm writes go there.
        threads: of its CPU work.

    Attributes:
        resident_bytes: its memory with the model built, before the first step.

    Raises:
        ArmFailedError: it ended before it was ready.
    """

    def __init__(self, arm: Arm, setting: Setting, folder: Path, threads: int) -> None:
        self._log = folder / "log.txt"
        reading, writing = os.pipe()
        task = {"arm": asdict(arm), "setting": asdict(setting), "report_fd": writing, "folder": str(folder)}
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(SCRIPT), json.dumps(task)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                pass_fds=(writing,),
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                start_new_session=True,  # Ctrl-C is for the parent, which then ends all
            )
        os.close(writing)
        self._reports = os.fdopen(reading)
        try:
            self.resident_bytes: int = self._report()["resident_bytes"]
        except BaseException:
            self.end()
            raise

    def turn(self, steps: int, timed: bool) -> dict[str, Any]:
        """Has it take steps, and waits for them.

        Args:
            steps: how many.
            timed: whether memory is measured; the peak is that of the turn.

        Returns:
            ``steps``, ``seconds``, ``fetch_seconds``, and if timed ``peak_bytes`` and ``memory_method``.

        Raises:
            ArmFailedError: it ended or hung.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"steps": steps, "timed": timed}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error
        return self._report()

    def _report(self) -> dict[str, Any]:
        if not select.select([self._reports], [], [], PATIENCE)[0]:
            raise ArmFailedError(f"no report for {PATIENCE} s", self._said())
        if not (line := self._reports.readline()):
            raise self._ended()
        return json.loads(line)

    def _ended(self) -> ArmFailedError:
        return ArmFailedError(f"exit code {self._process.wait()}", self._said())

    def _said(self) -> str:
        lines = self._log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()
        return "\n".join(lines[-LAST_LINES:])

    def end(self) -> None:
        """Ends it: by the end of its stdin, or if it does not wait there, by force."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone, and left a word unread
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reports.close()
