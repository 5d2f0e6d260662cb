"""Sweeps learning rate and warmup of both quickstart arms, then repeats the chosen setting over seeds.

The baseline comes first: the setting that serves it best is the one that both quickstart configurations use. The same
grid is then given to TST, and reported, so that a reader sees what tuning it alone would have changed. Every sweep is
``tst sweep`` on a quickstart configuration, which reuses finished runs, so this can be stopped and gone on with.

    python benchmarks/quickstart_sweep.py --out benchmarks/results/quickstart_sweep.json
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from provenance import hardware, source

RATE, WARMUP, SEED = "model.optimizer.init_args.lr", "model.lr_schedule.warmup_steps", "seed_everything,data.seed"
LEARNING_RATES = (1e-3, 2e-3, 4e-3, 8e-3)
WARMUPS = (50, 200)
SEEDS = (1, 2, 3)
ARMS = ("baseline", "tst")


def sweep(folder: Path, arm: str, grid: dict[str, Sequence[Any]], parallel: int) -> list[dict[str, Any]]:
    """Sweeps one arm, one pinned thread a run.

    Returns:
        The cases of its sweep.json, with the arm.
    """
    out = folder / arm  # all sweeps of an arm share it, and so their runs
    values = [f"{key}={','.join(map(str, values))}" for key, values in grid.items()]
    command = ["sweep", "--fit", f"configs/quickstart/{arm}.yaml", "--out", str(out), "--devices", f"cpu:{parallel}"]
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "tst_lightning", *command, "--grid", *values], check=True, env=threads)
    return [{"arm": arm} | case for case in json.loads((out / "sweep.json").read_text())["cases"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="result file (JSON)")
    parser.add_argument("--runs", type=Path, default=Path("runs/quickstart_sweep"), help="folder of the runs")
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    facts = source() | {"machine": hardware(threads=1)}

    grid = {RATE: LEARNING_RATES, WARMUP: WARMUPS, SEED: SEEDS[:1]}
    swept = {arm: sweep(options.runs, arm, grid, options.parallel) for arm in ARMS}
    best = {arm: min(cases, key=lambda case: case["final_val_loss"])["settings"] for arm, cases in swept.items()}
    seeds = []
    for arm, setting in (("baseline", best["baseline"]), ("tst", best["baseline"]), ("tst", best["tst"])):
        grid = {RATE: [setting[RATE]], WARMUP: [setting[WARMUP]], SEED: SEEDS}
        seeds += sweep(options.runs, arm, grid, options.parallel)
    document = facts | {"chosen": best["baseline"], "sweep": sum(swept.values(), []), "seeds": seeds}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    for row in [*document["sweep"], *seeds]:
        print(row["arm"], row["name"], row["final_val_loss"], sep="\t")


if __name__ == "__main__":
    main()
