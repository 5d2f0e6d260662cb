"""What two runs ended with, held against each other bit by bit."""

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Wall time; and what Lightning's ModelCheckpoint shows of its last best, saves, but does not restore.
NO_RESULT = {"seconds", "current_score"}


def differences(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, int | None]]:
    """Where two checkpoints differ, and in how many bits if it is a tensor."""
    if type(one) is not type(other):
        yield path, None
    elif isinstance(one, dict):
        for key in sorted((one.keys() | other.keys()) - NO_RESULT, key=str):
            yield from differences(one.get(key, ...), other.get(key, ...), f"{path}/{key}")
    elif isinstance(one, list | tuple):
        for index, pair in enumerate(itertools.zip_longest(one, other, fillvalue=...)):
            yield from differences(*pair, f"{path}/{index}")
    elif isinstance(one, torch.Tensor) and one.shape == other.shape and one.dtype == other.dtype:
        raw = [tensor.contiguous().reshape(-1).view(torch.uint8).numpy() for tensor in (one, other)]
        if bits := int(np.bitwise_count(raw[0] ^ raw[1]).sum()):
            yield path, bits
    elif isinstance(one, torch.Tensor) or one != other:
        yield path, None


def curves(run: Path) -> dict[tuple[int, str], str]:
    """Losses, norms and totals by step, as written; a later start's rows replace those it did again."""
    points = {}
    for path in sorted(run.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1])):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                for key, value in row.items():
                    if value and key != "compute/seconds" and key.startswith(("train/", "val/", "compute/")):
                        points[int(row["step"]), key] = value
    return points


def compare(whole: Path, killed: Path, went_on_at: set[int]) -> dict[str, Any]:
    """What the two runs ended with, held against each other.

    Args:
        whole: folder of the run left alone.
        killed: folder of the other.
        went_on_at: the steps that it went on from. Lightning never removes a checkpoint that a start went on from, so
            a best one of such a step may be left over (where a kill left no last one beside it).
    """
    last = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, killed)]
    found = list(differences(*last))
    a, b = curves(whole), curves(killed)
    records = [json.loads((run / "run.json").read_text()) for run in (whole, killed)]
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (whole, killed)]
    left = {f"best-step={step}.ckpt" for step in went_on_at} - {*names[0]}
    names[1] = [name for name in names[1] if name not in left]
    return {
        "tensors": sum(bits is not None for _, bits in found),
        "bits": sum(bits or 0 for _, bits in found),
        "other_values": sum(bits is None for _, bits in found),
        "points": sum(a.get(key) != b.get(key) for key in a.keys() | b.keys()),
        "points_compared": len(a),
        "record": sorted(key for key in records[0] | records[1] if records[0].get(key) != records[1].get(key)),
        "checkpoints": names if names[0] != names[1] else [],
        "first": [path for path, _ in found[:20]],
    }
