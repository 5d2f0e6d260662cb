"""What a training step costs: ours, next-token and with bags, beside the formulations and loops that others use.

Arms (``--arms`` takes names, or the beginnings of names): ``ours baseline`` and ``ours s=N``, the real ``tst fit`` with
all its loggers and callbacks; ``paper listing s=N``, the listing of arXiv 2605.06546 in a plain loop; ``patch-level s=N``,
the formulation of arXiv 2407.12665 in the same loop; ``bare PyTorch loop`` and ``HF Trainer``, next-token training
without this project. All share model, recipe, precision and positions a step, and read tokens of the same shards.

Each arm is a process of its own. Rounds are interleaved: in each round every arm takes ``--steps`` steps, in an order
drawn anew, while the others wait; a turn's seconds run from its release to the end of its last step. The ratio to
``ours baseline`` is that of the two turns of one round. On CPU the processes stay alive between their turns; on a GPU,
whose memory they can't share, each is started for its turn, and warmed up within it.

``HF Trainer`` needs the extra ``bench`` (accelerate). An arm that fails is named in its row, and the exit code is 1. The
result file is written anew after each turn.

    python benchmarks/step_time.py --preset d256 --rounds 7 --steps 20 --out benchmarks/results/step_time_d256.json
"""

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from provenance import gpu_name, hardware, source
from step_rows import Measured, table, to_row
from step_setting import BASELINE, PRESETS, Arm, Setting, all_arms, block_rows, model_arguments
from step_worker import ArmFailedError, Worker

from tst_lightning.flops import convention, count_flops_per_row, named_peak
from tst_lightning.phases import NextTokenPhase
from tst_lightning.shards.manifest import Manifest
from tst_lightning.whole_file import write_whole

NOTES = {
    "peak_memory_bytes": {
        "cpu": "highest resident set over the steps of a turn, the median of turns, less that just before the first step,"
        " with the model built: gradients, optimizer state, activations, logits and library code first touched, without"
        " the weights",
        "cuda": "the most that torch had allocated over the steps of a turn, the median of turns, weights included",
    },
    "host memory": "on CPU ours has huge pages and keeps what it frees, as `tst fit` does; the other arms have the"
    " system's defaults",
    "data_wait_share": "share of the seconds that the loop spent in next() of its data; measured in ours alone",
    "mfu": f"by the model's FLOPs ({convention('full')}), the same for every arm; null where the peak is not known",
}


class Bench:
    """Gives arms their turns.

    Args:
        arms: to be measured.
        setting: shared by all.
        options: of the command line: steps, warmup, resident, threads.
        folder: for what the processes write.
        keep: called with what each arm gave so far, after every turn.

    Attributes:
        measured: what each arm gave so far.
    """

    def __init__(
        self,
        arms: list[Arm],
        setting: Setting,
        options: argparse.Namespace,
        folder: Path,
        keep: Callable[[list[Measured]], None],
    ) -> None:
        self.measured = [Measured(arm) for arm in arms]
        self._keep = keep
        self._setting = setting
        self._options = options
        self._folder = folder
        self._workers: dict[Arm, Worker] = {}

    def run(self, rounds: int, seed: int) -> None:
        """Takes all rounds; ends every process, whatever happens."""
        try:
            if self._options.resident:
                for one in self.measured:
                    self._give(one, None)
            for number in range(rounds):
                for one in random.Random(seed * 1_000_003 + number).sample(self.measured, len(self.measured)):
                    if not one.failure:
                        self._give(one, number)
        finally:
            for worker in self._workers.values():
                worker.end()

    def _give(self, one: Measured, number: int | None) -> None:
        """An arm's turn in a round, or with None its start alone; notes why it failed if it does."""
        try:
            worker = self._workers.get(one.arm) or self._start(one)
            if number is not None:
                one.turns[number] = worker.turn(self._options.steps, timed=True)
                print(f"round {number}  {one.arm.name}: {one.step_seconds()[number]:.4f} s a step", file=sys.stderr)
        except ArmFailedError as error:
            one.failure = error.reason
            print(f"{one.arm.name} failed: {error}", file=sys.stderr)
        self._keep(self.measured)
        if (one.failure or not self._options.resident) and one.arm in self._workers:
            self._workers.pop(one.arm).end()

    def _start(self, one: Measured) -> Worker:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        worker = self._workers[one.arm] = Worker(one.arm, self._setting, folder, self._options.threads)
        one.resident_bytes = worker.resident_bytes
        worker.turn(self._options.warmup, timed=False)
        return worker


def prepare(shards: Path, tokenizer_ids: int) -> None:
    """Makes the shards by the real command, from the standard library's sources, unless they are there."""
    if (shards / "manifest.json").exists():
        return
    words = ["--python_source", "stdlib", "--vocab_size", str(tokenizer_ids), "--out", str(shards)]
    subprocess.run([sys.executable, "-m", "tst_lightning", "prepare", *words], check=True, stdout=sys.stderr)


def chosen(arms: list[Arm], names: str | None) -> list[Arm]:
    """The arms that are, or begin with, one of some names.

    Raises:
        SystemExit: a name that no arm has.
    """
    if names is None:
        return arms
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if not any(f"{arm.name} ".startswith(f"{name} ") for arm in arms):
            raise SystemExit(f"no arm '{name}'; choose of: {', '.join(arm.name for arm in arms)}")
    return [arm for arm in arms if any(f"{arm.name} ".startswith(f"{name} ") for name in wanted)]


def result(
    measured: list[Measured], setting: Setting, options: argparse.Namespace, flops: int, peak: float | None
) -> dict[str, Any]:
    """Rows, and what they were made with.

    Args:
        measured: what each arm gave.
        setting: shared by all.
        options: of the command line.
        flops: of a row of L positions.
        peak: FLOP/s of the device, where it is known.
    """
    baseline = next((one for one in measured if one.arm == BASELINE), None)
    manifest = Manifest.parse(Path(setting.shards))
    notes = NOTES | {"peak_memory_bytes": NOTES["peak_memory_bytes"][setting.device]}
    shared = {key: value for key, value in asdict(setting).items() if key != "shards"}
    return {
        "rows": [to_row(one, baseline, setting, flops, peak) for one in measured],
        "command": shlex.join(["python", "benchmarks/step_time.py", *sys.argv[1:]]),
        "hardware": hardware(options.threads, setting.device),
        "preset": options.preset,
        "setting": shared,
        "flops_per_step": flops * setting.batch_size,
        "tokenizer_ids": manifest.vocab_size,
        "train_tokens": manifest.train.tokens,
        "rounds": options.rounds,
        "steps_per_round": options.steps,
        "warmup_steps": options.warmup,
        "resident": options.resident,
        "threads": options.threads,
        "seed": options.seed,
        "notes": notes,
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="result file (JSON)")
    parser.add_argument("--table", action="store_true", help="print the rows as a Markdown table")
    parser.add_argument("--preset", choices=PRESETS, default="quickstart", help="sizes of model and step")
    parser.add_argument("--batch_size", type=int, help="rows a step, in place of the preset's")
    parser.add_argument("--seq_len", type=int, help="positions a row, in place of the preset's")
    parser.add_argument("--bags", default="4,8,16", help="bag sizes, with commas")
    parser.add_argument("--arms", help="arms to run, with commas; all unless given")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed", "bf16-true"), default="32-true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile the decoder layers, in all arms")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count")
    parser.add_argument("--steps", type=int, default=10, help="of a turn; every 10th step of ours is logged")
    parser.add_argument("--warmup", type=int, default=10, help="steps of a process before those that count")
    resident = {"action": argparse.BooleanOptionalAction, "help": "processes stay alive; on CPU unless told otherwise"}
    parser.add_argument("--resident", **resident)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each process' CPU work")
    parser.add_argument("--seed", type=int, default=1, help="of weights, rows, and the order within rounds")
    parser.add_argument("--shards", type=Path, help="where shards lie or are made, in place of a temporary folder")
    options = parser.parse_args()
    if options.resident is None:
        options.resident = options.device == "cpu"
    return options


def main() -> int:
    options = parse_options()
    preset, bags = PRESETS[options.preset], [int(bag) for bag in options.bags.split(",")]
    arms = chosen(all_arms(bags), options.arms)
    with tempfile.TemporaryDirectory() as temporary:
        shards = (options.shards or Path(temporary) / "shards").resolve()
        prepare(shards, preset.tokenizer_ids)
        seq_len = options.seq_len or preset.seq_len
        setting = Setting(
            model=model_arguments(preset, seq_len),
            seq_len=seq_len,
            batch_size=options.batch_size or preset.batch_size,
            block_rows=block_rows(bags),
            precision=options.precision,
            device=options.device,
            compile=options.compile,
            seed=options.seed,
            shards=str(shards),
        )
        facts = source(("accelerate",))
        flops = count_flops_per_row(setting.llama(), NextTokenPhase(), seq_len)
        in_half = options.device == "cuda" and options.precision.startswith("bf16")
        peak = named_peak(gpu_name()) if in_half else None

        def keep(measured: list[Measured]) -> None:
            document = result(measured, setting, options, flops, peak) | facts
            write_whole(options.out, json.dumps(document, indent=1) + "\n")

        bench = Bench(arms, setting, options, Path(temporary), keep)
        bench.run(options.rounds, options.seed)
    if options.table:
        print(table(json.loads(options.out.read_text())["rows"]))
    return 1 if any(one.failure for one in bench.measured) else 0


if __name__ == "__main__":
    sys.exit(main())
