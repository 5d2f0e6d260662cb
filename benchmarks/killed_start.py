"""One start of ``tst fit`` in a process group of its own: watched from outside, and killed in a given situation."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

ROOT = Path(__file__).resolve().parent.parent
STEPS, SWITCH, INTERVAL = 180, 90, 12  # the switch lies between two validations, and checkpoints come with these
PATIENCE = 300  # seconds a start may take before it counts as hung


class Probe(Callback):
    """Notes outside the process, where a SIGKILL can't reach it, what rank 0 is doing; changes nothing."""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT)
        self.phase, self.began = "", -1

    def note(self, trainer: Any, doing: str) -> None:
        if trainer.is_global_zero:
            facts = {"doing": doing, "phase": self.phase, "step": trainer.global_step, "began": self.began}
            os.pwrite(self.file, json.dumps(facts).ljust(128).encode(), 0)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.began, self.phase = trainer.global_step, pl_module.current.name
        self.note(trainer, "training")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.phase = batch["phase"]
        self.note(trainer, "training")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.note(trainer, "validation")

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.note(trainer, "checkpoint")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.note(trainer, "ending")


@dataclass(frozen=True)
class Place:
    """What :class:`Probe` noted last; ``began`` is the step that training began at, -1 before it did."""

    doing: str = "start-up"
    phase: str = ""
    step: int = 0
    began: int = -1


class Start:
    """One start of the command, in a process group of its own."""

    def __init__(self, folder: Path, shards: Path, options: list[str], number: int) -> None:
        self.folder = folder
        self.probe, self.log = folder / "probe.json", folder / f"start-{number}.log"
        self.probe.unlink(missing_ok=True)
        self.leftover = self.partials()
        probe = {"class_path": "benchmarks.killed_start.Probe", "init_args": {"path": str(self.probe)}}
        command = [
            *(sys.executable, "-m", "tst_lightning", "fit", "--config", "configs/quickstart/tst.yaml"),
            *("--run_dir", str(folder / "run"), "--data.shards", str(shards), "--ckpt_path", "last"),
            *options,
            f"--trainer.callbacks+={json.dumps(probe)}",
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=ROOT, env=environment, start_new_session=True
            )
        self.launched = time.monotonic()
        self.trained = 0.0  # when training began

    def place(self) -> Place:
        try:
            place = Place(**json.loads(self.probe.read_bytes()))
        except (OSError, ValueError):  # not there yet, or half a line
            return Place()
        if not self.trained and place.began >= 0:
            self.trained = time.monotonic()
        return place

    def partials(self) -> dict[str, int]:
        """Checkpoints that have not taken their place, with the times of their last change."""
        with contextlib.suppress(OSError):  # one may just have done so
            folder = self.folder / "run" / "checkpoints"
            return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.partial")}
        return {}

    def writing(self) -> list[str]:
        """Those of them that are of this start, not left over from one killed before it."""
        return sorted(name for name, changed in self.partials().items() if self.leftover.get(name) != changed)

    def kill(self) -> bool:
        """Whether SIGKILL was what ended it; it may have come too late."""
        os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL

    def said(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()
        return lines[-1] if lines else ""


@dataclass(frozen=True)
class Aim:
    """When to kill: ``at`` names the situation, ``luck`` (0 to 1) places the kill within it."""

    at: str
    luck: float

    @property
    def linger(self) -> float:
        """Seconds from the first sight of a short situation to the kill, so that all of it is tried."""
        return 0.06 * self.luck if self.at in ("switch", "validation", "last step") else 0.0

    def met(self, start: Start, place: Place, whole: dict[str, float]) -> bool:
        now = time.monotonic()
        if self.at == "start-up":
            return now - start.launched >= self.luck * whole["start_seconds"]
        if place.began < 0:
            return False
        if self.at == "any time":
            left = 1 - place.began / STEPS
            return now - start.trained >= self.luck * left * whole["training_seconds"]
        first, last = {
            "superposition": (place.began, SWITCH),
            "switch": (SWITCH, SWITCH),
            "recovery": (max(place.began, SWITCH + 1), STEPS),
            "last step": (STEPS, STEPS),
        }.get(self.at, (place.began, place.began + 3 * INTERVAL))
        if place.step < first + int(self.luck * (last - first)):
            return False
        if self.at == "checkpoint":
            return bool(start.writing())
        return self.at != "validation" or place.doing == "validation"


def finish(start: Start) -> str:
    """Waits for the end of a start; gives the reason if it is a bad one."""
    try:
        code = start.process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        start.kill()
        return f"hung in {start.place().doing}"
    return "" if code == 0 else f"exit code {code}: {start.said()}"
