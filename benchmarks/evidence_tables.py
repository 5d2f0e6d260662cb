"""The tables of docs/evidence.md, as Markdown, from a result file of evidence.py."""

from collections.abc import Mapping
from typing import Any

from scaling_tables import table

RATE, WARMUP = "model.optimizer.init_args.lr", "model.lr_schedule.warmup_steps"


def tables(document: Mapping[str, Any]) -> dict[str, str]:
    """One for each question that was asked, by its name in the page's marks."""
    made = {"tuned": _tuned(document)}
    writers = {
        "equal_flops": _equal_flops,
        "equal_loss": _equal_loss,
        "equal_data": _equal_data,
        "origin": _arms,
        "unique": _arms,
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


def _tuned(document: Mapping[str, Any]) -> str:
    warmups = document["setting"]["tune"]["warmups"]
    rows = [["size", "arm", "learning rate", *(f"warmup {steps}" for steps in warmups)]]
    for size, arms in document["tuned"].items():
        for arm, runs in arms.items():
            best = min(run["final_val_loss"] for run in runs)
            for rate in dict.fromkeys(run["settings"][RATE] for run in runs):
                found = {
                    run["settings"][WARMUP]: run["final_val_loss"] for run in runs if run["settings"][RATE] == rate
                }
                shown = [f"{found[steps]:.3f}" for steps in warmups]
                rows.append(
                    [size, arm, f"{rate:g}", *(f"**{text}**" if found[steps] == best else text
                                               for steps, text in zip(warmups, shown, strict=True))]
                )  # fmt: skip
    return table(rows)


def _equal_flops(asked: Mapping[str, Any]) -> str:
    rows = [["steps", "positions a parameter", "baseline", "TST", "TST less baseline (95%)"]]
    for each in asked.values():
        rows.append(
            [
                f"{each['steps']:,}",
                f"{each['positions'] / each['parameters']:.1f}",
                spread(each["baseline"]),
                spread(each["tst"]),
                signed(each["difference"]),
            ]
        )
    return table(rows)


def _sizes(asked: Mapping[str, Any]) -> str:
    rows = [["size", "parameters", "positions a parameter", "baseline", "TST", "TST less baseline (95%)"]]
    for name, each in asked.items():
        rows.append(
            [
                name,
                f"{each['parameters'] / 1e6:.2f}M",
                f"{each['positions'] / each['parameters']:.1f}",
                spread(each["baseline"]),
                spread(each["tst"]),
                signed(each["difference"]),
            ]
        )
    return table(rows)


def _equal_loss(asked: list[dict[str, Any]]) -> str:
    rows = [["loss of", "steps", "loss", "baseline's FLOPs to it", "TST's FLOPs to it", "speedup (95%)"]]
    for each in asked:
        found = each["speedup"]
        rows.append(
            [
                "TST" if each["reference_flops"] is None or not each["arm"].startswith("baseline") else "baseline",
                f"{each['steps']:,}",
                f"{each['loss']:.3f}",
                _flops(each["reference_flops"]),
                _flops(each["flops"]),
                factor(found) if found else each["reason"],
            ]
        )
    return table(rows)


def _equal_data(asked: list[dict[str, Any]]) -> str:
    rows = [["tokens read", "baseline's FLOPs over TST's", "baseline", "TST", "TST less baseline (95%)"]]
    for each in asked:
        rows.append(
            [
                f"{each['tokens'] / 1e6:.2f}M",
                f"{each['flops_ratio']:.2f}",
                spread(each["baseline"]),
                spread(each["tst"]),
                signed(each["difference"]),
            ]
        )
    return table(rows)


def _arms(asked: Mapping[str, Any]) -> str:
    rows = [["arm", "tokens read", "loss by seed", "mean", "to the baseline (95%)", "to TST (95%)"]]
    for name, each in sorted(asked.items(), key=lambda item: item[1]["loss"]["mean"]):
        rows.append(
            [
                name.replace("_", " "),
                f"{each['tokens'] / 1e6:.2f}M",
                " ".join(f"{loss:.3f}" for loss in each["by_seed"].values()),
                f"{each['loss']['mean']:.3f}",
                "" if name == "baseline" else signed(each["to_baseline"]),
                "" if name == "tst" else signed(each["to_tst"]),
            ]
        )
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


def _flops(value: float | None) -> str:
    return "" if value is None else f"{value / 1e12:.2f}T"


def spread(found: Mapping[str, Any]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{found['mean']:.3f}" + ("" if found["sd"] is None else f" ± {found['sd']:.3f}")


def signed(found: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    if found["ci"] is None:
        return f"{found['mean']:+.3f}"
    low, high = found["ci"]
    return f"{found['mean']:+.3f} ({low:+.3f} to {high:+.3f})"


def factor(found: Mapping[str, Any]) -> str:
    """A speedup with its interval."""
    if found["ci"] is None:
        return f"{found['mean']:.2f}x"
    low, high = found["ci"]
    return f"{found['mean']:.2f}x ({low:.2f}x to {high:.2f}x)"
