"""What `tst fit` says before processes would wait in silence for others that nobody starts."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tst_lightning.commands.launch import _PatientObserver

SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
SLURM |= {"SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
SHARDED = {"class_path": "tst_lightning.fully_sharded.FullyShardedStrategy"}
TWO: dict[str, Any] = {"trainer__devices": 2, "trainer__strategy": "ddp"}


@pytest.mark.parametrize(
    ("environment", "changes", "says"),
    [
        ({"MASTER_ADDR": "a", "NODE_RANK": "0"}, {"trainer__num_nodes": 2}, ["num_nodes is 2", "MASTER_PORT not set"]),
        (
            {"MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "2"},
            {"trainer__num_nodes": 2},
            ["NODE_RANK is 2", "0 to 1"],
        ),
        (SLURM | {"SLURM_NTASKS": "2"}, TWO, ["no step of it", "1 others", "put srun before"]),
        # What SLURM calls the step of a batch script.
        (SLURM | {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "4294967291"}, TWO, ["put srun before"]),
        (
            SLURM | {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"},
            TWO | {"trainer__strategy": SHARDED},
            ["srun started 4 processes", "2 on each of 1 machines"],
        ),
        # Each of them would train the whole run, into one folder.
        (
            SLURM | {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"},
            {"trainer__devices": 1},
            ["srun started 2", "1 on each of 1"],
        ),
        (TORCHRUN | {"WORLD_SIZE": "2"}, {"trainer__devices": 1}, ["torchrun started 2", "1 on each of 1"]),
        (TORCHRUN | {"WORLD_SIZE": "1"}, TWO, ["torchrun started 1 processes", "2 on each of 1 machines"]),
    ],
)
def test_a_start_that_would_wait_is_refused(
    fit: Any, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], changes: dict[str, Any], says: list[str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, said = fit(**{"trainer__accelerator": "cpu"} | changes)
    assert code == 2
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in said, said
    for part in says:
        assert part in lines[0]


def test_one_device_in_a_job_of_several_tasks_trains(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a batch script that reserved several GPUs for a sweep, whose runs take one each."""
    for name, value in (SLURM | {"SLURM_NTASKS": "2"}).items():
        monkeypatch.setenv(name, value)
    assert fit(trainer__devices=1, trainer__max_steps=5)[0] == 0


def test_of_those_left_when_the_first_process_ends_one_that_hangs_is_killed() -> None:
    ends, hangs = (subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({t})"]) for t in (0, 300))
    _PatientObserver(os.getpid(), [ends, hangs])._end_others(time.monotonic() + 3)
    assert (ends.wait(), hangs.wait()) == (0, -signal.SIGKILL)
