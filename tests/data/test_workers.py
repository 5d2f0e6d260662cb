"""A reading process that is killed ends the run with a message, and the run goes on from its last checkpoint."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from tests.processes import run
from tests.test_resume import assert_same_state, last
from tst_lightning.commands.lost_process import is_lost_process


class WorkerKiller(Callback):
    """Kills this process' children, all of which read data, with SIGKILL while step ``step`` is being taken."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            for child in multiprocessing.active_children():
                child.kill()


def test_a_killed_reading_process_ends_with_a_message_and_loses_nothing(fit: Any, tmp_path: Path) -> None:
    changes = {"data__num_workers": 2, "data__pool_blocks": 1}  # a pool of few blocks, so that the next is read soon
    assert fit("whole", **changes)[0] == 0
    killer = '--trainer.callbacks+={"class_path": "tests.data.test_workers.WorkerKiller", "init_args": {"step": 12}}'
    # In a process of its own: torch's handler speaks of a dead reading process whenever it gets to it.
    config = yaml.safe_load((tmp_path / "whole.yaml").read_text()) | {"run_dir": str(tmp_path / "run")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    done = run("fit", "--config", str(tmp_path / "run.yaml"), killer)
    assert done.returncode == 1, done.stderr
    assert "error: another process of the run ended" in done.stderr and "Traceback" not in done.stderr
    assert fit("run", "--ckpt_path", "last", **changes)[0] == 0
    assert_same_state(last(tmp_path / "whole"), last(tmp_path / "run"))


def test_what_a_logger_makes_of_a_killed_reading_process_is_seen_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = TensorBoardLogger(tmp_path)

    def interrupted(*_: Any) -> None:  # torch's handler may raise here as anywhere
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(logger.experiment, "add_scalar", interrupted)
    with pytest.raises(ValueError, match="you tried to log") as raised:
        logger.log_metrics({"train/loss": 1.0}, 3)
    assert is_lost_process(raised.value)
    assert not is_lost_process(ValueError("you tried to log"))
