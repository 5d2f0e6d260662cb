"""From the turns of an arm to its row in the result: statistics over rounds, and a table of them."""

import statistics
from dataclasses import dataclass, field
from typing import Any

from step_setting import Arm, Setting


@dataclass
class Measured:
    """What an arm gave: memory with the model built, its turns by round, and why it failed if it did.

    ``resident_bytes`` is before the first step; on a GPU it is what torch has allocated.
    """

    arm: Arm
    resident_bytes: int | None = None
    turns: dict[int, dict[str, Any]] = field(default_factory=dict)
    failure: str | None = None

    def step_seconds(self) -> dict[int, float]:
        """Seconds a step, by round."""
        return {number: turn["seconds"] / turn["steps"] for number, turn in self.turns.items()}


def spread(name: str, values: list[float]) -> dict[str, float | None]:
    """Median, least and greatest of some values under ``name_median``, ``name_min`` and ``name_max``."""
    kinds = {"median": statistics.median, "min": min, "max": max}
    return {f"{name}_{kind}": of(values) if values else None for kind, of in kinds.items()}


def to_row(
    measured: Measured, baseline: Measured | None, setting: Setting, flops_per_row: int, peak: float | None
) -> dict[str, Any]:
    """An arm's row.

    Args:
        measured: the arm.
        baseline: whose turns of the same rounds it is held against, None without.
        setting: shared by all.
        flops_per_row: of a row of L positions, the same for every arm by the convention of ``tst_lightning.flops``.
        peak: FLOP/s of the device; None where it is not known, and no MFU is given.
    """
    turns, seconds = measured.turns.values(), measured.step_seconds()
    base = baseline.step_seconds() if baseline else {}
    row: dict[str, Any] = {"name": measured.arm.name, "bag_size": measured.arm.bag_size, "dtype": setting.precision}
    row |= spread("seconds", list(seconds.values()))
    ratio = spread("ratio", [seconds[number] / base[number] for number in seconds if number in base])
    row |= {"ratio_to_baseline": ratio.pop("ratio_median"), **ratio}
    median = row["seconds_median"]
    row |= {
        "positions_per_second": median and setting.positions / median,
        "tokens_per_second": median and setting.positions * measured.arm.bag_size / median,
        "mfu": median and peak and setting.batch_size * flops_per_row / median / peak,
        "data_wait_share": _data_wait_share(measured),
    }
    # The median: where a process happens to lay its blocks moves a turn's peak, up as well as down.
    highest = int(statistics.median(turn["peak_bytes"] for turn in turns)) if turns else None
    before = 0 if setting.device == "cuda" else measured.resident_bytes
    row |= {
        "peak_memory_bytes": None if highest is None or before is None else highest - before,
        "memory_before_bytes": measured.resident_bytes,
        "memory_highest_bytes": highest,
        "memory_method": next((turn["memory_method"] for turn in turns), None),
    }
    kept = ("steps", "seconds", "fetch_seconds", "peak_bytes")
    row["rounds"] = [{"round": n} | {key: turn[key] for key in kept} for n, turn in measured.turns.items()]
    return row | {"failure": measured.failure}


def _data_wait_share(measured: Measured) -> float | None:
    turns = measured.turns.values()
    if not turns or any(turn["fetch_seconds"] is None for turn in turns):
        return None
    return sum(turn["fetch_seconds"] for turn in turns) / sum(turn["seconds"] for turn in turns)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    titles = ["arm", "ms a step", "least to most", "of baseline", "peak MiB", "positions/s", "tokens/s", "MFU", "waits"]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for row in rows:
        cells = (
            _shown(row["seconds_median"], 1e3, ".1f"),
            f"{_shown(row['seconds_min'], 1e3, '.1f')} to {_shown(row['seconds_max'], 1e3, '.1f')}",
            _shown(row["ratio_to_baseline"], 1, ".3f"),
            _shown(row["peak_memory_bytes"], 2**-20, ",.0f"),
            _shown(row["positions_per_second"], 1, ",.0f"),
            _shown(row["tokens_per_second"], 1, ",.0f"),
            _shown(row["mfu"], 1, ".1%"),
            _shown(row["data_wait_share"], 1, ".1%"),
        )
        lines.append([row["name"] + (" (failed)" if row["failure"] else ""), *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _shown(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else format(value * factor, form)
