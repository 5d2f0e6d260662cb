"""Where a result file comes from: commit, hardware and versions, as every file in ``results/`` names them."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "lightning", "litdata", "transformers")


def git(*words: str) -> str | None:
    """What git prints in this repository; None where there is no repository, or no git."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return None if done.returncode else done.stdout.strip()


def commit() -> str | None:
    """The commit of these sources; for a copy of them without its repository the variable COMMIT says it."""
    return os.environ.get("COMMIT") or git("rev-parse", "HEAD")


def changed_files() -> int | None:
    """How many files differ from the commit; None where nothing says so."""
    status = git("status", "--porcelain")
    return None if status is None else len(status.splitlines())


@cache
def gpu_name() -> str:
    """The GPU's product name, asked in another process: opened in this one, it would keep some of its memory."""
    ask = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name())"]
    return subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()


def hardware(threads: int, device: str = "cpu") -> str:
    """The machine in words.

    Args:
        threads: of one process.
        device: "cuda" names the GPU too.
    """
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    gpu = f"one {gpu_name()}, " if device == "cuda" else ""
    return f"{gpu}{os.cpu_count()} CPU cores, {model}, {threads} thread{'s' * (threads > 1)} a process"


def source(packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """What was run; to be taken before the run, during which files may change.

    Args:
        packages: whose versions are named beside those of :data:`PACKAGES`.

    Returns:
        ``commit``, ``changed_files`` against it, and ``versions``; None for what is not known, or not installed.
    """
    return {
        "commit": commit(),
        "changed_files": changed_files(),
        "versions": {name: _version(name) for name in (*PACKAGES, *packages)} | {"python": platform.python_version()},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
