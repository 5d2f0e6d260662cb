"""The charts of docs/evidence.md, from a result file of evidence.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tst_lightning.compare.arms import Arm, arms_of
from tst_lightning.compare.chart_style import LIGHT, tick_text
from tst_lightning.compare.runs import read_runs

BASELINE, TST = LIGHT.reference, LIGHT.palette[1]
COLOURS = {"baseline": BASELINE, "tst": TST}


def draw_evidence(document: Mapping[str, Any], path: Path) -> None:
    """Draws both arms over compute, and how far TST lies from the baseline at each length.

    Args:
        document: the result file; its runs' folders must be there still.
        path: of the PNG.
    """
    figure = Figure(figsize=(11, 4.4), dpi=110, layout="constrained")
    curves, lengths = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for name, runs in document["parts"]["equal_flops"].items():
        (arm,) = arms_of(read_runs([run["run_dir"] for run in runs]))
        _curves(curves, arm, name)
    ends = {**document["parts"].get("lengths", {}), **document["parts"].get("longer", {})}
    for name, runs in ends.items():
        colour = COLOURS[name.split()[0]]
        for run in runs:
            curves.plot(run["flops"], run["final_val_loss"], "x", color=colour, markersize=6)
    curves.set_ylim(top=_top(document))
    curves.set_xscale("log")
    curves.xaxis.set_major_formatter(lambda value, _: tick_text(value))
    curves.set_xlabel("training compute, FLOPs")
    curves.set_ylabel("validation loss, nats a token")
    curves.set_title("Loss over compute (x: whole runs of other lengths)", fontsize=11)
    curves.legend(frameon=False)
    _differences(lengths, document["answers"]["equal_flops"])
    for axes in (curves, lengths):
        axes.grid(axis="y", color=LIGHT.faint)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _curves(axes: Any, arm: Arm, name: str) -> None:
    colour = COLOURS[name]
    for run in arm.runs:
        axes.plot([p.flops for p in run.curve], [p.loss for p in run.curve], color=colour, linewidth=0.6, alpha=0.6)
    mean = arm.mean_curve()
    label = {"baseline": "baseline", "tst": "TST"}[name]
    axes.plot([p.flops for p in mean], [p.loss for p in mean], color=colour, linewidth=2, label=label)
    for switch in arm.switches():
        axes.axvline(switch["flops"], color=colour, linewidth=0.8, linestyle=(0, (4, 3)))


def _top(document: Mapping[str, Any]) -> float:
    """What the curves begin with is alike, and would flatten their ends."""
    ends = [each[arm]["mean"] for each in document["answers"]["equal_flops"].values() for arm in COLOURS]
    return max(ends) + 0.6 * (max(ends) - min(ends)) + 0.3


def _differences(axes: Any, asked: Mapping[str, Any]) -> None:
    axes.axhline(0, color=BASELINE, linewidth=1)
    for each in asked.values():
        at = each["positions"] / each["parameters"]
        found = each["difference"]
        if found["ci"]:
            axes.plot([at, at], found["ci"], color=TST, linewidth=2, alpha=0.5)
        axes.plot(at, found["mean"], "o", color=TST, markersize=7)
        pairs = [each["tst"]["by_seed"][seed] - loss for seed, loss in each["baseline"]["by_seed"].items()]
        axes.plot([at] * len(pairs), pairs, "_", color=LIGHT.text, markersize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel("positions a parameter")
    axes.set_title("TST less baseline at equal FLOPs, nats", fontsize=11)


def draw_gain(document: Mapping[str, Any], path: Path) -> None:
    """Draws each question's arms: difference from its baseline, interval, seeds.

    Args:
        document: the result file.
        path: of the PNG; none is drawn where no such question was asked.
    """
    asked = [
        (title, document["answers"][part])
        for part, title in (("origin", "Where it comes from"), ("unique", "Unique text fixed, several passes"))
        if part in document["answers"]
    ]
    if not asked:
        return
    figure = Figure(figsize=(11, 3.2), dpi=110, layout="constrained")
    for axes, (title, arms) in zip(figure.subplots(1, len(asked), squeeze=False)[0], asked, strict=True):
        _bars(axes, title, arms, arms["baseline"]["by_seed"])
    figure.savefig(path)


def _bars(axes: Any, title: str, arms: Mapping[str, Any], baseline: Mapping[str, float]) -> None:
    shown: Sequence[str] = sorted((name for name in arms if name != "baseline"), key=lambda name: -_mean(arms[name]))
    axes.axvline(0, color=BASELINE, linewidth=1)
    for place, name in enumerate(shown):
        found = arms[name]["to_baseline"]
        colour = TST if name == "tst" else LIGHT.palette[0]
        if found["ci"]:
            axes.plot(found["ci"], [place, place], color=colour, linewidth=2, alpha=0.5)
        axes.plot(found["mean"], place, "o", color=colour)
        apart = [loss - baseline[seed] for seed, loss in arms[name]["by_seed"].items()]
        axes.plot(apart, [place] * len(apart), "|", color=LIGHT.text)
    axes.set_yticks(range(len(shown)), [name.replace("_", " ") for name in shown])
    axes.set_xlabel("loss less the baseline's at equal FLOPs, nats")
    axes.set_title(title, fontsize=11)
    axes.grid(axis="x", color=LIGHT.faint)
    axes.spines[["top", "right"]].set_visible(False)


def _mean(arm: Mapping[str, Any]) -> float:
    return arm["to_baseline"]["mean"]
