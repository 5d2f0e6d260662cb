"""Two processes (DDP over gloo): killed and resumed, validated, and held to the layout that they began with."""

import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from torch.distributed.tensor import DTensor

from tests.callbacks.recorder import RECORD, recorded
from tests.conftest import prepare_licence, tiny_config
from tests.processes import run
from tests.test_resume import assert_same_run, killed_at
from tst_lightning.__main__ import main

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SEQ_LEN, ROWS, BAG, ACCUMULATE, SUPERPOSITION_STEPS = 16, 4, 4, 3, 10
CHANGES: dict[str, Any] = {
    "model__config__init_args__vocab_size": 300,
    "data__pool_blocks": ROWS,  # rows are permuted within a batch only, so that passes can be told apart
    "trainer__accelerator": "cpu",
    "trainer__devices": 2,
    "trainer__strategy": "ddp",
    "trainer__accumulate_grad_batches": ACCUMULATE,
    "trainer__val_check_interval": 4 * ACCUMULATE,
    "trainer__limit_val_batches": 1.0,
    "model__config__init_args__attention_dropout": 0.1,
}


class RankState(Callback):
    """Writes down what each rank ends with: ``rank-RANK.json`` in the run's folder."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        values = (v.full_tensor() if isinstance(v, DTensor) else v for v in pl_module.state_dict().values())
        weights = hashlib.sha256(b"".join(value.numpy().tobytes() for value in values))
        facts = {"weights": weights.hexdigest(), "random": torch.get_rng_state().tolist()}
        (Path(trainer.default_root_dir) / f"rank-{trainer.global_rank}.json").write_text(json.dumps(facts))


def rank_states(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def tokens(shards: Path, split: str) -> list[int]:
    """Tokens of each shard file."""
    return [chunk["tokens"] for chunk in json.loads((shards / "manifest.json").read_text())[split]["chunks"]]


def fit_two(folder: Path, shards: Path, *arguments: str, changes: dict[str, Any] = CHANGES) -> None:
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(tiny_config(folder, shards, **changes), sort_keys=False))
    state = '--trainer.callbacks+={"class_path": "tests.test_distributed.RankState"}'
    done = run("fit", "--config", str(path), "--ckpt_path", "last", *arguments, state, ranks=2)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, few: Path) -> Path:
    """A finished run of two processes, with accumulation and dropout."""
    folder = tmp_path_factory.mktemp("two") / "whole"
    fit_two(folder, few, *RECORD)
    return folder


def test_killed_pair_is_bit_equal(whole: Path, few: Path, tmp_path: Path) -> None:
    """Both processes killed in recovery, while a checkpoint is written."""
    folder = tmp_path / "killed"
    assert killed_at(folder, few, 12, "last.ckpt", ranks=2, **CHANGES)["global_step"] == 8
    fit_two(folder, few)
    assert_same_run(whole, folder)
    # Dropout draws from each rank's own generator, of which the checkpoint holds the first rank's.
    (one, other), resumed = rank_states(whole), rank_states(folder)
    assert one == other == resumed[0] == resumed[1]


def test_no_block_is_read_twice_in_a_pass(whole: Path, few: Path) -> None:
    """Rows of superposition are whole blocks: over both ranks, all of them once before any comes again."""
    blocks = sum(count // (BAG * (SEQ_LEN + 1)) for count in tokens(few, "train"))
    batches = SUPERPOSITION_STEPS * ACCUMULATE
    ranks = [[tuple(row) for batch in recorded(whole, rank)["batches"][:batches] for row in batch] for rank in (0, 1)]
    each = blocks // 2  # of an odd number one is left out
    passes = len(ranks[0]) // each
    assert passes > 1 and each % ROWS == 0 and len(ranks[0]) == len(ranks[1]) == batches * ROWS
    for number in range(passes):
        rows = [row for rank in ranks for row in rank[number * each : (number + 1) * each]]
        assert len(set(rows)) == len(rows)


def test_every_validation_token_is_scored_once(whole: Path, few: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two processes score what one scores on the same checkpoint, though they can't share its rows evenly."""
    rows = sum(count // (SEQ_LEN + 1) for count in tokens(few, "val"))
    assert rows % 2, "an odd number is the hard case"
    with open(whole / "csv" / "version_0" / "metrics.csv") as file:
        two = [row for row in csv.DictReader(file) if row.get("val/loss")][-1]
    config = yaml.safe_load(whole.with_suffix(".yaml").read_text())
    config["trainer"] |= {"devices": 1, "strategy": "auto"}
    path = whole.with_suffix(".one.yaml")
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    capfd.readouterr()
    assert main(["validate", "--config", str(path), "--ckpt_path", str(whole / "checkpoints" / "last.ckpt")]) == 0
    said = capfd.readouterr().out
    one = {name: float(value) for name, value in re.findall(r"(val/\w+)\W+([\d.]+)", said)}
    assert one["val/tokens"] == float(two["val/tokens"]) == rows * SEQ_LEN
    assert one["val/loss"] == pytest.approx(float(two["val/loss"]), rel=1e-6)


def test_two_processes_score_an_export_as_one_does(whole: Path, tmp_path: Path) -> None:
    """Position by position, and under FSDP2 too, where each process keeps half of every weight."""
    checkpoint, folder = whole / "checkpoints" / "last.ckpt", tmp_path / "exported"
    assert main(["export", str(checkpoint), "--out", str(folder)]) == 0
    command = ["validate", "--config", str(whole.with_suffix(".yaml")), "--ckpt_path"]
    sharded = '{"class_path": "tst_lightning.fully_sharded.FullyShardedStrategy"}'
    for name, model, layout, ranks in (
        ("one", checkpoint, ["--trainer.devices", "1", "--trainer.strategy", "auto"], 1),
        ("ddp", folder, [], 2),
        ("fsdp", folder, ["--trainer.strategy", sharded], 2),
    ):
        out = ["--out", str(tmp_path / f"{name}.json")]
        done = run(*command, str(model), *layout, *out, ranks=ranks)
        assert done.returncode == 0 and done.stdout.count("scored    ") == 1, done.stderr
    one, *others = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "ddp", "fsdp"))
    for two in others:
        assert two["device"] == "2 x cpu" and two["tokens"] == one["tokens"]
        assert two["loss_by_position"] == pytest.approx(one["loss_by_position"], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, []),
        ({"data__num_workers": 1}, ["num_workers: 0 in the checkpoint, 1 now"]),
        ({"data__batch_size": 8}, ["batch_size: 4 in the checkpoint, 8 now"]),
        ({"data__seq_len": 8}, ["seq_len: 16 in the checkpoint, 8 now"]),
        (
            {"trainer__accumulate_grad_batches": 1, "trainer__val_check_interval": 4},
            ["accumulate_grad_batches: 3 in the checkpoint, 1 now"],
        ),
        ({"shards": "other"}, ["shards: ", "tokenizer: "]),
    ],
)
def test_another_layout_is_refused(
    whole: Path, few: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], says: list[str]
) -> None:
    """A checkpoint of two processes is not gone on from by one, nor under anything else that orders the data."""
    changes = CHANGES | {"trainer__devices": 1, "trainer__strategy": "auto"} | changes
    shards = prepare_licence(tmp_path, "--vocab_size", "290") if changes.pop("shards", None) else few
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path / "one", shards, **changes), sort_keys=False))
    switch = whole / "checkpoints" / "switch-recovery-step=10.ckpt"
    capfd.readouterr()
    assert main(["fit", "--config", str(path), "--ckpt_path", str(switch)]) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: the checkpoint was made with another data layout (") and said.count("\n") == 1, said
    for part in ["world_size: 2 in the checkpoint, 1 now", *says]:
        assert part in said
    assert not (tmp_path / "one" / "run.json").exists()
