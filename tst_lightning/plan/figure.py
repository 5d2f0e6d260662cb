"""The published grid that a recommendation rests on, with the choice marked."""

import io

from tst_lightning.plan.recommend import Recommendation
from tst_lightning.published import SOURCE, Cell
from tst_lightning.published.heat_map import draw_heat_map

PLACES = {
    "published": "a grid of its own",
    "interpolated": "interpolated between grids",
    "extrapolated": "the nearest place of the grids, outside which the case lies",
}


def draw_recommendation(advice: Recommendation, wanted: Cell | None = None) -> bytes:
    """Draws final loss less the baseline's over bag size and ratio.

    Args:
        advice: with its surface.
        wanted: the cell that the user asked for, marked too where it lies in the grid.

    Returns:
        A PNG image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    sizes, ratios = (sorted({cell[axis] for cell in advice.surface}) for axis in (0, 1))
    figure = Figure(figsize=(10, 5.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    title = "Published final loss less the baseline's, nats a token (thin frame: the lowest)\n"
    title += f"{SOURCE}: {PLACES[advice.surface_basis]}"
    if advice.cell is not None and (advice.cell not in advice.surface or advice.surface_basis != advice.basis):
        title += "\nthe recommendation is of a single published run, not of this grid"
    draw_heat_map(figure, axes, advice.surface, 0.0, title)
    marks = [(advice.cell, "#FFD400", "-", "recommended"), (wanted, "#FF7F0E", "--", "asked for")]
    shown = []
    for cell, colour, dashes, label in marks:
        if cell is not None and cell in advice.surface:
            place = (sizes.index(cell.bag_size) - 0.5, ratios.index(cell.ratio) - 0.5)
            box = Rectangle(place, 1, 1, fill=False, edgecolor=colour, linewidth=3, linestyle=dashes, label=label)
            box.set_zorder(5)
            axes.add_patch(box)
            shown.append(box)
    if shown:
        axes.legend(handles=shown, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
