"""Weights, gradients and optimizer state cut over all processes: FSDP2, through Lightning's strategy for it."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, wait
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from tst_lightning.checkpoint_io import refusal_of, remove_leftovers, sync_folder
from tst_lightning.errors import ConfigError, RunError
from tst_lightning.modeling import CausalLM, decoder_layers
from tst_lightning.sharded_checkpoint import PARTIAL, REPLACED, TRAINER_STATE, check_bytes, failure

# A process that ends by an error waits so long for what it is still writing.
LAST_WAIT_SECONDS = 60


class FullyShardedStrategy(ModelParallelStrategy):
    """Each process keeps a part of every weight, of its gradient and of its optimizer state, and gathers a layer's
    weights whole while the layer runs. Checkpoints are folders to which each process writes its part.

    Every transformer layer is a unit of FSDP2, embeddings, final norm and LM head together another. With ``bf16-mixed``
    weights are gathered in bfloat16 and gradients summed in float32; master weights stay float32.

    Args:
        reshard_after_forward: let a layer's gathered weights go after its forward pass, and gather them again for its
            backward: least memory. False keeps them in between: a third less to send, all weights in memory once a step.
        asynchronous: copy what a checkpoint holds to the machine's memory, and write it while training goes on. The next
            checkpoint, and the end of the run, wait for it.
        process_group_backend: of torch.distributed; None takes that of the device.
        timeout: for how long a process waits for the others, at the start and within a step, before it gives the run up.
    """

    def __init__(
        self,
        reshard_after_forward: bool = True,
        asynchronous: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        super().__init__(tensor_parallel_size=1, process_group_backend=process_group_backend, timeout=timeout)
        self.reshard_after_forward = reshard_after_forward
        self.asynchronous = asynchronous
        self._writers: dist.ProcessGroup | None = None
        self._pending: tuple[Future, Path] | None = None
        self._to_remove: list[str | Path] = []

    def setup_environment(self) -> None:
        """As inherited, over all processes of the run; and a group in which those that write can talk aside."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
        if self.asynchronous:
            self._writers = dist.new_group(backend="gloo")  # type: ignore[assignment]

    def shard(self, model: CausalLM) -> None:
        """Cuts a model over the processes, layer by layer.

        Args:
            model: on the meta device; its values are given afterwards.

        Raises:
            ConfigError: its layers can't be found.
        """
        layers = decoder_layers(model.lm)
        if layers is None:
            raise ConfigError(
                f"the layers of {type(model.lm).__name__} can't be found, so that it can't be sharded; use"
                " trainer.strategy: ddp"
            )
        mesh = self.device_mesh["data_parallel"]
        half = {"bf16-mixed": torch.bfloat16}.get(str(self.precision_plugin.precision))
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
        for layer in layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=self.reshard_after_forward)
        # Its weights are needed again as soon as the backward pass begins.
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)

    # -- checkpoints --------------------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Writes beside the folder and then replaces it: a killed run or a full disk leaves the previous one whole.

        Raises:
            RunError: this one, or an asynchronous one before it, can't be written.
        """
        path = Path(self.broadcast(filepath))
        self.finish_saving()
        state = {"state_dict": checkpoint.pop("state_dict")}
        state |= {f"optimizer_{i}": one for i, one in enumerate(checkpoint.pop("optimizer_states", []))}
        beside = path.with_name(path.name + PARTIAL)
        self._write(path, lambda: _begin(beside, checkpoint) if self.is_global_zero else None)
        if self.asynchronous:
            written = dcp.async_save(state, checkpoint_id=beside, process_group=self._writers)
            assert isinstance(written, Future)
            # The first process is done when all are: it writes the table of contents.
            replace = partial(_replace, path, beside) if self.is_global_zero else None
            self._pending = _and_then(written, replace), path
            return
        self._write(path, lambda: dcp.save(state, checkpoint_id=beside))
        self._write(path, lambda: _replace(path, beside) if self.is_global_zero else None)

    def finish_saving(self) -> None:
        """Waits for the checkpoint that is being written, if any.

        Raises:
            RunError: it can't be written.
        """
        if self._pending is None:
            return
        (future, path), self._pending = self._pending, None
        self._write(path, future.result)
        for old in self._to_remove:
            super().remove_checkpoint(old)
        self._to_remove = []

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Removes a checkpoint that another one has replaced, once that one is on disk."""
        if self._pending is None:
            return super().remove_checkpoint(filepath)
        self._to_remove.append(filepath)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """As inherited, after each process has compared a share of the files with their checksums. A single file's weights
        are cut on the way, to be scored. A whole one that this run, killed, had not put in its place yet takes it before
        training goes on: it is the newest there is, until the next one is written.

        Raises:
            RunError: the checkpoint was altered since it was written.
        """
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            self._agree(path, lambda: check_bytes(path, self.global_rank, self.world_size))
        try:
            state = super().load_checkpoint(path, weights_only)
        except CheckpointException as error:
            raise RunError(f"checkpoint '{path}' can't be gone on from ({failure(error)})") from error
        if path.name.endswith(PARTIAL) and self._goes_on_in(path.parent):
            place = path.with_name(path.name.removesuffix(PARTIAL))
            self.barrier()  # others still read it where it is
            self._agree(path, lambda: _replace(place, path) if self.is_global_zero else None)
        return state

    def _goes_on_in(self, checkpoints: Path) -> bool:
        """Whether this is training, and in the run that a folder of checkpoints is of; another's is left as it is."""
        module = self.lightning_module
        if module is None or module.trainer.state.fn != TrainerFn.FITTING:
            return False
        return checkpoints.resolve().parent == Path(module.trainer.default_root_dir).resolve()

    def on_exception(self, exception: BaseException) -> None:
        """Lets the checkpoint that is being written come to its end, without a word to the other processes: they may be
        within a training step, and wait there for this one.
        """
        if self._pending is not None:
            wait([self._pending[0]], timeout=LAST_WAIT_SECONDS)
            self._pending = None

    def teardown(self) -> None:
        """As inherited, once the last checkpoint is written."""
        try:
            self.finish_saving()
        finally:
            super().teardown()

    def _agree(self, path: Path, act: Callable[[], Any]) -> None:
        """Does something in each process; what one of them refuses ends all, with its words."""
        refused, cause = None, None
        try:
            act()
        except (Exception, CheckpointException) as error:
            refused, cause = str(_as_run_error(path, error)), error
        said: list[str | None] = [None] * self.world_size
        dist.all_gather_object(said, refused)
        if told := next(filter(None, said), None):
            raise RunError(told) from cause

    def _write(self, path: Path, act: Callable[[], Any]) -> None:
        """As :meth:`_agree`; what was begun and can't be written is removed."""
        try:
            self._agree(path, act)
        except RunError:
            if self.is_global_zero:
                remove_leftovers(path.parent)
            raise


def _and_then(first: Future, act: Callable[[], None] | None) -> Future:
    """Done when both are. The future's own callbacks run after those that wait for it have gone on."""
    both: Future = Future()

    def go_on(done: Future) -> None:
        try:
            done.result()
            if act is not None:
                act()
        except BaseException as error:
            both.set_exception(error)
        else:
            both.set_result(None)

    first.add_done_callback(go_on)
    return both


def _as_run_error(path: Path, error: BaseException) -> RunError:
    if isinstance(error, RunError):
        return error
    if isinstance(error, CheckpointException):
        reason = failure(error)
    else:
        refusal = refusal_of(error)
        reason = (
            refusal.strerror if refusal and refusal.strerror else f"{type(error).__name__}: {error}".splitlines()[0]
        )
    return RunError(
        f"checkpoint '{path}' can't be written: {reason}; earlier ones are whole. Mend that (free some space), then go on"
        " with --ckpt_path last"
    )


def _begin(beside: Path, trainer_state: dict[str, Any]) -> None:
    remove_leftovers(beside.parent)
    beside.mkdir(parents=True)
    with open(beside / TRAINER_STATE, "wb") as file:
        torch.save(trainer_state, file)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, beside: Path) -> None:
    """Puts a whole checkpoint in its place. Killed between the two renamings, it leaves the previous one as REPLACED."""
    old = path.with_name(path.name + REPLACED)
    if path.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(path, old)
    else:
        path.unlink(missing_ok=True)
    os.replace(beside, path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)
