"""Validation loss against compute, data and time: seeds thin, their mean thick, validations as dots, switches marked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tst_lightning.compare.arms import Arm
from tst_lightning.compare.chart_style import (
    End,
    Ink,
    drawing,
    label_axes,
    name_ends,
    short_name,
    styled,
    tick_text,
)
from tst_lightning.compare.intervals import summary
from tst_lightning.compare.referee import Axis, loss_at
from tst_lightning.compare.runs import Point, Run
from tst_lightning.compare.units import mean_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_POINTS = 12  # height of a line of switch labels
# The top of the picture is the lowest loss that any run had after this share of its budget: what comes before is steep
# and alike, and would flatten the end.
EARLY_SHARE = 0.08
PANELS: tuple[tuple[Axis, str], ...] = (
    ("flops", "training compute, FLOPs"),
    ("tokens", "data read, tokens"),
    ("seconds", "training time, seconds"),
)
MOST_SHADED = 1  # several shades would mix


def draw_losses(arms: Sequence[Arm], same_time: bool, dark: bool = False) -> bytes:
    """Draws the loss curves of all arms, on FLOPs, data tokens and training seconds, on log axes.

    Args:
        arms: the arms, the reference first.
        same_time: whether the runs' seconds can be compared; the third panel says where not.
        dark: for a dark page.

    Returns:
        A PNG image.
    """
    runs = [run for arm in arms for run in arm.runs]
    # A line above the panels for each arm that switches.
    switching = sum(bool(arm.switches()) for arm in arms)
    height = 5.2 + switching * ROW_POINTS / 72
    with drawing(height, dark) as made:
        panels = made.figure.subplots(1, 3, sharey=True)
        made.figure.subplots_adjust(left=0.055, right=0.855, bottom=0.6 / height, top=4.7 / height, wspace=0.09)
        made.title("Validation loss, nats per token")
        panels[0].set_ylim(*_loss_range(runs))
        for axes, (axis, label) in zip(panels, PANELS, strict=True):
            note = "" if axis != "seconds" or same_time else ", not comparable"
            _panel(axes, arms, axis, label + note, made.ink)
        name_ends(panels[-1], _ends(arms, made.ink))
    return made.png


def _panel(axes: "Axes", arms: Sequence[Arm], axis: Axis, label: str, ink: Ink) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    label_axes(axes, ink, label, tick_text)
    start, end = _budget_range([run for arm in arms for run in arm.runs], axis, axes.get_ylim()[1])
    axes.set_xlim(start, end)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if end / start < 50 else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    rows = 0
    shaded = sum(bool(arm.switches()) for arm in arms) <= MOST_SHADED
    for arm, colour, dashes in styled(arms, ink):
        switches = [switch for switch in arm.switches() if switch[axis] > 0]
        last = max((switch[axis] for switch in switches), default=0.0)
        if len(arm.runs) > 1:
            for run in arm.runs:
                _line(axes, run.curve, axis, 0.0, colour, dashes, (0.7, 0.7), 0.45)
        _line(axes, arm.mean_curve(), axis, last, colour, dashes, (1.0, 2.2), 0.9)
        shown = [switch[axis] for switch in switches if start < switch[axis] < end]
        for at in shown:
            # Of several switches only the last is named, and only in the first panel.
            named = axis == PANELS[0][0] and at == shown[-1]
            axes.axvline(at, color=colour, linewidth=1, linestyle=(0, (4, 3)), alpha=0.9)
            if named:
                _name_switch(axes, at, f"{short_name(arm)}: {switches[-1]['phase']} begins", colour, rows)
        if shown:
            rows += 1
            if shaded:
                axes.axvspan(start, shown[-1], color=colour, alpha=0.06, linewidth=0)


def _line(
    axes: "Axes",
    curve: Sequence[Point],
    axis: Axis,
    last: float,
    colour: str,
    dashes: str,
    widths: tuple[float, float],
    alpha: float,
) -> None:
    """One curve with a dot at each validation; thin up to the last switch: a loss there is not yet an ordinary model's."""
    validations = [(getattr(point, axis), point.loss) for point in curve if getattr(point, axis) > 0]
    if not validations:
        return
    spent, losses = map(np.array, zip(*validations, strict=True))
    spent = np.maximum.accumulate(spent)
    # On a log axis a line that is linear in the budget bends; so it is drawn through many points.
    between = np.unique([*spent, *np.geomspace(spent[0], spent[-1], 400)[1:-1], np.clip(last, spent[0], spent[-1])])
    thin, thick = widths
    for part, width in ((between <= last, thin), (between >= last, thick)):
        x = between[part]
        axes.plot(x, np.interp(x, spent, losses), color=colour, linewidth=width, linestyle=dashes, alpha=alpha)
    axes.plot(spent, losses, "o", color=colour, markersize=3 if thick > 1 else 1.8, alpha=alpha)
    if thick > 1:
        axes.plot(spent[-1], losses[-1], "o", color=colour, markersize=5.5, clip_on=False, zorder=5)


def _name_switch(axes: "Axes", at: float, label: str, colour: str, row: int) -> None:
    # Above the panel, where no curve runs; every arm on a line of its own, turned inwards near the panel's sides.
    place = axes.transLimits.transform(axes.transScale.transform((at, 0.0)))[0]
    axes.annotate(
        label,
        (at, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4 + ROW_POINTS * row),
        textcoords="offset points",
        ha="left" if place < 0.35 else "right" if place > 0.65 else "center",
        fontsize=8.5,
        color=colour,
    )


def _ends(arms: Sequence[Arm], ink: Ink) -> list[End]:
    found = []
    for arm, colour, _ in styled(arms, ink):
        curve = arm.mean_curve() or arm.runs[0].curve
        losses = [point.loss for run in arm.runs for point in run.curve if point.step == curve[-1].step]
        found.append(End(curve[-1].seconds, curve[-1].loss, short_name(arm), mean_text(summary(losses)), colour))
    return found


def _loss_range(runs: Sequence[Run]) -> tuple[float, float]:
    finals = [run.final.loss for run in runs]
    early = [loss_at(run, run.final.flops * EARLY_SHARE, "flops") or run.curve[0].loss for run in runs]
    lowest = min(min(point.loss for point in run.curve) for run in runs)
    high = max(min(early), max(finals))
    margin = 0.06 * (high - lowest) or 0.1
    return lowest - 1.5 * margin, high + margin


def _budget_range(runs: Sequence[Run], axis: Axis, high: float) -> tuple[float, float]:
    """From where the first line comes into the picture to the last end."""
    end = max(getattr(run.final, axis) for run in runs) or 1.0
    starts = []
    for run in runs:
        spent = [getattr(point, axis) for point in run.curve]
        visible = next((i for i, point in enumerate(run.curve) if point.loss <= high and spent[i] > 0), len(spent) - 1)
        starts.append(spent[max(visible - 1, 0)] or spent[visible] or end)
    start = min(*starts, end / 4)
    return start, end * (end / start) ** 0.03
