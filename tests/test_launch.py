"""The commands of docs/launch.md for several machines, run as they stand there, with small numbers behind them.

The machines are processes of this one, over the loopback. SLURM is not here: the script for it runs, with another one in
the place of srun that gives processes the same variables.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.callbacks.recorder import RECORD, recorded
from tests.conftest import ROOT
from tests.processes import Command, free_port
from tests.test_fully_sharded import logged_losses
from tests.test_resume import last, signal_at

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SMALL = """--model.config.init_args.vocab_size 300 --model.config.init_args.hidden_size 32
 --model.config.init_args.num_attention_heads 2 --model.config.init_args.num_key_value_heads 2
 --model.config.init_args.num_hidden_layers 2 --model.phases.superposition.init_args.share 0.5 --data.seq_len 16
 --data.batch_size 2 --data.pool_blocks 4 --model.lr_schedule.warmup_steps 1 --trainer.accelerator cpu
 --trainer.max_steps 8 --trainer.val_check_interval 4 --trainer.log_every_n_steps 1"""
SRUN = """#!/usr/bin/env bash
# As srun does: starts the tasks with their variables, and ends with the highest of their exit codes.
while [[ $1 == --* ]]; do shift; done
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
  SLURM_STEP_ID=0 SLURM_PROCID=$rank SLURM_LOCALID=$((rank % SLURM_NTASKS_PER_NODE)) \
    SLURM_NODEID=$((rank / SLURM_NTASKS_PER_NODE)) "$@" &
done
code=0
for job in $(jobs -p); do wait "$job" || { was=$?; ((was > code)) && code=$was; }; done
exit "$code"
"""


def shown(program: str, *parts: str) -> list[list[str]]:
    """The words of the page's commands of a program that contain all of some parts."""
    lines = re.findall(r"^\$ (.*)$", (ROOT / "docs" / "launch.md").read_text(), re.MULTILINE)
    found = [shlex.split(line) for line in lines if f"/{program} " in line and all(part in line for part in parts)]
    assert found, (program, parts)
    return found


def small(words: list[str], shards: Path, folder: Path, port: int) -> list[str]:
    """A shown command on other data, in another folder, with small numbers, at a free port."""
    words = [word.replace("29500", str(port)) for word in words]
    return [*words, *SMALL.split(), "--data.shards", str(shards), "--run_dir", str(folder)]


def tst(words: list[str], *more: str) -> Command:
    """Starts a shown command of ``tst`` with the variables that stand before it."""
    start = next(index for index, word in enumerate(words) if word.endswith("/tst"))
    given = dict(word.split("=", 1) for word in words[:start])
    return Command(*words[start + 1 :], *more, environment=os.environ | given)


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = (last(folder)["state_dict"] for folder in (one, other))
    assert a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory: pytest.TempPathFactory, few: Path) -> Path:
    """A run of two processes that Lightning starts on one machine."""
    folder = tmp_path_factory.mktemp("launch") / "one"
    [words] = shown("tst", "trainer/ddp.yaml", "--trainer.devices 2")
    command = tst(small(words, few, folder, free_port()), *RECORD)
    _, said = command.communicate()
    assert command.returncode == 0, said
    return folder


def on_two_machines(shards: Path, folder: Path, *second: str, code: int = 0) -> str:
    """Starts or goes on with a run by Lightning's launcher on two machines; what both said.

    Args:
        shards: to read.
        folder: of the run.
        second: words for the second machine alone.
        code: exit code of both.
    """
    port = free_port()
    words = [small(shown_words, shards, folder, port) for shown_words in shown("tst", "NODE_RANK")]
    machines = [tst(words[0], "--ckpt_path", "last"), tst(words[1], "--ckpt_path", "last", *second)]
    said = "".join(part for machine in machines for part in machine.communicate())
    assert [machine.returncode for machine in machines] == [code, code], said
    return said


def test_a_signal_to_one_machine_stops_all(one_machine: Path, few: Path, tmp_path: Path) -> None:
    """Gone on with, they end bit for bit where one machine does; but not where they don't see the same folder."""
    said = on_two_machines(few, tmp_path / "run", *signal_at(5), code=128 + signal.SIGTERM)
    assert said.count("stopped by SIGTERM after step 6 of 8") == 2, "each machine says it once"
    said = on_two_machines(few, tmp_path / "run", "--run_dir", str(tmp_path / "other"), code=2)
    assert "don't find the same checkpoint" in said and not (tmp_path / "other").exists()
    assert last(tmp_path / "run")["global_step"] == 6
    on_two_machines(few, tmp_path / "run")
    assert_same_weights(one_machine, tmp_path / "run")


def test_torchrun_on_two_machines(one_machine: Path, few: Path, tmp_path: Path) -> None:
    """Sharded: the same first weights and rows, and losses that differ in rounding alone."""
    port = free_port()
    machines = []
    for words in shown("torchrun", "--node-rank"):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *small(words, few, tmp_path / "run", port)[1:],
            *RECORD,
        ]
        machines.append(
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    for machine in machines:
        said, _ = machine.communicate(timeout=200)
        assert machine.returncode == 0, said
    for rank in (0, 1):
        assert recorded(tmp_path / "run", rank) == recorded(one_machine, rank)
    assert logged_losses(tmp_path / "run") == pytest.approx(logged_losses(one_machine), rel=2e-5)


def test_slurm_script_queues_itself_again(one_machine: Path, few: Path, tmp_path: Path) -> None:
    """Warned by SIGUSR1 before its time is up, it writes a checkpoint and asks for the same job again.

    Another launcher may go on with what it began.
    """
    for name, text in {"srun": SRUN, "scontrol": f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n'}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "42", "SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "2", "SLURM_NTASKS": "2"}
    job |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(free_port())}
    job |= {"TST": str(Path(sys.executable).parent / "tst"), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job |= {"PYTHONPATH": str(ROOT)}  # for the callback that sends the signal
    configs = ["--config", "configs/quickstart/tst.yaml", "--config", "configs/trainer/ddp.yaml"]
    words = small([*configs, *signal_at(5, signal.SIGUSR1)], few, tmp_path / "run", free_port())
    script = ["bash", "docs/slurm.sbatch", *words]
    done = subprocess.run(script, cwd=ROOT, env=os.environ | job, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGUSR1, done.stderr
    assert "error: stopped by SIGUSR1 after step 6 of 8" in done.stderr
    assert (tmp_path / "asked").read_text() == "requeue 42\n"
    on_two_machines(few, tmp_path / "run")
    assert_same_weights(one_machine, tmp_path / "run")
