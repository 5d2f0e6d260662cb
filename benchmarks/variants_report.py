"""The table and the chart of variants.py."""

from pathlib import Path
from typing import Any

import scaling_tables
from matplotlib.figure import Figure

from tst_lightning.compare.chart_style import LIGHT


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, the lowest loss first.

    Args:
        results: baseline and full superposition first, as variants.py has them.
    """
    baseline = results[0]
    rows = [["arm", "steps", "FLOPs", "tokens read", "loss by seed", "mean", "to the baseline (95%)", "to full (95%)"]]
    for each in sorted(results, key=lambda each: each["loss"]["mean"]):
        rows.append(
            [
                each["name"],
                f"{each['steps']:,}",
                f"{each['flops'] / baseline['flops']:.3f}",
                f"{each['tokens'] / baseline['tokens']:.2f}",
                " ".join(f"{loss:.3f}" for loss in each["losses"].values()),
                f"{each['loss']['mean']:.3f}",
                _signed(each["to_baseline"]) if each is not baseline else "",
                _signed(each["to_superposition"]) if each is not results[1] else "",
            ]
        )
    return scaling_tables.table(rows)


def costs(results: list[dict[str, Any]]) -> str:
    """Markdown: what the steps of each phase cost and read, in those of the baseline's steps; an arm a line.

    Args:
        results: as for :func:`table`; other learning rates than the first arm's cost the same.
    """
    rows = [["arm", "phases", "FLOPs of a step", "tokens of a step"]]
    for each in results:
        if each["learning_rate"] == results[0]["learning_rate"]:
            flops, tokens = ([of[key] for of in each["phases"].values()] for key in ("flops", "tokens"))
            rows.append(
                [
                    each["name"],
                    ", ".join(each["phases"]),
                    ", ".join(f"{value:.3f}" for value in flops),
                    ", ".join(f"{value:g}" for value in tokens),
                ]
            )
    return scaling_tables.table(rows)


def _signed(found: dict[str, Any]) -> str:
    low, high = found["ci"]
    return f"{found['mean']:+.3f} ({low:+.3f} to {high:+.3f})"


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draws each arm's difference from the baseline: a point a seed, the mean, and its 95% interval.

    Args:
        results: as for :func:`table`.
        path: of the PNG.
    """
    shown = sorted(results[1:], key=lambda each: -each["loss"]["mean"])
    baseline = results[0]["losses"]
    figure = Figure(figsize=(9, 1.2 + 0.27 * len(shown)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color=LIGHT.reference, linewidth=1)
    for place, each in enumerate(shown):
        low, high = each["to_baseline"]["ci"]
        colour = LIGHT.palette[1] if each["name"] == "full superposition" else LIGHT.palette[0]
        axes.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.5)
        axes.plot(each["to_baseline"]["mean"], place, "o", color=colour, markersize=6)
        apart = [loss - baseline[seed] for seed, loss in each["losses"].items()]
        axes.plot(apart, [place] * len(apart), "|", color=LIGHT.text, markersize=7)
    axes.set_yticks(range(len(shown)), [each["name"].replace("_", " ") for each in shown])
    axes.set_xlabel("validation loss less the baseline's at equal FLOPs, nats a token (left of the line is better)")
    axes.set_title("Variants of TST on the quickstart's corpus and model: mean, 95% interval, seeds", fontsize=11)
    axes.grid(axis="x", color=LIGHT.faint)
    axes.set_axisbelow(True)
    figure.savefig(path)
