"""Trains the paper's models on one GPU, 50 steps of superposition and 50 of recovery: do they fit, and does it learn?

A case is the real ``tst fit`` on a configuration of ``configs/paper``, changed in what one device and 100 steps ask for:
one device, no accumulation, a short warmup, phases of equal length, compiled layers, no validation, no checkpoints. The
10B-A1B is cut to as many layers as fit: those for which ``tst plan`` tells a peak within ``--fill`` of the device's memory,
and a tenth fewer as often as the run runs out of memory all the same. Text is the standard library's sources, under a
tokenizer of fewer ids than the model's vocabulary; the products are those of the whole vocabulary.

Losses, memory, positions a second and MFU are read from the run's own log. A case that is in the result file already is
skipped, unless it failed; so the same command goes on after any interruption. Exit code 1 if a case failed, or its loss did
not fall in each phase.

    python benchmarks/scales.py 270m 600m --out benchmarks/results/scales.json
    python benchmarks/scales.py 10b_a1b --toy --device cpu --memory_bytes 3e7 --out scales.json     (a rehearsal)
"""

import argparse
import csv
import json
import math
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from provenance import ROOT, hardware, source
from step_time import prepare

TST = [sys.executable, "-m", "tst_lightning"]
PHASES = ("superposition", "recovery")
NOTES = {
    "loss": "of the phase's own objective: the mean of its first and of its last three readings; all of them in `losses`",
    "rates": "medians over the readings of a phase but its first three, in which kernels are compiled and caches filled",
    "peak_memory_bytes": "the most that torch had allocated on the device; on CPU the process' highest resident set",
    "planned_memory_bytes": "the peak that `tst plan` tells for the same configuration, without allocator and libraries",
}


@dataclass(frozen=True)
class Case:
    """One model on one device.

    Attributes:
        config: folder in ``configs/paper``.
        rows: of a step.
        checkpointing: of activations; "full" where they would not fit.
        precision: Lightning's name.
        cut: as many layers as fit, in place of all.
    """

    config: str
    rows: int
    checkpointing: str = "none"
    precision: str = "bf16-mixed"
    cut: bool = False


# Rows: those of the configurations, which fit 80 GB, or as many as leave the states of the larger models their place.
CASES = {
    "270m": Case("270m", 16),
    "600m": Case("600m", 8),
    "3b": Case("3b", 4, "full"),
    "10b_a1b": Case("10b_a1b", 4, "full", cut=True),
    # The lighter optimizer: weights, gradients and AdamW's state in bfloat16 take half of it.
    "10b_a1b_bf16_true": Case("10b_a1b", 4, "full", "bf16-true", cut=True),
}
TOY = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
TOY_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def configuration(case: Case, layers: int | None, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The paper's configuration, changed for one device.

    Args:
        case: of the model.
        layers: how many; None for all.
        folder: of the run.
        options: of the command line.
    """
    config = yaml.safe_load((ROOT / "configs" / "paper" / case.config / "tst.yaml").read_text())
    model, data, trainer = config["model"], config["data"], config["trainer"]
    config["run_dir"] = str(folder / "run")
    shape = model["config"]["init_args"]
    if options.toy:
        shape |= TOY | (TOY_EXPERTS if "num_experts" in shape else {})
        model["config"].setdefault("dict_kwargs", {})["head_dim"] = 16
        data["seq_len"] = TOY["max_position_embeddings"]
    if layers is not None:
        shape["num_hidden_layers"] = layers
    model["phases"]["superposition"]["init_args"]["share"] = 0.5
    model["lr_schedule"]["warmup_steps"] = options.steps // 10
    model |= {"activation_checkpointing": case.checkpointing, "compile": options.compile}
    data |= {"shards": str(options.shards), "batch_size": 2 if options.toy else case.rows, "num_workers": 0}
    trainer |= {
        "accelerator": "gpu" if options.device == "cuda" else "cpu",
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "accumulate_grad_batches": 1,
        "precision": case.precision,
        "max_steps": 2 * options.steps,
        "log_every_n_steps": max(1, options.steps // 10),
        "limit_val_batches": 0,
        "val_check_interval": None,
    }
    # One at 3B takes 40 GB of the disk, and tells nothing here.
    config["callbacks"] = {name: one for name, one in config["callbacks"].items() if name not in ("last", "at_switch")}
    return config


def planned_bytes(config: dict[str, Any], folder: Path) -> int:
    """Peak of the device's memory, as ``tst plan`` tells it.

    Raises:
        CalledProcessError: there is no plan for it.
    """
    path = _written(config, folder)
    plan = subprocess.run(
        [*TST, "plan", "--config", str(path), "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(plan.stdout)["memory"]["bytes"]["peak"]


def fitting_layers(case: Case, folder: Path, options: argparse.Namespace) -> int:
    """The most layers whose planned peak fits: with many layers, all alike, it is a line, drawn through two plans."""
    whole = configuration(case, None, folder, options)["model"]["config"]["init_args"]["num_hidden_layers"]
    half = whole // 2
    most, least = (planned_bytes(configuration(case, layers, folder, options), folder) for layers in (whole, half))
    each = (most - least) // (whole - half)
    over = most - options.fill * (options.memory_bytes or _device_memory_bytes())
    return whole - max(0, math.ceil(over / each))


def _device_memory_bytes() -> int:
    # In a process of its own: this one would keep some of it.
    asked = "import torch; print(torch.cuda.get_device_properties(0).total_memory)"
    return int(subprocess.run([sys.executable, "-c", asked], check=True, stdout=subprocess.PIPE, text=True).stdout)


def _written(config: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def fit(config: dict[str, Any], folder: Path, limit_seconds: float) -> str | None:
    """Runs ``tst fit``, whose output goes to ``fit.log``; why it failed, None if it did not."""
    log = folder / "fit.log"
    with log.open("w") as file:
        try:
            done = subprocess.run(
                [*TST, "fit", "--config", str(_written(config, folder))],
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=limit_seconds,
            )
        except subprocess.TimeoutExpired:
            return f"not done after {limit_seconds:.0f} s"
    if done.returncode == 0:
        return None
    said = log.read_text().strip().splitlines()[-40:]
    print(*said, sep="\n", file=sys.stderr)
    return said[-1] if said else f"exit code {done.returncode}"


def to_row(run: Path) -> dict[str, Any]:
    """What a run's own log says, phase by phase.

    Args:
        run: folder of the run.
    """
    with (run / "csv" / "version_0" / "metrics.csv").open() as file:
        readings = list(csv.DictReader(file))
    phases = {}
    for index, name in enumerate(PHASES):
        losses = [float(reading[tag]) for reading in readings if reading.get(tag := f"train/{name}/loss")]
        own = [reading for reading in readings if reading.get("phase/index") == str(index)][3:]
        first, last = statistics.mean(losses[:3]), statistics.mean(losses[-3:])
        phases[name] = {"loss_first": first, "loss_last": last, "loss_falls": last < first, "losses": losses}
        for rate in ("positions_per_second", "tokens_per_second", "step_seconds", "mfu", "hfu"):
            values = [float(reading[tag]) for reading in own if reading.get(tag := f"throughput/{rate}")]
            phases[name][rate] = statistics.median(values) if values else None
    peaks = [
        float(value) for reading in readings for tag, value in reading.items() if tag.endswith("_peak_bytes") and value
    ]
    record = json.loads((run / "run.json").read_text())
    return {
        "parameters": record["model"]["parameters"],
        "layers": record["model"]["config"].get("num_hidden_layers"),
        "steps": record["step"],
        "positions_per_step": record["batch"]["positions_per_step"],
        "peak_memory_bytes": int(max(peaks)),
        "phases": phases,
    }


def run_case(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs a case, a cut one with fewer layers until it fits.

    Returns:
        Its row: ``failure`` is None where it was trained to its end.
    """
    case, folder = CASES[name], options.runs / name
    row: dict[str, Any] = {"case": asdict(case), "toy": options.toy, **source(), "failure": None, "did_not_fit": []}
    layers = fitting_layers(case, folder, options) if case.cut else None
    while True:
        config = configuration(case, layers, folder / f"{layers or 'all'}_layers_{time.time_ns()}", options)
        started = time.perf_counter()
        row["planned_memory_bytes"] = planned_bytes(config, folder)
        row["failure"] = fit(config, folder, options.limit_seconds)
        row["seconds"] = round(time.perf_counter() - started, 1)
        if not (row["failure"] and "out of memory" in row["failure"] and layers and layers > 1):
            break
        row["did_not_fit"].append({"layers": layers, "planned_memory_bytes": row["planned_memory_bytes"]})
        layers = min(layers - 1, int(layers * 0.9))
    if row["failure"] is None:
        row |= to_row(Path(config["run_dir"]))
    # Only now: the GPU was the run's alone.
    return row | {"hardware": hardware(torch.get_num_threads(), options.device)}


def table(cases: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| case | parameters | layers | peak GB | planned GB | positions/s | MFU | loss, first to last of each phase |"
    ]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---|")
    for name, row in cases.items():
        if row["failure"]:
            lines.append(f"| {name} | {row['failure']} |")
            continue
        phases = [row["phases"][phase] for phase in PHASES]
        losses = "; ".join(f"{phase['loss_first']:.2f} to {phase['loss_last']:.2f}" for phase in phases)
        mfu = "" if phases[1]["mfu"] is None else f"{phases[1]['mfu']:.1%}"
        lines.append(
            f"| {name} | {row['parameters'] / 1e6:,.1f}M | {row['layers']} | {row['peak_memory_bytes'] / 1e9:.1f}"
            f" | {row['planned_memory_bytes'] / 1e9:.1f} | {phases[1]['positions_per_second']:,.0f} | {mfu} | {losses} |"
        )
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--out", type=Path, required=True, help="result file (JSON), which is added to")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--steps", type=int, default=50, help="of each phase")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="compile the layers; not on CPU unless told"
    )
    parser.add_argument("--fill", type=float, default=0.92, help="share of the memory that a cut model's plan may take")
    parser.add_argument("--memory_bytes", type=float, help="of the device; its own unless given")
    parser.add_argument("--limit_seconds", type=float, default=540, help="of one run")
    parser.add_argument("--runs", type=Path, default=Path("runs/scales"), help="folder of the runs")
    parser.add_argument("--shards", type=Path, default=Path("data/scales"), help="where shards lie or are made")
    parser.add_argument("--toy", action="store_true", help="tiny widths, to try the script out")
    options = parser.parse_args()
    if options.compile is None:
        options.compile = options.device == "cuda"
    return options


def main() -> int:
    options = parse_options()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU was found; --toy --device cpu tries the script out")
    prepare(options.shards, 1024 if options.toy else 16_384)
    document = json.loads(options.out.read_text()) if options.out.exists() else {"notes": NOTES, "cases": {}}
    document["command"] = shlex.join(["python", "benchmarks/scales.py", *sys.argv[1:]])
    for name in options.cases:
        if document["cases"].get(name, {"failure": "not run"})["failure"] is None:
            print(f"{name}: in {options.out} already", file=sys.stderr)
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        document["cases"][name] = run_case(name, options)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    rows = {name: document["cases"][name] for name in options.cases}
    print(table(rows))
    learnt = [
        row["failure"] is None and all(row["phases"][phase]["loss_falls"] for phase in PHASES) for row in rows.values()
    ]
    return 0 if all(learnt) else 1


if __name__ == "__main__":
    sys.exit(main())
