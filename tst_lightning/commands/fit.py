"""``tst fit``, ``tst validate`` and ``tst test``: Lightning's command line over the module and the data module."""

import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from tst_lightning.commands.command_line import TSTCommandLine, read_command_line
from tst_lightning.commands.host_memory import KeepFreedMemory
from tst_lightning.commands.launch import SameCheckpoint, check_launch, let_the_first_process_end
from tst_lightning.commands.limits import check_memory
from tst_lightning.commands.lost_process import is_lost_process, said_by_another
from tst_lightning.commands.parser import one_line
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
from tst_lightning.commands.scoring import check_out, check_tokenizer, find_scored, said, write_scores
from tst_lightning.errors import ConfigError, RunError, Stopped, UserError
from tst_lightning.fully_sharded import FullyShardedStrategy
from tst_lightning.modeling import check_trainable
from tst_lightning.whole_file import write_whole

DESCRIPTIONS = {
    "fit": "Trains a model through its phases.",
    "validate": "Scores a checkpoint, or a Hugging Face model, on the validation split of any shards.",
    "test": "As validate, under the test/ tags.",
}


class _SaveConfig(SaveConfigCallback):
    """Saves the resolved configuration as ``config.yaml`` in the run's folder, once nothing was refused."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: data and checkpoint may still be refused."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            config = self.config.clone()
            config.ckpt_path = None  # the file describes the run, not one of its starts
            write_whole(Path(self.config.run_dir) / "config.yaml", self.parser.dump(config, skip_unset=False))


class FitCommandLine(TSTCommandLine):
    """Trains and scores; refuses to overwrite a run by accident."""

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
            trainer.callbacks += [SameCheckpoint(checkpoint), KeepFreedMemory()]  # type: ignore[attr-defined]
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


def main(name: str, arguments: list[str]) -> None:
    """Runs one of Lightning's commands.

    Args:
        name: fit, validate or test.
        arguments: the words after it.

    Raises:
        ConfigError: bad options or values.
        RunError: something failed on the way.
    """
    command_line = read_command_line(FitCommandLine, name, arguments, DESCRIPTIONS[name], _SaveConfig)
    getattr(command_line, name)()
