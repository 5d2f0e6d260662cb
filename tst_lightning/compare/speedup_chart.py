"""Speedup against target loss: how many times less compute an arm needed than the reference to come to each loss."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tst_lightning.compare.across_seeds import SpeedupAt, speedup_curve
from tst_lightning.compare.arms import Arm
from tst_lightning.compare.chart_style import End, drawing, label_axes, name_ends, short_name, styled
from tst_lightning.compare.units import loss_text, speedup_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 4.6
# The first part of training is steep, and a small difference in loss a large one in FLOPs: as in the loss chart, losses
# are shown that were come to after this share of the reference's budget.
EARLY_SHARE = 0.08


def draw_speedups(arms: Sequence[Arm], completed: dict[str, Any] | None, dark: bool = False) -> bytes:
    """Draws, for every arm but the reference, the ratio of FLOPs to each loss that both came to.

    Args:
        arms: the arms, the reference first.
        completed: the speedups between completed runs, drawn as diamonds; or None.
        dark: for a dark page.

    Returns:
        A PNG image; where no loss is common to two arms, it says so.
    """
    reference = arms[0]
    with drawing(HEIGHT, dark) as made:
        axes = made.figure.subplots()
        made.figure.subplots_adjust(left=0.055, right=0.855, bottom=0.6 / HEIGHT, top=(HEIGHT - 0.5) / HEIGHT)
        made.title(f"Speedup: FLOPs of {short_name(reference)} over FLOPs of the other, to the same loss")
        label_axes(axes, made.ink, "target validation loss, nats per token", lambda value: f"{value:g}")
        ends = []
        for arm, colour, dashes in list(styled(arms, made.ink))[1:]:
            curve = _late(speedup_curve(arm, reference), reference)
            if not curve:
                continue
            losses = [at.loss for at in curve]
            axes.plot(losses, [at.mean for at in curve], color=colour, linestyle=dashes, linewidth=2)
            if len(arm.runs) > 1 or len(reference.runs) > 1:
                axes.fill_between(
                    losses,
                    [at.least for at in curve],
                    [at.greatest for at in curve],
                    color=colour,
                    alpha=0.18,
                    linewidth=0,
                )
            last = curve[-1]
            value = f"{speedup_text(last.mean)} at {loss_text(last.loss)}"
            ends.append(End(last.loss, last.mean, short_name(arm), value, colour))
        drawn = _diamonds(
            axes, completed, made.ink.page, {arm.name: colour for arm, colour, _ in styled(arms, made.ink)}
        )
        if ends or drawn:
            axes.axhline(1, color=made.ink.text, linewidth=1, linestyle=":")
            axes.invert_xaxis()
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
            axes.margins(x=0.02, y=0.12)
            name_ends(axes, ends)
        else:
            axes.set_axis_off()
            axes.text(
                0.5, 0.5, "There is no loss that two arms both came down to.", ha="center", transform=axes.transAxes
            )
    return made.png


def _late(curve: Sequence[SpeedupAt], reference: Arm) -> list[SpeedupAt]:
    """What lies below the highest loss of the reference after the early part of its run."""
    shown = [
        point.loss for run in reference.runs for point in run.curve if point.flops >= EARLY_SHARE * run.final.flops
    ]
    return [at for at in curve if at.loss <= max(shown)]


def _diamonds(axes: "Axes", completed: dict[str, Any] | None, page: str, colours: dict[str, str]) -> bool:
    """Speedups between completed runs, with their intervals, in the colour of the arm that is not the reference's.

    Those at a final loss of the reference's runs, where the other experiment was interpolated, are hollow.
    """
    if completed is None:
        return False
    rows = [row for row in completed["speedups"] if row["speedup"]]
    for row in rows:
        family = [end["arm"] for end in completed["families"][row["family"]]]
        hollow = row["arm"] not in family
        colour = colours[family[0] if hollow else row["arm"]]
        mean, interval = row["speedup"]["mean"], row["speedup"]["ci"]
        axes.plot(
            row["loss"], mean, "D", color=page if hollow else colour, markersize=7, markeredgecolor=colour, zorder=6
        )
        if interval:
            axes.plot([row["loss"]] * 2, interval, color=colour, linewidth=1.4, zorder=5)
    return bool(rows)
