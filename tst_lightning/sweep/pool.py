"""Cases over devices: a thread for each device, which takes a case, runs its process, and takes the next."""

import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from types import FrameType

from tst_lightning.errors import ConfigError, Stopped
from tst_lightning.sweep.cases import Case
from tst_lightning.sweep.devices import Device
from tst_lightning.sweep.plan import Plan
from tst_lightning.sweep.process import RunProcess
from tst_lightning.sweep.queues import CaseQueue
from tst_lightning.sweep.records import Ending, locked, read_ending, write_ending
from tst_lightning.sweep.results import read_result

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_REFUSED = ConfigError.exit_code


@dataclass(frozen=True)
class _Said:
    line: str


class _Idle:
    """A device has nothing more to do."""


class Pool:
    """Runs cases until none is left, one at a time on each device.

    A run that fails leaves the others be. Only where one is refused as configured (exit code 2) before any case of the
    sweep has finished, now or earlier, the others would be too, and the sweep ends.

    Args:
        plan: the sweep.
        queue: of the cases to run.
        devices: a place each.
        say: takes a line of progress.
    """

    def __init__(self, plan: Plan, queue: CaseQueue, devices: Sequence[Device], say: Callable[[str], None]) -> None:
        self._plan, self._queue, self._devices, self._say = plan, queue, devices, say
        # What the main thread waits for: signals and what the devices' threads say.
        self._events: SimpleQueue[int | _Said | _Idle] = SimpleQueue()
        self._lock = threading.Lock()
        self._running: set[RunProcess] = set()
        self._stopping = False
        self._refusal: str | None = None

    def run(self) -> None:
        """Runs until no case is left.

        The first signal is handed on to the runs, which end with a checkpoint; a second one kills them.

        Raises:
            ConfigError: a run was refused before any case had finished.
            Stopped: a signal came.
        """
        received: list[int] = []
        previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            with ThreadPoolExecutor(len(self._devices)) as threads:
                futures = [threads.submit(self._work, device) for device in self._devices]
                idle = 0
                while idle < len(futures):
                    event = self._events.get()
                    if isinstance(event, _Said):
                        self._say(event.line)
                    elif isinstance(event, _Idle):
                        idle += 1
                    else:
                        received.append(event)
                        self._stop(event, again=received.count(event) > 1)
                for future in futures:
                    future.result()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._refusal is not None:
            raise ConfigError(self._refusal)
        if received:
            raise Stopped(f"the sweep was stopped by {signal.Signals(received[0]).name}", received[0])

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._events.put(number)

    def _stop(self, number: int, again: bool = False) -> None:
        with self._lock:
            self._stopping = True
            for process in self._running:
                if again and number in (signal.SIGINT, signal.SIGTERM):
                    process.kill()
                elif not again:
                    process.stop(number)

    # -- a device's thread ------------------------------------------------------------------------------------------

    def _work(self, device: Device) -> None:
        try:
            while not self._stopping and (case := self._queue.take()):
                self._run(case, device)
        except BaseException:
            self._stop(signal.SIGTERM)
            raise
        finally:
            self._events.put(_Idle())

    def _run(self, case: Case, device: Device) -> None:
        run_dir = self._plan.run_dir(case)
        with locked(run_dir) as lock:
            if lock is None:
                self._queue.done(case, None)
                self._tell(f"left out  {case.name}: running elsewhere, another process holds its folder")
                return
            with self._lock:
                process = None if self._stopping else RunProcess(case, run_dir, device, lock)
                self._running |= {process} if process else set()
            if process is None:
                self._queue.put_back(case)
                return
            self._tell(f"started   {case.name} on {device.name}")
            ending = process.wait()
            suspect = ending.exit_code == _REFUSED and not self._any_finished()
            with self._lock:
                self._running.discard(process)
                stopped = self._stopping and ending.status != "finished"
                refused = suspect and not stopped
                if refused:
                    self._refusal = (
                        f"{case.name} is refused, so nothing more is started: {ending.message}; mend the sweep and give the"
                        " same command again, or name another --out"
                    )
            if not (stopped or refused):
                write_ending(run_dir, case, ending)
        if refused:
            self._stop(signal.SIGTERM)
        if stopped or refused:
            self._queue.put_back(case)
            return
        self._conclude(case, ending)

    def _any_finished(self) -> bool:
        """Whether a case has ever finished, in this process or another, as the folders say."""
        endings = (read_ending(self._plan.run_dir(case), case) for case in self._plan.cases)
        return any(ending is not None and ending.status == "finished" for ending in endings)

    def _conclude(self, case: Case, ending: Ending) -> None:
        result = read_result(self._plan, case)
        self._queue.done(case, result.loss)
        if result.loss is None:
            self._tell(f"failed    {case.name}, exit code {ending.exit_code}: {result.message}")
        else:
            self._tell(f"finished  {case.name} in {ending.seconds:,.0f} s: {result.loss:.4f}")

    def _tell(self, line: str) -> None:
        self._events.put(_Said(line))
