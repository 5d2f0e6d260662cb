"""The pool with processes that train nothing: order, failures, refusals, signals."""

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.compare.run_folders import record
from tests.sweep.plans import finish, plan_of, stand_in
from tst_lightning.errors import ConfigError, Stopped
from tst_lightning.sweep import process, records
from tst_lightning.sweep.cases import Case
from tst_lightning.sweep.devices import Device
from tst_lightning.sweep.plan import Plan
from tst_lightning.sweep.pool import Pool
from tst_lightning.sweep.process import last_line
from tst_lightning.sweep.queues import LocalQueue
from tst_lightning.sweep.records import is_held, locked, read_ending
from tst_lightning.sweep.results import read_results


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(process, "command", stand_in)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "record.json").write_text(json.dumps(record()))

    def start(plan: Plan, devices: int = 1, cases: Sequence[Case] | None = None) -> list[str]:
        said: list[str] = []
        places = [Device(f"place {i}", {}) for i in range(devices)]
        Pool(plan, LocalQueue(plan.cases if cases is None else cases), places, said.append).run()
        return said

    return start


def statuses(plan: Plan) -> dict[str, tuple[str, int | None]]:
    return {result.case.name: (result.status, result.exit_code) for result in read_results(plan)}


def test_every_case_is_run_and_a_failure_leaves_the_others_be(tmp_path: Path, run: Any) -> None:
    plan = plan_of(tmp_path, {"loss": 3.0}, {"exit": 1}, {"loss": 2.0}, {"exit": 2}, {"loss": 1.0, "status": "stopped"})
    said = run(plan)
    assert statuses(plan) == {
        "loss3.0": ("finished", 0),
        "exit1": ("failed", 1),
        "loss2.0": ("finished", 0),
        "exit2": ("failed", 2),  # others were not refused, so it is this one's own
        "loss1.0-status_stopped": ("failed", 0),  # a time limit, or early stopping: not what was asked for
    }
    assert said[0] == "started   loss3.0 on place 0"
    assert said[1].startswith("finished  loss3.0 in ") and said[1].endswith(": 3.0000")
    assert "failed    exit1, exit code 1: made to fail" in said
    assert "a line" in (plan.run_dir(plan.cases[0]) / "log.txt").read_text()


def test_devices_work_side_by_side(tmp_path: Path, run: Any) -> None:
    """Each of two cases waits until the other has begun."""
    plan = plan_of(tmp_path, {"loss": 3.0, "wait": 1}, {"loss": 2.0, "wait": 1}, {"loss": 1.0})
    folders = [plan.run_dir(case) for case in plan.cases[:2]]
    both = threading.Thread(target=lambda: (until(lambda: all((f / "started").exists() for f in folders)), stop()))
    both.start()
    with pytest.raises(Stopped):
        run(plan, devices=2)
    both.join()
    assert not (plan.run_dir(plan.cases[2]) / "started").exists()


def test_the_first_refusal_ends_the_sweep_and_is_no_failure(tmp_path: Path, run: Any) -> None:
    plan = plan_of(tmp_path, {"exit": 2}, {"loss": 2.0})
    with pytest.raises(ConfigError, match="exit2 is refused, so nothing more is started: made to fail; mend the sweep"):
        run(plan)
    assert statuses(plan) == {"exit2": ("waiting", None), "loss2.0": ("waiting", None)}


def test_a_refusal_after_any_run_has_finished_is_a_failure(tmp_path: Path, run: Any) -> None:
    """In this process or an earlier one: else a case that is refused would stop the sweep whenever it is called."""
    plan = plan_of(tmp_path, {"exit": 2}, {"loss": 2.0}, {"loss": 4.0})
    finish(plan, plan.cases[2], 4.0)
    said = run(plan, cases=plan.cases[:2])
    assert "failed    exit2, exit code 2: made to fail" in said
    assert statuses(plan) == {"exit2": ("failed", 2), "loss2.0": ("finished", 0), "loss4.0": ("finished", 0)}


def test_a_failure_is_no_sign_that_the_sweep_fits(tmp_path: Path, run: Any) -> None:
    plan = plan_of(tmp_path, {"exit": 1}, {"exit": 2}, {"loss": 2.0})
    with pytest.raises(ConfigError, match="exit2 is refused, so nothing more is started"):
        run(plan)
    assert statuses(plan) == {"exit1": ("failed", 1), "exit2": ("waiting", None), "loss2.0": ("waiting", None)}


def test_a_run_that_another_process_holds_is_left_out(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_PATIENCE_SECONDS", 0.1)
    plan = plan_of(tmp_path, {"loss": 3.0}, {"loss": 2.0})
    with locked(plan.run_dir(plan.cases[0])):
        assert "left out  loss3.0: running elsewhere, another process holds its folder" in run(plan)
        assert statuses(plan) == {"loss3.0": ("running", None), "loss2.0": ("finished", 0)}


def test_a_signal_is_handed_on_and_stopped_runs_wait(tmp_path: Path, run: Any) -> None:
    plan = plan_of(tmp_path, {"loss": 3.0, "wait": 1}, {"loss": 2.0})
    own = signal.signal(signal.SIGTERM, ours := lambda *_: None)
    threading.Thread(target=lambda: (until(started(plan)), stop())).start()
    try:
        with pytest.raises(Stopped) as stopped:
            run(plan)
    finally:
        after = signal.signal(signal.SIGTERM, own)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert {status for status, _ in statuses(plan).values()} == {"waiting"}
    assert not is_held(plan.run_dir(plan.cases[0]))
    assert after is ours


def test_a_second_signal_kills(tmp_path: Path, run: Any) -> None:
    plan = plan_of(tmp_path, {"loss": 3.0, "wait": "deaf"})
    told = (plan.run_dir(plan.cases[0]) / "told").exists
    threading.Thread(target=lambda: (until(started(plan)), stop(), until(told), stop())).start()
    with pytest.raises(Stopped):
        run(plan)
    assert read_ending(plan.run_dir(plan.cases[0]), plan.cases[0]) is None


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGRTMIN + 1, f"signal {signal.SIGRTMIN + 1}")]
)
def test_a_run_that_the_system_kills_has_failed(tmp_path: Path, run: Any, number: int, name: str) -> None:
    plan = plan_of(tmp_path, {"loss": 3.0})
    kill = f"import os; print('at work', flush=True); os.kill(os.getpid(), {int(number)})"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "command", lambda case, run_dir: [process.sys.executable, "-c", kill])
        run(plan)
    (result,) = read_results(plan)
    assert (result.status, result.exit_code) == ("failed", -number)
    assert result.message == f"killed by {name}; its last line was: at work"


def test_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("error: an earlier start\n")
    begin = log.stat().st_size
    assert last_line(log, begin) == "nothing was printed"
    with open(log, "a") as file:
        file.write("1/9\r2/9\rerror: this one\nTraceback\n  File x\n\n")
    assert last_line(log, begin) == "this one"
    log.write_text("Traceback\n  File x\nValueError: bad\n\n")
    assert last_line(log) == "ValueError: bad"


def started(plan: Plan) -> Any:
    return (plan.run_dir(plan.cases[0]) / "started").exists


def until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
