"""Sweeps learning rate and warmup of both quickstart arms, then repeats the chosen setting over seeds.

The baseline comes first: the setting that serves it best is the one that both quickstart configurations use. The same
grid is then given to TST, and reported, so that a reader sees what tuning it alone would have changed. Every run is
``tst fit`` on a quickstart configuration; a finished run is reused, so the sweep can be stopped and gone on with.

    python benchmarks/quickstart_sweep.py --out benchmarks/results/quickstart_sweep.json
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tst_lightning.compare.runs import read_runs

LEARNING_RATES = (1e-3, 2e-3, 4e-3, 8e-3)
WARMUPS = (50, 200)
SEEDS = (1, 2, 3)
ARMS = ("baseline", "tst")


def train(arm: str, learning_rate: float, warmup: int, seed: int, folder: Path) -> Path:
    """Trains one arm with one pinned thread, or reuses the finished run.

    Returns:
        The run's folder.
    """
    run_dir = folder / f"{arm}-lr{learning_rate:g}-warmup{warmup}-seed{seed}"
    command = [
        *(sys.executable, "-m", "tst_lightning", "fit", "--config", f"configs/quickstart/{arm}.yaml"),
        *("--run_dir", str(run_dir), "--ckpt_path", "last", "--seed_everything", str(seed), "--data.seed", str(seed)),
        *("--model.optimizer.init_args.lr", str(learning_rate), "--model.lr_schedule.warmup_steps", str(warmup)),
    ]
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / "log.txt", "a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return run_dir


def result(run_dir: Path, arm: str, learning_rate: float, warmup: int, seed: int) -> dict[str, object]:
    """Final figures of a finished run."""
    run = read_runs([str(run_dir), str(run_dir)])[0]
    return {
        "arm": arm,
        "learning_rate": learning_rate,
        "warmup_steps": warmup,
        "seed": seed,
        "final_val_loss": run.final.loss,
        "flops": run.final.flops,
        "tokens": run.final.tokens,
        "parameters": run.record["model"]["parameters"],
        "versions": run.record["versions"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="result file (JSON)")
    parser.add_argument("--runs", type=Path, default=Path("runs/quickstart_sweep"), help="folder of the runs")
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()

    def run_all(cases: list[tuple[str, float, int, int]]) -> list[dict[str, object]]:
        with ThreadPoolExecutor(options.parallel) as pool:
            folders = list(pool.map(lambda case: train(*case, options.runs), cases))
        return [result(folder, *case) for folder, case in zip(folders, cases, strict=True)]

    sweep: list[dict[str, object]] = []
    for arm in ARMS:
        sweep += run_all([(arm, lr, warmup, SEEDS[0]) for lr, warmup in itertools.product(LEARNING_RATES, WARMUPS)])
    best = {arm: min((r for r in sweep if r["arm"] == arm), key=lambda r: r["final_val_loss"]) for arm in ARMS}
    chosen = (best["baseline"]["learning_rate"], best["baseline"]["warmup_steps"])
    settings = {
        "baseline": chosen,
        "tst": chosen,
        "tst_own_best": tuple(best["tst"][k] for k in ("learning_rate", "warmup_steps")),
    }
    seeds = run_all([(name.split("_")[0], *setting, seed) for name, setting in settings.items() for seed in SEEDS])
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    facts = {"commit": commit, "machine": f"{os.cpu_count()} CPU cores, one thread a run, {platform.machine()}"}
    document = facts | {"chosen": chosen, "sweep": sweep, "seeds": seeds}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    for row in [*sweep, *seeds]:
        print(*(f"{row[key]}" for key in ("arm", "learning_rate", "warmup_steps", "seed", "final_val_loss")), sep="\t")


if __name__ == "__main__":
    main()
