"""What the phases compute, through a real Llama: causality, the identity with ordinary training, unchanged parameters."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from tst_lightning.modeling import CausalLM, build_causal_lm
from tst_lightning.phases import NextTokenByPosition, NextTokenPhase, PhaseStrategy, SuperpositionPhase

L = 5
CONFIG = LlamaConfig(
    vocab_size=37,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=16,
)


@pytest.fixture
def model() -> CausalLM:
    torch.manual_seed(0)
    return build_causal_lm(CONFIG).double()


def row(phase: PhaseStrategy, rows: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, CONFIG.vocab_size, (rows, phase.row_tokens(L)))


def losses_by_position(model: CausalLM, phase: PhaseStrategy, tokens: Tensor) -> Tensor:
    """(L,) losses of one row: the loss of each position taken alone."""
    hidden = phase.forward(model, tokens)
    s = phase.bag_size
    parts = []
    for j in range(L):
        # Position j's input bag and target bag, as a row of one position.
        parts.append(phase.loss(model, hidden[:, j : j + 1], tokens[:, j * s : (j + 2) * s]).total)
    return torch.stack(parts)


def test_losses_by_position_are_those_of_each_position_and_the_same_total(model: CausalLM) -> None:
    apart, rows = NextTokenByPosition(), NextTokenPhase()
    tokens = row(apart)
    mine, whole = model(tokens, apart), model(tokens, rows)
    expected = [losses_by_position(model, rows, tokens[i : i + 1]) for i in range(len(tokens))]
    torch.testing.assert_close(mine.parts, torch.cat(expected).detach(), rtol=1e-12, atol=0)
    assert torch.equal(mine.total, whole.total)
    torch.testing.assert_close(mine.parts.view(2, L).sum(1), whole.parts, rtol=1e-15, atol=0)


PHASES: list[Callable[[], PhaseStrategy]] = [
    NextTokenPhase,
    lambda: SuperpositionPhase(1),
    lambda: SuperpositionPhase(2),
    lambda: SuperpositionPhase(4, weighting="power_law"),
]


@pytest.mark.parametrize("make", PHASES)
def test_causality(model: CausalLM, make: Callable[[], PhaseStrategy]) -> None:
    """Change each token in turn: no position that neither reads nor is scored on it moves; those that are do."""
    phase = make()
    tokens = row(phase, rows=1)
    before = losses_by_position(model, phase, tokens)
    torch.testing.assert_close(before.sum(), model(tokens, phase).total)
    for index in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[0, index] = (changed[0, index] + 1) % CONFIG.vocab_size
        moved = (losses_by_position(model, phase, changed) - before).abs() > 1e-12
        bag = index // phase.bag_size  # position j reads bags 0 to j, and is scored on bag j + 1
        assert moved.tolist() == [j + 1 >= bag for j in range(L)], f"token {index}"


@pytest.mark.parametrize("weighting", ["uniform", "power_law"])
def test_bag_size_one_is_ordinary_training(model: CausalLM, weighting: str) -> None:
    """Loss and every gradient equal those of the untouched Hugging Face model's own logits."""
    tokens = row(NextTokenPhase())
    for phase in (SuperpositionPhase(1, weighting=weighting), NextTokenPhase()):
        ours = model(tokens, phase).mean
        gradients = torch.autograd.grad(ours, list(model.parameters()))
        model.lm.set_attn_implementation("eager")
        logits = model.lm(input_ids=tokens[:, :-1]).logits
        theirs = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        expected = torch.autograd.grad(theirs, list(model.parameters()))
        model.lm.set_attn_implementation("causal_sdpa")
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)
        for (name, _), gradient, wanted in zip(model.named_parameters(), gradients, expected, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-8, msg=name)


def test_superposition_by_hand(model: CausalLM) -> None:
    """The loss of bags of 3, from the definition: mean embeddings in, average cross-entropy over the next bag out."""
    phase = SuperpositionPhase(3)
    tokens = row(phase, rows=1)
    embedding = model.lm.get_input_embeddings().weight
    bags = tokens[0].view(L + 1, 3)
    inputs = torch.stack([embedding[bag].mean(0) for bag in bags[:-1]])[None]
    logits = model.lm(inputs_embeds=inputs).logits[0].double()
    expected = torch.stack(
        [-logits[j].log_softmax(-1)[token] / 3 for j in range(L) for token in bags[j + 1].tolist()]
    ).sum()
    torch.testing.assert_close(model(tokens, phase).total, expected, rtol=1e-7, atol=1e-7)


def test_parameters_are_those_of_the_untouched_model(model: CausalLM) -> None:
    plain = AutoModelForCausalLM.from_config(CONFIG)
    expected = {name: parameter.shape for name, parameter in plain.named_parameters()}
    for make in PHASES:
        model(row(make()), make()).total.backward()
        assert {name: parameter.shape for name, parameter in model.lm.named_parameters()} == expected
    assert all(parameter.grad is not None for parameter in model.parameters())
