"""A quoted figure, and figures as tables of Markdown within a document: the parts of scaling_figures.py."""

import statistics
from typing import Any, NamedTuple

from tst_lightning.compare.units import scaled


class Figure(NamedTuple):
    """A quoted figure.

    Attributes:
        what: it is.
        text: as quoted.
        kind: measured, counted, published or estimated.
        how: it came about.
        value: in SI units.
    """

    what: str
    text: str
    kind: str
    how: str
    value: float


def text(value: float, unit: str) -> str:
    """Three figures and a decimal prefix."""
    figures, prefix = scaled(value)
    return f"{figures} {prefix}{unit}"


def hours(seconds: float) -> str:
    """Seconds as hours, minutes or days, whichever reads best."""
    if seconds < 5400:
        return f"{seconds / 60:.3g} minutes" if seconds >= 90 else f"{seconds:.2g} s"
    return f"{seconds / 3600:.3g} hours" if seconds < 4 * 86400 else f"{seconds / 86400:.3g} days"


def middle(rounds: list[dict[str, float]], key: str) -> float:
    """Median over the rounds of a measurement."""
    return statistics.median(each[key] for each in rounds)


def table(rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def figures_table(figures: list[Figure]) -> str:
    """Markdown, a row for each figure."""
    return table([["what", "figure", "", "how"], *([f.what, f.text, f.kind, f.how] for f in figures)])


def rendered(document: str, tables: dict[str, str]) -> str:
    """The document with its tables in place of those between its marks."""
    for name, content in tables.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        head, _, rest = document.partition(begin)
        _, found, tail = rest.partition(end)
        assert found, f"no marks of {name}"
        document = f"{head}{begin}{content}\n{end}{tail}"
    return document


def stream(measured: dict[str, Any]) -> list[list[str]]:
    """The stream's figures by number of shards, as rows of a table."""
    shown = {
        "manifests": ("manifest_bytes", "B"),
        "both corpora opened": ("open_seconds", "s"),
        "first rows of a new run": ("first_rows_seconds", "s"),
        "first rows of a resumed run": ("resumed_rows_seconds", "s"),
        "state in a checkpoint": ("state_bytes", "B"),
        "LitData's own, with the names of all shards": ("litdata_state_bytes", "B"),
        "memory on top of the imports": ("memory_bytes", "B"),
    }
    counts = measured["stream"]
    rows = [["measured, a rank of 64", *(f"{int(count):,} shards" for count in counts)]]
    for what, (key, unit) in shown.items():
        values = [middle(rounds, key) for rounds in counts.values()]
        rows.append([what, *(f"{value:.2g} s" if unit == "s" else text(value, unit) for value in values)])
    return rows
