"""The comparison as plain text for the terminal: arms, runs, the answer to each question, the notes."""

import textwrap
from collections.abc import Sequence
from typing import Any

from tst_lightning.compare.units import (
    difference_text,
    flops_text,
    interval_text,
    loss_text,
    mean_text,
    seconds_text,
    speedup_text,
    tokens_text,
)

WIDTH = 100
NAME_WIDTH = 24


def table_text(comparison: dict[str, Any]) -> str:
    """The comparison as plain text of at most 100 columns.

    Args:
        comparison: what comparison.json holds.

    Returns:
        A table of arms where one has several seeds, a table of runs, a line for each question, and the notes.
    """
    lines = []
    if any(len(arm["runs"]) > 1 for arm in comparison["arms"]):
        lines += [*_arms(comparison), ""]
    lines += [*_runs(comparison["runs"]), "", *_wrapped(verdicts(comparison)), "", "notes:"]
    return "\n".join(lines + _wrapped([f"- {note}" for note in comparison["notes"]]))


def verdicts(comparison: dict[str, Any]) -> list[str]:
    """The answers, a line for each question; of means over seeds where there are several."""
    lines = []
    for key, axis, budget in (
        ("equal_flops", "FLOPs", flops_text(comparison["equal_flops"]["flops"])),
        ("equal_data", "data", f"{tokens_text(comparison['equal_data']['tokens'])} tokens"),
        ("equal_time", "time", seconds_text((comparison["equal_time"] or {"seconds": 0.0})["seconds"])),
    ):
        if comparison[key] is not None:
            losses = ", ".join(f"{shortened(arm['name'])} {_at_budget(arm[key])}" for arm in comparison["arms"])
            lines.append(f"equal {axis} ({budget}): {losses}")
    reference, *others = comparison["arms"]
    if others:
        speedups = ", ".join(
            f"{shortened(arm['name'])} {_speedup(arm['equal_loss'])}"
            + (f" (at {flops_text(arm['equal_loss']['flops'])})" if arm["equal_loss"]["flops"] is not None else "")
            + f", reverse {_speedup(arm['reverse'])}"
            for arm in others
        )
        target = loss_text(others[0]["equal_loss"]["loss"])
        lines.insert(1, f"equal loss ({shortened(reference['name'])}'s {target}): {speedups}")
    accuracy = comparison["equal_accuracy"]
    if accuracy is not None and accuracy["averaged"]:
        means = ", ".join(f"{shortened(name)} {_at_budget(of['average'])}" for name, of in accuracy["arms"].items())
        tasks = "1 task" if len(accuracy["averaged"]) == 1 else f"{len(accuracy['averaged'])} tasks"
        lines.append(f"accuracy at equal FLOPs ({flops_text(accuracy['flops'])}, mean of {tasks}): {means}")
    completed = comparison["equal_loss_completed"]
    if completed is not None:
        for row in completed["speedups"]:
            lines.append(
                f"equal loss, completed runs ({shortened(row['arm'])}'s {loss_text(row['loss'])}): "
                f"{shortened(row['family'])} {_speedup(row)}"
            )
    return lines


def shortened(name: str) -> str:
    """A run's name on one line, with its middle left out where it is longer than the table's column."""
    name = " ".join(name.split())
    half = NAME_WIDTH // 2 - 1
    return name if len(name) <= NAME_WIDTH else f"{name[:half]}..{name[-half:]}"


def _arms(comparison: dict[str, Any]) -> list[str]:
    budget = flops_text(comparison["equal_flops"]["flops"])
    rows = [["arm", "seeds", f"loss at {budget}", "difference and its 95% interval", ""]]
    for arm in comparison["arms"]:
        entry = arm["equal_flops"]
        difference = entry["difference"]
        rows.append(
            [
                shortened(arm["name"]),
                str(entry["n"]),
                mean_text(entry),
                "" if difference is None else _with_interval(difference, difference_text),
                "" if difference is None else difference["method"],
            ]
        )
    return _aligned(rows, left={0, 3, 4})


def _runs(runs: Sequence[dict[str, Any]]) -> list[str]:
    rows = [["run", "val loss", "bits/byte", "FLOPs", "tokens", "seconds", "steps", "seed", "status"]]
    for run in runs:
        rows.append(
            [
                shortened(run["name"]),
                loss_text(run["final_val_loss"]),
                loss_text(run["final_bits_per_byte"]),
                flops_text(run["flops"]),
                tokens_text(run["tokens"]),
                f"{run['seconds']:.1f}" if run["seconds"] < 100 else f"{run['seconds']:.0f}",
                str(run["step"]),
                str(run["seed"]),
                run["status"],
            ]
        )
    return _aligned(rows, left={0, 8})


def _aligned(rows: Sequence[Sequence[str]], left: set[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _at_budget(entry: dict[str, Any]) -> str:
    difference = entry["difference"]
    return loss_text(entry["mean"]) + (f" ({_with_interval(difference, difference_text)})" if difference else "")


def _speedup(entry: dict[str, Any]) -> str:
    return str(entry["reason"]) if entry["speedup"] is None else _with_interval(entry["speedup"], speedup_text)


def _with_interval(estimate: dict[str, Any], text: Any) -> str:
    return f"{text(estimate['mean'])} {interval_text(estimate['ci'], text)}".rstrip()


def _wrapped(lines: Sequence[str]) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent="  ")]
