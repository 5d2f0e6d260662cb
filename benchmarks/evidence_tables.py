"""The tables of docs/evidence.md, as Markdown, from a result file of evidence.py."""

from collections.abc import Mapping
from typing import Any

from scaling_tables import table

from tst_lightning.compare.units import (
    difference_text,
    flops_text,
    interval_text,
    loss_text,
    mean_text,
    speedup_text,
    tokens_text,
)

RATE, WARMUP = "model.optimizer.init_args.lr", "model.lr_schedule.warmup_steps"

_ARMS = ["arm", "tokens read", "passes", "loss by seed", "mean", "to the baseline (95%)", "to TST (95%)"]
BOTH = ("baseline", "TST", "TST less baseline (95%)")


def tables(setting: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, str]:
    """One for each question that was asked, by its name in the page's marks.

    Args:
        setting: the setting file.
        document: evidence.py's, but for the tables.
    """
    made = {"tuned": _tuned(setting, document)}
    writers = {
        "equal_flops": _equal_flops,
        "positions": _positions,
        "equal_loss": _equal_loss,
        "equal_data": _equal_data,
        "baseline_also": _arms_by_length,
        "origin": _arms,
        "unique": _arms_by_length,
        "sizes": _sizes,
        "surface": _surface,
        "ranks": _ranks,
    }
    answers = document["answers"]
    for name, write in writers.items():
        asked = answers.get("surface" if name == "ranks" else name)
        if asked:
            made[name] = write(asked)
    return made


def _tuned(setting: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    warmups = setting["tune"]["warmups"]
    rows = [["size", "arm", "learning rate", *(f"warmup {steps}" for steps in warmups)]]
    for size, arms in document["tuned"].items():
        for arm, runs in arms.items():
            best = min(run["final_val_loss"] for run in runs)
            for rate in dict.fromkeys(run["settings"][RATE] for run in runs):
                found = {
                    run["settings"][WARMUP]: run["final_val_loss"] for run in runs if run["settings"][RATE] == rate
                }
                shown = [loss_text(found[steps]) if steps in found else "failed" for steps in warmups]
                rows.append(
                    [size, arm, f"{rate:g}", *(f"**{text}**" if found.get(steps) == best else text
                                               for steps, text in zip(warmups, shown, strict=True))]
                )  # fmt: skip
    return table(rows)


def _equal_flops(asked: Mapping[str, Any]) -> str:
    rows = [["steps", "positions a parameter", *BOTH]]
    for each in asked.values():
        rows.append(
            [
                f"{each['steps']:,}",
                f"{each['positions'] / each['parameters']:.1f}",
                *_both(each),
            ]
        )
    return table(rows)


def _positions(asked: list[dict[str, Any]]) -> str:
    rows = [["tokens read before", *BOTH]]
    for each in asked:
        first, last = each["first"] + 1, each["last"] + 1
        rows.append(
            [
                f"{first}" if first == last else f"{first} to {last}",
                *_both(each),
            ]
        )
    return table(rows)


def _sizes(asked: Mapping[str, Any]) -> str:
    rows = [["size", "parameters", "positions a parameter", *BOTH]]
    for name, each in asked.items():
        rows.append(
            [
                name,
                f"{each['parameters'] / 1e6:.2f}M",
                f"{each['positions'] / each['parameters']:.1f}",
                *_both(each),
            ]
        )
    return table(rows)


def _equal_loss(asked: list[dict[str, Any]]) -> str:
    rows = [["TST's steps", "TST's FLOPs", "baseline's FLOPs to the same loss, by seed", "speedup (95%)"]]
    for each in asked:
        found = each["baseline_flops"]
        outside = each["seeds"] - len(found)
        shown = [f"{seed}: {flops_text(flops)}" for seed, flops in found.items()]
        shown += [f"{outside} of {each['seeds']} seeds have no such runs"] * (outside > 0)
        rows.append(
            [
                f"{each['steps']:,}",
                flops_text(each["flops"]),
                ", ".join(shown),
                _factor(each["speedup"]) if each["speedup"] else "not reached",
            ]
        )
    return table(rows)


def _equal_data(asked: list[dict[str, Any]]) -> str:
    rows = [["tokens read", "baseline's FLOPs over TST's", *BOTH]]
    for each in asked:
        rows.append(
            [
                tokens_text(each["tokens"]),
                f"{each['flops_ratio']:.2f}",
                *_both(each),
            ]
        )
    return table(rows)


def _arms(asked: Mapping[str, Any]) -> str:
    return table(_arm_rows(asked))


def _arm_rows(asked: Mapping[str, Any]) -> list[list[str]]:
    """An arm each, the lowest loss first, below their titles."""
    rows = [_ARMS]
    for name, each in sorted(asked.items(), key=lambda item: item[1]["loss"]["mean"]):
        rows.append(
            [
                name.replace("_", " "),
                tokens_text(each["tokens"]),
                f"{each['passes']:.1f}",
                " ".join(f"{loss:.3f}" for loss in each["by_seed"].values()),
                f"{each['loss']['mean']:.3f}",
                "" if name == "baseline" else _signed(each["to_baseline"]),
                "" if name == "tst" else _signed(each["to_tst"]),
            ]
        )
    return rows


def _arms_by_length(asked: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [["steps", *_ARMS]]
    for arms in asked.values():
        steps = f"{arms['baseline']['steps']:,}"
        rows += [[steps, *row] for row in _arm_rows(arms)[1:]]
    return table(rows)


def _surface(asked: Mapping[str, Any]) -> str:
    sizes = sorted({cell["bag_size"] for cell in asked["cells"]})
    shares = sorted({cell["share"] for cell in asked["cells"]})
    found = {(cell["bag_size"], cell["share"]): cell["loss"] for cell in asked["cells"]}
    rows = [["r", *(f"s = {size}" for size in sizes)]]
    for share in shares:
        rows.append([f"{share:g}", *(f"{found[size, share] - asked['baseline']:+.3f}" for size in sizes)])
    return table(rows)


def _ranks(asked: Mapping[str, Any]) -> str:
    rows = [["published grid", "common cells", "rank correlation"]]
    for name, each in asked["published"].items():
        found = each["spearman"]
        rows.append([name, f"{each['cells']}", "too few cells" if found is None else f"{found:+.2f}"])
    return table(rows)


def _both(each: Mapping[str, Any]) -> list[str]:
    """What stands below BOTH: two arms and their difference."""
    return [mean_text(each["baseline"]), mean_text(each["tst"]), _signed(each["difference"])]


def _signed(found: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    return f"{difference_text(found['mean'])} {interval_text(found['ci'], difference_text)}".strip()


def _factor(found: Mapping[str, Any]) -> str:
    """A speedup with its interval."""
    return f"{speedup_text(found['mean'])} {interval_text(found['ci'], speedup_text)}".strip()
