"""The picture of a sweep over s and r: a heat map beside the published one, and the curves through it."""

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tst_lightning.published import Cell, Grid
from tst_lightning.published.heat_map import draw_heat_map
from tst_lightning.sweep.surface import Agreement, Surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT, FAINT, REFERENCE = "#222222", "#d9d9d9", "#555555"
STYLE: Any = {
    "text.parse_math": False,  # a value may hold dollar signs
    "font.size": 10,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_SPREAD = 4  # largest value over smallest, from which an axis is logarithmic
_TICK_GAP = 0.055  # of the axis, so that labels do not touch


def draw_surface(surface: Surface, grid: Grid, common: Agreement) -> bytes:
    """Draws the surface: heat maps of ours and the published grid above, loss over s and over r below.

    Args:
        surface: ours.
        grid: the published one beside it.
        common: how they rank their common cells.

    Returns:
        A PNG image.
    """
    with styled_figure() as figure:
        figure.set_size_inches(15, 10.5)
        figure.subplots_adjust(left=0.055, right=0.93, bottom=0.065, top=0.87, wspace=0.32, hspace=0.36)
        figure.text(0.055, 0.962, "Final validation loss, nats per token", fontsize=13, fontweight="bold")
        rank = (
            "too few for a rank correlation" if common.spearman is None else f"Spearman's rank {common.spearman:+.2f}"
        )
        figure.text(0.055, 0.935, f"{common.cells} common cells, {rank}. {_caption(surface)}", fontsize=9.5)
        (ours, published), (over_s, over_r) = figure.subplots(2, 2, gridspec_kw={"width_ratios": [1, 1]})
        draw_heat_map(figure, ours, surface.losses, surface.baseline, f"this sweep{_level(surface.baseline)}")
        draw_heat_map(figure, published, grid.losses, grid.baseline, f"published: {grid.name}{_level(grid.baseline)}")
        _curves(over_s, surface, 0)
        _curves(over_r, surface, 1)
        return as_png(figure)


def _caption(surface: Surface) -> str:
    colour = "loss" if surface.baseline is None else "difference from the baseline of the same panel"
    beside = " Each cell is the best over the other swept keys." if surface.others else ""
    return f"Colour: {colour}. Frame: the lowest. x: not every seed has finished.{beside}"


def _level(baseline: float | None) -> str:
    return "" if baseline is None else f"  (baseline {baseline:.3f})"


def _curves(axes: "Axes", surface: Surface, along: int) -> None:
    """Loss along one axis of the surface, a line for each value of the other."""
    from matplotlib import colormaps

    axes_values: list[Sequence[float]] = [surface.sizes, surface.ratios]
    steps, lines = axes_values[along], axes_values[1 - along]
    for place, line in enumerate(lines):
        cells = [Cell(int(x), line) if along == 0 else Cell(int(line), x) for x in steps]
        losses = [surface.losses.get(cell, math.nan) for cell in cells]
        spread = [surface.deviations.get(cell, math.nan) for cell in cells]
        colour = colormaps["viridis"](0.9 * place / max(1, len(lines) - 1))
        axes.errorbar(
            steps,
            losses,
            yerr=None if np.isnan(spread).all() else np.nan_to_num(spread),
            color=colour,
            marker="o",
            markersize=4.5,
            linewidth=1.6,
            capsize=2,
            label=f"{line:g}",
        )
    if surface.baseline is not None:
        axes.axhline(surface.baseline, color=REFERENCE, linewidth=1.2, linestyle="--", label="baseline")
    bars = "" if np.isnan(list(surface.deviations.values())).all() else "; bars: standard deviation over seeds"
    axes.set_title(f"loss over {'s, a line for each r' if along == 0 else 'r, a line for each s'}{bars}")
    axes.set_xlabel("bag size s" if along == 0 else "share of steps in superposition r")
    if along == 0:
        scale_numbers(axes, steps)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.tick_params(length=0)
    name_lines(axes, title="r" if along == 0 else "s")


def name_lines(axes: "Axes", title: str | None = None) -> None:
    """A legend right of the axes: the lines in their order, the reference last."""
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: names[i] == "baseline")
    handles, names = [handles[i] for i in order], [names[i] for i in order]
    axes.legend(handles, names, title=title, loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0)


def scale_numbers(axes: "Axes", values: Sequence[float]) -> None:
    """Ticks the values on the x axis, which is logarithmic where they are spread out; of close ones the first.

    Args:
        axes: already drawn on.
        values: ascending.
    """
    from matplotlib.ticker import NullLocator

    logarithmic = values[0] > 0 and values[-1] / values[0] >= _SPREAD
    if logarithmic:
        axes.set_xscale("log")
    places = np.log(values) if logarithmic else np.asarray(values, dtype=float)
    gap = _TICK_GAP * (places[-1] - places[0])
    shown: list[int] = []
    for index, place in enumerate(places):
        if not shown or place - places[shown[-1]] >= gap:
            shown.append(index)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([values[i] for i in shown], [f"{values[i]:g}" for i in shown])


@contextlib.contextmanager
def styled_figure() -> "Iterator[Figure]":
    """A figure to draw on, under this project's style."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(dpi=130)
        FigureCanvasAgg(figure)
        yield figure


def as_png(figure: "Figure") -> bytes:
    """The figure as an image."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
