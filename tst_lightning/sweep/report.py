"""What a sweep hands over: all cases as data, a table for the terminal, a picture, and the best setting as a YAML."""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tst_lightning import __version__
from tst_lightning.compare.units import flops_text
from tst_lightning.errors import RunError
from tst_lightning.published import SOURCE
from tst_lightning.sweep.cases import labels, value_text
from tst_lightning.sweep.plan import Plan
from tst_lightning.sweep.records import LOG_FILE, locked
from tst_lightning.sweep.results import (
    Result,
    Setting,
    at_equal_compute,
    best_of,
    by_setting,
    differences,
    finished_runs,
    read_results,
    split,
)
from tst_lightning.sweep.surface import Agreement, Surface, agreement, nearest_grid, surface_of, weighting_of
from tst_lightning.whole_file import write_whole

RESULT_FILE, SURFACE_FILE, CHART_FILE, BEST_FILE = "sweep.json", "surface.png", "loss.png", "best.yaml"
_WIDTH = 100
_PATIENCE_SECONDS = 60
OPTIMISTIC = (
    "The best of a sweep is optimistic: it was chosen by the same validation split that its loss is of. Confirm it with"
    " fresh seeds before you quote it."
)


@dataclass(frozen=True)
class Report:
    """What was written, and what is to be said.

    Attributes:
        results: of every case.
        text: table and notes for the terminal.
        files: written, in the sweep's folder.
    """

    results: list[Result]
    text: str
    files: list[Path]

    def names(self, status: str) -> list[str]:
        """The cases of a status."""
        return [result.case.name for result in self.results if result.status == status]


def write_report(plan: Plan) -> Report:
    """Reads every run and writes the sweep's files; what an earlier report wrote and no longer holds is removed.

    Workers that end at the same time wait for one another, so that the last to write has read all there is.

    Args:
        plan: the sweep, finished or not.

    Raises:
        RunError: a record is damaged, or another process holds the sweep's folder for long.
        OSError: a file can't be read or written.
    """
    with locked(plan.out, patience=_PATIENCE_SECONDS) as held:
        if held is None:
            raise RunError(
                f"another process has been writing the report in '{plan.out}' for {_PATIENCE_SECONDS} s; when it has ended,"
                " give the same command again"
            )
        return _write(plan)


def _write(plan: Plan) -> Report:
    results = read_results(plan)
    settings = by_setting(results)
    swept, baseline = split(settings)
    unlike = differences(results)
    best = None if unlike else best_of(swept)
    surface = surface_of(swept, baseline)
    images: dict[str, bytes] = {}
    published: dict[str, Any] | None = None
    notes = _notes(settings, best, baseline, unlike)
    finished = [result.run for result in results if result.run]
    if surface and finished:
        from tst_lightning.sweep.figure import draw_surface

        size = finished[-1].record["model"].get("parameters") or math.nan
        grid = nearest_grid(size, finished[-1].final.positions, weighting_of(finished[-1].path))
        common = agreement(surface, grid)
        images[SURFACE_FILE] = draw_surface(surface, grid, common)
        published = {"grid": grid.name, "source": SOURCE, "cells": common.cells, "spearman": common.spearman}
        notes.insert(0, _beside(surface, common, grid.name))
    elif any(setting.losses for setting in swept):
        from tst_lightning.sweep.chart import draw_chart

        images[CHART_FILE] = draw_chart(swept, baseline)
    document = {
        "format": 1,
        "version": __version__,
        "cases": [_entry(plan, result) for result in results],
        "settings": [_setting_entry(setting) for setting in settings],
        "best": _setting_entry(best) if best else None,
        "published": published,
        "notes": notes,
    }
    texts = {RESULT_FILE: json.dumps(document, indent=1, default=str) + "\n"}
    if best:
        texts[BEST_FILE] = _best_yaml(plan, best)
    for name, text in texts.items():
        write_whole(plan.out / name, text)
    for name, image in images.items():
        (plan.out / name).write_bytes(image)
    for name in {SURFACE_FILE, CHART_FILE, BEST_FILE} - texts.keys() - images.keys():
        (plan.out / name).unlink(missing_ok=True)
    lines = [*table(settings), "", *_failures(plan, results), *_noted(notes)]
    return Report(results, "\n".join(lines), [plan.out / name for name in (*texts, *images)])


def _notes(
    settings: Sequence[Setting], best: Setting | None, baseline: Setting | None, unlike: Sequence[str]
) -> list[str]:
    notes = []
    if unlike:
        notes.append(f"The runs differ in {' and '.join(unlike)}: their losses can't be ranked, so no best is named.")
    notes += _compute_notes(settings)
    if best and best.mean is not None:
        if baseline and baseline.mean is not None and baseline.mean <= best.mean:
            notes.append(f"The baseline, at {baseline.mean:.4f}, is no worse than the best swept setting.")
        notes.append(OPTIMISTIC)
        if len(best.results) == 1:
            notes.append("One seed for each setting: a difference within the spread of seeds is not evidence.")
    return notes


def _compute_notes(settings: Sequence[Setting]) -> list[str]:
    swept, baselines = ([setting for setting in settings if setting.baseline == which] for which in (False, True))
    if not at_equal_compute(swept):
        return [
            f"The settings spent unequal compute, {_range_text(swept)}: their losses rank length or size, not the"
            " setting, so no best is named. `tst compare` sets runs side by side at equal FLOPs."
        ]
    if finished_runs(swept) and finished_runs(baselines) and not at_equal_compute(settings):
        return [
            f"The baseline spent {_range_text(baselines)}, the swept settings {_range_text(swept)}: a difference in loss"
            " between them is not one at equal compute."
        ]
    return []


def _range_text(settings: Sequence[Setting]) -> str:
    """FLOPs of the finished runs: one figure, or the least and the most."""
    flops = sorted(run.final.flops for run in finished_runs(settings))
    return flops_text(flops[0]) if at_equal_compute(settings) else f"{flops_text(flops[0])} to {flops_text(flops[-1])}"


def _noted(notes: Sequence[str]) -> list[str]:
    return [line for note in notes for line in textwrap.wrap(f"note      {note}", _WIDTH, subsequent_indent=" " * 10)]


def _beside(surface: Surface, common: Agreement, name: str) -> str:
    if common.spearman is None:
        rank = "; a rank correlation needs four"
    else:
        rank = f", Spearman's rank correlation {common.spearman:+.2f}"
    return f"Nearest published grid: {name}. {common.cells} of our {len(surface.losses)} cells are in it{rank}."


# -- the table ----------------------------------------------------------------------------------------------------


def table(settings: Sequence[Setting]) -> list[str]:
    """A line for each setting, the lowest mean first: its values, mean and standard deviation over seeds, and how many.

    Args:
        settings: the baseline's among them.
    """
    names = labels(key for setting in settings for key in setting.settings)
    rows = [("", *names.values(), "mean loss", "sd", "runs")]
    for setting in sorted(settings, key=lambda setting: math.inf if setting.mean is None else setting.mean):
        values = [value_text(setting.settings[key]) if key in setting.settings else "-" for key in names]
        mean = "-" if setting.mean is None else f"{setting.mean:.4f}"
        deviation = "-" if setting.deviation is None else f"{setting.deviation:.4f}"
        runs = f"{len(setting.losses)} of {len(setting.results)}"
        rows.append(("baseline" if setting.baseline else "", *values, mean, deviation, runs))
    first = 0 if any(row[0] for row in rows) else 1
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(row)).rstrip()
        for row in ([*zip(row, widths, strict=True)][first:] for row in rows)
    ]


def _failures(plan: Plan, results: Sequence[Result]) -> list[str]:
    return [
        f"failed    {result.case.name}, exit code {result.exit_code}: {result.message}\n"
        f"          log: {plan.run_dir(result.case) / LOG_FILE}"
        for result in results
        if result.status == "failed"
    ]


# -- files --------------------------------------------------------------------------------------------------------


def _entry(plan: Plan, result: Result) -> dict[str, Any]:
    final, record = (result.run.final, result.run.record) if result.run else (None, {})
    return {
        "name": result.case.name,
        "run_dir": str(plan.run_dir(result.case)),
        "baseline": result.case.baseline,
        "settings": result.case.settings,
        "set": result.case.fixed,
        "status": result.status,
        "exit_code": result.exit_code,
        "message": result.message or None,
        "final_val_loss": final and final.loss,
        "flops": final and final.flops,
        "tokens": final and final.tokens,
        "positions": final and final.positions,
        "seconds": final and final.seconds,
        "seed": record.get("seed"),
        "parameters": (record.get("model") or {}).get("parameters"),
    }


def _setting_entry(setting: Setting) -> dict[str, Any]:
    return {
        "settings": setting.settings,
        "baseline": setting.baseline,
        "mean_final_val_loss": setting.mean,
        "sd_final_val_loss": setting.deviation,
        "finished": len(setting.losses),
        "runs": [result.case.name for result in setting.results],
    }


def _best_yaml(plan: Plan, best: Setting) -> str:
    """The resolved configuration of the best setting's first run, without its folder, which a new run must name."""
    path = plan.run_dir(best.results[0].case) / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config.pop("run_dir", None)
    runs = f"{len(best.losses)} seeds" if len(best.losses) > 1 else "one run"
    head = [
        f"The best setting of the sweep in {plan.out}: mean final validation loss {best.mean:.4f} over {runs};",
        f"this is the configuration of {best.results[0].case.name}. Start it with --run_dir.",
        OPTIMISTIC,
    ]
    return "".join(f"# {line}\n" for line in textwrap.wrap(" ".join(head), _WIDTH)) + yaml.safe_dump(
        config, sort_keys=False
    )
