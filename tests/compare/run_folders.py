"""Runs for the tests of compare: folders in the trainer's format, with Lightning's own CSVLogger, and runs in memory."""

import copy
import json
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger

from tst_lightning.compare.runs import Point, Run

RECORD = {
    "format": 1,
    "name": "baseline",
    "status": "finished",
    "step": 100,
    "max_steps": 100,
    "model": {
        "class": "transformers.LlamaConfig",
        "config": {"hidden_size": 64, "num_hidden_layers": 2, "transformers_version": "5.17.0"},
        "parameters": 1_300_000,
    },
    "tokenizer_sha256": "a" * 64,
    "vocab_size": 2048,
    "val_sha256": "b" * 64,
    "seq_len": 128,
    "phases": [{"name": "recovery", "class": "R", "bag_size": 1, "first_step": 0, "steps": 100, "flops_per_step": 10}],
    "flops_convention": "forward+backward matrix products; full attention; no recomputation",
    "seed": 1,
    "batch": {"rows": 8},
    "device": "cpu",
    "versions": {"torch": "2.13"},
    "tokens_available": 10_000_000,
    "optimizer": "AdamW",
    "learning_rate": 0.001,
}
TST_PHASES = [
    {"name": "superposition", "class": "S", "bag_size": 4, "first_step": 0, "steps": 20, "flops_per_step": 10},
    {"name": "recovery", "class": "R", "bag_size": 1, "first_step": 20, "steps": 80, "flops_per_step": 10},
]


def record(**changes):
    return copy.deepcopy(RECORD) | changes


def totals(step, bag_steps=0, flops_per_step=10):
    """What the FLOPs meter logs after `step` steps, of which the first `bag_steps` had bags of 4."""
    bags = min(step, bag_steps)
    return {
        "compute/step": step,
        "compute/flops": step * flops_per_step,
        "compute/tokens": 100 * (4 * bags + step - bags),
        "compute/positions": 100 * step,
        "compute/seconds": step * 0.5,
    }


def write_version(folder, curve, bag_steps=0, flops_per_step=10):
    """One start of a run: a training row and then a validation row for every (step, loss)."""
    logger = CSVLogger(str(folder), name="csv")
    for step, loss in curve:
        logger.log_metrics({"train/loss": loss + 0.1, "train/learning_rate": 1e-3}, step=step)
        logger.log_metrics(totals(step, bag_steps, flops_per_step), step=step)
        logger.log_metrics({"val/loss": loss, "val/perplexity": 2.7**loss, "val/bits_per_byte": loss / 2}, step=step)
    logger.save()
    return Path(logger.log_dir) / "metrics.csv"


def write_run(folder, curve=((50, 4.0), (100, 3.0)), bag_steps=0, flops_per_step=10, **changes):
    """A whole run folder; `changes` replace keys of run.json."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record(**({"name": folder.name} | changes))))
    if curve:
        write_version(folder, curve, bag_steps, flops_per_step)
    return str(folder)


def run(name, curve, tokens_per_flop=10.0, **changes):
    """A run in memory: (FLOPs, loss) of its validations, a step a FLOP, a second for 100."""
    points = [Point(int(f), loss, float(f), f * tokens_per_flop, 0, f / 100) for f, loss in curve]
    step = points[-1].step
    return Run(name, name, record(**({"name": name, "step": step, "max_steps": step} | changes)), tuple(points))
