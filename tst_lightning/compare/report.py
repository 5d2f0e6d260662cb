"""What `tst compare` hands over: the comparison as data, and its files in one folder."""

import os
from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Any

from tst_lightning.compare import referee
from tst_lightning.compare.across_seeds import arm_entries
from tst_lightning.compare.arms import Arm, arms_of
from tst_lightning.compare.evaluations import equal_accuracy
from tst_lightning.compare.frontier import equal_loss_completed
from tst_lightning.compare.loss_chart import draw_losses
from tst_lightning.compare.notes import notes
from tst_lightning.compare.page import render_page
from tst_lightning.compare.runs import Run, check_comparable, read_runs
from tst_lightning.compare.speedup_chart import draw_speedups
from tst_lightning.errors import ConfigError

JSON_FILE, CHART_FILE, SPEEDUP_FILE, PAGE_FILE = (
    *("comparison.json", "loss_vs_compute.png", "speedup_vs_loss.png", "report.html"),
)


def compare_runs(paths: list[str], out: str) -> dict[str, Any]:
    """Compares run folders at equal FLOPs, equal loss, equal data and equal time, over seeds, and writes a report.

    Runs that differ in nothing but their seeds are one arm. Writes comparison.json, loss_vs_compute.png,
    speedup_vs_loss.png and report.html; where anything fails, none of them is touched.

    Args:
        paths: run folders as `tst fit` writes them; the first is the reference (normally the baseline).
        out: folder for the report; made if it isn't there. An earlier report in it is replaced.

    Returns:
        What comparison.json holds: of runs ``runs``, ``equal_flops``, ``equal_loss``, ``equal_data`` and ``equal_time``
        (None where seconds can't be compared); of seeds ``arms``; of completed runs of several lengths
        ``equal_loss_completed`` (or None); of evaluated runs ``equal_accuracy`` (or None); ``notes``, ``reference``,
        ``flops_convention``, ``interpolation`` and ``tolerance`` (the share of a budget within which a run's total counts
        as equal to it). Losses are nats per
        token, FLOPs, tokens and training seconds are totals since the start of a run.

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
    arms = arms_of(runs)
    comparison = judge(runs, arms)
    same_time = comparison["equal_time"] is not None
    charts = [
        (draw_losses(arms, same_time, dark), draw_speedups(arms, comparison["equal_loss_completed"], dark))
        for dark in (False, True)
    ]
    page = render_page(comparison, arms, {run.name: _config(run) for run in runs}, *charts)
    files = {
        JSON_FILE: (dumps(comparison, indent=2, allow_nan=False) + "\n").encode(),
        CHART_FILE: charts[0][0],
        SPEEDUP_FILE: charts[0][1],
        PAGE_FILE: page.encode(),
    }
    _write_all(Path(out), files)
    return comparison


def judge(runs: Sequence[Run], arms: Sequence[Arm]) -> dict[str, Any]:
    """Answers every question, of runs and of arms.

    Args:
        runs: two or more that can be compared, the reference first.
        arms: the same runs, by experiment.

    Returns:
        What comparison.json holds; see :func:`compare_runs`.
    """
    same_time = referee.why_no_equal_time(runs) is None
    budgets = {
        "equal_flops": referee.equal_budget(runs, "flops"),
        "equal_data": referee.equal_budget(runs, "tokens"),
        "equal_time": referee.equal_budget(runs, "seconds") if same_time else None,
    }
    accuracy = equal_accuracy(runs, arms)
    return {
        "format": 1,
        "reference": runs[0].name,
        "flops_convention": runs[0].record["flops_convention"],
        "interpolation": referee.INTERPOLATION,
        "tolerance": referee.TOLERANCE,
        "arms": arm_entries(arms, {key: found and found["losses"] for key, found in budgets.items()}),
        "runs": [_entry(run) for run in runs],
        **budgets,
        "equal_loss": referee.equal_loss(runs),
        "equal_loss_completed": equal_loss_completed(arms),
        "equal_accuracy": accuracy,
        "notes": [*(accuracy["notes"] if accuracy else []), *notes(runs, arms)],
    }


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


def _config(run: Run) -> str | None:
    """The resolved configuration as text, which is shown and not read; None where the folder has none."""
    file = Path(run.path) / "config.yaml"
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def _write_all(folder: Path, files: Mapping[str, bytes]) -> None:
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
