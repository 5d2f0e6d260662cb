"""Where runs are put: one place for each run at a time, with the environment that keeps it to its share of the machine."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from tst_lightning.errors import ConfigError


@dataclass(frozen=True)
class Device:
    """A place for one run at a time.

    Attributes:
        name: for messages, such as ``cpu`` or ``gpu 0``.
        environment: variables of the run's process beside those of this one.
    """

    name: str
    environment: Mapping[str, str]


def parse_devices(text: str) -> list[Device]:
    """Reads what ``--devices`` says.

    Args:
        text: ``auto`` (every GPU, else the CPU, one run at a time), ``cpu`` or ``cpu:N`` (N runs at a time), or GPUs as
            CUDA_VISIBLE_DEVICES names them, set apart by commas: one run on each, or on several joined by ``+``.

    Raises:
        ConfigError: it says none of these.
    """
    if text == "auto":
        names = _visible_gpus()
        return _gpus(names) if names else _cpus(1)
    if found := re.fullmatch(r"cpu(?::([1-9]\d{0,3}))?", text):
        return _cpus(int(found[1] or 1))
    names = text.split(",")
    if not all(re.fullmatch(r"(\d+|(GPU|MIG)-[\w/-]+)(\+(\d+|(GPU|MIG)-[\w/-]+))*", name) for name in names):
        raise ConfigError(
            f"--devices is '{text}'; give auto, cpu:2 (two runs at a time on the CPU), 0,1,2,3 (one run on each of these"
            " GPUs) or 0+1,2+3 (one run on each pair)"
        )
    return _gpus(names)


def _cpus(count: int) -> list[Device]:
    # No GPU is visible, so that `accelerator: auto` means the CPU.
    return [
        Device("cpu" if count == 1 else f"cpu {i}", {"CUDA_VISIBLE_DEVICES": ""} | _threads(count))
        for i in range(count)
    ]


def _gpus(names: list[str]) -> list[Device]:
    return [
        Device(f"gpu {name}", {"CUDA_VISIBLE_DEVICES": name.replace("+", ",")} | _threads(len(names))) for name in names
    ]


def _threads(runs: int) -> dict[str, str]:
    """A run's share of the cores, unless the user has said how many threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // runs))}


def _visible_gpus() -> list[str]:
    """The GPUs that a run would see; asked of the driver's own tool, since importing torch for it takes seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return [str(i) for i, _ in enumerate(line for line in listed.stdout.splitlines() if line.startswith("GPU "))]
