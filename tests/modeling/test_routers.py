"""Balanced mixtures: the architecture's own loss, however layers are run; and loads that are the routers' own choices."""

import copy
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Ernie4_5_MoeConfig,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from tst_lightning.modeling import CausalLM, build_causal_lm, checkpoint_activations, compile_layers
from tst_lightning.phases import NextTokenPhase, PhaseStrategy, SuperpositionPhase

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    # Large enough to be seen in every digit.
    "router_aux_loss_coef": 0.25,
}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 16}
QWEN3 = Qwen3MoeConfig(**SHAPE, **EXPERTS)
CONFIGS = [
    QWEN3,
    Qwen3MoeConfig(**SHAPE, **EXPERTS, mlp_only_layers=[1]),
    Qwen2MoeConfig(**SHAPE, **EXPERTS, shared_expert_intermediate_size=16),
    MixtralConfig(**SHAPE, num_local_experts=4),
    OlmoeConfig(**SHAPE, num_experts=4, pad_token_id=None),
]


def build(config: PreTrainedConfig, dtype: torch.dtype = torch.float64) -> CausalLM:
    """Of float64 grouped products have no kernel."""
    torch.manual_seed(0)
    experts = "batched_mm" if dtype == torch.float64 else None
    model = build_causal_lm(copy.deepcopy(config), experts=experts).to(dtype)
    with torch.no_grad():
        for router in model.routers.modules if model.routers else ():
            router.weight.mul_(50)  # initialised ones hardly choose
    return model


def tokens_of(phase: PhaseStrategy) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 64, (2, phase.row_tokens(12)))


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_the_loss_is_the_architectures_own(config: PreTrainedConfig) -> None:
    model, tokens = build(config), tokens_of(NextTokenPhase())
    found = model(tokens, NextTokenPhase())
    inputs, targets = tokens[:, :-1], tokens[:, 1:].contiguous()
    own = model.lm(input_ids=inputs, labels=inputs, shift_labels=targets, output_router_logits=True)
    # Norms, the measure, and transformers' cross-entropy are in float32, whatever the model is in.
    torch.testing.assert_close(found.mean, own.loss, rtol=1e-6, atol=0, check_dtype=False)
    for ours, theirs in zip(gradients(found.mean, model), gradients(own.loss, model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert torch.equal(found.balance.loss, own.aux_loss)
    without = F.cross_entropy(own.logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(found.parts.sum() / found.count, without.detach())
    assert abs(own.loss.item() - without.item()) > 0.1


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_bags_are_balanced_by_what_the_routers_make_of_them(config: PreTrainedConfig) -> None:
    model, phase = build(config), SuperpositionPhase(4)
    tokens = tokens_of(phase)
    found = model(tokens, phase)
    bags = model.embed_bags(tokens.view(2, -1, 4)[:, :-1])
    aux = model.lm(inputs_embeds=bags, output_router_logits=True).aux_loss
    assert torch.equal(found.balance.loss, aux)
    torch.testing.assert_close(found.mean, found.parts.sum() / found.count + 0.25 * aux)
    weights = [router.weight for router in model.routers.modules]
    with_balance = torch.autograd.grad(found.mean, weights, retain_graph=True)
    plain = torch.autograd.grad(phase.loss(model, model.body(bags), tokens).mean, weights)
    for whole, without, balance in zip(with_balance, plain, torch.autograd.grad(aux, weights), strict=True):
        torch.testing.assert_close(whole, without + 0.25 * balance, rtol=1e-4, atol=1e-7)


def test_scoring_and_a_coefficient_of_zero_add_nothing() -> None:
    tokens = tokens_of(NextTokenPhase())
    scored = build(QWEN3).eval()(tokens, NextTokenPhase())
    zero = copy.deepcopy(QWEN3)
    zero.router_aux_loss_coef = 0.0
    unbalanced = build(zero)(tokens, NextTokenPhase())
    assert scored.balance is None
    assert torch.equal(scored.total, unbalanced.total) and torch.equal(scored.parts.sum(), scored.total)
    assert unbalanced.balance.loads.sum() == 3 * 24 * 2
    assert build(LlamaConfig(**SHAPE)).routers is None


@pytest.mark.parametrize("biased", [False, True])
def test_loads_are_what_the_routers_chose(biased: bool) -> None:
    """Some choose by their logits and a bias that shifts the choice alone."""
    shape = SHAPE | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 0}
    model = build(Ernie4_5_MoeConfig(**shape, moe_num_shared_experts=1) if biased else QWEN3, torch.float32)
    if biased:
        for router in model.routers.modules:
            router.moe_statics.e_score_correction_bias[..., 3] = 100.0
    chosen: list[Tensor] = []
    for module in model.modules():
        if type(module).__name__.endswith("Experts"):
            module.register_forward_pre_hook(lambda _, arguments: chosen.append(arguments[1]))
    loads = model(tokens_of(NextTokenPhase()), NextTokenPhase()).balance.loads
    assert loads.tolist() == [choice.flatten().bincount(minlength=4).tolist() for choice in chosen]
    assert loads.shape == (3, 4) and loads.sum() == 3 * 24 * 2
    assert ((loads[:, 3] == 24).all()) == biased


@pytest.mark.parametrize(("checkpointing", "compiled"), [(True, False), (False, True), (True, True)])
def test_recomputed_and_compiled_layers_are_balanced_alike(
    checkpointing: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recomputed layer is not noted again, and the layers of a compiled model share one graph, whatever the phase."""
    torch._dynamo.reset()
    # Dynamo's and autograd's part of compiling, without the compiler's minute.
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    results: list[Any] = []
    for another_way in (False, True):
        model = build(QWEN3, torch.float32)
        if another_way and checkpointing:
            checkpoint_activations(model.lm, "full")
        if another_way and compiled:
            compile_layers(model.lm)
        torch._dynamo.utils.counters.clear()
        for phase in (NextTokenPhase(), SuperpositionPhase(4)):
            # In bfloat16, for which there are grouped products in compiled graphs.
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(tokens_of(phase), phase)
            results.append([loss.mean.detach(), loss.balance.loss.detach(), *gradients(loss.mean, model)])
            assert loss.balance.loads.sum() == 3 * 24 * 2
            assert all(router.decided is None for router in model.routers.modules)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    for plain, other in zip(results[:2], results[2:], strict=True):
        for a, b in zip(plain, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
