"""Muon for hidden matrices with AdamW for the rest: torch's own two, saved, resumed and sharded as one optimizer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from transformers import GPT2Config, LlamaConfig, Qwen3MoeConfig

from tests.processes import free_port
from tests.sharded_steps import take_steps
from tests.test_distributed import fit_two, rank_states
from tests.test_fully_sharded import CHANGES
from tests.test_resume import accumulating, assert_same_run, assert_same_state, last, signal_at, training_losses
from tst_lightning.errors import ConfigError
from tst_lightning.modeling import build_causal_lm
from tst_lightning.muon import MuonWithAdamW
from tst_lightning.optim import decay_groups
from tst_lightning.plan.memory import state_bytes_per_parameter

MUON = {
    "model__optimizer": {
        "class_path": "tst_lightning.muon.MuonWithAdamW",
        "init_args": {"lr": 3.0e-3, "betas": [0.9, 0.95], "weight_decay": 0.1, "fused": True},
    }
}
SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_key_value_heads": 2}


def muon_of(model: Any, **options: Any) -> MuonWithAdamW:
    return MuonWithAdamW(decay_groups(model.named_parameters(), model.embeddings), **options)


@pytest.mark.parametrize(
    ("config", "not_hidden"),
    [
        (LlamaConfig(**SMALL), {"lm.lm_head.weight", "lm.model.embed_tokens.weight"}),
        (LlamaConfig(**SMALL, tie_word_embeddings=True), {"lm.model.embed_tokens.weight"}),
        (
            GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1),
            {"lm.transformer.wte.weight", "lm.transformer.wpe.weight"},
        ),
        (
            Qwen3MoeConfig(**SMALL, **EXPERTS, head_dim=16),
            {
                *("lm.lm_head.weight", "lm.model.embed_tokens.weight"),
                *(f"lm.model.layers.{i}.mlp.experts.{name}" for i in (0, 1) for name in ("gate_up_proj", "down_proj")),
            },
        ),
    ],
    ids=["untied", "tied", "positions", "stacked experts"],
)
def test_hidden_matrices_are_told_from_the_rest(config: Any, not_hidden: set[str]) -> None:
    model = build_causal_lm(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = muon_of(model).param_groups
    assert [(group["name"], group["muon"], group["weight_decay"]) for group in groups] == [
        ("matrices", True, 0.1),
        ("decay", False, 0.1),
        ("no_decay", False, 0.0),
    ]
    matrices, rest, vectors = ([names[id(p)] for p in group["params"]] for group in groups)
    assert set(rest) == not_hidden and len(matrices) + len(rest) + len(vectors) == len(names)
    assert all(dict(model.named_parameters())[name].ndim == 2 for name in matrices)


def test_takes_the_steps_of_the_two() -> None:
    """As torch's optimizers side by side; and across a save in between, with rates that a scheduler moves."""
    config = LlamaConfig(**SMALL)
    torch.manual_seed(0)
    model, other = build_causal_lm(config), build_causal_lm(config)
    other.load_state_dict(model.state_dict())
    embeddings = {id(weight) for weight in other.embeddings}
    hidden = [p for p in other.parameters() if p.ndim == 2 and id(p) not in embeddings]
    decay = [p for p in other.parameters() if id(p) in embeddings]
    vectors = [{"params": [p for p in other.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    both = [
        torch.optim.Muon(hidden, lr=0.01, weight_decay=0.2, momentum=0.9, adjust_lr_fn="match_rms_adamw", ns_steps=4),
        torch.optim.AdamW([{"params": decay}, *vectors], lr=0.01, weight_decay=0.2, betas=(0.8, 0.9), eps=1e-6),
    ]
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.2, "momentum": 0.9, "ns_steps": 4}
    options |= {"betas": (0.8, 0.9), "eps": 1e-6}
    ours = muon_of(model, **options)
    for step in range(6):
        if step == 3:
            saved = ours.state_dict()
            ours = muon_of(model, **options)
            ours.load_state_dict(saved)
        tokens = torch.randint(64, (2, 8), generator=torch.Generator().manual_seed(step))
        for each in (model, other):
            each.lm(tokens, labels=tokens).loss.backward()
        for optimizer in (ours, *both):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (step + 1)
            optimizer.step()
            optimizer.zero_grad()
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert all(ours.state[p].keys() == {"momentum_buffer"} for p in ours.param_groups[0]["params"])


def test_the_update_is_nearly_orthogonal_and_of_adamws_size() -> None:
    """The equation of the docstring, in float64 by a singular value decomposition."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(24, 48))
    before, gradient = weight.detach().double(), torch.randn(24, 48)
    weight.grad = gradient.clone()
    MuonWithAdamW([weight], lr=0.01, weight_decay=0.1, momentum=0.9).step()
    taken = (before * (1 - 0.01 * 0.1) - weight.detach().double()) / (0.01 * 0.2 * 48**0.5)
    left, sizes, right = torch.linalg.svd(taken, full_matrices=False)
    assert 0.6 < sizes.min() and sizes.max() < 1.3
    nearest = torch.linalg.svd(gradient.double(), full_matrices=False)
    assert torch.allclose(left @ right, nearest[0] @ nearest[2], atol=0.05)
    assert taken.square().mean().sqrt() * 0.2 * 48**0.5 == pytest.approx(0.2, rel=0.2)


def test_a_closure_gives_the_loss_and_its_gradients() -> None:
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = MuonWithAdamW([weight])

    def closure() -> torch.Tensor:
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 9 and weight.grad is not None and not weight.equal(torch.ones(3, 3))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"momentum": 1.0}, "model.optimizer.momentum is 1.0; it must lie between 0 and 1, below 1"),
        ({"ns_steps": 0}, "model.optimizer.ns_steps is 0; it must lie between 1 and 99"),
    ],
)
def test_values_outside_their_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        MuonWithAdamW([nn.Parameter(torch.ones(2, 2))], **options)


def test_what_torch_refuses_is_one_line(fit: Any) -> None:
    code, said = fit("run", "--model.optimizer.init_args.lr", "-1", **MUON)
    assert code == 2 and "error: model.optimizer refuses its values: Learning rate should be >= 0 but is: -1.0" in said


def test_planned_memory_knows_what_each_keeps() -> None:
    for hidden, expected in ((True, 4), (False, 8)):
        assert state_bytes_per_parameter(MuonWithAdamW, torch.float32, hidden) == expected


def test_float16_takes_its_loss_scale_out_first(fit: Any, tmp_path: Path) -> None:
    """Also where AdamW's part is fused, which alone would do so itself, after gradients are clipped."""
    scaler = {"class_path": "torch.amp.GradScaler", "init_args": {"device": "cpu"}}
    half = {"precision": "16-mixed", "device": "cpu", "scaler": scaler}
    plugin = {"class_path": "lightning.pytorch.plugins.MixedPrecision", "init_args": half}
    assert fit("half", trainer__accelerator="cpu", trainer__precision=None, trainer__plugins=plugin, **MUON)[0] == 0
    assert fit("full", **MUON)[0] == 0
    # Norms of gradients are among them.
    half_logged, full_logged = (
        {key: float(value) for key, value in training_losses(tmp_path / name).items()} for name in ("half", "full")
    )
    assert half_logged == pytest.approx(full_logged, rel=0.03)


@pytest.mark.distributed
def test_sharded_it_takes_the_steps_of_one_process() -> None:
    """Bit for bit, where torch's Muon alone adds up bfloat16 products in another order, and fails on some shapes."""
    mp.spawn(take_steps, (free_port(),), nprocs=2)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_sharded_run_goes_on_bit_for_bit(few: Path, tmp_path: Path) -> None:
    """From the checkpoint at its switch, under FSDP2."""
    sharded = CHANGES | MUON
    fit_two(tmp_path / "whole", few, changes=sharded)
    one, other = rank_states(tmp_path / "whole")
    assert one["weights"] == other["weights"]
    switch = str(tmp_path / "whole" / "checkpoints" / "switch-recovery-step=10.ckpt")
    fit_two(tmp_path / "branch", few, "--ckpt_path", switch, changes=sharded)
    assert_same_state(last(tmp_path / "whole"), last(tmp_path / "branch"))


def test_a_branch_with_another_optimizer_is_refused(fit: Any, tiny_run: Path) -> None:
    switch = str(tiny_run / "checkpoints" / "switch-recovery-step=10.ckpt")
    code, said = fit("branch", "--ckpt_path", switch, **MUON)
    assert code == 2, said
    assert "another model.optimizer (" in said and "class was AdamW, now MuonWithAdamW" in said


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_is_bit_equal(fit: Any, tmp_path: Path, accumulate: int) -> None:
    """Through a reset at the switch too, which it is stopped at."""
    changes = MUON | accumulating(accumulate)
    changes["callbacks__reset"] = {"class_path": "tst_lightning.callbacks.ResetOptimizer"}
    assert fit("whole", **changes)[0] == 0
    for stop in (6, 9):
        code, said = fit("pieces", "--ckpt_path", "last", *signal_at(stop), **changes)
        assert code == 128 + 15, said
    code, said = fit("pieces", "--ckpt_path", "last", "--model.optimizer.init_args.momentum", "0.9", **changes)
    assert code == 2 and "model.optimizer.init_args.momentum was 0.95, now 0.9" in said
    assert fit("pieces", "--ckpt_path", "last", **changes)[0] == 0
    assert_same_run(tmp_path / "whole", tmp_path / "pieces")
    states = last(tmp_path / "whole")["optimizer_states"][0]
    kinds = [{key for index in group["params"] for key in states["state"][index]} for group in states["param_groups"]]
    assert kinds == [{"momentum_buffer"}, *[{"step", "exp_avg", "exp_avg_sq"}] * 2]
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert record["optimizer"] == "MuonWithAdamW" and record["optimizer_settings"]["adjust_lr_fn"] == "match_rms_adamw"
