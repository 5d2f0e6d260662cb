"""What a plan is made for, read from a fit configuration without building a trainer."""

from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from tst_lightning.commands.command_line import TSTCommandLine, read_command_line
from tst_lightning.commands.run_parser import RunParser
from tst_lightning.data.datamodule import TokenDataModule, check_sizes
from tst_lightning.data.remote import is_remote
from tst_lightning.errors import ConfigError
from tst_lightning.modeling import check_fits
from tst_lightning.module import SuperpositionModule
from tst_lightning.phases import PhaseSchedule
from tst_lightning.plan.setting import Layout, Setting

_LAYOUTS: dict[str, Layout] = {
    "ddp": "ddp",
    "fsdp": "fsdp",
    "modelparallelstrategy": "fsdp",
    "fullyshardedstrategy": "fsdp",
}


class _NoTrainer(TSTCommandLine):
    """Parses all of a fit configuration, and builds module and data module: no weights, no stream, no trainer.

    Shards that are not prepared yet leave the data module out.
    """

    def _build(self) -> None:
        parser = RunParser()
        parser.add_lightning_class_args(SuperpositionModule, "model")
        given = {"model": self.config.model}
        if _are_prepared(self.config.data.shards):
            parser.add_lightning_class_args(TokenDataModule, "data")
            given["data"] = self.config.data
        built = parser.instantiate(Namespace(**given))
        self.model, self.datamodule = built.model, built.get("data")

    def after_instantiate_classes(self) -> None:
        """There is no trainer to see to."""


def _are_prepared(shards: Any) -> bool:
    paths = [shards] if isinstance(shards, str) else [each["path"] for each in (shards or {}).values()]
    return all(is_remote(path) or Path(path).exists() for path in paths)


def of_configuration(words: list[str], source: str, changes: dict[str, Any]) -> Setting:
    """Reads what ``tst fit`` would train.

    Args:
        words: ``--config FILE`` and overrides, as for ``tst fit``.
        source: the same, for the reader.
        changes: attributes of the setting that the user gave, in place of the configuration's.

    Raises:
        ConfigError: as ``tst fit``; or devices or a layout that only a trainer could tell.
    """
    read = read_command_line(_NoTrainer, "plan", words, "Reads a configuration of tst fit.")
    config, module = read.config, read.model
    trainer, data = config.trainer, config.data
    accumulate = trainer.accumulate_grad_batches or 1
    if read.datamodule is None:
        keys = ("seq_len", "batch_size", "block_rows", "val_batch_size", "pool_blocks")
        check_sizes({key: data[key] for key in keys})
    else:
        check_fits(module.config, read.datamodule, module.initial_weights)
        read.datamodule.row_plans(PhaseSchedule(module.phases, trainer.max_steps), accumulate)
    end = -1 if read.datamodule is None else read.datamodule.tokenizer.end_of_document_id
    for phase in module.phases.values():
        phase.setup(end, module.config)
    on_gpu = trainer.accelerator in ("gpu", "cuda") or (trainer.accelerator == "auto" and torch.cuda.is_available())
    meter = next((of for of in config.callbacks.values() if of["class_path"].endswith(".FlopsMeter")), None)
    devices = changes.get("devices") or _number_of_devices(trainer)
    facts: dict[str, Any] = {
        "devices": devices,
        "layout": changes.get("layout") or _layout(trainer.strategy, devices),
        "device_type": "cuda" if on_gpu else "cpu",
        "corpora": tuple(read.datamodule.corpora) if read.datamodule else (),
    }
    return Setting(
        source=source,
        config=module.config,
        phases=module.phases,
        steps=trainer.max_steps,
        seq_len=data.seq_len,
        batch_size=data.batch_size,
        accumulate=accumulate,
        precision=_precision(trainer.precision),
        optimizer=module.optimizer,
        attention=(meter or {}).get("init_args", {}).get("attention", "full"),
        checkpointing=module.activation_checkpointing,
        block_rows=data.block_rows,
        pool_blocks=data.pool_blocks,
        **(facts | changes),
    )


def _number_of_devices(trainer: Namespace) -> int:
    devices, nodes = trainer.devices, trainer.num_nodes or 1
    if isinstance(devices, str) and devices.lstrip("-").isdecimal():
        devices = int(devices)
    if devices == "auto" and trainer.accelerator == "cpu":  # one process, as Lightning has it
        devices = 1
    if isinstance(devices, list):
        devices = len(devices)
    if not isinstance(devices, int) or devices < 1:
        raise ConfigError(
            f"trainer.devices is {devices}, which means another number on each machine; give --devices N, over all nodes"
        )
    return devices * nodes


def _precision(precision: Any) -> str:
    return {"32": "32-true", "None": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(
        str(precision), str(precision)
    )


def _layout(strategy: Any, devices: int) -> Layout:
    name = (strategy if isinstance(strategy, str) else str(strategy.get("class_path", ""))).rpartition(".")[2]
    if name == "auto":
        return "single" if devices == 1 else "ddp"
    found = next((layout for known, layout in _LAYOUTS.items() if name.lower().startswith(known)), None)
    if found is None:
        raise ConfigError(f"trainer.strategy is {name}, whose memory is not known; give --layout single, ddp or fsdp")
    return found
