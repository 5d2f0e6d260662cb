"""The charts of docs/evidence.md, from a result file of evidence.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from tst_lightning.compare.chart_style import LIGHT, tick_text

BASELINE, TST = LIGHT.reference, LIGHT.palette[1]
COLOURS = {"baseline": BASELINE, "tst": TST}


def draw_evidence(document: Mapping[str, Any], path: Path) -> None:
    """Draws both arms over compute, and how far TST lies from the baseline at each length.

    Args:
        document: the result file.
        path: of the PNG.
    """
    parts = document["parts"]
    figure = Figure(figsize=(11, 4.4), dpi=110, layout="constrained")
    curves, lengths = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for arm, runs in parts["equal_flops"].items():
        _curves(curves, runs, COLOURS[arm], {"baseline": "baseline", "tst": "TST"}[arm])
    switch = parts["equal_flops"]["tst"][0]["flops"] * document["setting"]["share"]
    curves.axvline(switch, color=TST, linewidth=0.8, linestyle=(0, (4, 3)), label="TST's recovery begins")
    others = {name: runs for part in ("lengths", "longer", "longest") for name, runs in parts.get(part, {}).items()}
    for name, runs in others.items():
        ends = [(run["flops"], run["final_val_loss"]) for run in runs]
        curves.plot(*zip(*ends, strict=True), "x", color=COLOURS[name.split()[0]], markersize=6)
    curves.set_ylim(top=_top(document))
    curves.set_xlim(left=0)
    curves.xaxis.set_major_formatter(lambda value, _: tick_text(value))
    curves.set_xlabel("training compute, FLOPs")
    curves.set_ylabel("validation loss, nats a token")
    seeds = len(parts["equal_flops"]["tst"])
    curves.set_title(f"Loss over compute, {seeds} seeds and their mean; x: whole runs of other lengths", fontsize=10)
    curves.legend(frameon=False, loc="upper right")
    _differences(lengths, document["answers"])
    for axes in (curves, lengths):
        axes.grid(axis="y", color=LIGHT.faint)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _curves(axes: Any, runs: Sequence[Mapping[str, Any]], colour: str, label: str) -> None:
    for run in runs:
        _, flops, losses = zip(*run["curve"], strict=True)
        axes.plot(flops, losses, color=colour, linewidth=0.6, alpha=0.6)
    means = [fmean(point[2] for point in points) for points in zip(*(run["curve"] for run in runs), strict=True)]
    axes.plot([point[1] for point in runs[0]["curve"]], means, color=colour, linewidth=2, label=label)


def _top(document: Mapping[str, Any]) -> float:
    """What the curves begin with is alike, and would flatten their ends."""
    ends = [each[arm]["mean"] for each in document["answers"]["equal_flops"].values() for arm in COLOURS]
    return max(ends) + 0.7


def _differences(axes: Any, answers: Mapping[str, Any]) -> None:
    """TST less the baseline at each length; hollow, less the baseline at another setting than its tuned one."""
    axes.axhline(0, color=BASELINE, linewidth=1)
    for length, each in answers["equal_flops"].items():
        at = each["positions"] / each["parameters"]
        _interval(axes, at, each["difference"], markerfacecolor=TST)
        pairs = [each["tst"]["by_seed"][seed] - loss for seed, loss in each["baseline"]["by_seed"].items()]
        axes.plot([at] * len(pairs), pairs, "_", color=LIGHT.text, markersize=8)
        for name, arm in answers.get("baseline_also", {}).get(length, {}).items():
            if name not in COLOURS:
                found = arm["to_tst"]
                ci = found["ci"] and [-end for end in found["ci"]]
                _interval(axes, at + 0.8, {"mean": -found["mean"], "ci": ci}, markerfacecolor="white")
    axes.set_xlim(left=0)
    axes.set_xlabel("positions a parameter")
    hollow = "; hollow: baseline's other setting" if "baseline_also" in answers else ""
    axes.set_title(f"TST less baseline at equal FLOPs, nats\n(mean, 95%; -: seeds{hollow})", fontsize=10)


def _interval(axes: Any, at: float, found: Mapping[str, Any], **marker: Any) -> None:
    if found["ci"]:
        axes.plot([at, at], found["ci"], color=TST, linewidth=2, alpha=0.5)
    axes.plot(at, found["mean"], "o", color=TST, markersize=7, **marker)


def draw_gain(document: Mapping[str, Any], path: Path) -> None:
    """Draws each question's arms: difference from its baseline, interval, seeds.

    Args:
        document: the result file.
        path: of the PNG; none is drawn where no such question was asked.
    """
    answers = document["answers"]
    asked = [("Where it comes from", answers["origin"])] if "origin" in answers else []
    for arms in answers.get("unique", {}).values():
        asked.append((f"Text fixed, baseline's passes: {arms['baseline']['passes']:.0f}", arms))
    if not asked:
        return
    figure = Figure(figsize=(11, 3.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(asked), squeeze=False, sharex=True)[0]
    for axes, (title, arms) in zip(panels, asked, strict=True):
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
    axes.set_xlabel("loss less the baseline's, nats")
    axes.set_title(title, fontsize=11)
    axes.grid(axis="x", color=LIGHT.faint)
    axes.spines[["top", "right"]].set_visible(False)


def _mean(arm: Mapping[str, Any]) -> float:
    return arm["to_baseline"]["mean"]
