"""Output-only superposition and its annealed form, against the untouched model's logits and ordinary training."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.phases.test_phases import CONFIG, L
from tst_lightning.bags import bag_weights
from tst_lightning.modeling import CausalLM, build_causal_lm
from tst_lightning.phases import AnnealedOutputPhase, NextTokenPhase, OutputOnlyPhase, PhaseStrategy


@pytest.fixture
def model() -> CausalLM:
    torch.manual_seed(0)
    return build_causal_lm(CONFIG).double()


def rows(phase: PhaseStrategy) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, CONFIG.vocab_size, (2, phase.row_tokens(L)))


def by_hand(model: CausalLM, tokens: Tensor, weights: Tensor) -> Tensor:
    """The sum over positions and their next tokens of weighted cross-entropies, from the model's own logits."""
    log_probs = model.lm(input_ids=tokens[:, :L]).logits.double().log_softmax(-1)
    losses = [
        -weight * log_probs[row, j, tokens[row, j + 1 + i]]
        for row in range(len(tokens))
        for j in range(L)
        for i, weight in enumerate(weights.tolist())
    ]
    return torch.stack(losses).sum()


def assert_same_gradients(model: CausalLM, one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    wanted = torch.autograd.grad(other, list(model.parameters()))
    for ours, theirs in zip(torch.autograd.grad(one, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("weighting", ["uniform", "power_law"])
def test_by_hand(model: CausalLM, weighting: str) -> None:
    phase = OutputOnlyPhase(3, weighting=weighting)
    tokens = rows(phase)
    loss = model(tokens, phase)
    assert_same_gradients(model, loss.total, by_hand(model, tokens, bag_weights(weighting, 3)))
    assert loss.count.item() == pytest.approx(2 * L) and loss.parts.shape == (2,)


def test_bag_mass_by_hand(model: CausalLM) -> None:
    phase = OutputOnlyPhase(3, objective="bag_mass")
    tokens = rows(phase)
    tokens[0, 2] = tokens[0, 3]  # a token twice in a bag counts once
    probs = model.lm(input_ids=tokens[:, :L]).logits.double().softmax(-1)
    mass = [probs[b, j, tokens[b, j + 1 : j + 4].unique()].sum().log() for b in range(2) for j in range(L)]
    assert_same_gradients(model, model(tokens, phase).total, -torch.stack(mass).sum())


@pytest.mark.parametrize("phase", [OutputOnlyPhase(1), OutputOnlyPhase(4, weighting="first")])
def test_the_next_token_alone_is_ordinary_training(model: CausalLM, phase: PhaseStrategy) -> None:
    tokens = rows(phase)
    assert_same_gradients(model, model(tokens, phase).total, model(tokens[:, : L + 1], NextTokenPhase()).total)


def test_no_position_reads_what_it_is_scored_on(model: CausalLM) -> None:
    phase = OutputOnlyPhase(3)
    tokens = rows(phase)[:1]
    before = phase.forward(model, tokens)
    for index in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[0, index] = (changed[0, index] + 1) % CONFIG.vocab_size
        moved = (phase.forward(model, changed) - before).abs().amax(-1)[0] > 1e-12
        assert moved.tolist() == [j >= index for j in range(L)], f"token {index}"


def test_annealed_weights_go_from_those_of_a_bag_to_the_next_token_alone(model: CausalLM) -> None:
    phase = AnnealedOutputPhase(4, weighting="power_law")
    tokens = rows(phase)
    begin, end = bag_weights("power_law", 4), F.one_hot(torch.tensor(0), 4).double()
    for progress in (0.0, 0.25, 0.99):
        phase.begin_step(progress)
        assert_same_gradients(
            model, model(tokens, phase).total, by_hand(model, tokens, torch.lerp(begin, end, progress))
        )
    phase.begin_step(0.0)  # what a step was told leaves no trace
    torch.testing.assert_close(
        model(tokens, phase).total, model(tokens, OutputOnlyPhase(4, weighting="power_law")).total
    )


def test_a_run_tells_the_phase_how_far_it_is(fit: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """The first step is at the weights of the beginning; from the second on they are others."""
    losses = []
    for name in ("OutputOnlyPhase", "AnnealedOutputPhase"):
        phase = {"class_path": f"tst_lightning.phases.{name}", "init_args": {"bag_size": 4}}
        code, said = fit(name, model__phases={"only": phase}, trainer__max_steps=4, model__optimizer__init_args__lr=0.0)
        assert code == 0, said
        with open(tmp_path / name / "csv" / "version_0" / "metrics.csv") as file:
            losses.append([float(row["train/only/loss"]) for row in csv.DictReader(file) if row["train/only/loss"]])
    assert len(losses[0]) == 4 and losses[0][0] == losses[1][0]
    assert all(a != b for a, b in zip(losses[0][1:], losses[1][1:], strict=True))


def test_a_block_that_holds_too_few_rows_is_refused(fit: Callable[..., tuple[int, str]]) -> None:
    """Else its last row, in every block and pass the same text, would never be read."""
    phase = {"class_path": "tst_lightning.phases.OutputOnlyPhase", "init_args": {"bag_size": 5}}
    code, said = fit(model__phases={"only": phase})
    assert code == 2 and "Traceback" not in said
    assert "phase 'only' reads rows of 21 tokens, of which a block of 68 (data.block_rows 4) holds too few" in said
    assert fit("enough", model__phases={"only": phase}, data__block_rows=5, trainer__max_steps=3)[0] == 0
