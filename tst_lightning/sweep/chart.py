"""The picture of a sweep over anything but s and r: final loss against what was swept."""

import json
import math
from collections.abc import Sequence
from typing import Any

from tst_lightning.sweep.cases import labels, value_text
from tst_lightning.sweep.figure import FAINT, REFERENCE, as_png, name_lines, scale_numbers, styled_figure
from tst_lightning.sweep.results import Setting

_MOST_LINES = 12


def draw_chart(settings: Sequence[Setting], baseline: Setting | None) -> bytes:
    """Draws final loss against the swept key with the most values, a line for each combination of the others.

    Where no key stands in every setting, or there would be too many lines, each setting has a row of its own.

    Args:
        settings: what is swept, the baseline left out.
        baseline: drawn as a line.

    Returns:
        A PNG image.
    """
    key = _axis(settings)
    with styled_figure() as figure:
        figure.set_size_inches(10, 5.6 if key else max(3.0, 1.6 + 0.3 * len(settings)))
        axes = figure.add_subplot()
        if key:
            _lines(axes, settings, key)
        else:
            _rows(axes, settings)
        if baseline is not None and baseline.mean is not None:
            line: Any = {"color": REFERENCE, "linewidth": 1.2, "linestyle": "--", "label": "baseline"}
            axes.axhline(baseline.mean, **line) if key else axes.axvline(baseline.mean, **line)
        axes.grid(axis="y" if key else "x", color=FAINT, linewidth=0.6)
        axes.tick_params(length=0)
        axes.set_title("Final validation loss, nats per token", fontsize=13, fontweight="bold", pad=12)
        if len(axes.get_legend_handles_labels()[1]) > 1 or baseline is not None:
            name_lines(axes)
        figure.set_layout_engine("tight")
        return as_png(figure)


def _axis(settings: Sequence[Setting]) -> str | None:
    common = [key for key in settings[0].settings if all(key in setting.settings for setting in settings)]
    values = {key: {json.dumps(setting.settings[key], default=str) for setting in settings} for key in common}
    key = max(common, key=lambda key: len(values[key]), default=None)
    if key is None or len(_others(settings, key)) > _MOST_LINES:
        return None
    return key


def _others(settings: Sequence[Setting], key: str) -> dict[str, list[Setting]]:
    names = labels(name for setting in settings for name in setting.settings)
    lines: dict[str, list[Setting]] = {}
    for setting in settings:
        rest = [f"{names[name]} {value_text(value)}" for name, value in setting.settings.items() if name != key]
        lines.setdefault(", ".join(rest), []).append(setting)
    return lines


def _lines(axes: Any, settings: Sequence[Setting], key: str) -> None:
    from matplotlib import colormaps

    values = list(
        {json.dumps(setting.settings[key], default=str): setting.settings[key] for setting in settings}.values()
    )
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    values = sorted(values) if numbers else values
    places = {json.dumps(value, default=str): value if numbers else place for place, value in enumerate(values)}
    lines = _others(settings, key)
    for place, (name, line) in enumerate(lines.items()):
        at = {places[json.dumps(setting.settings[key], default=str)]: setting for setting in line}
        steps = sorted(at)
        axes.errorbar(
            steps,
            [_mean(at[step]) for step in steps],
            yerr=[at[step].deviation or 0.0 for step in steps] if any(at[step].deviation for step in steps) else None,
            color=colormaps["viridis"](0.9 * place / max(1, len(lines) - 1)),
            marker="o",
            markersize=5,
            linewidth=1.6 if numbers else 0,
            elinewidth=1.6,
            capsize=2,
            label=name or "this sweep",
        )
    missing = sorted({places[json.dumps(s.settings[key], default=str)] for s in settings if math.isnan(_mean(s))})
    if missing:  # at the foot, whatever the losses
        foot = {"transform": axes.get_xaxis_transform(), "color": REFERENCE, "linewidth": 0, "clip_on": False}
        axes.plot(missing, [0.02] * len(missing), marker="x", label="not every seed\nhas finished", **foot)
    axes.set_xlabel(key)
    if numbers:
        scale_numbers(axes, values)
    else:
        axes.set_xticks(range(len(values)), [_shortened(value_text(value)) for value in values])
        axes.margins(x=0.2)


def _rows(axes: Any, settings: Sequence[Setting]) -> None:
    names = labels(name for setting in settings for name in setting.settings)
    texts = [
        ", ".join(f"{names[name]} {value_text(value)}" for name, value in setting.settings.items()) or "as configured"
        for setting in settings
    ]
    axes.errorbar(
        [_mean(setting) for setting in settings],
        range(len(settings)),
        xerr=[setting.deviation or 0.0 for setting in settings],
        linewidth=0,
        elinewidth=1.6,
        marker="o",
        color="#0072B2",
        label="this sweep",
    )
    axes.set_yticks(range(len(settings)), [_shortened(text, 60) for text in texts])
    axes.margins(y=0.08)
    axes.invert_yaxis()


def _mean(setting: Setting) -> float:
    return setting.mean if setting.complete and setting.mean is not None else math.nan


def _shortened(text: str, length: int = 24) -> str:
    return text if len(text) <= length else f"{text[: length - 2]}.."
