"""Every variant of configs/variants at the baseline's FLOPs, over seeds: the table and the chart of docs/variants.md.

Each arm is the quickstart's TST configuration with a variant's YAML over it, trained for as many steps as cost what the
baseline's do (by ``tst plan``, which counts as the runs' meter does). All arms read the same blocks, and use the learning
rate and warmup that serve the baseline best (benchmarks/quickstart_sweep.py); around that rate baseline and full
superposition are tried at others, since the runs are shorter here. Runs are those of one ``tst sweep``, which skips
finished ones, so this can be stopped and gone on with.

    python benchmarks/variants.py --out benchmarks/results/variants.json --chart docs/variants.png
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from provenance import ROOT, hardware, source
from scaling_tables import rendered
from variants_report import costs, draw, table

from tst_lightning.compare.intervals import difference, summary

FIT, BASELINE = "configs/quickstart/tst.yaml", "configs/quickstart/baseline.yaml"
RATE, STEPS, SEED = "model.optimizer.init_args.lr", "trainer.max_steps", "seed_everything,data.seed"
BASELINE_STEPS, TUNED_RATE, OTHER_RATES = 500, 2e-3, (1e-3, 4e-3)
SEEDS = (1, 2, 3)
SHARED = {"data.block_rows": 16, "trainer.val_check_interval": 250}


@dataclass(frozen=True)
class Arm:
    """One line of the table: files over FIT, at a learning rate."""

    name: str
    files: tuple[str, ...]
    rate: float = TUNED_RATE

    @property
    def words(self) -> list[str]:
        """For ``tst plan``."""
        return [word for file in (FIT, *self.files) for word in ("--config", file)]

    def cases(self, steps: int) -> list[dict[str, Any]]:
        """For ``tst sweep``: one for each seed."""
        return [{"config": list(self.files), RATE: self.rate, STEPS: steps, SEED: seed} for seed in SEEDS]


def arms() -> list[Arm]:
    """Baseline and full superposition, at each rate; then a line for each variant's file."""
    reference = [("baseline", BASELINE), ("full superposition", FIT)]
    found = [Arm(name, (file,)) for name, file in reference]
    found += [Arm(path.stem, (str(path),)) for path in sorted(Path("configs/variants").glob("*.yaml"))]
    # A change of the optimizer or of what attention sees is one for the baseline too.
    found += [Arm(f"baseline, {path.stem}", (BASELINE, str(path))) for path in [Path("configs/variants/muon.yaml")]]
    return found + [Arm(f"{name}, rate {rate:g}", (file,), rate) for name, file in reference for rate in OTHER_RATES]


def planned(arm: Arm) -> dict[str, Any]:
    """The arm's part of what ``tst plan`` says of BASELINE_STEPS steps, and in it the baseline's."""
    done = subprocess.run(
        [sys.executable, "-m", "tst_lightning", "plan", *arm.words, "--steps", str(BASELINE_STEPS), "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(f"{arm.name}: {done.stderr.strip()}")
    there = json.loads(done.stdout)["arms"]
    # Of a configuration without superposition the plan's other arm is what it recommends.
    return there["baseline" if BASELINE in arm.files else "tst"] | {"baseline": there["baseline"]}


def run_sweep(folder: Path, cases: list[dict[str, Any]], parallel: int) -> list[dict[str, Any]]:
    """Trains what is not trained yet, one thread a run; the cases of its sweep.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"fit": FIT, "set": SHARED, "list": cases}, sort_keys=False))
    words = ["sweep", "--config", str(folder / "sweep.yaml"), "--out", str(folder), "--devices", f"cpu:{parallel}"]
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "tst_lightning", *words], check=True, env=threads)
    return json.loads((folder / "sweep.json").read_text())["cases"]


def result(arm: Arm, steps: int, plan: Mapping[str, Any], cases: list[dict[str, Any]]) -> dict[str, Any]:
    """An arm's losses over seeds, and what its run cost and read."""
    wanted = [json.dumps(case, sort_keys=True) for case in arm.cases(steps)]
    mine = [case for case in cases if json.dumps(case["settings"], sort_keys=True) in wanted]
    losses = {str(case["settings"][SEED]): case["final_val_loss"] for case in mine}
    per_step, tokens = (plan["baseline"][key] / BASELINE_STEPS for key in ("flops", "tokens"))
    return {
        "name": arm.name,
        "files": list(arm.files),
        "learning_rate": arm.rate,
        "steps": steps,
        "losses": losses,
        "loss": summary(list(losses.values())),
        "flops": mine[0]["flops"],
        "tokens": mine[0]["tokens"],
        "phases": {
            name: {"flops": each["flops"] / each["steps"] / per_step, "tokens": each["tokens"] / each["steps"] / tokens}
            for name, each in plan["phases"].items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="result file (JSON)")
    parser.add_argument("--chart", type=Path, help="picture (PNG)")
    parser.add_argument("--page", type=Path, help="Markdown whose table is renewed")
    parser.add_argument("--runs", type=Path, default=Path("runs/variants_sweep"), help="folder of the runs")
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    os.chdir(ROOT)
    facts = source() | {"machine": hardware(threads=1), "shared": SHARED, "seeds": list(SEEDS)}

    every = arms()
    with ThreadPoolExecutor(options.parallel) as pool:
        plans = list(pool.map(planned, every))
    steps = [round(BASELINE_STEPS * plan["baseline"]["flops"] / plan["flops"]) for plan in plans]
    cases = run_sweep(
        options.runs, [case for arm, n in zip(every, steps, strict=True) for case in arm.cases(n)], options.parallel
    )
    results = [result(*each, cases) for each in zip(every, steps, plans, strict=True)]
    for each in results:
        each["to_baseline"] = difference(each["losses"], results[0]["losses"])
        each["to_superposition"] = difference(each["losses"], results[1]["losses"])
        for other in results:
            if other["name"] == f"baseline, {each['name']}":
                each["to_own_baseline"] = difference(each["losses"], other["losses"])
    document = facts | {"arms": results, "tables": {"results": table(results), "costs": costs(results)}}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    if options.chart:
        draw(results, options.chart)
    if options.page:
        options.page.write_text(rendered(options.page.read_text(), document["tables"]))
    print(document["tables"]["results"])


if __name__ == "__main__":
    main()
