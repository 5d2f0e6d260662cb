"""Cases shared through a real Optuna study: each taken once, none lost, whoever is killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.sweep.plans import finish, plan_of
from tst_lightning.errors import ConfigError
from tst_lightning.sweep.queues import StudyQueue
from tst_lightning.sweep.records import locked

pytest.importorskip("optuna")

# A worker with two devices; it leaves a line for each case that it takes.
WORKER = """
import sys, threading
from pathlib import Path
from tests.sweep.plans import plan_of
from tst_lightning.sweep.queues import StudyQueue
from tst_lightning.sweep.records import Ending, write_ending
tmp_path, me = Path(sys.argv[1]), sys.argv[2]
plan = plan_of(tmp_path, *({"a": i} for i in range(12)))
queue = StudyQueue(plan, f"journal:{tmp_path}/journal")
def work():
    while case := queue.take():
        with open(tmp_path / f"taken-{me}", "a") as file:
            print(case.name, file=file)
        fails = case.name in ("a3", "a4")
        write_ending(plan.run_dir(case), case, Ending("failed" if fails else "finished", int(fails), "", 0.0))
        (plan.run_dir(case) / "run.json").write_text('{"status": "finished"}')
        queue.done(case, None if fails else 3.0)
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_two_workers_take_every_case_once(tmp_path: Path) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), me], cwd=ROOT) for me in "xy"]
    assert [worker.wait() for worker in workers] == [0, 0]
    taken = [line for file in tmp_path.glob("taken-*") for line in file.read_text().split()]
    assert sorted(taken) == sorted(f"a{i}" for i in range(12))


def open_queue(tmp_path: Path, retry: bool = False) -> StudyQueue:
    plan = plan_of(tmp_path, {"a": 1}, {"a": 2})
    return StudyQueue(plan, f"journal:{tmp_path}/journal", retry)


def test_what_a_killed_worker_had_is_taken_up_on_request(tmp_path: Path) -> None:
    first = open_queue(tmp_path).take()  # and no more is heard of that worker
    assert first and first.name == "a1"
    other = open_queue(tmp_path)
    assert (case := other.take()) and case.name == "a2"
    other.done(case, None)
    assert other.take() is None
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out" / "a1"):  # its process lives on
        third = open_queue(tmp_path, retry=True)
        assert (case := third.take()) and case.name == "a2" and third.take() is None
        third.done(case, None)
    fourth = open_queue(tmp_path, retry=True)
    assert {case.name for _ in range(2) if (case := fourth.take())} == {"a1", "a2"}


def test_a_case_that_was_stopped_is_handed_out_again(tmp_path: Path) -> None:
    queue = open_queue(tmp_path)
    assert (case := queue.take())
    queue.put_back(case)
    assert {case.name for _ in range(2) if (case := queue.take())} == {"a1", "a2"} and queue.take() is None


def test_a_case_entered_twice_is_taken_once_and_a_finished_one_not_at_all(tmp_path: Path) -> None:
    queue = open_queue(tmp_path)
    plan = plan_of(tmp_path, {"a": 1}, {"a": 2})
    queue._enter(plan.cases[0], 1)  # as by a worker that started at the same moment
    queue._enter(plan.cases[1], 1)
    finish(plan, plan.cases[1], 3.0)
    assert (case := queue.take()) and case.name == "a1"
    assert queue.take() is None


def test_another_sweep_in_the_same_storage_keeps_to_itself(tmp_path: Path) -> None:
    open_queue(tmp_path)
    plan = plan_of(tmp_path, {"a": 3})
    other = StudyQueue(plan, f"journal:{tmp_path}/journal")
    assert (case := other.take()) and case.name == "a3" and other.take() is None


@pytest.mark.parametrize("storage", ["nonsense", "foo://x", "journal:/nonexistent/folder/journal", "journal:", ""])
def test_a_storage_that_can_not_be_opened(tmp_path: Path, storage: str) -> None:
    with pytest.raises(ConfigError, match=f"--storage '{storage}' can't be opened") as refused:
        StudyQueue(plan_of(tmp_path, {"a": 1}), storage)
    assert "\n" not in str(refused.value)


def test_without_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"--storage needs Optuna, .* pip install 'tst-lightning\[sweep\]'"):
        open_queue(tmp_path)
