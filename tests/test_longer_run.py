"""Steps added to a run: what was read stays as it was, and before the decay the run is as if planned so."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.callbacks.recorder import RECORD, recorded
from tests.conftest import tiny_config
from tests.test_resume import assert_same_state, last, signal_at
from tst_lightning.__main__ import main
from tst_lightning.commands.run_folder import check_same_run
from tst_lightning.compare.runs import read_run, read_runs
from tst_lightning.errors import ConfigError

NEXT_TOKEN = {"model__phases": {"next_token": {"class_path": "tst_lightning.phases.NextTokenPhase", "init_args": {}}}}


def longer(share: float, steps: int = 40) -> dict[str, Any]:
    return {"model__phases__superposition__init_args__share": share, "trainer__max_steps": steps}


def test_a_run_from_before_a_setting_was_there_is_the_same_run_without_it(tmp_path: Path) -> None:
    def config(**more: Any) -> dict[str, Any]:
        return {"model": {"lr_schedule": {"init_args": {"warmup_steps": 2} | more}}}

    now = {"shape": "linear", "rewarm_steps": 0, "per_phase": False}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config()))
    check_same_run(tmp_path, config(**now))
    check_same_run(tmp_path, config())  # of a schedule of the user's own
    with pytest.raises(ConfigError, match=r"rewarm_steps was 0, now 5\)"):
        check_same_run(tmp_path, config(**now | {"rewarm_steps": 5}))


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A run of 40 steps from the beginning."""
    folder = tmp_path_factory.mktemp("planned") / "run"
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(tiny_config(folder, shards, **longer(0.25)), sort_keys=False))
    assert main(["fit", "--config", str(path)]) == 0
    return folder


@pytest.mark.parametrize("stop", [7, 9, 11])
def test_before_the_decay_the_run_is_as_if_planned_so(fit: Any, planned: Path, tmp_path: Path, stop: int) -> None:
    """Superposition holds 10 steps either way; the decay would have begun at step 16. Pools are of 2 and 8 batches."""
    assert fit("added", *signal_at(stop))[0] == 128 + 15
    code, said = fit("added", "--ckpt_path", "last", **longer(0.25))
    assert code == 0, said
    assert "note      40 steps instead of 20: the learning rate had not begun to decay" in said
    assert_same_state(last(planned), last(tmp_path / "added"))
    one, other = read_runs([str(planned), str(tmp_path / "added")])
    assert [(p.step, p.flops, p.loss) for p in one.curve] == [(p.step, p.flops, p.loss) for p in other.curve]


def test_a_finished_run_goes_on_without_losing_or_repeating_a_row(fit: Any, tmp_path: Path) -> None:
    """20 steps of 4 rows end within a pool of 32 rows, 4 rows within a block; then 35 steps, then 40."""
    assert fit("run", *RECORD, **NEXT_TOKEN)[0] == 0
    rows = [row for batch in recorded(tmp_path / "run")["batches"] for row in batch]
    code, said = fit("run", "--ckpt_path", "last", *RECORD, **NEXT_TOKEN, trainer__max_steps=35)
    assert code == 0, said
    assert "goes from 0% of its peak back to 100%" in said and "finished" in said and "35 steps" in said
    rows += [row for batch in recorded(tmp_path / "run")["batches"] for row in batch]
    code, said = fit("run", "--ckpt_path", "last", *RECORD, **NEXT_TOKEN, trainer__max_steps=40)
    assert code == 0, said
    rows += [row for batch in recorded(tmp_path / "run")["batches"] for row in batch]
    assert len(rows) == 40 * 4
    assert len({tuple(row) for row in rows}) == len(rows)
    assert last(tmp_path / "run")["global_step"] == 40
    assert fit("run", "--ckpt_path", "last", **NEXT_TOKEN, trainer__max_steps=40)[1].startswith("reusing")
    curve = read_run(str(tmp_path / "run")).curve
    assert [point.step for point in curve] == [5, 10, 15, 20, 25, 30, 35, 40]


def test_the_learning_rate_is_that_of_the_longer_schedule(fit: Any, tmp_path: Path) -> None:
    assert fit("run", **NEXT_TOKEN)[0] == 0
    assert fit("run", "--ckpt_path", "last", *signal_at(20), **NEXT_TOKEN, trainer__max_steps=40)[0] == 128 + 15
    moments = last(tmp_path / "run")["optimizer_states"][0]
    assert moments["param_groups"][0]["lr"] == pytest.approx(3e-3)
    before = torch.load(tmp_path / "run" / "checkpoints" / "best-step=20.ckpt", weights_only=True)
    assert before["optimizer_states"][0]["param_groups"][0]["lr"] < 1e-6


def test_what_would_change_the_past_is_refused(fit: Any) -> None:
    assert fit("run", *signal_at(12))[0] == 128 + 15
    for changes, expected in (
        # Step 12 was read in recovery; under half of 40 steps it would have been superposition.
        (
            longer(0.5),
            "the checkpoint's phases, in batches, are superposition (bag size 4) 10, recovery (bag size 1) 10;",
        ),
        ({"trainer__max_steps": 10}, "trainer.max_steps was 20, now 10"),
        ({"trainer__max_steps": 40, "data__seq_len": 8}, "data.seq_len was 16, now 8"),
        ({"trainer__max_steps": 20, "model__phases__superposition__init_args__share": 0.25}, "share was 0.5, now 0.25"),
    ):
        code, said = fit("run", "--ckpt_path", "last", **changes)
        assert code == 2 and expected in said and "Traceback" not in said
    assert fit("run", "--ckpt_path", "last")[0] == 0  # nothing was lost by asking
