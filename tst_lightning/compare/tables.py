"""The report's tables, as HTML: answers by arm and by run, the runs, where settings and machines differ."""

import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from tst_lightning.compare.arms import Arm
from tst_lightning.compare.units import (
    difference_text,
    flops_text,
    interval_text,
    loss_text,
    mean_text,
    seconds_text,
    speedup_text,
    tokens_text,
)

# Told elsewhere in the report, or not a matter of configuration.
NOT_CONFIGURATION = {"format", "name", "status", "step"}
OF_THE_MACHINE = ("device", "device_name", "precision", "compiled_layers")


def at_budget(comparison: dict[str, Any], key: str) -> str:
    """Losses of all arms at one budget, and their differences from the reference."""
    header = ["arm", "seeds", "loss, mean ± sd", "95% interval", "difference", "95% interval", "interval by"]
    rows = []
    for place, arm in enumerate(comparison["arms"]):
        entry = arm[key]
        row = [arm["name"], entry["n"], mean_text(entry), interval_text(entry["ci"], loss_text)]
        rows.append(row + _estimate(entry["difference"], difference_text, "-" if place else "reference"))
    return table(header, rows)


def accuracies(comparison: dict[str, Any]) -> str:
    """Accuracies of all arms at equal FLOPs, the average first, and their differences from the reference."""
    header = [
        "task",
        "arm",
        "seeds",
        "accuracy, mean ± sd",
        "95% interval",
        "difference",
        "95% interval",
        "interval by",
    ]
    rows = []
    arms = comparison["equal_accuracy"]["arms"]
    reference = next(iter(arms))
    for task in arms[reference]:
        for name, entries in arms.items():
            entry = entries[task]
            row = [task, name, entry["n"], mean_text(entry), interval_text(entry["ci"], loss_text)]
            rows.append(
                row + _estimate(entry["difference"], difference_text, "reference" if name == reference else "-")
            )
    return table(header, rows)


def at_loss(comparison: dict[str, Any]) -> str:
    """FLOPs of the other arms to the reference's loss, and of the reference to theirs."""
    header = ["arm", "seeds", "target loss", "whose", "FLOPs of the reference", "FLOPs of the arm", "speedup"]
    header += ["95% interval", "interval by"]
    reference, *others = comparison["arms"]
    rows = []
    for arm in others:
        for key, whose in (("equal_loss", reference), ("reverse", arm)):
            entry = arm[key]
            flops = [flops_text(entry[of]) if entry[of] else "-" for of in ("reference_flops", "flops")]
            row = [arm["name"], len(arm["runs"]), loss_text(entry["loss"]), whose["name"], *flops]
            rows.append(row + _estimate(entry["speedup"], speedup_text, entry["reason"] or "-"))
    return table(header, rows)


def completed_runs(completed: dict[str, Any]) -> str:
    """End points of the runs of several lengths, and the speedups between them."""
    ends = [
        [name, end["arm"], end["steps"], flops_text(end["flops"]), loss_text(end["loss"])]
        for name, family in completed["families"].items()
        for end in family
    ]
    rows = []
    for row in completed["speedups"]:
        flops = [flops_text(row[of]) if row[of] else "-" for of in ("reference_flops", "flops")]
        rows.append(
            [row["family"], loss_text(row["loss"]), row["arm"], *flops]
            + _estimate(row["speedup"], speedup_text, row["reason"] or "-")
        )
    header = ["experiment", "target loss", "whose", f"FLOPs of {completed['reference']}", "FLOPs of the experiment"]
    return table(["experiment", "arm", "steps", "FLOPs", "final loss, mean"], ends) + table(
        [*header, "speedup", "95% interval", "interval by"], rows
    )


def by_run(comparison: dict[str, Any]) -> str:
    """One table: a line for each run, a column for each question."""
    flops, data, loss = comparison["equal_flops"], comparison["equal_data"], comparison["equal_loss"]
    time, reference = comparison["equal_time"], comparison["reference"]
    header = [
        "run",
        f"loss at equal FLOPs ({flops_text(flops['flops'])})",
        "difference",
        f"speedup to loss {loss_text(loss['loss'])}",
        "speedup to this run's final loss",
        f"loss at equal data ({tokens_text(data['tokens'])} tokens)",
        "difference",
    ]
    budgets = [flops, data]
    if time is not None:
        header += [f"loss at equal time ({seconds_text(time['seconds'])})", "difference"]
        budgets.append(time)
    rows = []
    for run in comparison["runs"]:
        name = run["name"]
        other = name != reference
        cells = [
            [loss_text(mine["losses"][name]), difference_text(mine["differences"][name]) if other else "reference"]
            for mine in budgets
        ]
        speedups = [
            (mine["reason"] if mine["speedup"] is None else speedup_text(mine["speedup"])) or "-"
            for mine in ((loss["runs"][name], loss["reverse"][name]) if other else ())
        ] or ["reference"] * 2
        rows.append([name, *cells[0], *speedups, *(cell for pair in cells[1:] for cell in pair)])
    return table(header, rows)


def runs(entries: Sequence[dict[str, Any]]) -> str:
    """What each run was and came to."""
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
            tokens_text(run["parameters"]) if isinstance(run["parameters"], int) else "-",
            "; ".join(
                f"step {at['step']}, {flops_text(at['flops'])}, {tokens_text(at['tokens'])} tokens"
                for at in run["switch"]
            )
            or "none",
            run["path"],
        ]
        for run in entries
    ]
    return table(header, rows)


def differences(arms: Sequence[Arm]) -> str:
    """The keys of run.json whose values differ between arms, with every arm's value, or values."""
    flat = [[dict(_flattened(run.record)) for run in arm.runs] for arm in arms]
    keys = dict.fromkeys(key for arm in flat for record in arm for key in record)
    rows = []
    for key in keys:
        values = [list(dict.fromkeys(record.get(key, "absent") for record in arm)) for arm in flat]
        if any(set(mine) != set(values[0]) for mine in values):
            rows.append([key, *(", ".join(mine) for mine in values)])
    return table(["key", *(arm.name for arm in arms)], rows) if rows else "<p>Nowhere.</p>"


def machines(arms: Sequence[Arm]) -> str:
    """Device, precision and versions of every run."""
    listed = [run for arm in arms for run in arm.runs]
    versions = [dict(_flattened({"versions": run.record.get("versions")})) for run in listed]
    packages = list(dict.fromkeys(key for mine in versions for key in mine))
    header = [
        "run",
        *(key.replace("_", " ") for key in OF_THE_MACHINE),
        *(p.removeprefix("versions.") for p in packages),
    ]
    rows = [
        [run.name, *(_value(run.record.get(key, "-")) for key in OF_THE_MACHINE), *(mine.get(p, "-") for p in packages)]
        for run, mine in zip(listed, versions, strict=True)
    ]
    return table(header, rows)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose every cell is escaped."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _estimate(estimate: dict[str, Any] | None, text: Callable[[Any], str], otherwise: str) -> list[str]:
    """A difference or a speedup, its interval, and how that was made."""
    if estimate is None:
        return [otherwise, "", ""]
    made = f"{estimate['pairs']} pairs, by seed" if estimate["pairs"] else estimate["method"]
    return [text(estimate["mean"]), interval_text(estimate["ci"], text) or "-", made]


def _flattened(record: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in record.items():
        if not prefix and key in NOT_CONFIGURATION:
            continue
        if not prefix and key == "phases":
            yield key, ", then ".join(_phase(phase) for phase in value)
        elif isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _value(value)


def _phase(phase: dict[str, Any]) -> str:
    settings = phase.get("settings")
    more = settings.items() if isinstance(settings, dict) else ()
    told = [f"{phase['steps']} steps", f"bag size {phase['bag_size']}"]
    return f"{phase['name']} ({', '.join([*told, *(f'{key} {_value(value)}' for key, value in more)])})"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
