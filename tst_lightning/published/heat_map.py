"""A grid of losses over bag size and superposition ratio, as a picture."""

import math
from typing import TYPE_CHECKING

import numpy as np

from tst_lightning.published.tables import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT, MISSING = "#222222", "#555555"
_MOST_NUMBERED = 16  # columns up to which each cell has its number


def draw_heat_map(
    figure: "Figure", axes: "Axes", losses: dict[Cell, float], baseline: float | None, title: str
) -> None:
    """Draws a loss for each cell, coloured by its difference to the baseline, the lowest framed.

    Args:
        figure: of the axes; the colour bar is put beside them.
        axes: to draw on.
        losses: by cell; NaN is drawn as an x.
        baseline: of the same losses; None colours by the loss itself.
        title: above.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize, TwoSlopeNorm

    sizes = sorted({cell.bag_size for cell in losses})
    ratios = sorted({cell.ratio for cell in losses})
    table = np.array([[losses.get(Cell(size, ratio), math.nan) for size in sizes] for ratio in ratios])
    shown = table if baseline is None else table - baseline
    finite = shown[np.isfinite(shown)]
    if baseline is None:
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        norm, colours = Normalize(low, high if high > low else low + 1e-6), colormaps["cividis_r"]
    else:
        # Blue below the baseline and red above it, each as far as the larger of the two goes.
        reach = float(np.abs(finite).max()) if finite.size and np.abs(finite).max() > 0 else 1e-6
        norm, colours = TwoSlopeNorm(0.0, -reach, reach), colormaps["RdBu_r"]
    image = axes.imshow(shown, origin="lower", aspect="auto", cmap=colours, norm=norm)
    axes.set_title(title)
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set_yticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    axes.set_xlabel("bag size s")
    axes.set_ylabel("share of steps in superposition r")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    for (row, column), loss in np.ndenumerate(table):
        if math.isnan(loss):
            if Cell(sizes[column], ratios[row]) in losses:
                axes.text(column, row, "x", ha="center", va="center", color=MISSING)
        elif len(sizes) <= _MOST_NUMBERED:
            dark = np.dot(colours(norm(shown[row, column]))[:3], (0.299, 0.587, 0.114)) < 0.5
            size = 9.5 if len(sizes) <= 8 else 7
            axes.text(column, row, f"{loss:.3f}", ha="center", va="center", fontsize=size, color="w" if dark else TEXT)
    best = min((cell for cell in losses if math.isfinite(losses[cell])), key=losses.__getitem__, default=None)
    if best is not None:
        from matplotlib.patches import Rectangle

        corner = (sizes.index(best.bag_size) - 0.5, ratios.index(best.ratio) - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=TEXT, linewidth=1.8, clip_on=False, zorder=4))
