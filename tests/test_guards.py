"""What a run refuses to go on with, to reuse or to begin over: each would change it without a word."""

import json
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from tests.conftest import tiny_config
from tests.data.numbered import numbered_corpus, stream
from tests.test_resume import last, signal_at
from tst_lightning.__main__ import main
from tst_lightning.checkpoint_file import read_step
from tst_lightning.data.rows import RowPlan
from tst_lightning.errors import RunError

STOPPED = 128 + 15


@pytest.fixture(scope="module")
def other_shards(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("other") / "shards"
    source = str(Path(sysconfig.get_path("stdlib")) / "locale.py")
    names = [source, source.replace("locale", "optparse"), source.replace("locale", "pathlib")]
    assert main(["prepare", *names, "--out", str(folder), "--tokenizer", str(shards), "--val_share", "0.5"]) == 0
    return folder


def one_error(said: str) -> str:
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    return errors[0]


def test_other_data_is_no_reuse(fit: Any, tiny_run: Path, other_shards: Path, tmp_path: Path, shards: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    code, said = fit("run", "--ckpt_path", "last", data__shards=str(other_shards))
    assert code == 2 and "holds a run on other data (training shards or their weights and" in one_error(said)
    moved = tmp_path / "moved"
    shutil.copytree(shards, moved)
    assert fit("run", "--ckpt_path", "last", data__shards=str(moved))[1].startswith("reusing")


def test_a_run_without_its_record_is_still_a_run(fit: Any, tmp_path: Path) -> None:
    assert fit("run", *signal_at(7))[0] == STOPPED
    (tmp_path / "run" / "run.json").unlink()
    code, said = fit("run")
    assert code == 2 and "already holds a run (its record is gone)" in one_error(said)
    code, said = fit("run", "--ckpt_path", "last", "--model.optimizer.init_args.lr", "1e-5")
    assert code == 2 and "model.optimizer.init_args.lr was 0.003, now 1e-05" in one_error(said)
    assert fit("run", "--ckpt_path", "last")[0] == 0


def test_a_run_without_its_checkpoints_says_that_it_begins_anew(fit: Any, tmp_path: Path) -> None:
    assert fit("run", *signal_at(7))[0] == STOPPED
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    code, said = fit("run", "--ckpt_path", "last")
    assert code == 0 and "holds no checkpoint of the run that was at step 8: it begins anew\n" in said, said


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A run that was stopped after 3 steps, to be copied."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(tiny_config(folder, shards), sort_keys=False))
    assert main(["fit", "--config", str(path), *signal_at(2)]) == STOPPED
    return folder


@pytest.mark.parametrize("value", ['"20"', "null", "true"])
def test_a_record_of_other_types_is_damaged(fit: Any, three_steps: Path, tmp_path: Path, value: str) -> None:
    shutil.copytree(three_steps, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"step": json.loads(value)}))
    code, said = fit("run", "--ckpt_path", "last")
    assert code == 1 and "run.json' is damaged" in one_error(said)


def test_a_branch_keeps_what_comes_from_the_checkpoint(fit: Any, tmp_path: Path) -> None:
    plain = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3.0e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}}
    assert fit("run", *signal_at(7), model__optimizer=plain)[0] == STOPPED
    checkpoint = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    for option, value, message in (
        ("--model.optimizer.init_args.lr", "1e-5", "another model.optimizer (lr was 0.003, now 1e-05)"),
        ("--model.optimizer.class_path", "torch.optim.RAdam", "another model.optimizer ("),
        ("--model.config.init_args.rms_norm_eps", "1e-3", "another model.config (rms_norm_eps was 1e-06, now 0.001)"),
        ("--data.batch_size", "2", "batch_size: 4 in the checkpoint, 2 now"),
        ("--data.seed", "2", "seed: 1 in the checkpoint, 2 now"),
        ("--data.pool_blocks", "4", "pool_blocks: 8 in the checkpoint, 4 now"),
    ):
        code, said = fit("branch", "--ckpt_path", checkpoint, option, value, model__optimizer=plain)
        assert code == 2 and message in one_error(said), said
    # Nothing of a refused start stands in the way.
    assert fit("branch", "--ckpt_path", checkpoint, model__optimizer=plain)[0] == 0


def altered(path: Path, *keys: Any, value: Any) -> None:
    content = torch.load(path, weights_only=True)
    node = content
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    torch.save(content, path)


STREAM = ("loops", "fit_loop", "state_dict", "combined_loader", 0)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("global_step",), None),
        (("state_dict",), []),
        (("total_steps",), "x"),
        (("rng",), {"cpu": torch.zeros(3, dtype=torch.uint8)}),
        ((*STREAM, "layout"), []),
        ((*STREAM, "plans"), [[1]]),
        ((*STREAM, "mixture"), None),
        ((*STREAM, "mixture", "drawn"), [1, 2]),
        (("callbacks", "FlopsMeter", "phases"), 3),
        (("optimizer_states",), 7),
    ],
)
def test_a_checkpoint_of_other_shape_is_one_line(
    fit: Any, three_steps: Path, tmp_path: Path, keys: tuple[Any, ...], value: Any
) -> None:
    shutil.copytree(three_steps, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    altered(path, *keys, value=value)
    code, said = fit("run", "--ckpt_path", "last")
    assert code in (1, 2) and "checkpoint" in one_error(said), said


def test_a_validation_within_a_step_is_refused(fit: Any) -> None:
    for every in (4, 0.27):
        code, said = fit("run", trainer__accumulate_grad_batches=3, trainer__val_check_interval=every)
        assert code == 2 and "would fall within a step of 3 batches" in one_error(said)


class StopAt(Callback):
    """Asks for the end as a time limit does."""

    def __init__(self, batch_idx: int) -> None:
        self.batch_idx = batch_idx

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop = trainer.should_stop or batch_idx == self.batch_idx


def test_a_time_limit_within_a_step_waits_for_its_end(fit: Any, tmp_path: Path) -> None:
    changes = {"trainer__accumulate_grad_batches": 3, "trainer__val_check_interval": 60}
    stop = '--trainer.callbacks+={"class_path": "tests.test_guards.StopAt", "init_args": {"batch_idx": 13}}'
    code, said = fit("run", stop, **changes)
    assert code == 0 and "stopped" in said and "5 of 20 steps" in said
    step = read_step(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last(tmp_path / "run")["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["batches"] == 3 * step
    assert fit("run", "--ckpt_path", "last", **changes)[0] == 0


def test_fewer_blocks_than_readers_is_an_end(tmp_path: Path) -> None:
    corpus = numbered_corpus(tmp_path / "small", tokens=30)
    rank = stream([corpus], [RowPlan("a", 1, 5, 3)], 20, rank=1, world_size=2)
    with pytest.raises(RunError, match="gives this process no block"):
        next(iter(rank))


def test_a_link_in_a_run_folder_is_not_written_through(fit: Any, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    for name in ("run.json.partial", "config.yaml.partial"):
        (tmp_path / "run" / name).symlink_to(victim)
    assert fit("run")[0] == 0
    assert victim.read_text() == "mine"
