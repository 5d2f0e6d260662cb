"""Of two processes that train in one folder the second is refused, and a killed one leaves nothing locked."""

import errno
import fcntl
import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import tiny_config
from tests.processes import Command
from tst_lightning.__main__ import main
from tst_lightning.commands.run_folder import mark_finished
from tst_lightning.commands.run_lock import locked
from tst_lightning.errors import ConfigError


def test_one_process_at_a_time(tmp_path: Path, shards: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, path = tmp_path / "run", tmp_path / "run.yaml"
    long = {"trainer__max_steps": 100_000, "trainer__val_check_interval": 5, "data__num_workers": 1}
    path.write_text(yaml.safe_dump(tiny_config(folder, shards, **long)))
    words = ["fit", "--config", str(path), "--ckpt_path", "last"]
    first = Command(*words)
    try:
        ends = time.monotonic() + 100
        while not (folder / "checkpoints" / "last.ckpt").exists():
            assert first.poll() is None and time.monotonic() < ends
            time.sleep(0.1)
        assert main(words) == 2
        refused = capfd.readouterr().err
        assert f"another process is training in '{folder}'; wait for its end, stop it, or name another" in refused
        assert first.poll() is None
        with pytest.raises(ConfigError, match="another process"), locked(folder):
            pass
        os.kill(first.pid, signal.SIGKILL)  # not those that read its data
        while first.poll() is None:
            time.sleep(0.01)
        with locked(folder):
            pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
        first.communicate()


def test_a_file_system_without_locks_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with locked(tmp_path):
        assert "can't be locked (Function not implemented): nothing keeps a second process" in capfd.readouterr().out


def test_what_another_process_writes_at_that_moment_stays(
    fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "run" / "run.json.partial"

    def held(*_: object) -> None:
        beside.touch()
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "lockf", held)
    code, said = fit("run")
    assert code == 2 and "another process is training" in said
    assert beside.exists()


def test_a_run_about_to_say_that_it_is_finished_is_left_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "run.json"
    record.write_text('{"status": "running"}')

    def held(*_: object) -> None:
        raise BlockingIOError

    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="another process is training"):
        patch.setattr(fcntl, "lockf", held)
        mark_finished(tmp_path, 20)
    assert record.read_text() == '{"status": "running"}'
    mark_finished(tmp_path, 20)
    assert json.loads(record.read_text()) == {"status": "finished", "step": 20}


def test_a_lock_that_was_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "lockf", lambda *_: (tmp_path / ".lock").unlink())
    with pytest.raises(ConfigError, match="another process"), locked(tmp_path):
        pass
