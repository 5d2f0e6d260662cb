"""What both charts share: colours of a light and a dark page, a figure, its axes, names beside the lines' ends."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

from tst_lightning.compare.arms import Arm
from tst_lightning.compare.units import scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers; the reference is the ink's own grey. The dark blue is the
# last on a dark page, where it is the hardest to read.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DARK_PALETTE = ("#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#0072B2")
NAME_LENGTH = 22
WIDTH_INCHES = 13
BESIDE_INCHES = 0.1  # from a panel to the names right of it
MOST_NAMES = 11  # of two lines each, one above the other


class Ink(NamedTuple):
    """Colours of one theme: page, text and axes, faint lines, the reference's line, the other arms' lines."""

    page: str
    text: str
    faint: str
    reference: str
    palette: tuple[str, ...]


LIGHT = Ink("#ffffff", "#222222", "#d9d9d9", "#555555", PALETTE)
DARK = Ink("#16181c", "#e6e6e6", "#3a3d42", "#b8b8b8", DARK_PALETTE)


class Drawing:
    """A figure, and the PNG image that is left of it."""

    def __init__(self, figure: "Figure", ink: Ink, height: float) -> None:
        self.figure, self.ink, self.height = figure, ink, height
        self.png = b""

    def title(self, text: str) -> None:
        """Heads the figure."""
        self.figure.text(0.055, 1 - 0.3 / self.height, text, fontsize=13, fontweight="bold")


class End(NamedTuple):
    """Where a line ends, and what is written beside it: x and y in data coordinates, two lines of text."""

    x: float
    y: float
    name: str
    value: str
    colour: str


@contextmanager
def drawing(height: float, dark: bool) -> Iterator[Drawing]:
    """A figure of the report's width; when the block is left, its PNG image stands in ``png``.

    Args:
        height: in inches.
        dark: for a dark page.
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
        figure = Figure(figsize=(WIDTH_INCHES, height), dpi=130)
        FigureCanvasAgg(figure)
        made = Drawing(figure, ink, height)
        yield made
        png = io.BytesIO()
        figure.savefig(png, format="png")
        made.png = png.getvalue()


def styled(arms: Sequence[Arm], ink: Ink) -> Iterator[tuple[Arm, str, str]]:
    """Every arm with its colour and its dashes."""
    yield arms[0], ink.reference, "-"
    dashes = ["-"] * len(PALETTE) + ["--"] * len(PALETTE) + [":"] * len(PALETTE)
    yield from zip(arms[1:], cycle(ink.palette), cycle(dashes), strict=False)


def name_ends(axes: "Axes", ends: Sequence[End]) -> None:
    """Writes names and values in a column right of the panel, pushed apart where ends lie close."""
    low, high = axes.get_ylim()
    gap = (high - low) * min(0.085, 1 / max(len(ends), 1))
    ends = sorted(ends, key=lambda end: end.y)
    beside = 1 + BESIDE_INCHES / (axes.get_position().width * WIDTH_INCHES)
    for height, end in zip(apart([end.y for end in ends], gap, low, high), ends, strict=True):
        axes.annotate(
            f"{end.name}\n{end.value}" if len(ends) <= MOST_NAMES else end.name,
            (end.x, end.y),
            xytext=(beside, (height - low) / (high - low)),
            textcoords="axes fraction",
            va="center",
            fontsize=9.5,
            linespacing=1.05,
            color=end.colour,
            annotation_clip=False,
            arrowprops={
                **{"arrowstyle": "-", "color": end.colour, "linewidth": 0.7},
                **{"alpha": 0.6, "shrinkA": 2, "shrinkB": 4},
            },
        )


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves sorted places at least a gap apart, within low and high where there is room, and each as little as need be."""
    heights: list[float] = []
    for place in places:
        heights.append(max(place, heights[-1] + gap) if heights else max(place, low))
    if not heights:
        return []
    # Half of what the pushing added goes below, so that names stay near their ends.
    shift = min((heights[-1] - places[-1]) / 2, heights[0] - low)
    ceiling = high
    for i in reversed(range(len(heights))):
        heights[i] = ceiling = min(heights[i] - shift, ceiling)
        ceiling -= gap
    return heights


def label_axes(axes: "Axes", ink: Ink, text: str, tick: Callable[[float], str]) -> None:
    """Names the x axis, writes its ticks, and lays faint lines at the y axis' ticks."""
    from matplotlib.ticker import FuncFormatter

    axes.set_xlabel(text)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.grid(axis="y", color=ink.faint, linewidth=0.6)
    axes.tick_params(length=0)


def tick_text(value: float) -> str:
    """A round quantity as an axis shows it, such as "2.5T"."""
    figures, prefix = scaled(value)
    return (figures.rstrip("0").rstrip(".") if "." in figures else figures) + prefix


def short_name(arm: Arm) -> str:
    """An arm's name on one line, its middle left out where it is long."""
    name = " ".join(arm.name.split())
    if len(name) > NAME_LENGTH:
        name = f"{name[: NAME_LENGTH // 2 - 1]}...{name[-NAME_LENGTH // 2 + 2 :]}"
    return name
