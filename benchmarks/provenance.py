"""Where a result file comes from: commit, hardware and versions, as every file in ``results/`` names them."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "lightning", "litdata", "transformers")


def git(*words: str) -> str:
    """What git prints in this repository, "" where there is none."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def hardware(threads: int, device: str = "cpu") -> str:
    """The machine in words.

    Args:
        threads: of one process.
        device: "cuda" names the GPU too, and so opens it in this process.
    """
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    gpu = f"one {torch.cuda.get_device_name()}, " if device == "cuda" else ""
    return f"{gpu}{os.cpu_count()} CPU cores, {model}, {threads} thread{'s' * (threads > 1)} a process"


def source(packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """What was run; to be taken before the run, during which files may change.

    Args:
        packages: whose versions are named beside those of :data:`PACKAGES`.

    Returns:
        ``commit``, ``changed_files`` against it, and ``versions``, None for a package that is not installed.
    """
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed_files": len(git("status", "--porcelain").splitlines()),
        "versions": {name: _version(name) for name in (*PACKAGES, *packages)} | {"python": platform.python_version()},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
