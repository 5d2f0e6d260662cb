"""The report as one HTML file: no scripts, and nothing fetched from elsewhere; light or dark as the reader's is."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tst_lightning.compare import tables
from tst_lightning.compare.arms import Arm
from tst_lightning.compare.referee import TOLERANCE
from tst_lightning.compare.units import flops_text, seconds_text, tokens_text

DEFINITIONS = {
    "Reference": "The first run named, and its arm. Every other one is compared with it.",
    "Arm": "Runs that agree in all recorded settings but the seeds (of weights and of data order); where they ran, under "
    "which versions and from which folders makes no other arm. Each seed counts once: a run whose settings and seed are "
    "there already begins another arm.",
    "Loss": "Next-token cross-entropy on the validation data, nats per token, in every phase. Training losses are not "
    "comparable across phases and are not used.",
    "Interpolation": "Curves are validations and nothing else: no fit, no smoothing. Between two validations a curve is "
    "read by linear interpolation in the budget (FLOPs, tokens or seconds). Before its first validation and beyond its "
    f"last it has no value, and what would need one is left out and noted. A run that ends within {TOLERANCE['flops']:.1%} "
    f"of a budget of FLOPs or tokens, or {TOLERANCE['seconds']:.0%} of one of seconds, counts with its final loss.",
    "Equal FLOPs": "F is the smallest final FLOPs among the runs; every run's loss is read at F. Difference: loss of the "
    "other arm minus loss of the reference, so a negative number is in the other arm's favour.",
    "Equal loss": "The target is the highest final loss among the reference arm's runs, to which all of them came. "
    "Speedup: FLOPs at which the reference first reached it, over FLOPs at which the other first reached it. In reverse, "
    "the target is the highest final loss among the other arm's runs. For single runs it is the run's own final loss. "
    "'Not reached' where a run never came down to it.",
    "Equal loss, completed runs": "Arms that differ in their number of steps alone are one experiment at several lengths. "
    "The final losses of its completed runs, each with a full schedule of its own, are interpolated linearly in log FLOPs "
    "and read at the final losses of the other experiment's runs; never beyond the shortest or longest. Where speedups are "
    "paired by seed, the target loss and the FLOPs are means of those seeds too.",
    "Equal data": "D is the smallest final number of data tokens read among the runs; losses at D are read as at F.",
    "Equal time": "S is the smallest total of training seconds among the runs; losses at S are read as at F. It "
    f"has a tolerance of {TOLERANCE['seconds']:.0%}, since step times vary by as much: a run that took no longer than that "
    "beyond S counts with its final loss. Asked only where device, number of processes and precision of all runs agree.",
    "Mean and sd": "Over the seeds of an arm; sd is that of the sample (n - 1).",
    "95% interval": "By Student's t over seeds. For a difference: of the differences within a seed where two seeds or "
    "more are common to both arms, else Welch's. For a speedup: the same of its logarithm, so means of speedups are "
    "geometric. It says what other seeds would give, and nothing of other data, models or tuning; it is not corrected for "
    "the number of comparisons.",
    "FLOPs": "Cumulative over all phases, on the one convention that the runs recorded; a run counted otherwise "
    "is refused.",
}

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #222; --faint: #d9d9d9; --soft: #666; --note: #fff6e5; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; --text: #e6e6e6; --faint: #3a3d42; --soft: #a0a0a0; --note: #2d2617; }
}
body { background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
img { width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-bottom: .8rem; }
th, td { border-bottom: 1px solid var(--faint); padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td { overflow-wrap: anywhere; min-width: 4rem; }
.notes { background: var(--note); border-radius: .4rem; padding: .6rem 1rem .6rem 2rem; }
figure { margin: 1rem 0; } figcaption, .soft { color: var(--soft); font-size: .9rem; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.35; }
summary { cursor: pointer; }
dt { font-weight: 600; } dd { margin: 0 0 .6rem 0; color: var(--soft); }
"""

LOSS_CAPTION = (
    "Dots are validations; lines are linear in the budget between them, as the referee reads them. Thin, light lines are "
    "single seeds, the others their mean at the steps that all of them validated at. A line is thin until its last switch "
    "of phase, which is dashed and vertical."
)
SPEEDUP_CAPTION = (
    "Read within the runs' curves, so before the end of their learning-rate decays except at an end; the band reaches from "
    "the least to the greatest speedup of a seed. Diamonds: between completed runs, with their 95% intervals; hollow at a "
    "final loss of the reference's runs, filled at one of the other experiment's."
)


def render_page(
    comparison: dict[str, Any],
    arms: Sequence[Arm],
    configs: Mapping[str, str | None],
    light: tuple[bytes, bytes],
    dark: tuple[bytes, bytes],
) -> str:
    """Renders the report.

    Args:
        comparison: what comparison.json holds.
        arms: the arms that it is of, the reference first.
        configs: the resolved configuration of each run by name, as text; None where its folder holds none.
        light: for a light page the charts of loss and of speedup, PNG images.
        dark: the same for a dark page.

    Returns:
        A whole HTML document; every value in it is escaped.
    """
    names = [arm.name for arm in arms]
    title = " against ".join(escape(name) for name in [*names[1:], names[0]])
    losses, speedups = zip(light, dark, strict=True)
    runs = comparison["runs"]
    sections = [
        f"<h1>{title}</h1>",
        f"<p>{len(runs)} runs in {len(arms)} arm{'s' * (len(arms) > 1)}; the reference is "
        f"<strong>{escape(names[0])}</strong>. FLOPs: {escape(comparison['flops_convention'])}.</p>",
        _picture(*losses, "Validation loss of every arm against training FLOPs, data tokens and seconds", LOSS_CAPTION),
        *_questions(comparison, _picture(*speedups, "Speedup of every arm against target loss", SPEEDUP_CAPTION)),
        "<h2>Before you believe it</h2>",
        '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in comparison["notes"]) + "</ul>",
        "<h2>Every run</h2>",
        tables.runs(runs),
        f'<p class="soft">Single runs against {escape(comparison["reference"])}; what they are worth, the arms say.</p>',
        tables.by_run(comparison),
        "<h2>Where the arms' settings differ</h2>",
        tables.differences(arms),
        "<h2>Devices and versions</h2>",
        tables.machines(arms),
        "<h2>Resolved configurations</h2>",
        *(_config(name, text) for name, text in configs.items()),
        "<h2>Definitions</h2>",
        "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in DEFINITIONS.items()) + "</dl>",
    ]
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _questions(comparison: dict[str, Any], speedups: str) -> list[str]:
    flops, data, time = (comparison[key] for key in ("equal_flops", "equal_data", "equal_time"))
    completed = comparison["equal_loss_completed"]
    at_time = "" if time is None else f": loss at {seconds_text(time['seconds'])} of training"
    within = "Read by linear interpolation between validations; nothing is extrapolated."
    return [
        f"<h2>Equal FLOPs: loss at {flops_text(flops['flops'])}</h2>",
        f'<p class="soft">{within}</p>',
        tables.at_budget(comparison, "equal_flops"),
        *_accuracy(comparison),
        "<h2>Equal loss: speedup in FLOPs</h2>",
        f'<p class="soft">{within}</p>',
        tables.at_loss(comparison),
        speedups,
        "<h2>Equal loss between completed runs of several lengths</h2>",
        tables.completed_runs(completed)
        if completed
        else '<p class="soft">Not asked: no experiment was run at two lengths and completed.</p>',
        f"<h2>Equal data: loss at {tokens_text(data['tokens'])} tokens</h2>",
        tables.at_budget(comparison, "equal_data"),
        f"<h2>Equal time{at_time}</h2>",
        '<p class="soft">Not asked; the notes say why.</p>'
        if time is None
        else tables.at_budget(comparison, "equal_time"),
    ]


def _accuracy(comparison: dict[str, Any]) -> list[str]:
    accuracy = comparison["equal_accuracy"]
    if accuracy is None:
        return []
    averaged = f"The average is of {', '.join(accuracy['averaged'])}. " if accuracy["averaged"] else ""
    return [
        f"<h2>Equal FLOPs: accuracy at {flops_text(accuracy['flops'])}</h2>",
        f'<p class="soft">Shares of questions answered rightly, of the checkpoints evaluated by <code>tst evaluate</code>. '
        f"{escape(averaged)}Nothing is interpolated.</p>",
        tables.accuracies(comparison),
    ]


def _picture(light: bytes, dark: bytes, what: str, caption: str) -> str:
    def data(png: bytes) -> str:
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"

    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{data(dark)}">'
        f'<img src="{data(light)}" alt="{what}"></picture><figcaption>{caption}</figcaption></figure>'
    )


def _config(name: str, text: str | None) -> str:
    if text is None:
        return f"<p>{escape(name)}: its folder holds no config.yaml.</p>"
    return f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
