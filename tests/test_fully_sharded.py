"""Two processes with everything cut in half (FSDP2 over gloo): what one process would train, killed and resumed, read by
one process, and begun from the same weights as any other layout.
"""

import csv
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.callbacks.recorder import RECORD, recorded
from tests.conftest import tiny_config
from tests.processes import run
from tests.test_distributed import fit_two
from tests.test_resume import assert_same_run, killed_at, last
from tst_lightning.__main__ import main
from tst_lightning.commands.run_folder import find_checkpoint
from tst_lightning.errors import RunError
from tst_lightning.modeling import CausalLM, build_causal_lm, initialise
from tst_lightning.optim import decay_groups
from tst_lightning.phases import NextTokenPhase, PhaseStrategy, SuperpositionPhase
from tst_lightning.sharded_checkpoint import TRAINER_STATE, check_bytes, read_sharded_step, read_weights

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

ACCUMULATE, STEPS, SWITCH = 2, 20, 10
SHARDED = "tst_lightning.fully_sharded.FullyShardedStrategy"
CHANGES: dict[str, Any] = {
    "model__config__init_args__vocab_size": 300,
    "data__batch_size": 2,
    "data__pool_blocks": 4,
    "trainer__accelerator": "cpu",
    "trainer__devices": 2,
    "trainer__strategy": {"class_path": SHARDED},
    "trainer__accumulate_grad_batches": ACCUMULATE,
    "trainer__val_check_interval": 4 * ACCUMULATE,
    "trainer__limit_val_batches": 1.0,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, few: Path) -> Path:
    """A finished run that was never stopped."""
    folder = tmp_path_factory.mktemp("sharded") / "whole"
    fit_two(folder, few, *RECORD, changes=CHANGES)
    return folder


class ReadsLate(Callback):
    """The second process comes to what is beside the weights and the optimizer's state a second after the first."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        read = torch.load

        def late(path: Any, *args: Any, **more: Any) -> Any:
            if trainer.global_rank == 1 and str(path).endswith(TRAINER_STATE):
                time.sleep(1)
            return read(path, *args, **more)

        torch.load = late


def logged_losses(folder: Path) -> list[float]:
    with open(folder / "csv" / "version_0" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    tags = [f"train/{phase}/loss" for phase in ("superposition", "recovery")]
    return [float(row[tag]) for tag in tags for row in rows if row[tag]]


def one_process_s(folder: Path, first: PhaseStrategy, second: PhaseStrategy) -> tuple[list[float], CausalLM]:
    """Losses and model of a plain loop over the rows that both processes of a run read, from weights drawn for one."""
    settings = yaml.safe_load(folder.with_suffix(".yaml").read_text())["model"]
    torch.manual_seed(1)
    with torch.device("meta"):
        model = build_causal_lm(LlamaConfig(**settings["config"]["init_args"]))
        model.equip([first, second])
    initialise(model.lm, torch.device("cpu"))
    if model.extra_head is not None:
        model.extra_head.initialise(torch.device("cpu"))
    optimizer = torch.optim.AdamW(decay_groups(model.named_parameters()), **settings["optimizer"]["init_args"])
    batches = [recorded(folder, rank)["batches"] for rank in (0, 1)]
    losses = []
    for step in range(STEPS):
        phase = first if step < SWITCH else second
        total = 0.0
        for index in range(ACCUMULATE * step, ACCUMULATE * (step + 1)):
            rows = torch.tensor([*batches[0][index], *batches[1][index]])
            loss = model(rows, phase)
            (loss.mean / ACCUMULATE).backward()
            total += float(loss.parts.sum() / loss.count) / ACCUMULATE
        losses.append(total)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rise, fall = min(1, (step + 1) / 3), min(1, (STEPS - step) / 5)  # warmup 2, decay over 4 of 20 steps
        for group in optimizer.param_groups:
            group["lr"] = settings["optimizer"]["init_args"]["lr"] * rise * fall
        optimizer.step()
        optimizer.zero_grad()
    return losses, model


def test_trains_what_one_process_trains(whole: Path) -> None:
    losses, _ = one_process_s(whole, SuperpositionPhase(4), NextTokenPhase())
    assert logged_losses(whole) == pytest.approx(losses, rel=2e-5)


def test_the_same_rows_and_first_weights_as_under_ddp(whole: Path, few: Path, tmp_path: Path) -> None:
    fit_two(tmp_path / "ddp", few, *RECORD, changes=CHANGES | {"trainer__strategy": "ddp"})
    for rank in (0, 1):
        assert recorded(tmp_path / "ddp", rank) == recorded(whole, rank)
    assert logged_losses(tmp_path / "ddp") == pytest.approx(logged_losses(whole), rel=2e-5)


def test_killed_and_resumed_is_bit_equal(whole: Path, few: Path, tmp_path: Path) -> None:
    """Killed while a checkpoint was about to take its place, before the next was written, and while it may be so."""
    folder = tmp_path / "killed"
    behind = CHANGES | {"trainer__strategy": {"class_path": SHARDED, "init_args": {"asynchronous": True}}}
    killed_at(folder, few, 8, "last.ckpt", ranks=2, **CHANGES)
    (old, new) = (folder / "checkpoints" / f"last.ckpt.{name}" for name in ("replaced", "partial"))
    assert (read_sharded_step(old), read_sharded_step(new)) == (4, 8)
    beginning = tmp_path / "other.yaml"  # from another run's, which is left as it is
    beginning.write_text(yaml.safe_dump(tiny_config(tmp_path / "other", few, **CHANGES), sort_keys=False))
    done = run("fit", "--config", str(beginning), "--ckpt_path", str(new), ranks=2)
    assert done.returncode == 0 and new.exists(), done.stderr
    late = CHANGES | {"trainer__callbacks": [{"class_path": "tests.test_fully_sharded.ReadsLate"}]}
    assert killed_at(folder, few, 9, "training", ranks=2, **late)["global_step"] == 8
    assert not [*folder.glob("checkpoints/*.partial"), *folder.glob("checkpoints/*.replaced")]
    killed_at(folder, few, 13, "training", ranks=2, **behind)
    found = find_checkpoint(folder, "last")  # how far writing beside training had come is not ours to say
    assert found and found.step in (8, 10, 12)
    fit_two(folder, few, changes=behind)
    assert_same_run(whole, folder)


def test_killed_before_its_last_checkpoint_is_in_place_it_is_not_finished(
    whole: Path,
    few: Path,
    tmp_path: Path,
) -> None:
    """What was written beside training and not renamed yet is whole, and counts."""
    folder = tmp_path / "killed"
    behind = CHANGES | {"trainer__strategy": {"class_path": SHARDED, "init_args": {"asynchronous": True}}}
    killed_at(folder, few, STEPS, "last.ckpt", ranks=2, **behind)
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    found = find_checkpoint(folder, "last")
    assert found and (found.step, found.path.name) == (STEPS, "last.ckpt.partial")
    weights = read_weights(found.path)
    assert all(torch.equal(weights[name], value) for name, value in last(whole)["state_dict"].items())
    fit_two(folder, few, changes=behind)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_one_process_scores_it(whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open(whole / "csv" / "version_0" / "metrics.csv") as file:
        logged = [row["val/loss"] for row in csv.DictReader(file) if row.get("val/loss")][-1]
    one = whole.with_suffix(".one.yaml")
    one.write_text("trainer: {devices: 1, strategy: auto}\n")
    capfd.readouterr()
    assert main(["validate", "--config", str(whole.with_suffix(".yaml")), "--config", str(one)]) == 0
    scored = dict(re.findall(r"(val/\w+)\W+([\d.]+)", capfd.readouterr().out))
    assert float(scored["val/loss"]) == pytest.approx(float(logged), rel=1e-6)
    command = ["validate", "--config", str(whole.with_suffix(".yaml")), "--config", str(one), "--ckpt_path"]
    exported, scores = whole.with_name("exported"), []
    assert main(["export", str(whole / "checkpoints" / "last.ckpt"), "--out", str(exported)]) == 0
    for model in (whole / "checkpoints" / "last.ckpt", exported):
        out = model.with_suffix(".json")
        assert main([*command, str(model), "--out", str(out)]) == 0
        scores.append(json.loads(out.read_text()))
    for key in ("loss", "perplexity", "bits_per_byte", "loss_by_position", "corpora"):
        assert scores[0][key] == scores[1][key], key
    assert (scores[0]["step"], scores[0]["phase"]) == (20, {"name": "recovery", "bag_size": 1})
    fit = ["fit", "--config", str(whole.with_suffix(".yaml")), "--config", str(one)]
    checkpoint = str(whole / "checkpoints" / "switch-recovery-step=10.ckpt")
    assert main([*fit, "--run_dir", str(whole.with_name("one")), "--ckpt_path", checkpoint]) == 2
    assert "is sharded, which this trainer.strategy does not go on from" in capfd.readouterr().err


def test_one_process_exports_it(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["export", str(whole / "checkpoints" / "last.ckpt"), "--out", str(out)]) == 0
    loaded = AutoModelForCausalLM.from_pretrained(out).state_dict()
    for name, value in last(whole)["state_dict"].items():
        assert torch.equal(loaded[name.removeprefix("model.lm.")], value), name
    card = (out / "README.md").read_text()
    assert "# whole, step 20\n" in card and "| 10 | 4 | 5,120 | 1,280 |" in card and "device: 2 x cpu" in card
    shutil.copytree(whole / "checkpoints" / "last.ckpt", tmp_path / "cut.ckpt")
    (tmp_path / "cut.ckpt" / "__1_0.distcp").unlink()
    assert main(["export", str(tmp_path / "cut.ckpt"), "--out", str(tmp_path / "none")]) == 1
    assert not (tmp_path / "none").exists()


def test_a_damaged_one_is_refused(whole: Path, tmp_path: Path) -> None:
    folder, sound = tmp_path / "damaged.ckpt", whole / "checkpoints" / "switch-recovery-step=10.ckpt"

    def damaged(name: str, content: bytes | None) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        return folder

    part = (sound / "__1_0.distcp").read_bytes()
    weights = read_weights(sound)
    assert weights.keys() == last(whole)["state_dict"].keys()
    for content, name, reason in [
        (None, "__1_0.distcp", "'__1_0.distcp' should have .* bytes, none are there"),
        (part[:-1], "__1_0.distcp", "is not whole"),
        (None, ".metadata", "no .metadata in it"),
        (None, "meta.pt", "no meta.pt in it"),
        (b"cos\nsystem\n(S'exit'\ntR.", ".metadata", "it names os.system"),
    ]:
        with pytest.raises(RunError, match=reason):
            read_sharded_step(damaged(name, content))
    flipped = bytearray(part)
    flipped[part.index(weights["model.lm.lm_head.weight"][150:].numpy().tobytes()) + 5] ^= 4
    assert read_sharded_step(damaged("__1_0.distcp", bytes(flipped))) == SWITCH
    with pytest.raises(RunError, match="was altered since it was written .*lm_head.weight.* in __1_0.distcp"):
        check_bytes(folder, 1, 2)
    check_bytes(folder, 0, 2)
    # The run's second process finds it, in the files that it is to look at.
    words = [
        "--config",
        str(whole.with_suffix(".yaml")),
        "--run_dir",
        str(tmp_path / "run"),
        "--ckpt_path",
        str(folder),
    ]
    refused = run("fit", *words, ranks=2)
    assert refused.returncode == 1 and "was altered since it was written" in refused.stderr, refused.stderr


def test_what_writes_single_files_is_refused(whole: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plugin = '[{"class_path": "tst_lightning.checkpoint_io.WholeCheckpointIO", "init_args": {"on_error": "continue"}}]'
    words = ["--config", str(whole.with_suffix(".yaml")), "--run_dir", str(tmp_path / "run")]
    assert main(["fit", *words, "--trainer.plugins", plugin]) == 2
    assert "names WholeCheckpointIO, which sharded checkpoints are not written by" in capfd.readouterr().err
