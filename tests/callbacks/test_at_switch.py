"""What is reset or drawn anew at a switch: once, before its first step, on any layout and wherever a run is resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig

from tests.test_distributed import fit_two
from tests.test_resume import assert_same_state, last, signal_at
from tst_lightning.modeling import build_causal_lm, redraw_embeddings

KEEP = ('--trainer.callbacks+={"class_path": "tests.callbacks.test_at_switch.Keeper"}',)
HEADS = ("model.lm.lm_head.weight", "model.lm.model.embed_tokens.weight")
SWITCH, SEED = 10, 1


class Keeper(Callback):
    """Keeps the weights, whole, and the number of parameters with optimizer state, as each micro-batch begins that is not
    far from the switch: ``kept-RANK.pt`` in the run's folder.
    """

    def __init__(self) -> None:
        self.kept: dict[int, dict[str, Any]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if abs(trainer.global_step - SWITCH) > 1:
            return
        parts = pl_module.state_dict().items()
        weights = {k: v.full_tensor() if isinstance(v, DTensor) else v.clone() for k, v in parts}
        self.kept[batch_idx] = {"weights": weights, "states": len(trainer.optimizers[0].state)}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.save(self.kept, Path(trainer.default_root_dir) / f"kept-{trainer.global_rank}.pt")


def kept(folder: Path, rank: int = 0) -> dict[int, dict[str, Any]]:
    return torch.load(folder / f"kept-{rank}.pt", weights_only=True)


def at_switch(name: str, **options: Any) -> dict[str, Any]:
    return {
        f"callbacks__{name}": {"class_path": f"tst_lightning.callbacks.{name}", "init_args": options},
        "model__config__init_args__attention_dropout": 0.1,
    }


def redrawn(folder: Path) -> dict[str, torch.Tensor]:
    """Embedding and head that a run's model has after a draw by one process."""
    settings = yaml.safe_load(folder.with_suffix(".yaml").read_text())["model"]["config"]["init_args"]
    lm = build_causal_lm(LlamaConfig(**settings)).lm
    redraw_embeddings(lm, SEED + SWITCH)
    return {f"model.lm.{name}": value for name, value in lm.state_dict().items() if f"model.lm.{name}" in HEADS}


def assert_only_these_are_drawn_anew(folder: Path, first: int, rank: int = 0) -> None:
    """At micro-batch ``first``, and not before or within the step."""
    found, expected = kept(folder, rank), redrawn(folder)
    before = torch.load(folder / "checkpoints" / "switch-recovery-step=10.ckpt", weights_only=True)["state_dict"]
    for name, value in found[first]["weights"].items():
        assert torch.equal(value, expected.get(name, before[name])), name
        assert torch.equal(value, before[name]) == (name not in HEADS), name
        if first + 1 in found:
            within_a_step = first > SWITCH
            assert torch.equal(value, found[first + 1]["weights"][name]) == within_a_step, name


@pytest.mark.parametrize(("accumulate", "tied"), [(1, False), (2, True)])
def test_embeddings_are_drawn_anew_once(fit: Any, tmp_path: Path, accumulate: int, tied: bool) -> None:
    """In a run that never stops, and in one stopped at the switch and after it."""
    changes = at_switch("ReinitialiseEmbeddings")
    changes |= {"model__config__init_args__tie_word_embeddings": tied}
    changes |= {
        "trainer__accumulate_grad_batches": accumulate,
        "trainer__val_check_interval": 5 * accumulate,
    }
    assert fit("whole", *KEEP, **changes)[0] == 0
    assert_only_these_are_drawn_anew(tmp_path / "whole", SWITCH * accumulate)
    for stop in (SWITCH - 1, SWITCH + 1):
        assert fit("pieces", "--ckpt_path", "last", *signal_at(stop), **changes)[0] == 128 + 15
    assert fit("pieces", "--ckpt_path", "last", **changes)[0] == 0
    assert_same_state(last(tmp_path / "whole"), last(tmp_path / "pieces"))


def test_the_optimizer_begins_anew(fit: Any, tmp_path: Path) -> None:
    changes = at_switch("ResetOptimizer", phases=["recovery"])
    assert fit("whole", *KEEP, **changes)[0] == 0
    states = {batch: found["states"] for batch, found in kept(tmp_path / "whole").items()}
    many = states[SWITCH - 1]
    assert many > 10 and states == {9: many, 10: 0, 11: many}
    end = last(tmp_path / "whole")
    assert {float(state["step"]) for state in end["optimizer_states"][0]["state"].values()} == {10.0}
    assert fit("pieces", *signal_at(SWITCH - 1), **changes)[0] == 128 + 15
    without = {key: value for key, value in changes.items() if not key.startswith("callbacks")}
    code, said = fit("pieces", "--ckpt_path", "last", **without)
    assert code == 2, said
    assert "callbacks.ResetOptimizer was {'phases': ['recovery']}, now None" in said
    assert fit("pieces", "--ckpt_path", "last", **changes)[0] == 0
    assert_same_state(end, last(tmp_path / "pieces"))
    record = json.loads((tmp_path / "pieces" / "run.json").read_text())
    assert record["at_switch"] == [{"class": "ResetOptimizer", "phases": ["recovery"]}]


def test_an_optimizer_that_has_state_from_the_beginning_has_that_again(fit: Any, tmp_path: Path) -> None:
    changes = at_switch("ResetOptimizer")
    changes |= {"model__optimizer": {"class_path": "torch.optim.Adagrad", "init_args": {"lr": 3e-3}}}
    assert fit("run", **changes)[0] == 0
    states = last(tmp_path / "run")["optimizer_states"][0]["state"].values()
    assert {float(state["step"]) for state in states} == {10.0}


def test_without_a_switch_it_says_so_and_is_no_part_of_the_record(fit: Any, tmp_path: Path) -> None:
    phases = {"next_token": {"class_path": "tst_lightning.phases.NextTokenPhase", "init_args": {}}}
    with pytest.warns(UserWarning, match="ResetOptimizer has no phase switch to act at in this run"):
        assert fit("run", **at_switch("ResetOptimizer"), model__phases=phases, trainer__max_steps=3)[0] == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["at_switch"] == []


def test_a_phase_without_a_switch_is_refused(fit: Any) -> None:
    code, said = fit(**at_switch("ResetOptimizer", phases=["superposition"]))
    assert code == 2
    assert (
        "error: ResetOptimizer.phases names 'superposition', before which there is no switch; those with one are"
        " recovery" in said
    )


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    "strategy", ["lightning.pytorch.strategies.DDPStrategy", "tst_lightning.fully_sharded.FullyShardedStrategy"]
)
def test_the_same_values_on_every_layout(few: Path, tmp_path: Path, strategy: str) -> None:
    """A validation, and no checkpoint, stands between the last step before the switch and the draw."""
    changes = {
        "callbacks__at_switch": {"class_path": "tst_lightning.callbacks.ReinitialiseEmbeddings"},
        "callbacks__best__init_args__save_top_k": 0,
        "callbacks__last__init_args__save_top_k": 0,
        "trainer__max_steps": 12,
        "model__phases__superposition__init_args__share": 10 / 12,
        "trainer__val_check_interval": 10,
        "model__config__init_args__vocab_size": 300,
        "data__batch_size": 2,
        "data__pool_blocks": 4,
        "trainer__accelerator": "cpu",
        "trainer__devices": 2,
        "trainer__strategy": {"class_path": strategy},
    }
    fit_two(tmp_path / "two", few, *KEEP, changes=changes)
    expected = redrawn(tmp_path / "two")
    for rank in (0, 1):
        found = kept(tmp_path / "two", rank)
        for name, value in found[SWITCH]["weights"].items():
            assert name not in HEADS or torch.equal(value, expected[name]), name
            assert not torch.equal(value, found[SWITCH + 1]["weights"][name]), name
