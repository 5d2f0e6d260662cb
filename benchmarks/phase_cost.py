"""What a superposition step costs over an ordinary one, in one process: the two take turns on the same model.

Two processes that do the same differ by several percent for as long as they live, by where their memory lies. Here
model, optimizer and memory are shared, and only the phase changes: embedding, forward, loss, backward, clipping and
AdamW, without Lightning around them; in huge pages if the environment says so, as ``tst`` has it. In each round every bag
size takes ``--steps`` steps, in an order drawn anew; the ratio is that of one round.

    THP_MEM_ALLOC_ENABLE=1 python benchmarks/phase_cost.py --batch_size 4 --shards data/bench16k --out FILE
"""

import argparse
import itertools
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from provenance import hardware, source
from step_arms import build_optimizer
from step_setting import PRESETS, Setting, block_rows, model_arguments, recipe
from step_time import prepare
from torch.nn.utils import clip_grad_norm_

from tst_lightning.commands.host_memory import keep_freed_memory
from tst_lightning.modeling import build_causal_lm
from tst_lightning.phases import NextTokenPhase, SuperpositionPhase


def steps_of(setting: Setting, bags: list[int]) -> dict[int, Callable[[], None]]:
    """Bag size, 1 for next-token training, to a function that takes one step of the one model."""
    torch.manual_seed(setting.seed)
    model = build_causal_lm(setting.llama())
    optimizer, scheduler = build_optimizer(model)
    clip = recipe()["trainer"]["gradient_clip_val"]

    def of(bag_size: int) -> Callable[[], None]:
        phase = SuperpositionPhase(bag_size) if bag_size > 1 else NextTokenPhase()
        rows = setting.rows(phase.row_tokens(setting.seq_len))
        batches = itertools.cycle(rows.split(setting.batch_size)[:-1])  # the last one may be shorter

        def step() -> None:
            model(next(batches), phase).mean.backward()
            clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

        return step

    return {bag_size: of(bag_size) for bag_size in (1, *bags)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    parser.add_argument("--preset", choices=PRESETS, default="d256", help="sizes of model and step")
    parser.add_argument("--batch_size", type=int, help="rows a step, in place of the preset's")
    parser.add_argument("--bags", type=int, nargs="+", default=[4, 8, 16], help="s")
    parser.add_argument("--rounds", type=int, default=20, help="rounds that count")
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--seed", type=int, default=1, help="of weights, rows and order")
    parser.add_argument("--shards", type=Path, required=True, help="where shards lie or are made")
    options = parser.parse_args()
    facts = source() | {"hardware": hardware(options.threads)}
    preset = PRESETS[options.preset]
    prepare(options.shards, preset.tokenizer_ids)
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    setting = Setting(
        model=model_arguments(preset, preset.seq_len),
        seq_len=preset.seq_len,
        batch_size=options.batch_size or preset.batch_size,
        block_rows=block_rows(options.bags),
        precision="32-true",
        device="cpu",
        compile=False,
        seed=options.seed,
        shards=str(options.shards),
    )
    steps, chance = steps_of(setting, options.bags), random.Random(options.seed)
    seconds: dict[int, list[float]] = {bag_size: [] for bag_size in steps}
    for step in steps.values():
        step()
    for _ in range(options.rounds):
        for bag_size in chance.sample(list(steps), len(steps)):
            began = time.perf_counter()
            for _ in range(options.steps):
                steps[bag_size]()
            seconds[bag_size].append((time.perf_counter() - began) / options.steps)
    rows = []
    for bag_size, mine in seconds.items():
        ratios = [a / b for a, b in zip(mine, seconds[1], strict=True)]
        quarters = statistics.quantiles(ratios, n=4) if bag_size > 1 else [1.0] * 3
        rows.append(
            {
                "bag_size": bag_size,
                "seconds_median": statistics.median(mine),
                "ratio_median": statistics.median(ratios),
                "ratio_quarters": [quarters[0], quarters[2]],
                "seconds": mine,
            }
        )
        print(
            f"s {bag_size:>2}  {1e3 * rows[-1]['seconds_median']:7.1f} ms  x{rows[-1]['ratio_median']:.3f}"
            f"  (half of the rounds within {quarters[0]:.3f} to {quarters[2]:.3f})"
        )
    if options.out:
        settings = {key: str(value) for key, value in vars(options).items() if key != "out"}
        settings["huge_pages"] = os.environ.get("THP_MEM_ALLOC_ENABLE", "0")
        options.out.write_text(json.dumps(facts | {"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
