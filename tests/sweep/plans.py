"""Small plans over a file that no run reads, and a stand-in for `tst fit` that trains nothing."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tst_lightning.sweep.cases import Case
from tst_lightning.sweep.plan import Plan, make_plan
from tst_lightning.sweep.records import Ending, write_ending

SIZE = "model.phases.superposition.init_args.bag_size"
SHARE = "model.phases.superposition.init_args.share"
SEED = "seed_everything,data.seed"

# What it does is told by the case: `loss`, an `exit` code, or to `wait` for a signal and end as `tst fit` does then.
_STAND_IN = r"""
import json, pathlib, signal, sys, time
run_dir, settings = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
received = []
signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
(run_dir / "started").touch()
print("a line", "error: made to fail" if settings.get("exit") else "", sep="\n", flush=True)
while settings.get("wait") and not received:
    time.sleep(0.01)
while settings.get("wait") == "deaf":
    (run_dir / "told").touch()
    time.sleep(1)
if received or settings.get("exit"):
    sys.exit(128 + received[0] if received else settings["exit"])
record = json.loads((run_dir.parent / "record.json").read_text())
columns = {"step": 100, "val/loss": settings["loss"]}
columns |= {f"compute/{key}": 100 for key in ("step", "flops", "tokens", "positions", "seconds")}
csv = run_dir / "csv" / "version_0" / "metrics.csv"
csv.parent.mkdir(parents=True)
csv.write_text(",".join(columns) + "\n" + ",".join(map(str, columns.values())) + "\n")
(run_dir / "config.yaml").write_text("run_dir: x\n")
(run_dir / "run.json").write_text(json.dumps(record | {"status": settings.get("status", "finished")}))
"""


def plan_of(tmp_path: Path, *listed: dict[str, Any], **content: Any) -> Plan:
    config = tmp_path / "fit.yaml"
    beside = tmp_path / f"fit.{os.getpid()}"
    beside.write_text("data: {block_rows: 720720}\n")
    beside.replace(config)  # whole at every moment: another worker may read it
    content = {"fit": str(config), "list": [dict(case) for case in listed]} | content
    return make_plan(str(tmp_path / "out"), content, "a test")


def stand_in(case: Case, run_dir: Path) -> list[str]:
    settings = {key.split(".")[-1]: value for key, value in case.settings.items()}
    return [sys.executable, "-c", _STAND_IN, str(run_dir), json.dumps(settings)]


def finish(plan: Plan, case: Case, loss: float, **changes: Any) -> None:
    """A finished run's folder."""
    from tests.compare.run_folders import write_run  # loads Lightning, which workers do without

    write_run(plan.run_dir(case), [(50, loss + 1), (100, loss)], **changes)
    write_ending(plan.run_dir(case), case, Ending("finished", 0, "finished", 1.0))
