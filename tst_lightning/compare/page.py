"""The report as one HTML file: no scripts, and nothing fetched from elsewhere; light or dark as the reader's is."""

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from tst_lightning.compare.referee import DEFINITIONS
from tst_lightning.compare.units import difference_text, flops_text, loss_text, speedup_text, tokens_text

# Told elsewhere in the report, or not a matter of configuration.
NOT_CONFIGURATION = {"format", "name", "status", "step"}

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
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--faint); padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td { overflow-wrap: anywhere; min-width: 4rem; }
.notes { background: var(--note); border-radius: .4rem; padding: .6rem 1rem .6rem 2rem; }
dt { font-weight: 600; } dd { margin: 0 0 .6rem 0; color: var(--soft); }
"""


def render_page(comparison: dict[str, Any], records: Sequence[dict[str, Any]], light: bytes, dark: bytes) -> str:
    """Renders the report.

    Args:
        comparison: what comparison.json holds.
        records: the run.json of each run, in the same order.
        light: the chart for a light page, a PNG image.
        dark: the same for a dark page.

    Returns:
        A whole HTML document; every value in it is escaped.
    """
    runs = comparison["runs"]
    names = [run["name"] for run in runs]
    title = " against ".join(escape(name) for name in [*names[1:], names[0]])
    sections = [
        f"<h1>{title}</h1>",
        f"<p>{len(runs)} runs; the reference is <strong>{escape(comparison['reference'])}</strong>. "
        f"FLOPs: {escape(comparison['flops_convention'])}.</p>",
        _picture(light, dark),
        "<h2>Comparisons</h2>",
        _comparisons(comparison),
        "<h2>Before you believe it</h2>",
        '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in comparison["notes"]) + "</ul>",
        "<h2>Runs</h2>",
        _runs(runs),
        "<h2>Where the configurations differ</h2>",
        _differences(names, records),
        "<h2>Definitions</h2>",
        "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in DEFINITIONS.items()) + "</dl>",
    ]
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _picture(light: bytes, dark: bytes) -> str:
    def data(png: bytes) -> str:
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"

    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{data(dark)}">'
        f'<img src="{data(light)}" alt="Validation loss of every run against training FLOPs and against data tokens">'
        "</picture>"
    )


def _comparisons(comparison: dict[str, Any]) -> str:
    """One table: a line per run, a column per question."""
    flops, data, loss = comparison["equal_flops"], comparison["equal_data"], comparison["equal_loss"]
    reference = comparison["reference"]
    header = [
        "run",
        f"loss at equal FLOPs ({flops_text(flops['flops'])})",
        "difference",
        f"speedup to loss {loss_text(loss['loss'])}",
        "speedup to this run's final loss",
        f"loss at equal data ({tokens_text(data['tokens'])} tokens)",
        "difference",
    ]
    rows = []
    for run in comparison["runs"]:
        name = run["name"]
        other = name != reference
        rows.append(
            [
                name,
                loss_text(flops["losses"][name]),
                difference_text(flops["differences"][name]) if other else "reference",
                speedup_text(loss["runs"][name]["speedup"]) if other else "reference",
                speedup_text(loss["reverse"][name]["speedup"]) if other else "reference",
                loss_text(data["losses"][name]),
                difference_text(data["differences"][name]) if other else "reference",
            ]
        )
    return _table(header, rows)


def _runs(runs: Sequence[dict[str, Any]]) -> str:
    header = ["run", "status", "final loss", "bits per byte", "perplexity", "FLOPs", "tokens", "positions", "seconds"]
    header += ["steps", "seed", "parameters", "switch", "folder"]
    rows = [
        [
            run["name"],
            run["status"],
            loss_text(run["final_val_loss"]),
            loss_text(run["final_bits_per_byte"]),
            "-" if run["final_perplexity"] is None else f"{run['final_perplexity']:.2f}",
            flops_text(run["flops"]),
            tokens_text(run["tokens"]),
            tokens_text(run["positions"]),
            f"{run['seconds']:.1f}",
            run["step"],
            run["seed"],
            "-" if run["parameters"] is None else tokens_text(run["parameters"]),
            "; ".join(
                f"step {at['step']}, {flops_text(at['flops'])}, {tokens_text(at['tokens'])} tokens"
                for at in run["switch"]
            )
            or "none",
            run["path"],
        ]
        for run in runs
    ]
    return _table(header, rows)


def _differences(names: Sequence[str], records: Sequence[dict[str, Any]]) -> str:
    """The keys of run.json whose values differ, with every run's value."""
    flat = [dict(_flattened(record)) for record in records]
    keys = dict.fromkeys(key for record in flat for key in record)
    rows = [
        [key, *(record.get(key, "absent") for record in flat)]
        for key in keys
        if any(record.get(key) != flat[0].get(key) for record in flat)
    ]
    return _table(["key", *names], rows) if rows else "<p>Nowhere.</p>"


def _flattened(record: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in record.items():
        if not prefix and key in NOT_CONFIGURATION:
            continue
        if not prefix and key == "phases":
            yield key, ", then ".join(f"{p['name']} ({p['steps']} steps, bag size {p['bag_size']})" for p in value)
        elif isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
