"""What `tst compare` hands over: the comparison as data, as a table for the terminal, and its files in one folder."""

import json
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tst_lightning.compare import referee
from tst_lightning.compare.chart import draw
from tst_lightning.compare.page import render_page
from tst_lightning.compare.runs import Run, check_comparable, read_runs
from tst_lightning.compare.units import difference_text, flops_text, loss_text, speedup_text, tokens_text
from tst_lightning.errors import ConfigError

WIDTH = 100
NAME_WIDTH = 24
JSON_FILE, CHART_FILE, PAGE_FILE = "comparison.json", "loss_vs_compute.png", "report.html"


def compare_runs(paths: list[str], out: str) -> dict[str, Any]:
    """Compares run folders at equal FLOPs, at equal loss and at equal data, and writes a report.

    Writes comparison.json, loss_vs_compute.png and report.html; where anything fails, none of the three is touched.

    Args:
        paths: run folders as `tst fit` writes them; the first is the reference (normally the baseline).
        out: folder for the report; made if it isn't there. An earlier report in it is replaced.

    Returns:
        What comparison.json holds: ``runs``, ``equal_flops``, ``equal_loss``, ``equal_data``, ``notes``, ``reference``
        and ``flops_convention``. Losses are nats per token, FLOPs and tokens are totals since the start of a run.

    Raises:
        ConfigError: fewer than two runs, a folder without a run or without a validation, or runs whose model,
            tokenizer, validation data, sequence length or FLOPs convention differ.
        RunError: a file of a run is damaged.
        OSError: the report can't be written.
    """
    runs = read_runs(paths)
    check_comparable(runs)
    if Path(out).exists() and not Path(out).is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder")
    comparison = {
        "format": 1,
        "reference": runs[0].name,
        "flops_convention": runs[0].record["flops_convention"],
        "runs": [_entry(run) for run in runs],
        "equal_flops": referee.equal_budget(runs, "flops"),
        "equal_loss": referee.equal_loss(runs),
        "equal_data": referee.equal_budget(runs, "tokens"),
        "notes": referee.notes(runs),
    }
    light = draw(runs, comparison["equal_loss"])
    dark = draw(runs, comparison["equal_loss"], dark=True)
    page = render_page(comparison, [run.record for run in runs], light, dark)
    text = json.dumps(comparison, indent=2, allow_nan=False) + "\n"
    _write_all(Path(out), {JSON_FILE: text.encode(), CHART_FILE: light, PAGE_FILE: page.encode()})
    return comparison


def table_text(comparison: dict[str, Any]) -> str:
    """The comparison as plain text of at most 100 columns: a table of runs, the three comparisons, the notes."""
    header = ("run", "val loss", "bits/byte", "FLOPs", "tokens", "seconds", "steps", "seed", "status")
    rows = [header]
    for run in comparison["runs"]:
        rows.append(
            (
                shortened(run["name"]),
                loss_text(run["final_val_loss"]),
                loss_text(run["final_bits_per_byte"]),
                flops_text(run["flops"]),
                tokens_text(run["tokens"]),
                f"{run['seconds']:.1f}" if run["seconds"] < 100 else f"{run['seconds']:.0f}",
                str(run["step"]),
                str(run["seed"]),
                run["status"],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in rows:
        first, *numbers, last = row
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells, last]).rstrip())
    lines += ["", *_wrapped(verdicts(comparison)), "", "notes:"]
    return "\n".join(lines + _wrapped([f"- {note}" for note in comparison["notes"]]))


def verdicts(comparison: dict[str, Any]) -> list[str]:
    """The three comparisons, a line each."""
    reference, loss = shortened(comparison["reference"]), comparison["equal_loss"]
    lines = []
    for key, axis, budget in (
        ("equal_flops", "FLOPs", flops_text(comparison["equal_flops"]["flops"])),
        ("equal_data", "data", f"{tokens_text(comparison['equal_data']['tokens'])} tokens"),
    ):
        losses, differences = comparison[key]["losses"], comparison[key]["differences"]
        others = ", ".join(
            f"{shortened(name)} {loss_text(losses[name])} ({difference_text(differences[name])})"
            for name in differences
        )
        against = loss_text(losses[comparison["reference"]])
        lines.append(f"equal {axis} ({budget}): {reference} {against}, {others}")
    others = ", ".join(
        f"{shortened(name)} {speedup_text(reached['speedup'])}"
        + (f" (at {flops_text(reached['flops'])})" if reached["flops"] is not None else "")
        + f", reverse {speedup_text(loss['reverse'][name]['speedup'])}"
        for name, reached in loss["runs"].items()
    )
    lines.insert(1, f"equal loss ({reference}'s {loss_text(loss['loss'])}): {others}")
    return lines


def shortened(name: str) -> str:
    """A run's name on one line, with its middle left out where it is longer than the table's column."""
    name = " ".join(name.split())
    half = NAME_WIDTH // 2 - 1
    return name if len(name) <= NAME_WIDTH else f"{name[:half]}..{name[-half:]}"


def _wrapped(lines: Sequence[str]) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent="  ")]


def _entry(run: Run) -> dict[str, Any]:
    final, record = run.final, run.record
    return {
        "name": run.name,
        "path": run.path,
        "final_val_loss": final.loss,
        "final_bits_per_byte": final.bits_per_byte,
        "final_perplexity": final.perplexity,
        "flops": final.flops,
        "tokens": final.tokens,
        "positions": final.positions,
        "seconds": final.seconds,
        "step": final.step,
        "status": record["status"],
        "seed": record.get("seed"),
        "parameters": record["model"].get("parameters"),
        "phases": record["phases"],
        "switch": run.switches(),
    }


def _write_all(folder: Path, files: dict[str, bytes]) -> None:
    """Writes every file under a temporary name and only then gives all of them their own."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {name: folder / f".{name}.{os.getpid()}" for name in files}
    try:
        for name, contents in files.items():
            temporary[name].write_bytes(contents)
        for name, file in temporary.items():
            os.replace(file, folder / name)
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)
