"""What a run's folder says of its case, and who holds it."""

import fcntl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.sweep.plans import finish, plan_of
from tst_lightning.errors import RunError
from tst_lightning.sweep import records
from tst_lightning.sweep.records import LOCK_FILE, Ending, is_held, locked, read_ending, write_ending


def test_an_ending_holds_for_the_same_settings_and_files_alone(tmp_path: Path) -> None:
    (case,) = (plan := plan_of(tmp_path, {"a": 1})).cases
    run_dir = plan.run_dir(case)
    assert read_ending(run_dir, case) is None
    ending = Ending("failed", 1, "why", 2.0)
    run_dir.mkdir(parents=True)
    write_ending(run_dir, case, ending)
    assert read_ending(run_dir, case) == ending
    assert read_ending(run_dir, plan_of(tmp_path, {"a": 1}, set={"b": 2}).cases[0]) is None
    Path(case.configs[0]).write_text("data: {block_rows: 1}\n")
    assert read_ending(run_dir, case) is None


def test_a_run_is_finished_only_if_its_own_record_says_so(tmp_path: Path) -> None:
    (case,) = (plan := plan_of(tmp_path, {"a": 1})).cases
    finish(plan, case, 3.0)
    found = read_ending(plan.run_dir(case), case)
    assert found and found.status == "finished"
    (plan.run_dir(case) / "run.json").unlink()
    assert read_ending(plan.run_dir(case), case) is None


@pytest.mark.parametrize("text", ["{", "[]", "\0"])
def test_a_damaged_record(tmp_path: Path, text: str) -> None:
    (case,) = (plan := plan_of(tmp_path, {"a": 1})).cases
    finish(plan, case, 3.0)
    (plan.run_dir(case) / "case.json").write_text(text)
    with pytest.raises(RunError, match="case.json' is damaged"):
        read_ending(plan.run_dir(case), case)


def test_a_folder_is_held_as_long_as_a_process_lives_that_was_handed_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_PATIENCE_SECONDS", 0.1)
    assert not is_held(tmp_path)
    with locked(tmp_path) as lock:
        assert lock is not None and is_held(tmp_path)
        with locked(tmp_path) as second:
            assert second is None
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    assert is_held(tmp_path), "this process let go, its child did not"
    child.communicate(b"\n")
    assert not is_held(tmp_path)


def test_who_looks_is_not_taken_for_one_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking takes a moment; here it takes until the worker has asked for the lock and was told that it must wait."""
    (tmp_path / LOCK_FILE).touch()
    asked = threading.Event()

    def note(seconds: float) -> None:
        asked.set()
        sleep(seconds)

    sleep = time.sleep
    monkeypatch.setattr(records.time, "sleep", note)
    with open(tmp_path / LOCK_FILE, "rb") as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        assert not is_held(tmp_path), "two may look at once"
        leave = threading.Thread(target=lambda: (asked.wait(60), fcntl.flock(looker, fcntl.LOCK_UN)))
        leave.start()
        monkeypatch.setattr(records, "_PATIENCE_SECONDS", 60.0)
        with locked(tmp_path) as lock:
            assert lock is not None and asked.is_set()
        leave.join()


def test_looking_changes_nothing(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "none") and not list(tmp_path.iterdir())


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(records.fcntl, "flock", refuse)
    with pytest.raises(RunError, match=r"can't be locked \(Operation not supported\), so a run could be started twice"):
        with locked(tmp_path):
            pass
