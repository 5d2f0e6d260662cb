"""A plan as a page of plain text: at most 100 columns."""

import textwrap
from collections.abc import Sequence
from typing import Any

from tst_lightning.compare.units import flops_text, scaled, tokens_text

WIDTH = 100

_MEMORY_LINES = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer_state": "optimizer state",
    "communication": "communication",
    "activations": "activations of a micro-batch",
    "logits": "logits of a chunk (fused loss)",
    "recomputed": "or computed again, of one layer",
    "peak": "at the height of a step",
}


def page_text(plan: dict[str, Any]) -> str:
    """The whole plan for the terminal.

    Args:
        plan: of :func:`tst_lightning.plan.document.make_plan`.
    """
    sections = [_head(plan), _arms(plan), _data_and_time(plan), _memory(plan), _advice(plan), _notes(plan)]
    return "\n\n".join("\n".join(lines) for lines in sections)


def _head(plan: dict[str, Any]) -> list[str]:
    total, active = plan["parameters"]["total"], plan["parameters"]["active"]
    sparse = f", {active:,} active" if active < total else ""
    batch = plan["batch"]
    rows = f"{batch['devices']} x {batch['micro_batch_rows']} rows of {batch['seq_len']:,}"
    if batch["accumulate_grad_batches"] > 1:
        rows += f", accumulated {batch['accumulate_grad_batches']} times"
    lines = [
        f"plan      {plan['source']}",
        f"model     {plan['model']['class'].rpartition('.')[2]}, {total:,} parameters{sparse}",
        f"budget    {plan['budget']['steps']:,} steps of {batch['positions_per_step']:,} positions"
        f" ({plan['budget']['given']})",
        f"batch     {rows}",
        f"FLOPs     {flops_text(plan['flops_per_step'])} a step; {plan['flops_convention']}",
    ]
    return [part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent=" " * 10)]


def _arms(plan: dict[str, Any]) -> list[str]:
    rows = [("run", "phase", "bag", "steps", "tokens", "FLOPs")]
    for name, arm in plan["arms"].items():
        for phase, cost in arm["phases"].items():
            rows.append((name, phase, str(cost["bag_size"]), *_costs(cost)))
        if len(arm["phases"]) > 1:
            rows.append((name, "in all", "", *_costs(arm)))
    return _table(rows, left=2)


def _costs(cost: dict[str, Any]) -> tuple[str, str, str]:
    hardware = "" if cost["hardware_flops"] == cost["flops"] else f" (hardware {flops_text(cost['hardware_flops'])})"
    return f"{cost['steps']:,}", tokens_text(cost["tokens"]), flops_text(cost["flops"]) + hardware


def _data_and_time(plan: dict[str, Any]) -> list[str]:
    there, timed = plan["data"]["unique_tokens"], plan["speed"] is not None
    priced = any(arm["cost"] is not None for arm in plan["arms"].values())
    header = ["run", "unique tokens for one pass", "passes over the data there is"]
    header += ["device hours"] * timed + ["hours"] * timed + ["cost"] * priced
    rows = [tuple(header)]
    for name, arm in plan["arms"].items():
        row = [name, tokens_text(arm["unique_tokens_needed"]), "-" if arm["passes"] is None else f"{arm['passes']:.2f}"]
        if timed:
            row += [_hours(arm["device_hours"]), _hours(arm["device_hours"] / plan["batch"]["devices"])]
        if priced:
            row.append(f"{arm['cost']:,.2f}")
        rows.append(tuple(row))
    lines = _table(rows, left=1)
    lines.append(f"data there is: {'not known' if there is None else f'{there:,} tokens'}")
    if timed:
        speed = plan["speed"]
        lines.append(f"speed: {flops_text(speed['flops_per_second'])}/s a device ({speed['source']})")
    return lines


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _memory(plan: dict[str, Any]) -> list[str]:
    memory = plan["memory"]
    of = memory["bytes"]
    checkpointing = memory["activation_checkpointing"]
    extra = "" if checkpointing == "none" else f", {checkpointing} activation checkpointing"
    lines = [f"memory of a device ({memory['layout']}, {memory['precision']}{extra})"]
    width = max(map(len, _MEMORY_LINES.values()))
    for key, words in _MEMORY_LINES.items():
        whole = f"  (whole logits would take {bytes_text(of['whole_logits'])})" if key == "logits" else ""
        if of[key] or key not in ("communication", "recomputed"):
            lines.append(f"  {words:<{width}}  {bytes_text(of[key]):>9}{whole}")
    return [*lines, f"  {'checkpoint on disk':<{width}}  {bytes_text(of['checkpoint']):>9}"]


def bytes_text(count: float) -> str:
    """Bytes with a decimal prefix, such as "1.23 GB"."""
    figures, prefix = scaled(count)
    return f"{figures} {prefix}B"


def _advice(plan: dict[str, Any]) -> list[str]:
    advice = plan["recommendation"]
    if advice["superposition"] == "full":
        weights = advice["weighting"].replace("_", "-")
        what = f"s = {advice['bag_size']}, r = {advice['superposition_ratio']:g}, {weights} weights"
    else:
        what = {"output_only": "output-only superposition", "none": "no superposition"}[advice["superposition"]]
    if advice["expected_loss_difference"] is not None:
        said = f"expected {advice['expected_loss_difference']:+.3f} nats a token at equal FLOPs ({advice['basis']})"
    else:
        said = "no expected difference"
    lines = [f"recommended: {what}; {said}"]
    for reason in [*advice["reasons"], f"Source: {advice['source']}"]:
        lines += textwrap.wrap(f"- {reason}.", WIDTH, initial_indent="  ", subsequent_indent="    ")
    return lines


def _notes(plan: dict[str, Any]) -> list[str]:
    lines = ["notes:"]
    for note in plan["notes"]:
        lines += textwrap.wrap(f"- {note}", WIDTH, subsequent_indent="  ")
    return lines


def _table(rows: Sequence[tuple[str, ...]], left: int) -> list[str]:
    """Columns two spaces apart, the first ``left`` of them flush left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
