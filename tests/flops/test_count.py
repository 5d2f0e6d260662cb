"""The counted graph against the closed form, against totals computed by hand, and against the graph that trains."""

import copy
import random
from functools import cache

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from tst_lightning.errors import ConfigError
from tst_lightning.flops import AttentionConvention, RowFlops, closed_form_flops_per_row, convention, count_row
from tst_lightning.modeling import ActivationCheckpointing, build_causal_lm, checkpoint_activations
from tst_lightning.phases import MultiTokenPhase, NextTokenPhase, PhaseStrategy, SuperpositionPhase

L, LAYERS = 32, 2
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
}
MOE = {
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, num_key_value_heads=4),
    "llama-gqa": LlamaConfig(**SHAPE, num_key_value_heads=2),
    "llama-tied": LlamaConfig(**SHAPE, num_key_value_heads=4, tie_word_embeddings=True),
    "llama-gqa-tied": LlamaConfig(**SHAPE, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=32),
    "smollm3": SmolLM3Config(**SHAPE, num_key_value_heads=2, pad_token_id=None, bos_token_id=None, eos_token_id=None),
    "gpt2": GPT2Config(
        vocab_size=512, n_embd=64, n_layer=LAYERS, n_head=4, n_positions=L, bos_token_id=0, eos_token_id=0
    ),
    "qwen3-moe": Qwen3MoeConfig(**SHAPE, **MOE),
    "qwen3-moe-dense": Qwen3MoeConfig(**SHAPE | {"num_hidden_layers": 3}, **MOE, mlp_only_layers=[0]),
}
PHASES: dict[str, PhaseStrategy] = {
    "next_token": NextTokenPhase(),
    "superposition": SuperpositionPhase(4),
    "bag_mass": SuperpositionPhase(16, objective="bag_mass"),
}
# Some versions of transformers build the rotary angles by an outer product, which is counted: 1 in 70,000 here.
ROTARY = 1e-4


@cache
def counted(
    name: str, phase: str, attention: AttentionConvention = "full", checkpointing: ActivationCheckpointing = "none"
) -> RowFlops:
    return count_row(CONFIGS[name], PHASES[phase], L, attention, checkpointing)


@pytest.mark.parametrize("attention", ["full", "causal"])
@pytest.mark.parametrize("phase", ["next_token", "superposition"])
@pytest.mark.parametrize("name", CONFIGS)
def test_count_equals_closed_form(name: str, phase: str, attention: AttentionConvention) -> None:
    expected = closed_form_flops_per_row(CONFIGS[name], L, attention)
    assert counted(name, phase, attention).total == pytest.approx(expected, rel=ROTARY)


# -- by hand ------------------------------------------------------------------------------------------------------

PAIRS = {"full": L * L, "causal": L * (L + 1) // 2}
# Multiply-adds of one layer's attention: 4 heads, 16 or 32 wide; one product gives scores, one the weighted values.
LLAMA_ATTENTION = {name: 2 * 64 * pairs for name, pairs in PAIRS.items()}
MOE_ATTENTION = {name: 2 * 128 * pairs for name, pairs in PAIRS.items()}
LLAMA_LAYER = 4 * 64 * 64 + 3 * 64 * 160  # q, k, v, o; gate, up, down
MOE_LAYER = 2 * 64 * 128 + 2 * 64 * 64 + 64 * 8 + 2 * (3 * 64 * 48)  # q, o; k, v; router; two experts of eight
HEAD = 512 * 64


@pytest.mark.parametrize("attention", ["full", "causal"])
@pytest.mark.parametrize("phase", ["next_token", "superposition"])
@pytest.mark.parametrize(
    ("name", "layer", "pairwise"),
    [("llama", LLAMA_LAYER, LLAMA_ATTENTION), ("qwen3-moe", MOE_LAYER, MOE_ATTENTION)],
)
def test_by_hand(name: str, layer: int, pairwise: dict[str, int], phase: str, attention: AttentionConvention) -> None:
    """Forward and backward are three products' worth, of two FLOPs a multiply-add."""
    found = counted(name, phase, attention)
    assert found.attention == 3 * 2 * LAYERS * pairwise[attention]
    by_hand = 3 * 2 * (L * (LAYERS * layer + HEAD) + LAYERS * pairwise[attention])
    assert found.total == pytest.approx(by_hand, rel=ROTARY)


@pytest.mark.parametrize("attention", ["full", "causal"])
@pytest.mark.parametrize(
    ("name", "layer", "last", "pairwise"),
    [
        ("llama", LLAMA_LAYER, 64 * 160, LLAMA_ATTENTION),
        # The last product of the experts is scaled by the router, so that its backward needs what it gave.
        ("qwen3-moe", MOE_LAYER, 0, MOE_ATTENTION),
    ],
)
def test_checkpointing_adds_a_second_forward_of_the_layers(
    name: str, layer: int, last: int, pairwise: dict[str, int], attention: AttentionConvention
) -> None:
    """But for a layer's last product, whose result no gradient needs: torch stops before it."""
    model, hardware = (counted(name, "superposition", attention, what) for what in ("none", "full"))
    assert hardware.total - model.total == LAYERS * 2 * (L * (layer - last) + pairwise[attention])
    assert hardware.attention - model.attention == LAYERS * 2 * pairwise[attention]


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "qwen3-moe-dense"])
def test_selective_checkpointing_adds_nothing(name: str) -> None:
    """No product is computed twice, and attention none either."""
    assert counted(name, "superposition", checkpointing="selective") == counted(name, "superposition")


def test_what_is_changed_in_place_can_not_be_kept() -> None:
    """As the biases of GPT-OSS' experts are added; found out before a run begins."""
    config = GptOssConfig(**SHAPE, num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2)
    with pytest.raises(ConfigError) as refused:
        count_row(config, PHASES["next_token"], L, activation_checkpointing="selective")
    assert str(refused.value) == (
        "model.activation_checkpointing is selective, but GptOssForCausalLM changes in place what a matrix product gave,"
        " which is to be kept; set it to full or none"
    )


def test_phases_cost_the_same() -> None:
    costs = {counted("llama", phase) for phase in PHASES} | {count_row(CONFIGS["llama"], SuperpositionPhase(1), L)}
    assert len(costs) == 1


@pytest.mark.parametrize("inner", PHASES)
@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3-moe"])
def test_an_extra_head_costs_a_second_product_with_the_lm_head_and_one_of_its_own(name: str, inner: str) -> None:
    """For all positions but the last."""
    both, alone = count_row(CONFIGS[name], MultiTokenPhase(PHASES[inner]), L), counted(name, inner)
    assert both.total - alone.total == 3 * 2 * (L - 1) * (HEAD + 64 * 64)
    assert both.attention == alone.attention
    assert both.total == pytest.approx(closed_form_flops_per_row(CONFIGS[name], L, extra_head=True), rel=ROTARY)


def test_layers_are_extrapolated_from_two() -> None:
    config = copy.deepcopy(CONFIGS["llama"])
    config.num_hidden_layers = 50
    two, fifty = counted("llama", "next_token"), count_row(config, PHASES["next_token"], L)
    assert fifty.total - two.total == 48 * 3 * 2 * (L * LLAMA_LAYER + LLAMA_ATTENTION["full"])
    assert fifty.attention == 25 * two.attention


# -- the graph that trains ----------------------------------------------------------------------------------------


def plain_count(name: str, phase: str, attention: str, checkpointing: ActivationCheckpointing = "none") -> int:
    """What PyTorch's own counter sees of a step of a real model on this processor, with real routing."""
    torch.manual_seed(0)
    model = build_causal_lm(copy.deepcopy(CONFIGS[name]), attention=attention, experts="batched_mm")
    checkpoint_activations(model.lm, checkpointing)
    tokens = torch.randint(0, 512, (1, PHASES[phase].row_tokens(L)))
    with FlopCounterMode(display=False) as counter:
        model(tokens, PHASES[phase]).total.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "phase", "checkpointing"),
    [
        ("llama", "next_token", "selective"),
        ("llama-gqa-tied", "superposition", "full"),
        ("smollm3", "superposition", "none"),
        ("qwen3-moe", "next_token", "full"),
        ("qwen3-moe-dense", "superposition", "selective"),
    ],
)
def test_count_equals_the_real_graph_with_eager_attention(
    name: str, phase: str, checkpointing: ActivationCheckpointing
) -> None:
    assert counted(name, phase, checkpointing=checkpointing).total == plain_count(name, phase, "eager", checkpointing)


@pytest.mark.parametrize("name", ["llama", "llama-gqa", "qwen3-moe"])
def test_fused_attention_is_what_the_plain_counter_misses(name: str) -> None:
    found = counted(name, "superposition")
    assert plain_count(name, "superposition", "causal_sdpa") == found.total - found.attention


# -- what counting leaves alone -----------------------------------------------------------------------------------


def test_counting_draws_no_random_number_and_leaves_the_configuration_alone() -> None:
    config = Qwen3MoeConfig(**SHAPE, **MOE, attention_dropout=0.1)
    before = copy.deepcopy(config)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    for activation_checkpointing in ("none", "selective", "full"):
        count_row(config, PHASES["superposition"], L, "full", activation_checkpointing)
    closed_form_flops_per_row(config, L)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    assert vars(config) == vars(before)  # the implementations that are counted by are not those to train with


def test_conventions_in_words() -> None:
    assert (
        convention("full")
        == "forward and backward matrix products, attention counted as full, no recomputation, no optimizer"
    )
    assert convention("causal") == convention("full").replace("as full", "as causal")
