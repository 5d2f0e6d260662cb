"""``tst fit``, ``tst validate`` and ``tst test``: Lightning's command line over the module and the data module."""

import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from jsonargparse import set_parsing_settings
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf.errors import OmegaConfBaseException

from tst_lightning.checkpoint_io import WholeCheckpointIO
from tst_lightning.commands.class_paths import check_class_paths
from tst_lightning.commands.initial_weights import take_config
from tst_lightning.commands.launch import SameCheckpoint, check_launch, let_the_first_process_end
from tst_lightning.commands.limits import check_memory, check_numbers, check_processes
from tst_lightning.commands.lost_process import is_lost_process, said_by_another
from tst_lightning.commands.parser import one_line
from tst_lightning.commands.quiet import quieten
from tst_lightning.commands.refusals import as_user_error, is_of_restoring
from tst_lightning.commands.run_folder import (
    check_same_data,
    check_same_run,
    find_checkpoint,
    holds_checkpoints,
    mark_finished,
    read_status,
)
from tst_lightning.commands.run_lock import trained_in
from tst_lightning.commands.run_parser import RunParser
from tst_lightning.commands.scoring import check_out, check_tokenizer, find_scored, said, write_scores
from tst_lightning.data.datamodule import TokenDataModule
from tst_lightning.errors import ConfigError, RunError, Stopped, UserError
from tst_lightning.fully_sharded import FullyShardedStrategy
from tst_lightning.modeling import check_trainable
from tst_lightning.module import SuperpositionModule
from tst_lightning.whole_file import write_whole

DESCRIPTIONS = {
    "fit": "Trains a model through its phases.",
    "validate": "Scores a checkpoint, or a Hugging Face model, on the validation split of any shards.",
    "test": "As validate, under the test/ tags.",
}


_SCORING = ("validate", "test")


class _SaveConfig(SaveConfigCallback):
    """Saves the resolved configuration as ``config.yaml`` in the run's folder, once nothing was refused."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: data and checkpoint may still be refused."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            config = self.config.clone()
            config.ckpt_path = None  # the file describes the run, not one of its starts
            write_whole(Path(self.config.run_dir) / "config.yaml", self.parser.dump(config, skip_unset=False))


CommandLine = TypeVar("CommandLine", bound="TSTCommandLine")


class TSTCommandLine(LightningCLI):
    """Module, data module and trainer from one configuration; refuses to overwrite a run by accident.

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

    def fit(self) -> None:
        """Trains; a finished run is left as it is, an unfinished one goes on only if asked to.

        Raises:
            ConfigError: the folder holds a run of other settings, or ``--ckpt_path`` does not say to go on with it, or
                names a checkpoint after which there is nothing to train, or one of sharded weights where the run's are not
                (or the other way round).
        """
        run_dir = Path(self.config.run_dir)
        status = read_status(run_dir)
        if status or holds_checkpoints(run_dir):
            if self.config.ckpt_path is None:
                how = f"{status.status} at step {status.step} of {status.max_steps}" if status else "its record is gone"
                raise ConfigError(
                    f"'{run_dir}' already holds a run ({how}); go on with --ckpt_path last, or name another --run_dir"
                )
            check_same_run(run_dir, yaml.safe_load(self.parser.dump(self.config, skip_unset=False)))
        if status:
            check_same_data(run_dir, status, self.datamodule.hashes)
            if status.status == "finished" and status.step >= self.trainer.max_steps:
                if self.trainer.is_global_zero:
                    print(f"reusing   the finished run in {run_dir} ({status.step:,} steps)")
                return
        found = find_checkpoint(run_dir, self.config.ckpt_path)
        if status and status.step and found is None and self.trainer.is_global_zero:
            print(
                f"note      '{run_dir}' holds no checkpoint of the run that was at step {status.step:,}: it begins anew"
            )
        if found and found.step >= self.trainer.max_steps:
            if not (status and found.path.resolve().parent == (run_dir / "checkpoints").resolve()):
                raise ConfigError(
                    f"checkpoint '{found.path}' is of step {found.step:,}, and trainer.max_steps is"
                    f" {self.trainer.max_steps:,}: no step is left to take; raise max_steps, or name another --ckpt_path"
                )
            mark_finished(run_dir, found.step)
            print(f"finished  {run_dir}: {found.step:,} steps, all taken before it was killed")
            return
        if found and found.path.is_dir() != isinstance(self.trainer.strategy, FullyShardedStrategy):
            kind, wrote = ("sharded", "fsdp2") if found.path.is_dir() else ("a single file", "single or ddp")
            raise ConfigError(
                f"checkpoint '{found.path}' is {kind}, which this trainer.strategy does not go on from; set it as it was"
                f" when the checkpoint was written (configs/trainer/: {wrote})"
            )
        if self.left_aside and self.trainer.is_global_zero:
            print(f"note      {self.left_aside}")
        self._call(self.trainer.fit, found and found.path, found.step if found else 0)
        loss = self.trainer.callback_metrics.get("val/loss")
        scored = "" if loss is None else f", validation loss {loss:.4f}"
        steps = self.trainer.global_step
        if not self.trainer.is_global_zero:
            return
        if steps >= self.trainer.max_steps:
            print(f"finished  {run_dir}: {steps:,} steps{scored}")
        else:  # a time limit, or early stopping
            print(f"stopped   {run_dir}: {steps:,} of {self.trainer.max_steps:,} steps{scored}")

    def validate(self) -> None:
        """Scores a checkpoint, the run's last one unless told, or a Hugging Face folder, on the validation split.

        Raises:
            ConfigError: there is none, it does not fit the shards, or ``--out`` names a file that is there.
            RunError: it is damaged.
        """
        self._score(self.trainer.validate)

    def test(self) -> None:
        """As :meth:`validate`, under the ``test/`` tags."""
        self._score(self.trainer.test)

    def _score(self, method: Callable[..., Any]) -> None:
        out = self.config.out
        check_out(out)
        limit = "limit_val_batches" if self.command == "validate" else "limit_test_batches"
        if getattr(self.trainer, limit) == 0:
            raise ConfigError(f"trainer.{limit} is 0, so nothing would be scored; leave it out, or raise it")
        scored = find_scored(Path(self.config.run_dir), self.config.ckpt_path)
        check_tokenizer(scored, self.datamodule)
        if scored.config is None:
            self._call(method, scored.path)
        else:
            self.model.config, self.model.initial_weights = scored.config, str(scored.path)
            self._call(method, None)
        if self.trainer.is_global_zero:
            print(said(scored, self.model, self.datamodule))
            if out is not None:
                write_scores(Path(out), scored, self.model, self.datamodule, self.trainer)
                print(f"written   {out}")

    def _call(self, method: Callable[..., Any], checkpoint: Path | None, step: int = 0) -> None:
        trainer = self.trainer
        try:
            self._run(method, checkpoint, step)
        except UserError as error:
            if trainer.world_size > 1 and said_by_another(str(error), trainer):
                raise SystemExit(error.exit_code) from error
            raise
        except Exception as error:
            if not is_lost_process(error):
                raise
            if not trainer.is_global_zero and trainer.global_step <= step:
                raise SystemExit(1) from error  # the first process began the others, and says why it ended
            raise RunError(
                "another process of the run ended (a rank, or one that reads data); its own message or the system's log"
                " says why. Go on with the same command and --ckpt_path last"
            ) from error

    def _run(self, method: Callable[..., Any], checkpoint: Path | None, step: int) -> None:
        trainer, sizes = self.trainer, ""
        try:
            check_launch(trainer)
            let_the_first_process_end()
            check_trainable(self.model.config)
            sizes = check_memory(self.model.config, self.datamodule, trainer)
            self.model.has_checkpoint = checkpoint is not None
            trainer.callbacks.append(SameCheckpoint(checkpoint))  # type: ignore[attr-defined]
            run_dir = Path(self.config.run_dir)
            writes = method == trainer.fit and trainer.is_global_zero
            with trained_in(run_dir, trainer, step) if writes else nullcontext():
                method(self.model, datamodule=self.datamodule, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as error:  # how Lightning ends at a signal that GracefulStop has not taken over
            number = signal.SIGTERM if isinstance(error, SIGTERMException) else signal.SIGINT
            raise Stopped(
                f"stopped by {number.name} outside of training, nothing was saved; give the same command again", number
            ) from error
        except Exception as error:
            if isinstance(error, UserError | OSError) or is_lost_process(error):
                raise
            if checkpoint and is_of_restoring(error):
                raise RunError(
                    f"checkpoint '{checkpoint}' can't be gone on from ({type(error).__name__}:"
                    f" {one_line(str(error))[:200]}); it was altered, or is of another version: name another --ckpt_path"
                ) from error
            configured = [*trainer.loggers, *trainer.callbacks, *trainer.optimizers]  # type: ignore[attr-defined]
            if told := as_user_error(error, configured, trainer.global_step > step, sizes):
                raise told from error
            raise


def _read_whole_numbers_as_int() -> None:
    """Puts int before float in the trainer's types, as Lightning wrote them.

    ``typing`` caches unions whatever their order, so where torch asked for ``Union[float, int]`` shortly before (2.11
    does), the parser would read ``limit_val_batches: 1``, one batch, as 1.0, all of them.
    """
    hints = Trainer.__init__.__annotations__
    for name, hint in hints.items():
        if set(get_args(hint)) == {int, float, type(None)}:
            hints[name] = int | float | None


def main(name: str, arguments: list[str]) -> None:
    """Runs one of Lightning's commands.

    Args:
        name: fit, validate or test.
        arguments: the words after it.

    Raises:
        ConfigError: bad options or values.
        RunError: something failed on the way.
    """
    command_line = read_command_line(TSTCommandLine, name, arguments, DESCRIPTIONS[name], _SaveConfig)
    getattr(command_line, name)()


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
