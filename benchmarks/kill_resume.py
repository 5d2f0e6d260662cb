"""Kills training runs with SIGKILL, again and again, and compares what they end with to runs that were never killed.

Every start is the real command in processes of its own, ``tst fit --ckpt_path last``, on shards of the standard library
made here. Scenarios cover accumulation 1 and 3, 0 and 2 reading processes, one process and two (DDP over gloo), with
and without dropout. Of each there is one run left alone, and one whose whole process group is killed: at random times,
start-up included, and on purpose in superposition, at the phase switch, in recovery, in validation, while a checkpoint
is being written, and after the last step. Then both runs' last checkpoints (weights, optimizer, schedule, totals, place
in the data, random state) are compared bit by bit, and their curves and lists of checkpoints.

A kill is survived if the next start went on from a checkpoint no further back than one interval and the run ended
equal; lost if a start refused, hung, or went back further; mismatched if its run ended otherwise.

    python benchmarks/kill_resume.py --kills 50 --out benchmarks/results/kill_resume.json
"""

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from equal_ends import compare
from killed_start import INTERVAL, PATIENCE, ROOT, STEPS, SWITCH, Aim, Place, Start, finish
from provenance import hardware, source


@dataclass(frozen=True)
class Scenario:
    """One setting of what might break a restart."""

    processes: int
    accumulate: int
    workers: int
    dropout: float

    def options(self) -> list[str]:
        settings = {
            "data.seq_len": 32,
            "data.batch_size": 4,
            "data.pool_blocks": 8,
            "data.num_workers": self.workers,
            "model.config.init_args.vocab_size": 512,
            "model.config.init_args.hidden_size": 64,
            "model.config.init_args.intermediate_size": 128,
            "model.config.init_args.num_hidden_layers": 2,
            "model.config.init_args.num_attention_heads": 2,
            "model.config.init_args.num_key_value_heads": 2,
            "model.config.init_args.attention_dropout": self.dropout,
            "model.phases.superposition.init_args.share": SWITCH / STEPS,
            "model.lr_schedule.warmup_steps": 10,
            "trainer.max_steps": STEPS,
            "trainer.accumulate_grad_batches": self.accumulate,
            "trainer.val_check_interval": INTERVAL * self.accumulate,
            "trainer.limit_val_batches": 10,
            "trainer.log_every_n_steps": 1,
            "trainer.accelerator": "cpu",
            "trainer.devices": self.processes,
            "trainer.strategy": "ddp" if self.processes > 1 else "auto",
        }
        return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


SCENARIOS = [
    Scenario(*values)
    for values in [
        *((1, 1, 0, 0.0), (2, 3, 2, 0.1), (1, 3, 2, 0.1), (2, 1, 0, 0.0)),
        *((1, 1, 2, 0.1), (2, 3, 0, 0.0), (1, 3, 0, 0.0), (2, 1, 2, 0.1)),
    ]
]


def aims(rng: random.Random) -> Iterator[list[Aim]]:
    """What each killed run is killed at, in an order in which all of it comes about."""
    between = itertools.cycle(
        ["checkpoint", "start-up", "validation", "any time", "checkpoint", "start-up", "any time"]
    )
    ends = itertools.cycle(["checkpoint", "last step", "validation", "last step"])
    while True:
        names = ["superposition", next(between), "switch", next(between), "recovery", next(ends)]
        yield [Aim(name, rng.random()) for name in names]


def run_whole(folder: Path, shards: Path, scenario: Scenario) -> dict[str, float]:
    """The run that is left alone; its seconds."""
    start = Start(folder, shards, scenario.options(), 0)
    while start.process.poll() is None and start.place().began < 0:
        time.sleep(0.001)
    if trouble := finish(start):
        raise SystemExit(f"a run that nobody killed failed: {trouble}")
    return {
        "start_seconds": start.trained - start.launched,
        "training_seconds": time.monotonic() - start.trained,
    }


def run_killed(
    folder: Path, shards: Path, scenario: Scenario, plan: list[Aim], whole: dict[str, float]
) -> tuple[list[dict[str, Any]], str]:
    """A run killed at each aim of the plan that it reaches, then left to finish.

    Returns:
        The kills, and why a start was refused ("" if none was).
    """
    kills: list[dict[str, Any]] = []
    reached = 0  # the highest step that any start has come to

    def look(start: Start) -> Place:
        """Where a start stands; the kills before it now know where it went on from."""
        nonlocal reached
        place = start.place()
        if place.began >= 0:
            for kill in kills:
                kill.setdefault("went_on_at", place.began)
                kill.setdefault("steps_lost", reached - place.began)
            reached = max(reached, place.step)
        return place

    for number, aim in enumerate([*plan, None]):
        start = Start(folder, shards, scenario.options(), number)
        while aim and start.process.poll() is None and not aim.met(start, look(start), whole):
            if time.monotonic() - start.launched > PATIENCE:
                break
            time.sleep(0.0005)
        if aim and start.process.poll() is None and time.monotonic() - start.launched <= PATIENCE:
            time.sleep(aim.linger)
            if start.kill():
                fell = {"aim": aim.at, **asdict(look(start)), "partial": start.writing()}
                kills.append(fell | {"seconds": round(time.monotonic() - start.launched, 2)})
                continue
        trouble = finish(start)
        look(start)
        if not trouble:  # the last start may have found nothing left to do
            for kill in kills:
                kill.setdefault("went_on_at", STEPS)
                kill.setdefault("steps_lost", 0)
        return kills, trouble
    raise AssertionError("the last start has no aim")


def summary(runs: list[dict[str, Any]]) -> dict[str, int]:
    results = Counter(kill["result"] for run in runs for kill in run["kills"])
    counts = {name: results[name] for name in ("survived", "lost", "mismatched")}
    total = {f"mismatched_{what}": sum(run["differs"].get(what, 0) for run in runs) for what in ("tensors", "bits")}
    return {"kills": results.total(), **counts, **total, "refused": sum(bool(run["trouble"]) for run in runs)}


def trial(folder: Path, shards: Path, scenario: Scenario, plan: list[Aim]) -> dict[str, Any]:
    """One run left alone and one killed, compared."""
    begin = time.monotonic()
    folder.mkdir()
    seconds = run_whole(folder, shards, scenario)
    # Both train in a folder of the same name: checkpoints hold paths.
    (folder / "run").rename(folder / "whole")
    kills, trouble = run_killed(folder, shards, scenario, plan, seconds)
    went_on_at = {kill["went_on_at"] for kill in kills if "went_on_at" in kill}
    differs = {} if trouble else compare(folder / "whole", folder / "run", went_on_at)
    equal = not trouble and not any(
        differs[what] for what in ("tensors", "other_values", "points", "record", "checkpoints")
    )
    for kill in kills:
        lost = kill.get("steps_lost", STEPS) > INTERVAL or (trouble and kill is kills[-1])
        kill["result"] = "lost" if lost else "survived" if equal or trouble else "mismatched"
    return {
        "scenario": asdict(scenario),
        "kills": kills,
        "trouble": trouble,
        "differs": differs,
        "seconds": round(time.monotonic() - begin, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, required=True, help="how many kills to make")
    parser.add_argument("--seed", type=int, default=1, help="of the kills' times")
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    parser.add_argument("--folder", type=Path, help="keep the runs here, in place of a temporary folder")
    options = parser.parse_args()
    begin, runs = time.monotonic(), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        shards = folder / "shards"
        words = "--python_source stdlib --max_bytes 400000 --val_share 0.5 --vocab_size 512 --chunk_bytes 65536".split()
        prepare = [sys.executable, "-m", "tst_lightning", "prepare", "--out", str(shards), *words]
        subprocess.run(prepare, cwd=ROOT, check=True, capture_output=True)
        made, plans = 0, aims(random.Random(options.seed))
        for number, scenario in enumerate(itertools.cycle(SCENARIOS)):
            if made >= options.kills:
                break
            run = trial(folder / str(number), shards, scenario, next(plans)[: options.kills - made])
            runs.append(run)
            made += len(run["kills"])
            for kill in run["kills"]:
                place = f"{kill['doing']} at step {kill['step']}" + (", .partial there" if kill["partial"] else "")
                print(f"{kill['result']:<10} aimed at {kill['aim']}: in {place}; went on at {kill.get('went_on_at')}")
            print(f"run {number}: {scenario}, {run['seconds']} s {run['trouble']} {run['differs']}", flush=True)
            counts = summary(runs) | {"seconds": round(time.monotonic() - begin)}
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                document = {
                    "summary": counts,
                    "seed": options.seed,
                    **source() | {"hardware": hardware(1)},
                    "runs": runs,
                }
                options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(counts))
    return 0 if counts["survived"] == counts["kills"] and not counts["refused"] else 1


if __name__ == "__main__":
    sys.exit(main())
