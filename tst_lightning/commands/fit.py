"""``tst fit``, ``tst validate`` and ``tst test``: Lightning's command line over the module and the data module."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from tst_lightning.commands.parser import one_line
from tst_lightning.data import TokenDataModule
from tst_lightning.errors import ConfigError
from tst_lightning.module import SuperpositionModule


class _Parser(LightningArgumentParser):
    """Lightning's parser, with errors of one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(f"{one_line(message)} (see `{self.prog} --help`)") from ex


class _SaveConfig(SaveConfigCallback):
    """Saves the resolved configuration as ``config.yaml`` in the run's folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            path = Path(self.config.run_dir) / "config.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=False)


class TSTCommandLine(LightningCLI):
    """Adds the run's folder, and refuses to overwrite a run by accident."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--run_dir``, which the YAML's paths refer to as ``${run_dir}``."""
        parser.add_argument("--run_dir", type=str, required=True, help="folder of the run; its last part is its name")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Those of Lightning's commands that make sense here, and their arguments that the configuration gives."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "weights_only"},
            "test": {"model", "dataloaders", "datamodule", "weights_only"},
        }

    def instantiate_classes(self) -> None:
        """Builds module, data module and trainer.

        Raises:
            ConfigError: a class refuses the values that it was given.
        """
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise ConfigError(one_line(str(error))) from error

    def fit(self, **arguments: Any) -> None:
        """Trains; a finished run is left as it is, an unfinished one goes on only if asked to.

        Raises:
            ConfigError: the folder holds a run and ``--ckpt_path`` does not say to go on with it.
        """
        run_dir = Path(self.config.fit.run_dir)
        record = run_dir / "run.json"
        status = json.loads(record.read_text()) if record.exists() else None
        if status and arguments["ckpt_path"] is None:
            raise ConfigError(
                f"'{run_dir}' already holds a run ({status['status']} at step {status['step']} of {status['max_steps']});"
                " go on with --ckpt_path last, or name another --run_dir"
            )
        if status and status["status"] == "finished" and status["step"] >= self.trainer.max_steps:
            print(f"reusing   the finished run in {run_dir} ({status['step']:,} steps)")
            return
        self._call(self.trainer.fit, arguments)
        print(f"finished  {run_dir}: {self.trainer.global_step:,} steps, validation loss {self._loss():.4f}")

    def validate(self, **arguments: Any) -> None:
        """Scores a checkpoint on the validation split."""
        self._call(self.trainer.validate, arguments)

    def test(self, **arguments: Any) -> None:
        """Scores a checkpoint under the ``test/`` tags."""
        self._call(self.trainer.test, arguments)

    def _loss(self) -> float:
        return float(self.trainer.callback_metrics.get("val/loss", float("nan")))

    def _call(self, method: Any, arguments: dict[str, Any]) -> None:
        path = arguments["ckpt_path"]
        if path not in (None, "last", "best") and not Path(path).exists():
            raise ConfigError(f"there is no checkpoint at '{path}'")
        try:
            method(**arguments, weights_only=True)
        except MisconfigurationException as error:
            raise ConfigError(one_line(str(error))) from error


def _quieten() -> None:
    """Drops what Lightning says about itself, and its warnings that do not hold for this stream."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*LightningCLI's args parameter.*",
        ".*Your `IterableDataset` has `__len__` defined.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def main(name: str, arguments: list[str]) -> None:
    """Runs one of Lightning's commands.

    Args:
        name: fit, validate or test.
        arguments: the words after it.

    Raises:
        ConfigError: bad options or values.
        RunError: something failed on the way.
    """
    # So that ${run_dir} means the root of the YAML it stands in, under whichever command.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    _quieten()
    settings = {"parser_mode": "omegaconf+", "allow_abbrev": False}
    try:
        TSTCommandLine(
            SuperpositionModule,
            TokenDataModule,
            save_config_callback=_SaveConfig,
            parser_class=_Parser,
            parser_kwargs={command: dict(settings) for command in TSTCommandLine.subcommands()}
            | settings
            | {"prog": "tst"},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=1,
            args=[name, *arguments],
        )
    except yaml.YAMLError as error:
        raise ConfigError(one_line(str(error))) from error
