"""How the processes of a run come together: what a launcher was not told is said at once, before they wait in silence."""

import atexit
import os
import subprocess
import time
from pathlib import Path

from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.strategies.launchers import subprocess_script
from lightning.pytorch import Callback, LightningModule, Trainer

from tst_lightning.errors import ConfigError
from tst_lightning.fully_sharded import LAST_WAIT_SECONDS

_ADDRESS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
# SLURM numbers from here on what is no step of a job, such as its batch script.
_NO_STEP = 0xFFFFFFF0


def check_launch(trainer: Trainer) -> None:
    """Refuses a start in which processes would wait for others that never come, or each train the whole run.

    Args:
        trainer: built.

    Raises:
        ConfigError: another number of processes was started than the configuration names, srun was left out, or several
            machines are not told where to meet.
    """
    devices, nodes = trainer.num_devices, trainer.num_nodes
    environment = getattr(trainer.strategy, "cluster_environment", None)  # a single device has none
    is_torchrun, is_slurm = (
        kind.detect() if environment is None else isinstance(environment, kind)
        for kind in (TorchElasticEnvironment, SLURMEnvironment)
    )
    if is_slurm and not _is_step():
        if devices * nodes > 1:
            raise ConfigError(
                f"this is a job of SLURM, but no step of it: one process would wait for {devices * nodes - 1} others that"
                " srun is to start; put srun before the command"
            )
    elif is_torchrun or is_slurm:
        launcher, variable = ("torchrun", "WORLD_SIZE") if is_torchrun else ("srun", "SLURM_NTASKS")
        started = int(os.environ[variable])
        if started != devices * nodes:
            raise ConfigError(
                f"{launcher} started {started} processes, but trainer.devices and trainer.num_nodes ask for {devices} on"
                f" each of {nodes} machines; make both agree"
            )
    elif nodes > 1 and isinstance(environment, LightningEnvironment):
        _check_address(nodes)


def _is_step() -> bool:
    return int(os.environ.get("SLURM_STEP_ID", _NO_STEP)) < _NO_STEP


def _check_address(nodes: int) -> None:
    missing = [name for name in _ADDRESS if name not in os.environ]
    if missing:
        raise ConfigError(
            f"trainer.num_nodes is {nodes}, but this is no job of a cluster, and {' and '.join(missing)} not set; set"
            " MASTER_ADDR and MASTER_PORT to those of the first machine and NODE_RANK to each machine's own number, from"
            " 0, or num_nodes to 1"
        )
    if not 0 <= int(os.environ["NODE_RANK"]) < nodes:
        raise ConfigError(f"NODE_RANK is {os.environ['NODE_RANK']}; of {nodes} machines it must be 0 to {nodes - 1}")


class _PatientObserver(subprocess_script._ChildProcessObserver):
    """Lightning's, which kills the first process and the others within 5 s of one's end. They may be writing the last
    checkpoint then, or saying why the run ended, and end by themselves; only one that hangs is to be killed.
    """

    def _terminate_all(self) -> None:
        end = time.monotonic() + LAST_WAIT_SECONDS + 10
        atexit.register(self._end_others, end)  # this thread ends with the first process
        time.sleep(LAST_WAIT_SECONDS + 10)
        super()._terminate_all()

    def _end_others(self, end: float) -> None:
        for process in self._child_processes:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def let_the_first_process_end() -> None:
    """Has a process that starts the others itself, by Lightning, come to its own end when one of them has ended."""
    subprocess_script._ChildProcessObserver = _PatientObserver  # type: ignore[misc]


class SameCheckpoint(Callback):
    """Refuses machines that don't see the same checkpoints: some would go on where others begin anew.

    Args:
        path: of the checkpoint that this process has found; None for none.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Asks all processes, as soon as they are connected.

        Raises:
            ConfigError: they found different ones, or only some of them one.
        """
        first = trainer.strategy.broadcast(self.path)
        if not trainer.strategy.reduce_boolean_decision(first == self.path):
            raise ConfigError(
                f"the processes of the run don't find the same checkpoint to go on from (the first one finds"
                f" {first or 'none'}); run_dir must lie on a file system that all machines share"
            )
