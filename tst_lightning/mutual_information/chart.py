"""The measured mutual information over the distance, and what the fitted power law makes of a bag's weights."""

from typing import TYPE_CHECKING

import numpy as np

from tst_lightning.bags import PowerLaw, bag_weights
from tst_lightning.compare.chart_style import Ink, drawing, label_axes
from tst_lightning.mutual_information.fit import Fit
from tst_lightning.mutual_information.measure import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAG_SIZE = 16  # of the published bag sizes the one at which weights matter most


def draw_decay(measurement: Measurement, fitted: Fit) -> bytes:
    """Draws estimates, bias and fit by distance; and beside them the weights of a bag of 16 by that and other power laws.

    Args:
        measurement: of a corpus.
        fitted: to the corrected values.

    Returns:
        A PNG image.
    """
    with drawing(5.4, dark=False) as made:
        made.title("Mutual information of tokens of a document, and the weights of a bag that follow from it")
        _decay(made.figure.add_axes((0.055, 0.12, 0.43, 0.7)), made.ink, measurement, fitted)
        _weights(made.figure.add_axes((0.55, 0.12, 0.43, 0.7)), made.ink, fitted.law)
    return made.png


def _decay(axes: "Axes", ink: Ink, measurement: Measurement, fitted: Fit) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    estimates, law = measurement.estimates, fitted.law
    distances = [estimate.distance for estimate in estimates]
    curves = {
        "plug-in": ([estimate.plug_in for estimate in estimates], ink.palette[4], "."),
        "of shuffled pairs": ([estimate.shuffled for estimate in estimates], ink.reference, "."),
        "corrected: the difference": ([estimate.corrected for estimate in estimates], ink.palette[1], "o"),
    }
    for name, (values, colour, marker) in curves.items():
        axes.plot(distances, values, marker, color=colour, markersize=5, label=name)
    label = f"{law.constant:.3g} + {law.factor:.3g} · i^{law.exponent:.3g}, R² {fitted.r_squared:.3f}"
    between = np.geomspace(1, distances[-1], 200)
    axes.plot(between, law.constant + law.factor * between**law.exponent, color=ink.palette[0], label=label)
    axes.set_xscale("log", base=2)
    if min(min(values) for values, _, _ in curves.values()) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="minor", length=0)
    axes.set_title("nats", loc="left", fontsize=10)
    label_axes(axes, ink, "distance i, tokens", lambda value: f"{value:g}")
    axes.legend(frameon=False)


def _weights(axes: "Axes", ink: Ink, law: PowerLaw) -> None:
    weightings: dict[str, tuple[str | PowerLaw, str]] = {
        "measured": (law, ink.palette[0]),
        "power_law: 1/i": ("power_law", ink.palette[1]),
        "fitted_power_law: the paper's, of DCLM": ("fitted_power_law", ink.palette[2]),
        "uniform": ("uniform", ink.reference),
    }
    for name, (weighting, colour) in weightings.items():
        if weighting is not law or law(1) > 0:
            weights = bag_weights(weighting, _BAG_SIZE)
            axes.plot(range(1, _BAG_SIZE + 1), weights.tolist(), ".-", color=colour, label=name)
    axes.set_ylim(bottom=0)
    axes.set_title(f"share of the loss, of a bag of {_BAG_SIZE}", loc="left", fontsize=10)
    label_axes(axes, ink, "token i of the target bag", lambda value: f"{value:g}")
    axes.legend(frameon=False)
