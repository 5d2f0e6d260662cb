"""The published grid that a recommendation rests on, with the choice marked."""

import io

from tst_lightning.plan.recommend import Recommendation
from tst_lightning.published import SOURCE, Cell


def draw_recommendation(advice: Recommendation, wanted: Cell | None = None) -> bytes:
    """Draws final loss less the baseline's over bag size and ratio.

    Args:
        advice: with its surface.
        wanted: the cell that the user asked for, marked too where it lies in the grid.

    Returns:
        A PNG image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    sizes, ratios = (sorted({cell[axis] for cell in advice.surface}) for axis in (0, 1))
    values = [[advice.surface[Cell(int(size), ratio)] for size in sizes] for ratio in ratios]
    figure = Figure(figsize=(9, 5.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    lowest = min(map(min, values))
    norm = TwoSlopeNorm(0.0, lowest, -lowest)
    image = axes.imshow(values, cmap="RdBu_r", norm=norm, aspect="auto", origin="lower")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            dark = abs(value) > 0.7 * -lowest
            axes.text(
                column, row, f"{1000 * value:+.0f}", ha="center", va="center", fontsize=8, color="w" if dark else "k"
            )
    axes.set_xticks(range(len(sizes)), [str(int(size)) for size in sizes])
    axes.set_yticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    axes.set_xlabel("bag size s")
    axes.set_ylabel("superposition ratio r")
    marks = [(advice.cell, "#FFD400", "-", "recommended"), (wanted, "#FF7F0E", "--", "asked for")]
    shown = []
    for cell, colour, dashes, label in marks:
        if cell is not None and cell in advice.surface:
            place = (sizes.index(cell.bag_size) - 0.5, ratios.index(cell.ratio) - 0.5)
            box = Rectangle(place, 1, 1, fill=False, edgecolor=colour, linewidth=3, linestyle=dashes, label=label)
            axes.add_patch(box)
            shown.append(box)
    if shown:
        axes.legend(handles=shown, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("final loss less the baseline's, nats a token")
    how = {
        "published": "a grid of its own",
        "interpolated": "interpolated between grids",
        "extrapolated": "the nearest place of the grids, outside which the case lies",
    }
    title = f"Published difference to the baseline, thousandths of a nat a token\n{SOURCE}: {how[advice.surface_basis]}"
    if advice.cell is not None and (advice.cell not in advice.surface or advice.surface_basis != advice.basis):
        title += "\nthe recommendation is of a single published run, not of this grid"
    axes.set_title(title, fontsize=9.5)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
