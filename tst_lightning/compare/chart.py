"""The picture: validation loss against compute and against data, the switch marked, every line named where it ends."""

import io
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tst_lightning.compare.referee import Axis, loss_at
from tst_lightning.compare.runs import Run
from tst_lightning.compare.units import scaled, speedup_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers; the reference is the ink's own grey.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
NAME_LENGTH = 22
ROW_POINTS = 12  # height of a line of switch labels
# The top of the picture is the lowest loss that any run had after this share of its budget: what comes before is steep
# and alike, and would flatten the end.
EARLY_SHARE = 0.08


class Ink(NamedTuple):
    """Colours of one theme: page, text and axes, faint lines, the reference's line."""

    page: str
    text: str
    faint: str
    reference: str


LIGHT = Ink("#ffffff", "#222222", "#d9d9d9", "#555555")
DARK = Ink("#16181c", "#e6e6e6", "#3a3d42", "#b8b8b8")


def draw(runs: Sequence[Run], equal_loss: dict[str, Any], dark: bool = False) -> bytes:
    """Draws the loss curves of all runs, on FLOPs (left) and data tokens (right), both on log axes.

    Args:
        runs: the runs, the reference first.
        equal_loss: the referee's comparison at equal loss; of two runs its speedup is drawn, or the reverse one.
        dark: for a dark page.

    Returns:
        A PNG image.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink = DARK if dark else LIGHT
    style: Any = {
        # A name may hold dollar signs, which are not mathematics here.
        "text.parse_math": False,
        "font.size": 10,
        "text.color": ink.text,
        "axes.labelcolor": ink.text,
        "axes.edgecolor": ink.faint,
        "xtick.color": ink.text,
        "ytick.color": ink.text,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": ink.page,
        "figure.facecolor": ink.page,
    }
    with rc_context(style):
        # A line above the panels for each run that switches.
        switching = sum(bool(run.switches()) for run in runs)
        height = 5.2 + switching * ROW_POINTS / 72
        figure = Figure(figsize=(13, height), dpi=130)
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        figure.subplots_adjust(left=0.055, right=0.87, bottom=0.6 / height, top=4.7 / height, wspace=0.38)
        figure.text(0.055, 1 - 0.3 / height, "Validation loss, nats per token", fontsize=13, fontweight="bold")
        low, high = _loss_range(runs)
        left.set_ylim(low, high)
        _panel(left, runs, "flops", "training compute, FLOPs", high, ink)
        _panel(right, runs, "tokens", "data read, tokens", high, ink)
        right.tick_params(labelleft=True)
        if len(runs) == 2:
            _mark_speedup(left, runs, equal_loss, ink)
        png = io.BytesIO()
        figure.savefig(png, format="png")
    return png.getvalue()


def _panel(axes: "Axes", runs: Sequence[Run], axis: Axis, label: str, high: float, ink: Ink) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.grid(axis="y", color=ink.faint, linewidth=0.6)
    axes.tick_params(length=0)
    start, end = _budget_range(runs, axis, high)
    axes.set_xlim(start, end)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if end / start < 200 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    rows = 0
    shaded = sum(bool(run.switches()) for run in runs) == 1  # several shades would mix
    for run, colour, dashes in _styled(runs, ink):
        switches = [switch for switch in run.switches() if switch[axis] > 0]
        spent = [getattr(point, axis) for point in run.curve]
        losses = [point.loss for point in run.curve]
        # Drawn thin as long as a later phase is to come: a loss there is not yet that of an ordinary model.
        last = max((switch[axis] for switch in switches), default=0.0)
        at_last = [float(np.interp(last, spent, losses))] if spent[0] < last < spent[-1] else []
        joint = [last] if at_last else []
        before = [i for i, x in enumerate(spent) if 0 < x < last]
        after = [i for i, x in enumerate(spent) if x > 0 and x >= last]
        thin, thick = [losses[i] for i in before] + at_last, at_last + [losses[i] for i in after]
        axes.plot([spent[i] for i in before] + joint, thin, color=colour, linewidth=1, linestyle=dashes, alpha=0.8)
        axes.plot(joint + [spent[i] for i in after], thick, color=colour, linewidth=2.2, linestyle=dashes)
        axes.plot(spent[-1], losses[-1], "o", color=colour, markersize=5.5, clip_on=False, zorder=5)
        shown = [switch[axis] for switch in switches if start < switch[axis] < end]
        for at in shown:
            # Of several switches only the last is named.
            label = f"{_name(run)}: {switches[-1]['phase']} begins" if at == shown[-1] else ""
            _mark_switch(axes, at, label, colour, rows)
        if shown:
            rows += 1
            if shaded:
                axes.axvspan(start, shown[-1], color=colour, alpha=0.06, linewidth=0)
    _name_ends(axes, runs, axis, ink)


def _mark_switch(axes: "Axes", at: float, label: str, colour: str, row: int) -> None:
    axes.axvline(at, color=colour, linewidth=1, linestyle=(0, (4, 3)), alpha=0.9)
    # Above the panel, where no curve runs; every run on a line of its own.
    axes.annotate(
        label,
        (at, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4 + ROW_POINTS * row),
        textcoords="offset points",
        ha="center",
        fontsize=8.5,
        color=colour,
    )


def _name_ends(axes: "Axes", runs: Sequence[Run], axis: Axis, ink: Ink) -> None:
    """Names and final losses in a column right of the panel, pushed apart where ends lie close."""
    low, high = axes.get_ylim()
    gap = (high - low) * min(0.085, 1 / len(runs))
    ends = sorted(((run.final.loss, run, colour) for run, colour, _ in _styled(runs, ink)), key=lambda end: end[0])
    heights: list[float] = []
    for loss, _, _ in ends:
        heights.append(max(loss, heights[-1] + gap) if heights else max(loss, low))
    # Half of what the pushing added goes below, so that names stay near their ends.
    shift = min((heights[-1] - ends[-1][0]) / 2, heights[0] - low)
    ceiling = high
    for place in reversed(range(len(heights))):
        heights[place] = ceiling = min(heights[place] - shift, ceiling)
        ceiling -= gap
    for height, (loss, run, colour) in zip(heights, ends, strict=True):
        axes.annotate(
            f"{_name(run)}\n{loss:.4f}",
            (getattr(run.final, axis), loss),
            xytext=(1.03, (height - low) / (high - low)),
            textcoords="axes fraction",
            va="center",
            fontsize=9.5,
            linespacing=1.05,
            color=colour,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.6, "shrinkA": 2, "shrinkB": 4},
        )


def _mark_speedup(axes: "Axes", runs: Sequence[Run], equal_loss: dict[str, Any], ink: Ink) -> None:
    forward, reverse = equal_loss["runs"][runs[1].name], equal_loss["reverse"][runs[1].name]
    if forward["speedup"] is not None:
        speedup, loss, reached = forward["speedup"], equal_loss["loss"], forward["flops"]
    elif reverse["speedup"] is not None:
        # The reference went on to the other's loss: the paper's way of asking.
        speedup, loss = reverse["speedup"], reverse["loss"]
        reached = reverse["reference_flops"] / speedup
    else:
        return
    end = reached * speedup
    axes.plot([reached, end], [loss, loss], color=ink.text, linewidth=1, linestyle=":", zorder=1)
    # Left of both crossings every curve is still above this loss, so there is room below it.
    axes.annotate(
        f"speedup {speedup_text(speedup)} at loss {loss:.3f}",
        (min(reached, end), loss),
        xytext=(-3, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        fontweight="bold",
    )


def _styled(runs: Sequence[Run], ink: Ink) -> Iterator[tuple[Run, str, str]]:
    yield runs[0], ink.reference, "-"
    dashes = ["-"] * len(PALETTE) + ["--"] * len(PALETTE) + [":"] * len(PALETTE)
    yield from zip(runs[1:], cycle(PALETTE), cycle(dashes), strict=False)


def _loss_range(runs: Sequence[Run]) -> tuple[float, float]:
    finals = [run.final.loss for run in runs]
    early = [loss_at(run, run.final.flops * EARLY_SHARE, "flops") or run.curve[0].loss for run in runs]
    lowest = min(min(point.loss for point in run.curve) for run in runs)
    high = max(min(early), max(finals))
    margin = 0.06 * (high - lowest) or 0.1
    return lowest - 1.5 * margin, high + margin


def _budget_range(runs: Sequence[Run], axis: Axis, high: float) -> tuple[float, float]:
    """From where the first line comes into the picture to the last end."""
    end = max(getattr(run.final, axis) for run in runs)
    starts = []
    for run in runs:
        spent = [getattr(point, axis) for point in run.curve]
        visible = next((i for i, point in enumerate(run.curve) if point.loss <= high and spent[i] > 0), len(spent) - 1)
        starts.append(spent[max(visible - 1, 0)] or spent[visible])
    start = min(*starts, end / 4)
    return start, end * (end / start) ** 0.03


def _tick(value: float) -> str:
    figures, prefix = scaled(value)
    return (figures.rstrip("0").rstrip(".") if "." in figures else figures) + prefix


def _name(run: Run) -> str:
    name = " ".join(run.name.split())
    if len(name) > NAME_LENGTH:
        name = f"{name[: NAME_LENGTH // 2 - 1]}...{name[-NAME_LENGTH // 2 + 2 :]}"
    return name
