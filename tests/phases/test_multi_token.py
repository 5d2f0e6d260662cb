"""A second head beside any phase: against a naive computation with the untouched model, and around each phase."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Gemma2Config, LlamaConfig, PreTrainedConfig, Qwen3MoeConfig

from tst_lightning.errors import ConfigError
from tst_lightning.modeling import CausalLM, build_causal_lm
from tst_lightning.phases import (
    AnnealedOutputPhase,
    DocumentBagsPhase,
    FoldedRowsPhase,
    MultiTokenPhase,
    NextTokenPhase,
    OutputOnlyPhase,
    PhaseStrategy,
    SuperpositionPhase,
)

L, WEIGHT = 5, 0.3
SHAPE = {
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "head_dim": 4,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "router_aux_loss_coef": 0.1}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "softcap": Gemma2Config(**SHAPE, final_logit_softcapping=2.0),
    "experts": Qwen3MoeConfig(**SHAPE, **EXPERTS),
}
PHASES: list[Callable[[], PhaseStrategy]] = [
    NextTokenPhase,
    lambda: SuperpositionPhase(3),
    lambda: SuperpositionPhase(4, weighting="power_law"),
    lambda: SuperpositionPhase(3, objective="bag_mass"),
    lambda: OutputOnlyPhase(3, weighting="power_law"),
    lambda: AnnealedOutputPhase(2),
    lambda: FoldedRowsPhase(2),
    lambda: DocumentBagsPhase(3, mask_attention=True),
]


def equipped(name: str = "llama") -> CausalLM:
    """A model with an extra head that has learned something, in float64."""
    torch.manual_seed(0)
    model = build_causal_lm(copy.deepcopy(CONFIGS[name]), experts="batched_mm")
    model.equip([NextTokenPhase(), MultiTokenPhase(NextTokenPhase())])
    assert model.extra_head is not None
    torch.nn.init.normal_(model.extra_head.weight)
    return model.double()


def rows(phase: PhaseStrategy, seq_len: int = L) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 37, (2, phase.row_tokens(seq_len)))


def naive(model: CausalLM, tokens: Tensor, bag_size: int) -> Tensor:
    """Every pair of a position and a target scored by itself, from the untouched model's own states and logits."""
    bags = tokens.view(len(tokens), -1, bag_size)
    if bag_size == 1:
        inputs = {"input_ids": tokens[:, :-1]}
    else:
        inputs = {"inputs_embeds": model.lm.get_input_embeddings()(bags[:, :-1]).mean(2)}
    model.lm.set_attn_implementation("eager")
    hidden = model.lm(**inputs, output_hidden_states=True).hidden_states[-1]  # after the final norm
    assert model.extra_head is not None
    ahead = hidden @ model.extra_head.weight.T
    means = []
    for distance, states in ((1, hidden), (2, hidden + ahead * torch.sigmoid(ahead))):
        logits = model.lm.lm_head(states)
        if cap := getattr(model.lm.config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        losses = [
            F.cross_entropy(logits[row, j], target)
            for row in range(len(tokens))
            for j in range(L + 1 - distance)
            for target in bags[row, j + distance]
        ]
        means.append(torch.stack(losses).mean())
    return means[0] + WEIGHT * means[1]


@pytest.mark.parametrize(("name", "bag_size"), [("llama", 1), ("llama", 3), ("softcap", 1)])
def test_loss_and_gradients_are_the_naive_ones(name: str, bag_size: int) -> None:
    model = equipped(name)
    inner = NextTokenPhase() if bag_size == 1 else SuperpositionPhase(bag_size)
    phase = MultiTokenPhase(inner, WEIGHT)
    tokens = rows(phase)
    ours, expected = model(tokens, phase).mean, naive(model, tokens, bag_size)
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)
    parameters = dict(model.named_parameters())
    assert "extra_head.weight" in parameters
    wanted = torch.autograd.grad(expected, list(parameters.values()))
    for key, gradient, other in zip(
        parameters, torch.autograd.grad(ours, list(parameters.values())), wanted, strict=True
    ):
        torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-7, msg=key)  # the norms are in float32
        assert gradient.any(), key


@pytest.mark.parametrize("make", PHASES)
def test_around_each_phase_the_targets_of_the_next_position_are_scored(make: Callable[[], PhaseStrategy]) -> None:
    """Of states that predict alike wherever they stand, the loss ahead is the loss without the first target."""
    model, inner, phase = equipped(), make(), MultiTokenPhase(make(), WEIGHT)
    for one in (inner, phase):
        one.setup(5, model.lm.config)
        one.begin_step(0.5)
    tokens, positions = rows(inner, 6), inner.row_positions(6)
    tokens[:, 4] = 5  # a document ends within a bag
    hidden = inner.forward(model, tokens)
    assert hidden.shape[1] == positions and model.extra_head is not None
    later = inner.loss(model, hidden[:, 1:], tokens, ahead=1)
    # Zeros predict all tokens alike: by their loss the first position's own is known from outside.
    blank = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, 1:]], 1)
    shifted = inner.loss(model, blank, tokens)
    difference = torch.autograd.grad(shifted.total - later.total, hidden, retain_graph=True)[0]
    assert difference.abs().max() < 1e-12
    main, both = inner.loss(model, hidden, tokens), phase.loss(model, phase.forward(model, tokens), tokens)
    ahead = inner.loss(model, model.extra_head(hidden)[:, :-1], tokens, ahead=1)
    torch.testing.assert_close(both.mean, main.mean + WEIGHT * ahead.mean)
    assert torch.equal(both.parts, main.parts) and torch.equal(both.count, main.count)


def test_it_begins_as_the_main_head_and_without_weight_changes_nothing() -> None:
    model = equipped("experts")  # whose balance counts as often as ever
    tokens = rows(NextTokenPhase())
    plain, without = (model(tokens, phase) for phase in (NextTokenPhase(), MultiTokenPhase(NextTokenPhase(), 0.0)))
    parameters = list(model.parameters())
    assert torch.equal(plain.total, without.total)
    for one, other in zip(*(torch.autograd.grad(loss.mean, parameters) for loss in (plain, without)), strict=True):
        assert torch.equal(one, other)
    fresh = build_causal_lm(copy.deepcopy(CONFIGS["llama"]))
    state = torch.get_rng_state()
    fresh.equip([MultiTokenPhase(NextTokenPhase())])
    assert fresh.extra_head is not None and torch.equal(torch.get_rng_state(), state)
    hidden = torch.randn(2, L, 16)
    assert torch.equal(fresh.extra_head(hidden), hidden)


def test_a_phase_without_it_gives_it_a_gradient_of_zero() -> None:
    """DDP waits for one of every parameter."""
    model = equipped()
    model(rows(SuperpositionPhase(3)), SuperpositionPhase(3)).total.backward()
    assert model.extra_head is not None and model.extra_head.weight.grad is not None
    assert not model.extra_head.weight.grad.any()
    plain = build_causal_lm(copy.deepcopy(CONFIGS["llama"]))
    plain.equip([NextTokenPhase(), SuperpositionPhase(3)])
    assert plain.extra_head is None


class Told(NextTokenPhase):
    """Rows of its own, and notes of what it is told."""

    row_multiple = 3

    def row_stride(self, seq_len: int) -> int:
        return seq_len

    def row_positions(self, seq_len: int) -> int:
        return seq_len // 2

    def setup(self, end_of_document_id: int, config: PreTrainedConfig) -> None:
        self.end = end_of_document_id

    def begin_step(self, progress: float) -> None:
        self.progress = progress


def test_rows_steps_and_share_are_those_of_the_inner_phase() -> None:
    inner = Told(0.25)
    phase = MultiTokenPhase(inner)
    phase.setup(7, CONFIGS["llama"])
    phase.begin_step(0.5)
    assert (inner.end, inner.progress) == (7, 0.5)
    for name in ("share", "bag_size", "row_multiple"):
        assert getattr(phase, name) == getattr(inner, name)
    for name in ("row_tokens", "row_stride", "row_positions"):
        assert getattr(phase, name)(8) == getattr(inner, name)(8), name
    costs = {one.work(8) for one in (phase, inner, NextTokenPhase(), MultiTokenPhase(SuperpositionPhase(2)))}
    assert len(costs) == 4 and MultiTokenPhase(Told(), 0.5).work(8) == phase.work(8)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match=f"MultiTokenPhase.weight is {weight}; it must be a finite number, 0 or more"):
        MultiTokenPhase(NextTokenPhase(), weight)


def test_no_head_beside_a_head_and_none_without_a_position_left() -> None:
    with pytest.raises(
        ConfigError, match="MultiTokenPhase.phase is a MultiTokenPhase, which has the extra head already"
    ):
        MultiTokenPhase(MultiTokenPhase(NextTokenPhase()))
    with pytest.raises(ConfigError, match="data.seq_len is 1, which gives rows of 1 position in this phase"):
        MultiTokenPhase(NextTokenPhase()).row_positions(1)
    with pytest.raises(ConfigError, match="data.seq_len is 2, which gives rows of 1 position in this phase"):
        MultiTokenPhase(Told()).row_positions(2)
