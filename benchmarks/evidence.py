r"""Does TST pay? The runs behind docs/evidence.md, from text to tables, for one setting file.

A setting file says what is prepared, how each arm is tuned, and which questions are asked at which lengths. Learning
rate and warmup of each arm are swept alike, with a seed that is used for nothing else; every other run takes its arm's
best. Runs are those of two ``tst sweep``, which skip finished runs and go on with stopped ones: so the whole may be
stopped, by a limit of time too, and gone on with by the same command. What has finished by then is written.

    python benchmarks/evidence.py benchmarks/evidence/cpu.yaml \
        --out benchmarks/results/evidence_cpu.json --pages docs/evidence.md docs/evidence_tables.md
    timeout 550 python benchmarks/evidence.py benchmarks/evidence/gpu.yaml \
        --devices 0 --out benchmarks/results/evidence_gpu.json
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from evidence_charts import draw_evidence, draw_gain
from evidence_questions import answers
from evidence_tables import RATE, WARMUP, tables
from provenance import ROOT, hardware, source
from scaling_tables import rendered

from tst_lightning.compare.runs import read_run

STEPS, SEED, SHARDS = "trainer.max_steps", "seed_everything,data.seed", "data.shards"
BAG_SIZE, SHARE = (f"model.phases.superposition.init_args.{name}" for name in ("bag_size", "share"))
ARMS = ("baseline", "tst")

Case = dict[str, Any]
Tuned = dict[str, dict[str, Any]]


def runs_of(
    setting: Mapping[str, Any],
    arm: str,
    tuned: Case,
    steps: int,
    seeds: Sequence[int],
    *,
    files: Sequence[str] = (),
    **more: Any,
) -> list[Case]:
    """An arm over seeds, as ``tst sweep`` lists it.

    Args:
        setting: the setting file.
        arm: "baseline", or "tst" for anything with a superposition phase.
        tuned: its learning rate and warmup.
        steps: of the whole run.
        seeds: of weights and order of the data.
        files: over the arm's own.
        more: further keys of ``tst fit``, which win.
    """
    own = {BAG_SIZE: setting["bag_size"], SHARE: setting["share"]} if arm == "tst" else {}
    over = [*(setting["baseline"] if arm == "baseline" else []), *files]
    return [{"config": over, **tuned, STEPS: steps, SEED: seed, **own, **more} for seed in seeds]


def tuning(setting: Mapping[str, Any], size: str, arm: str) -> list[Case]:
    """Learning rate x warmup of one arm at one size, alike for all arms."""
    tune, of = setting["tune"], setting["sizes"][size]
    return [
        one
        for rate in of["learning_rates"]
        for warmup in tune["warmups"]
        for one in runs_of(setting, arm, {RATE: rate, WARMUP: warmup}, tune["steps"], [tune["seed"]], **of["set"])
    ]


def chosen(setting: Mapping[str, Any], ends: Mapping[str, Case]) -> dict[str, Tuned]:
    """The best learning rate and warmup by size and arm.

    Args:
        setting: the setting file.
        ends: the finished tuning runs, by :func:`key`.
    """
    found: dict[str, Tuned] = {}
    for size in setting["sizes"]:
        found[size] = {}
        for arm in ARMS:
            finished = [one for one in tuning(setting, size, arm) if key(one) in ends]
            if not finished:
                raise SystemExit(
                    f"error: no tuning run of {arm} at size {size} has finished; see the sweep's log above"
                )
            best = min(finished, key=lambda one: ends[key(one)]["final_val_loss"])
            found[size][arm] = {name: best[name] for name in (RATE, WARMUP)}
    return found


def parts(setting: Mapping[str, Any], best: Mapping[str, Tuned]) -> dict[str, dict[str, list[Case]]]:
    """The cases of every question: by part, then by arm, in the order in which they are run.

    Args:
        setting: the setting file.
        best: as :func:`chosen`.
    """

    def runs(
        arm: str, share: float = 1.0, size: str = setting["main"], seeds: Sequence[int] = setting["seeds"], **more: Any
    ) -> list[Case]:
        """An arm at a share of the steps, with its tuned values."""
        keys = setting["sizes"][size]["set"] | more
        return runs_of(setting, arm, best[size][arm], round(share * setting["steps"]), seeds, **keys)

    few = setting["few_seeds"]
    steps, main = setting["steps"], setting["sizes"][setting["main"]]["set"]
    made: dict[str, dict[str, list[Case]]] = {
        "equal_flops": {arm: runs(arm) for arm in ARMS},
        "baseline_also": {
            f"baseline, rate {rate:g}, warmup {warmup} at {share:g}": runs_of(
                setting, "baseline", {RATE: rate, WARMUP: warmup}, round(share * steps), setting["seeds"], **main
            )
            for share, others in setting.get("baseline_also", {}).items()
            for rate, warmup in others
        },
        "lengths": {f"{arm} {share:g}": runs(arm, share) for share in setting.get("lengths", []) for arm in ARMS},
        "longer": {f"baseline {share:g}": runs("baseline", share) for share in setting.get("longer", [])},
        "longest": {f"baseline {share:g}": runs("baseline", share, seeds=few) for share in setting.get("longest", [])},
        "origin": {name: runs("tst", files=files, seeds=few) for name, files in setting.get("origin", {}).items()},
        "sizes": {
            f"{arm} {size}": runs(arm, size=size, seeds=few)
            for size in setting["sizes"]
            if size != setting["main"]
            for arm in ARMS
        },
    }
    if of := setting.get("unique"):
        own = {SHARDS: of["shards"], "seeds": few}
        made["unique"] = {}
        for share in of["lengths"]:
            made["unique"] |= {f"{arm} {share:g}": runs(arm, share, **own) for arm in ARMS}
            for name, files in of["others"].items():
                made["unique"][f"{name} {share:g}"] = runs("tst", share, files=files, **own)
    if of := setting.get("surface"):
        made["surface"] = {"baseline 1 0": runs("baseline", of["length"], seeds=of["seeds"])}
        for size in of["bag_sizes"]:
            for share in of["shares"]:
                own = {BAG_SIZE: size, SHARE: share}
                made["surface"][f"tst {size} {share:g}"] = runs("tst", of["length"], seeds=of["seeds"], **own)
    return {name: arms for name, arms in made.items() if arms}


def key(one: Case) -> str:
    """What two cases share if they are one run."""
    return json.dumps(one, sort_keys=True)


def tst(*words: str) -> int:
    """Runs a command of the project, one thread a process, and hands SIGTERM and SIGINT on to it; its exit code."""
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    # In a session of its own, or it would get a terminal's or timeout's signal twice, and the second one kills.
    child = subprocess.Popen([sys.executable, "-m", "tst_lightning", *words], env=threads, start_new_session=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: child.send_signal(number))
    return child.wait()


def prepare(words: Mapping[str, Any], out: str) -> None:
    """``tst prepare``, which leaves shards alone that are there already."""
    options = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    if code := tst("prepare", *options, "--out", out):
        raise SystemExit(code)


def sweep(setting: Mapping[str, Any], folder: Path, cases: Iterable[Case], devices: str) -> tuple[dict[str, Case], int]:
    """Trains what is not trained yet.

    Returns:
        The finished cases by :func:`key`, each with its validations and its passes over the shards; and the sweep's exit
        code, above 0 where cases failed or it was stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = list({key(one): one for one in cases}.values())
    text = yaml.safe_dump({"fit": setting["fit"], "set": setting["set"], "list": listed}, sort_keys=False)
    (folder / "sweep.yaml").write_text(text)
    result = folder / "sweep.json"
    result.unlink(missing_ok=True)  # of an earlier call, which asked for other runs
    code = tst("sweep", "--config", str(folder / "sweep.yaml"), "--out", str(folder), "--devices", devices)
    ended = json.loads(result.read_text())["cases"] if result.exists() else []
    finished = {key(one["settings"]): one | _validations(one) for one in ended if one["status"] == "finished"}
    return finished, code


def _validations(one: Mapping[str, Any]) -> dict[str, Any]:
    run = read_run(one["run_dir"])
    curve = [[point.step, point.flops, point.loss] for point in run.curve]
    return {"passes": run.record["passes"], "curve": curve, "run_dir": os.path.relpath(one["run_dir"], ROOT)}


def score(runs: Iterable[Case]) -> None:
    """Adds each run's validation loss by position in the context, as ``tst validate`` scores its last checkpoint."""
    for run in runs:
        folder = ROOT / run["run_dir"]
        out = folder / "scores.json"
        words = ["--config", str(folder / "config.yaml"), "--ckpt_path", "last", "--out", str(out)]
        if not out.exists() and (code := tst("validate", *words)):
            raise SystemExit(code)
        run["loss_by_position"] = json.loads(out.read_text())["loss_by_position"]


def document_of(setting: Mapping[str, Any], tuned: Mapping[str, Case], ends: Mapping[str, Case]) -> dict[str, Any]:
    """What the finished runs come to, for every question whose runs all have."""
    best = chosen(setting, tuned)
    found = {
        part: {arm: [ends[key(one)] for one in cases] for arm, cases in arms.items()}
        for part, arms in parts(setting, best).items()
        if all(key(one) in ends for cases in arms.values() for one in cases)
    }
    score(run for runs in found["equal_flops"].values() for run in runs)
    tune = {
        size: {arm: [tuned[key(one)] for one in tuning(setting, size, arm) if key(one) in tuned] for arm in ARMS}
        for size in setting["sizes"]
    }
    document = {
        "tuned": tune,
        "best": {"keys": [RATE, WARMUP], **best},
        "parts": found,
        "answers": answers(setting, found),
    }
    return document | {"tables": tables(setting, document)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", type=Path, help="YAML, such as benchmarks/evidence/cpu.yaml")
    parser.add_argument("--out", type=Path, required=True, help="result file (JSON)")
    parser.add_argument(
        "--pages",
        type=Path,
        nargs="+",
        default=[],
        help="Markdown whose tables are renewed, and the first one's charts",
    )
    parser.add_argument("--runs", type=Path, help="folder of the runs; runs/evidence_NAME by default")
    parser.add_argument("--devices", default="cpu:2", help="as for tst sweep: cpu:2 is two runs at a time")
    options = parser.parse_args()
    setting = yaml.safe_load(options.setting.read_text())
    out, pages = options.out.resolve(), [page.resolve() for page in options.pages]
    runs = (options.runs or ROOT / "runs" / f"evidence_{options.setting.stem}").resolve()
    os.chdir(ROOT)
    device = "cuda" if torch.cuda.is_available() and not options.devices.startswith("cpu") else "cpu"
    facts = source() | {"machine": hardware(1, device), "setting": setting}

    for shards, words in setting["prepare"].items():
        prepare(words, shards)
    every = [one for size in setting["sizes"] for arm in ARMS for one in tuning(setting, size, arm)]
    tuned, code = sweep(setting, runs / "tune", every, options.devices)
    if code > 1:  # stopped; a rate at which training fails is a result
        raise SystemExit(code)
    asked = parts(setting, chosen(setting, tuned))
    wanted = [one for arms in asked.values() for cases in arms.values() for one in cases]
    ends, code = sweep(setting, runs / "runs", wanted, options.devices)
    if any(key(one) not in ends for cases in asked["equal_flops"].values() for one in cases):
        raise SystemExit(code)
    document = facts | document_of(setting, tuned, ends)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    for page in pages:
        text = page.read_text()
        page.write_text(
            rendered(text, {name: of for name, of in document["tables"].items() if f"<!-- {name} -->" in text})
        )
    if pages:
        draw_evidence(document, pages[0].with_suffix(".png"))
        draw_gain(document, pages[0].with_name(f"{pages[0].stem}_gain.png"))
    print(document["tables"]["equal_flops"])
    raise SystemExit(code)


if __name__ == "__main__":
    main()
