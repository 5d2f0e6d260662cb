"""The figures of docs/scaling.md: 64 GPUs and 2T tokens, from configurations, published tables and what was measured.

Counted figures come from `tst plan` itself on configs/paper, measured ones from results/many_shards.json; published ones
stand in SOURCES with where they are from. Estimates are formulas over these, written beside each. Writes all of them to
results/scaling.json and the tables of docs/scaling.md, between its marks.

    python benchmarks/scaling_figures.py
"""

import json
import math
from typing import Any

from many_shards import VOCAB_SIZE
from provenance import ROOT, source
from scaling_tables import Figure, figures_table, hours, middle, rendered, stream, table, text

from tst_lightning.commands import plan_setting
from tst_lightning.compare.units import tokens_text
from tst_lightning.flops import named_peak
from tst_lightning.plan.budget import Budget
from tst_lightning.plan.document import Wishes, make_plan
from tst_lightning.published import load_runs

RESULTS, DOCUMENT = ROOT / "benchmarks" / "results", ROOT / "docs" / "scaling.md"
PAPER = "configs/paper"
FOLDERS = {"dense-270M": "270m", "dense-600M": "600m", "dense-3B": "3b", "moe-10B-A1B": "10b_a1b"}
GPUS, GPUS_OF_A_MACHINE = 64, 8
# Published: unexpected interruptions, days, GPUs (The Llama 3 Herd of Models, arXiv 2407.21783, section 3.3.4); GPU
# failures of a B200 cluster, days, GPUs (arXiv 2605.09370); bytes a second and GPU: InfiniBand NDR 400 Gb/s, NVLink 4 one
# way (H100 and DGX H100 data sheets); tokens of the corpora (dataset cards; FineWeb-Edu's are GPT-2's).
LLAMA3, B200_CLUSTER = (419, 54, 16_384), (10, 55, 504)
NETWORK, NVLINK = 50e9, 450e9
CORPORA = {"DCLM-baseline": 4e12, "FineWeb-Edu": 1.3e12}
# Assumed, for want of a cluster: storage for one writer and for all together, bytes a second; seconds from a failure to the
# first new step; cores of a machine that prepares, and processes on it.
ONE_WRITER, ALL_WRITERS, RESTART_SECONDS, CORES, PARTS = 2e9, 20e9, 600, 96, 16
SAVE_EVERY = 500  # steps, as in configs/paper


def plan_of(folder: str, arm: str = "tst", **changes: Any) -> dict[str, Any]:
    """What `tst plan --json` says of one of configs/paper."""
    path = f"{PAPER}/{folder}/{arm}.yaml"
    changes = {"device_type": "cuda", "layout": "fsdp"} | changes
    setting = plan_setting.of_configuration(["--config", str(ROOT / path)], path, changes)
    return make_plan(setting, Wishes(Budget()))[0]


def utilisation(plans: dict[str, dict[str, Any]]) -> dict[tuple[str, str, int], float]:
    """Model FLOPs of the published runs over what their B200-hours could have done, by model, method and steps."""
    peak = named_peak("B200")
    assert peak is not None
    return {
        (run.model, run.method, run.steps): run.steps
        * plans[run.model]["flops_per_step"]
        / (run.device_hours * 3600 * peak)
        for run in load_runs()
        if run.method in ("baseline", "tst")
    }


def utilisation_table(shares: dict[tuple[str, str, int], float]) -> list[list[str]]:
    """The same as rows of a table."""
    rows = [["estimated: counted FLOPs / (published hours x 2.25 PFLOP/s)", "baseline", "TST"]]
    for model in FOLDERS:
        cells = [
            ", ".join(
                f"{share:.1%} ({steps:,} steps)" for (m, a, steps), share in shares.items() if (m, a) == (model, arm)
            )
            for arm in ("baseline", "tst")
        ]
        rows.append([model, *cells])
    return rows


def data(plan: dict[str, Any], step_seconds: float, measured: dict[str, Any]) -> list[Figure]:
    """Volume, rates and preparation."""
    tst, chunk = plan["arms"]["tst"], measured["settings"]["chunk_bytes"]
    volume = 4 * tst["unique_tokens_needed"]
    shards = volume / chunk
    rates = [
        4 * phase["bag_size"] * plan["batch"]["positions_per_step"] / GPUS / step_seconds
        for phase in tst["phases"].values()
    ]
    prepare = measured["prepare"]
    tokens = middle(prepare, "tokens")
    shared = middle(prepare, "tokenizer_seconds") / tokens
    alone = middle(prepare, "seconds") / tokens - shared
    one_core, whole, part = (1 / (alone + shared / cores) for cores in (1, CORES, CORES // PARTS))
    needed = tst["unique_tokens_needed"]
    rounds = measured["stream"]["10000"]
    # The first round finds none of the files' pages in memory, as a run does.
    from_memory, hash_seconds = (
        chunk / rate for rate in (middle(rounds, "hash_bytes_per_second"), rounds[0]["hash_bytes_per_second"])
    )
    chunk_seconds = chunk / rates[0]
    return [
        Figure(
            "tokens read, all unique",
            tokens_text(tst["unique_tokens_needed"]),
            "counted",
            "`tst plan`, whole blocks",
            tst["unique_tokens_needed"],
        ),
        Figure("on disk, int32", text(volume, "B"), "counted", "4 bytes a token at V = 128,256", volume),
        Figure("shards of 768 MiB", f"{shards:,.0f}", "counted", "`--chunk_bytes 805306368`", shards),
        *[
            Figure(
                f"passes over {name}",
                f"{tst['unique_tokens_needed'] / 2 / there:.2f}",
                "estimated",
                f"half of the tokens / {there / 1e12:g}T published",
                needed / 2 / there,
            )
            for name, there in CORPORA.items()
        ],
        Figure(
            "read by a rank in superposition",
            text(rates[0], "B/s"),
            "estimated",
            f"4 bytes x 16 x positions / ranks / {step_seconds:.2f} s",
            rates[0],
        ),
        Figure("read by a rank in recovery", text(rates[1], "B/s"), "estimated", "a sixteenth of it", rates[1]),
        Figure(
            "read by all ranks in superposition", text(rates[0] * GPUS, "B/s"), "estimated", "x 64", rates[0] * GPUS
        ),
        Figure(
            "`tst prepare`, one core",
            f"{tokens_text(one_core)} tokens/s",
            "measured",
            f"Python sources, V = {VOCAB_SIZE:,}, {middle(prepare, 'bytes_per_token'):.2f} bytes a token",
            one_core,
        ),
        Figure(
            "of which only one core can do",
            f"{alone / (alone + shared):.0%}",
            "measured",
            "all but the tokenizer: reading, joining, hashing, writing",
            alone / (alone + shared),
        ),
        Figure(
            f"2T tokens, one process on {CORES} cores",
            hours(needed / whole),
            "estimated",
            f"the tokenizer's share divided by the cores: {tokens_text(whole)} tokens/s",
            needed / whole,
        ),
        Figure(
            f"2T tokens, {PARTS} processes on {CORES} cores",
            hours(needed / part / PARTS),
            "estimated",
            f"{CORES // PARTS} cores each: {tokens_text(part)} tokens/s each",
            needed / part / PARTS,
        ),
        Figure("a chunk lasts a rank", hours(chunk_seconds), "estimated", "in superposition", chunk_seconds),
        Figure(
            "its hash takes",
            f"{hash_seconds:.1f} s",
            "measured",
            f"one core; {from_memory:.1f} s of a file in memory",
            hash_seconds,
        ),
        Figure(
            "if ranks waited for it",
            f"{GPUS * hash_seconds / chunk_seconds:.0%}",
            "estimated",
            "of the time at worst: 64 ranks, each at a moment of its own",
            GPUS * hash_seconds / chunk_seconds,
        ),
    ]


def checkpoints(plan: dict[str, Any], run_seconds: float, step_seconds: float) -> list[Figure]:
    """Size, time to write, failures, and how often to write."""
    size = plan["memory"]["bytes"]["checkpoint"]
    failures, days, gpus = LLAMA3
    between = days * 86400 * gpus / failures / GPUS
    b200 = B200_CLUSTER[1] * 86400 * B200_CLUSTER[2] / B200_CLUSTER[0] / GPUS
    every = SAVE_EVERY * step_seconds
    rows = [
        Figure(
            "a checkpoint",
            text(size, "B"),
            "counted",
            "`tst plan`: weights and AdamW's state, 12 bytes a parameter",
            size,
        )
    ]
    for who, rate in (("one file", ONE_WRITER), ("sharded", ALL_WRITERS)):
        seconds = size / rate
        best = math.sqrt(2 * seconds * between)
        rows += [
            Figure(f"written, {who}", f"{seconds:.0f} s", "estimated", f"at {rate / 1e9:.0f} GB/s", seconds),
            Figure(
                f"every {SAVE_EVERY} steps, {who}",
                f"{seconds / every:.2%}",
                "estimated",
                f"of the time, if training waits; {hours(every)} apart",
                seconds / every,
            ),
            Figure(
                f"best interval, {who}",
                hours(best),
                "estimated",
                "Young: sqrt(2 x write x time between failures)",
                best,
            ),
        ]
    lost = every / 2 + RESTART_SECONDS
    return [
        *rows,
        Figure(
            "Llama 3's interruptions",
            f"{failures} in {days} days on {gpus:,} GPUs",
            "published",
            "arXiv 2407.21783",
            failures,
        ),
        Figure("time between failures, 64 GPUs", hours(between), "estimated", "that rate x 64 / 16,384", between),
        Figure(
            "the same from 504 B200s", hours(b200), "estimated", "10 GPU failures in 55 days, arXiv 2605.09370", b200
        ),
        Figure(
            "failures of the run",
            f"{run_seconds / between:.2f}",
            "estimated",
            f"in {hours(run_seconds)}",
            run_seconds / between,
        ),
        Figure("lost by a failure", hours(lost), "estimated", "half an interval, and 10 minutes to start", lost),
    ]


def communication(plan: dict[str, Any], step_seconds: float) -> list[Figure]:
    """Bytes of a fully sharded step beside its work."""
    parameters = plan["parameters"]["total"]
    gathered, reduced = 4 * parameters, 4 * parameters  # bf16 twice, float32 once
    across = (GPUS - 1) / GPUS
    volume = (gathered + reduced) * across
    inside = (GPUS_OF_A_MACHINE - 1) / GPUS_OF_A_MACHINE
    machines = GPUS // GPUS_OF_A_MACHINE
    hybrid = (gathered + reduced) * inside / NVLINK
    hybrid += 2 * (machines - 1) / machines * reduced / GPUS_OF_A_MACHINE / NETWORK
    accumulate = plan["batch"]["accumulate_grad_batches"]
    rows = [
        Figure(
            "sent by a GPU for a micro-batch",
            text(volume, "B"),
            "estimated",
            "(63/64) x parameters x (2 x 2 bytes gathered + 4 reduced)",
            volume,
        ),
    ]
    for many in (1, accumulate, 16):
        seconds = many * volume / NETWORK
        rows.append(
            Figure(
                f"on the network, {many} micro-batch{'es' * (many > 1)} a step",
                f"{seconds:.1f} s",
                "estimated",
                f"400 Gb/s a GPU; the step's work takes {step_seconds:.1f} s beside",
                seconds,
            )
        )
    rows.append(
        Figure(
            "a micro-batch, sharded within machines alone",
            f"{hybrid:.2f} s",
            "estimated",
            "NVLink, then shards' gradients summed over 8 machines",
            hybrid,
        )
    )
    return rows


def memory(plans: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Bytes of a GPU by `tst plan`, as rows of a table."""
    of_plan = {
        "270M, 8 GPUs, ddp": plan_of("270m", layout="ddp"),
        "600M, 8 GPUs, ddp": plan_of("600m", layout="ddp"),
        "3B, 8 GPUs, sharded": plans["dense-3B"],
        "10B-A1B, 8 GPUs, sharded": plan_of("10b_a1b", devices=8),
        "10B-A1B, 64 GPUs, sharded": plans["moe-10B-A1B"],
    }
    head = ["counted by `tst plan`", "weights, gradients, optimizer", "gathered or buckets", "activations", "in all"]
    rows = [head]
    for what, plan in of_plan.items():
        of = plan["memory"]["bytes"]
        states = of["parameters"] + of["gradients"] + of["optimizer_state"]
        # With what comes on top at their height: logits, or what one layer computes again.
        activations = of["peak"] - states - of["communication"]
        rows.append([what, *(text(value, "B") for value in (states, of["communication"], activations, of["peak"]))])
    return rows


def duration(plan: dict[str, Any], shares: dict[str, float]) -> list[Figure]:
    """Hours of the run on 64 H100s."""
    peak, flops = named_peak("H100"), plan["arms"]["tst"]["flops"]
    assert peak is not None
    rows = [Figure("model FLOPs of the run", text(flops, "FLOP"), "counted", "`tst plan`", flops)]
    for why, share in shares.items():
        seconds = flops / (GPUS * peak * share)
        rows.append(Figure(f"64 H100s at {share:.1%} MFU", hours(seconds), "estimated", why, seconds))
    return rows


def main() -> None:
    """Computes all, writes results/scaling.json and the document's tables."""
    measured = json.loads((RESULTS / "many_shards.json").read_text())
    plans = {model: plan_of(folder) for model, folder in FOLDERS.items()}
    moe = plans["moe-10B-A1B"]
    published = next(run for run in load_runs() if run.model.startswith("moe") and run.method == "tst")
    run_seconds = published.device_hours * 3600 / GPUS
    step_seconds = run_seconds / published.steps
    of_paper = utilisation(plans)
    share = of_paper[published.model, "tst", published.steps]
    h100, b200 = named_peak("H100"), named_peak("B200")
    assert h100 is not None and b200 is not None
    why = {
        "the paper's share of the peak": share,
        "the paper's FLOP/s a GPU: taken for all rates here": share * b200 / h100,
        "a well-tuned mixture, an assumption": 0.3,
    }
    groups = {
        "duration": duration(moe, why),
        "data": data(moe, step_seconds, measured),
        "checkpoints": checkpoints(moe, run_seconds, step_seconds),
        "communication": communication(moe, step_seconds),
    }
    plain = {"utilisation": utilisation_table(of_paper), "stream": stream(measured), "memory": memory(plans)}
    tables = {name: figures_table(group) for name, group in groups.items()}
    tables |= {name: table(rows) for name, rows in plain.items()}
    result = source() | {
        "figures": {name: [f._asdict() for f in group] for name, group in groups.items()},
        "tables": tables,
    }
    (RESULTS / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    DOCUMENT.write_text(rendered(DOCUMENT.read_text(), tables))


if __name__ == "__main__":
    main()
