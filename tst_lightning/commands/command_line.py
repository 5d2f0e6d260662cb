"""Module, data module and trainer from words and YAML, for ``tst fit``, ``validate``, ``test`` and ``plan``."""

from typing import Any, TypeVar, get_args

import yaml
from jsonargparse import set_parsing_settings
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from omegaconf.errors import OmegaConfBaseException

from tst_lightning.checkpoint_io import WholeCheckpointIO
from tst_lightning.commands.class_paths import check_class_paths
from tst_lightning.commands.initial_weights import take_config
from tst_lightning.commands.limits import check_numbers, check_processes
from tst_lightning.commands.parser import one_line
from tst_lightning.commands.quiet import quieten
from tst_lightning.commands.refusals import as_user_error
from tst_lightning.commands.run_parser import RunParser
from tst_lightning.data.datamodule import TokenDataModule
from tst_lightning.errors import ConfigError, UserError
from tst_lightning.fully_sharded import FullyShardedStrategy
from tst_lightning.module import SuperpositionModule

_SCORING = ("validate", "test")

CommandLine = TypeVar("CommandLine", bound="TSTCommandLine")


class TSTCommandLine(LightningCLI):
    """Module, data module and trainer from one configuration.

    The three commands share all options but ``--out``, so that the configuration saved by one serves the others.

    Args:
        command: fit, validate or test.
        settings: as for LightningCLI.
    """

    def __init__(self, command: str, **settings: Any) -> None:
        self.command = command
        super().__init__(SuperpositionModule, TokenDataModule, **settings)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run's folder, which the YAML refers to as ``${run_dir}``, and named loggers and callbacks.

        Named, unlike the trainer's lists, so that each value can be overridden: ``--callbacks.progress.refresh_rate 1``.
        """
        parser.add_argument("--run_dir", type=str, default="", help="folder of the run; its last part is its name")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help="checkpoint to go on from, or to score; `last` is the run's own, where fit begins if there is none; to"
            " score also a Hugging Face folder, such as tst export writes",
        )
        if self.command in _SCORING:
            parser.add_argument("--out", type=str | None, metavar="FILE", help="new JSON file for all figures")

        parser.add_argument("--loggers", type=dict[str, Logger], default={}, help="name -> logger of training")
        parser.add_argument("--callbacks", type=dict[str, Callback], default={}, help="name -> callback, in this order")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As inherited; then checks the numbers that Lightning is about to use.

        Raises:
            ConfigError: a number out of range.
        """
        super().parse_arguments(parser, args)
        check_numbers(self.config)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the named loggers and callbacks; only training logs, so that scoring leaves a run's log be.

        Raises:
            ConfigError: more processes than this machine can run.
        """
        check_processes(self.config)
        extra = self.config_init.trainer.callbacks or []
        callbacks = [*self.config_init.callbacks.values(), *(extra if isinstance(extra, list) else [extra])]
        logger = [*self.config_init.loggers.values()] if self.command == "fit" else False
        return super().instantiate_trainer(callbacks=callbacks, logger=logger, **kwargs)

    def before_instantiate_classes(self) -> None:
        """Checks what the classes themselves can't say clearly.

        Raises:
            ConfigError: a class that may not be named, no folder for the run, no number of steps, validations that would
                fall within a step, or no model in the folder that the run is to begin from.
        """
        check_class_paths(self.config.as_dict())
        self.left_aside = take_config(self.config.model)
        if not self.config.run_dir:
            raise ConfigError("run_dir is not given; name the run's folder, such as --run_dir runs/first")
        if self.config.run_dir.startswith("~"):
            raise ConfigError(f"run_dir is '{self.config.run_dir}'; ~ is the shell's, write the folder out")
        trainer = self.config.trainer
        for key, neutral in {"limit_train_batches": (None,), "overfit_batches": (0,), "max_epochs": (None, -1)}.items():
            if trainer[key] not in neutral:
                raise ConfigError(
                    f"trainer.{key} is {trainer[key]}: the length of a run is trainer.max_steps alone; leave {key} at"
                    f" {'null' if neutral[-1] is None else neutral[-1]}"
                )
        if trainer.max_steps is None or trainer.max_steps < 1:
            raise ConfigError(
                f"trainer.max_steps is {'null' if trainer.max_steps is None else trainer.max_steps}; phases are shares of"
                " a fixed number of steps: name it, such as --trainer.max_steps 1000"
            )
        accumulate = trainer.accumulate_grad_batches or 1
        every, batches = trainer.val_check_interval, trainer.max_steps * accumulate
        if isinstance(every, int) and every < 1 and trainer.limit_val_batches != 0:
            raise ConfigError(f"trainer.val_check_interval is {every}; it must be at least 1 batch")
        in_batches = int(batches * every) if isinstance(every, float) else every
        if isinstance(in_batches, int) and in_batches % accumulate:
            raise ConfigError(
                f"trainer.val_check_interval is {every}: a validation, and its checkpoint, would fall within a step of"
                f" {accumulate} batches (accumulate_grad_batches), where no run can go on; choose a multiple of that"
            )

    def instantiate_classes(self) -> None:
        """Builds module, data module and trainer.

        Raises:
            ConfigError: a class refuses the values that it was given.
        """
        try:
            self._build()
        except (UserError, OSError):
            raise
        except Exception as error:
            if told := as_user_error(error):
                raise told from error
            raise

    def _build(self) -> None:
        super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        """Has checkpoints written whole or not at all, unless the YAML names a plugin for that, and signals left to us.

        Raises:
            ConfigError: such a plugin, where it would be left aside.
        """
        io = self.trainer.strategy.checkpoint_io
        if isinstance(self.trainer.strategy, FullyShardedStrategy) and type(io) is not TorchCheckpointIO:
            raise ConfigError(
                f"trainer.plugins names {type(io).__name__}, which sharded checkpoints are not written by; leave it out, or"
                " choose another trainer.strategy"
            )
        if type(io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = WholeCheckpointIO()
        environment = getattr(self.trainer.strategy, "cluster_environment", None)
        if isinstance(environment, SLURMEnvironment):  # a warning is GracefulStop's, and requeueing the job script's
            environment.auto_requeue = False


def read_command_line(
    kind: type[CommandLine],
    name: str,
    arguments: list[str],
    description: str,
    save_config: type[SaveConfigCallback] | None = None,
) -> CommandLine:
    """Parses options and YAML, and builds what they name.

    Args:
        kind: TSTCommandLine, or a class of it that builds less.
        name: of the command.
        arguments: the words after it.
        description: of the command, for its help.
        save_config: how the resolved configuration is saved; None for not at all.

    Raises:
        ConfigError: bad options or values.
    """
    # So that ${run_dir} means the root of the YAML, and no s3:// of the data is fetched as if it were one.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True, config_read_mode_fsspec_enabled=False)
    quieten()
    _read_whole_numbers_as_int()
    try:
        return kind(
            name,
            save_config_callback=save_config,
            parser_class=RunParser,
            parser_kwargs={
                "parser_mode": "omegaconf+",
                "allow_abbrev": False,
                "prog": f"tst {name}",
                "description": description,
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=1,
            args=arguments,
            run=False,
        )
    except yaml.YAMLError as error:
        raise ConfigError(f"a value can't be written as YAML: {one_line(str(error))}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"a ${{...}} can't be resolved: {one_line(str(error))}") from error


def _read_whole_numbers_as_int() -> None:
    """Puts int before float in the trainer's types, as Lightning wrote them.

    ``typing`` caches unions whatever their order, so where torch asked for ``Union[float, int]`` shortly before (2.11
    does), the parser would read ``limit_val_batches: 1``, one batch, as 1.0, all of them.
    """
    hints = Trainer.__init__.__annotations__
    for name, hint in hints.items():
        if set(get_args(hint)) == {int, float, type(None)}:
            hints[name] = int | float | None
