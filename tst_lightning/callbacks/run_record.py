"""The facts of a run: printed at its start, kept in ``run.json`` for the referee, shown in TensorBoard's HPARAMS tab."""

import contextlib
import json
import os
import platform
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from tst_lightning import __version__
from tst_lightning.callbacks.at_switch import AtSwitch
from tst_lightning.callbacks.flops_meter import FlopsMeter
from tst_lightning.errors import ConfigError
from tst_lightning.flops import convention
from tst_lightning.fully_sharded import FullyShardedStrategy
from tst_lightning.whole_file import write_whole

RUN_RECORD_FORMAT = 1


class RunRecord(Callback):
    """Writes ``run.json`` into the run's folder and keeps its status; prints a summary at the start.

    Args:
        run_dir: folder of the run; its last part is the run's name.
    """

    def __init__(self, run_dir: str) -> None:
        self.path = Path(run_dir) / "run.json"
        self._record: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Gathers the facts, prints and writes them.

        Raises:
            ConfigError: the run has no FlopsMeter, without which it can't be compared.
        """
        meter = next((c for c in trainer.callbacks if isinstance(c, FlopsMeter)), None)  # type: ignore[attr-defined]
        if meter is None:
            raise ConfigError("RunRecord needs a FlopsMeter among trainer.callbacks; add one")
        self._record = self._facts(trainer, pl_module, meter)
        if trainer.is_global_zero:
            print(self._summary(trainer, pl_module), flush=True)
        self._write(trainer, "running")

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Moves the recorded step on, and keeps the HPARAMS tab at the latest loss."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._record["val_tokens"] = int(trainer.callback_metrics["val/tokens"])
        self._write(trainer, "running")
        self._log_hyperparameters(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Marks the run finished if it took its last step, and its last checkpoint is on disk; a time limit or early
        stopping leaves it stopped.
        """
        if isinstance(trainer.strategy, FullyShardedStrategy):
            trainer.strategy.finish_saving()
        self._write(trainer, "finished" if trainer.global_step >= trainer.max_steps else "stopped")

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Marks the run stopped, whatever stopped it."""
        if self._record:
            with contextlib.suppress(OSError):  # on a full disk the record stays; what stopped the run is what to tell
                self._write(trainer, "stopped")

    # -- facts --------------------------------------------------------------------------------------------------

    def _facts(self, trainer: Trainer, pl_module: Any, meter: FlopsMeter) -> dict[str, Any]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        config = pl_module.config
        accumulate = trainer.accumulate_grad_batches
        rows = data.batch_size * accumulate * trainer.world_size
        budget = data.budget(pl_module.schedule, accumulate, trainer.world_size)
        optimizer = trainer.optimizers[0]
        phases = [
            {
                "name": name,
                "class": f"{type(phase).__module__}.{type(phase).__qualname__}",
                "bag_size": phase.bag_size,
                # What else it was built with (share, objective, weighting): runs that differ there are two experiments.
                "settings": _public(phase),
                "first_step": first,
                "steps": steps,
                "tokens": steps * rows * phase.row_multiple * phase.row_positions(data.seq_len) * phase.bag_size,
                "flops_per_step": rows * phase.row_multiple * meter.flops_per_row[name],
                "hardware_flops_per_step": rows * phase.row_multiple * meter.hardware_flops_per_row[name],
            }
            for name, phase, first, steps in pl_module.schedule
        ]
        return {
            "format": RUN_RECORD_FORMAT,
            "name": self.path.parent.name,
            "max_steps": trainer.max_steps,
            "model": {
                "class": f"{type(config).__module__}.{type(config).__qualname__}",
                "config": json.loads(config.to_json_string(use_diff=True)),
                "parameters": sum(parameter.numel() for parameter in pl_module.model.lm.parameters()),
            },
            # Of runs that began from a model: others' records are as they were.
            **({"initial_weights": pl_module.begun_from} if pl_module.begun_from else {}),
            **data.hashes,
            "vocab_size": data.tokenizer.vocab_size,
            "seq_len": data.seq_len,
            "phases": phases,
            "flops": sum(phase["steps"] * phase["flops_per_step"] for phase in phases),
            "flops_convention": convention(meter.attention),
            "seed": int(os.environ.get("PL_GLOBAL_SEED", -1)),
            "batch": {
                "rows_per_step": rows,
                "positions_per_step": rows * data.seq_len,
                "micro_batch_rows": data.batch_size,
                "accumulate_grad_batches": accumulate,
            },
            "optimizer": type(optimizer).__name__,
            "learning_rate": optimizer.defaults.get("lr"),
            # To an optimizer whose state was loaded torch adds `differentiable`, if its class doesn't know it.
            "optimizer_settings": dict(sorted(({"differentiable": False} | optimizer.defaults).items())),
            "gradient_clip_val": trainer.gradient_clip_val,
            "stream": {"seed": data.seed, "block_rows": data.block_rows, "pool_blocks": data.pool_blocks},
            "lr_schedule": vars(pl_module.lr_schedule),
            "at_switch": [
                {"class": type(callback).__name__} | callback.settings() | {"phases": before}
                for callback in trainer.callbacks  # type: ignore[attr-defined]
                if isinstance(callback, AtSwitch) and (before := callback.acts_before(pl_module))
            ],
            "corpora": {
                corpus.name: asdict(mine) | {"path": corpus.path, "share": corpus.share, "passes": mine.passes}
                for corpus, mine in zip(data.corpora, budget.corpora.values(), strict=True)
            },
            "tokens_needed": sum(mine.needed for mine in budget.corpora.values()),
            "tokens_available": sum(mine.available for mine in budget.corpora.values()),
            "tokens_cut": budget.cut,
            "passes": max(mine.passes for mine in budget.corpora.values()),
            "device": f"{trainer.world_size} x {trainer.strategy.root_device.type}",
            "device_name": _device_name(trainer.strategy.root_device),
            "compiled_layers": pl_module.compile_layers,
            "precision": str(trainer.precision),
            "versions": versions(),
        }

    def _summary(self, trainer: Trainer, pl_module: Any) -> str:
        facts = self._record
        model = facts["model"]
        lines = [
            f"run       {facts['name']} in {self.path.parent}, seed {facts['seed']}",
            f"model     {type(pl_module.config).__name__}, {model['parameters']:,} parameters, {facts['precision']} on"
            f" {facts['device']}",
        ]
        if begun_from := facts.get("initial_weights"):
            lines.append(f"weights   of '{begun_from['folder']}' (sha256 {begun_from['sha256'][:12]}...)")
            if not begun_from["tokenizer_compared"]:
                lines.append(
                    "note      whether these were trained with the shards' tokenizer can't be told: their folder has no"
                    " tokenizer.json that can be loaded"
                )
        for phase in facts["phases"]:
            last = phase["first_step"] + phase["steps"] - 1
            lines.append(
                f"phase     {phase['name']}: steps {phase['first_step']:,} to {last:,}, bag size {phase['bag_size']},"
                f" {phase['tokens']:,} tokens"
            )
        for name, mine in facts["corpora"].items():
            whole = mine["available"] + mine["remainder"]
            left = f"{mine['remainder']:,} ({mine['remainder'] / whole:.2%}) lie beyond them"
            if mine["uneven"]:
                left += f", {mine['uneven']:,} ({mine['uneven'] / whole:.2%}) are left out a pass to keep ranks even"
            share = "" if len(facts["corpora"]) == 1 else f"'{name}', {mine['share']:.1%}: "
            lines.append(
                f"data      {share}{mine['available']:,} tokens in whole blocks, {left}; {mine['needed']:,} needed:"
                f" {mine['passes']:.2f} passes"
            )
        if facts["tokens_cut"]:
            cut = facts["tokens_cut"]
            lines.append(
                f"data      {cut:,} tokens ({cut / facts['tokens_needed']:.2%}) left out where phases end within a block"
            )
        lines.append(
            f"compute   {facts['flops']:.4g} FLOPs in {facts['max_steps']:,} steps of"
            f" {facts['batch']['positions_per_step']:,} positions"
        )
        if facts["passes"] > 1:
            lines.append(
                "note      the data is read more than once; superposition reads s times as much per step, and its gain"
                " rests on fresh data"
            )
        if trainer.global_step:
            lines.append(f"resumed   at step {trainer.global_step:,} of {facts['max_steps']:,}")
        if pl_module.consequence:
            lines.append(f"note      {pl_module.consequence}")
        return "\n".join(lines)

    # -- writing ------------------------------------------------------------------------------------------------

    @rank_zero_only
    def _write(self, trainer: Trainer, status: str) -> None:
        self._record |= {"status": status, "step": trainer.global_step}
        write_whole(self.path, json.dumps(self._record, indent=2, default=str) + "\n")

    @rank_zero_only
    def _log_hyperparameters(self, trainer: Trainer) -> None:
        facts = self._record
        shown = {key: facts[key] for key in ("seed", "seq_len", "max_steps", "optimizer", "learning_rate", "precision")}
        shown |= {f"lr_schedule/{key}": value for key, value in facts["lr_schedule"].items()}
        shown |= {
            "positions_per_step": facts["batch"]["positions_per_step"],
            "parameters": facts["model"]["parameters"],
        }
        for phase in facts["phases"]:
            shown |= {f"{phase['name']}/bag_size": phase["bag_size"], f"{phase['name']}/steps": phase["steps"]}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # The tab shows a tag's last value; Lightning writes these at step 0, each over the one before.
                logger.log_hyperparams(shown, {"hparams/val_loss": float(trainer.callback_metrics["val/loss"])})


def versions() -> dict[str, str]:
    """Of this project, what it stands on, and Python."""
    names = ("torch", "lightning", "litdata", "transformers")
    others = {name: version(name) for name in names}
    # This one's metadata are missing where it runs from a source folder.
    return {"tst-lightning": __version__} | others | {"python": platform.python_version()}


def _device_name(device: torch.device) -> str:
    """What seconds depend on: the GPU's product name, or the CPU's architecture and the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def _public(configured: Any) -> dict[str, Any]:
    """What an object was built with, as plain values: its public attributes, and theirs."""
    public = {key: value for key, value in vars(configured).items() if not key.startswith("_")}
    return {
        key: {"class": type(value).__name__} | _public(value) if _is_configured(value) else value
        for key, value in public.items()
    }


def _is_configured(value: Any) -> bool:
    """Whether attributes tell what it is: of a tensor or an enumeration's member its own text does, and they nothing."""
    silent = is_dataclass(value) or type(value).__repr__ is object.__repr__
    return silent and hasattr(value, "__dict__") and not isinstance(value, type)
