"""Bags within documents: held against loops over documents, and against each document on its own."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import GemmaConfig, GPT2Config, LlamaConfig, PreTrainedConfig, Qwen3MoeConfig

from tests.conftest import ROOT, needs_compiler
from tst_lightning.__main__ import main
from tst_lightning.bags import bag_weights, mean_embedding
from tst_lightning.flops import count_flops_per_row
from tst_lightning.losses import IGNORED
from tst_lightning.modeling import CausalLM, build_causal_lm, checkpoint_activations, compile_layers
from tst_lightning.phases import DocumentBagsPhase, NextTokenPhase, PhaseStrategy, SuperpositionPhase

L, END, V = 12, 1, 64
SHAPE = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = LlamaConfig(**SHAPE, num_key_value_heads=2)
# One with heads of keys that are shared, one with an embedding layer of its own, learned positions, a mixture.
CONFIGS: list[PreTrainedConfig] = [
    LLAMA,
    GemmaConfig(**SHAPE, num_key_value_heads=1, head_dim=8),
    GPT2Config(
        vocab_size=V, n_embd=16, n_layer=2, n_head=4, n_positions=L, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0
    ),
    Qwen3MoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
]


def build(config: PreTrainedConfig) -> CausalLM:
    torch.manual_seed(0)
    model = build_causal_lm(copy.deepcopy(config), experts="batched_mm").double()
    with torch.no_grad():  # initial weights are too small for a leak to show
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight) * (weight.ndim > 1))
    return model


def make(bag_size: int, masked: bool = False, **more: Any) -> DocumentBagsPhase:
    phase = DocumentBagsPhase(bag_size, mask_attention=masked, **more)
    phase.setup(END, LLAMA)
    return phase


def rows(phase: PhaseStrategy, *lengths: int) -> Tensor:
    """Two rows with documents of these lengths, ends included, and one that goes on beyond the row; other tokens."""
    torch.manual_seed(1)
    tokens = torch.randint(2, V, (2, phase.row_tokens(L)))
    for end in torch.tensor(lengths).cumsum(0).tolist():
        tokens[:, end - 1 : end] = END  # beyond the row there is none
    return tokens


def by_hand(tokens: list[int], bag_size: int) -> list[list[list[int]]]:
    """The bags of each document of a row, its first L + 1."""
    documents: list[list[list[int]]] = [[]]
    for token in tokens:
        bags = documents[-1]
        if not bags or len(bags[-1]) == bag_size:
            bags.append([])
        bags[-1].append(token)
        if token == END:
            documents.append([])
    left = L + 1
    kept = []
    for bags in documents:
        kept.append(bags[:left])
        left -= len(kept[-1])
    return [bags for bags in kept if bags]


@pytest.mark.parametrize("weighting", ["uniform", "power_law"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bag_size", [1, 3, 4])
def test_loss_and_gradients_by_hand(bag_size: int, masked: bool, weighting: str) -> None:
    """From the definition: means of the tokens that are there; where masked each document through the model on its own; one
    cross-entropy a token, by its weight in a full bag, over the sum of all weights.
    """
    model = build(LLAMA)
    phase = make(bag_size, masked, weighting=weighting)
    tokens = rows(phase, 5, 1, 8, 2)
    embedding, weights = model.lm.get_input_embeddings().weight, bag_weights(weighting, bag_size)
    count, parts = 0.0, []
    for row in tokens.tolist():
        documents = by_hand(row, bag_size)
        assert sum(map(len, documents)) == L + 1 and len(documents) > 2
        means = [torch.stack([embedding[bag].mean(0) for bag in bags]) for bags in documents]
        runs = means if masked else [torch.cat(means)]
        logits = torch.cat([model.lm(inputs_embeds=run[None]).logits[0] for run in runs])
        targets = [bag for bags in documents for bag in bags][1:]
        of_row = [
            -weights[i] * logits[j].log_softmax(-1)[token]
            for j, bag in enumerate(targets)
            for i, token in enumerate(bag)
        ]
        parts.append(torch.stack(of_row).sum())
        count += sum(weights[i].item() for bag in targets for i in range(len(bag)))
    total = torch.stack(parts).sum()
    found = model(tokens, phase)
    torch.testing.assert_close(found.count.item(), count)
    torch.testing.assert_close(found.total, total, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.parts, torch.stack(parts), rtol=1e-7, atol=1e-7)
    assert_same_gradients(model, found.mean, total / count)


def assert_same_gradients(model: CausalLM, ours: Tensor, theirs: Tensor) -> None:
    """But for norms and rotations, which architectures compute in float32."""
    found, expected = (torch.autograd.grad(loss, list(model.parameters())) for loss in (ours, theirs))
    largest = max(gradient.norm() for gradient in expected)
    for (name, _), a, b in zip(model.named_parameters(), found, expected, strict=True):
        assert (a - b).norm() < 1e-6 * largest, name


@pytest.mark.parametrize("bag_size", [1, 4])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_no_position_reads_another_document_or_its_target(config: PreTrainedConfig, bag_size: int) -> None:
    """Change each token in turn: masked, those positions move that read it at or before them in its document, no others."""
    model = build(config).eval()
    phase = make(bag_size, masked=True)
    tokens = rows(phase, 5, 1, 3)[:1]
    bags = [(number, bag) for number, document in enumerate(by_hand(tokens[0].tolist(), bag_size)) for bag in document]
    place = [(document, j) for j, (document, bag) in enumerate(bags) for _ in bag]
    with torch.no_grad():
        before = phase.forward(model, tokens)[0]
        for index, (document, bag) in enumerate(place):
            if tokens[0, index] == END:
                continue
            changed = tokens.clone()
            changed[0, index] = 2 + (changed[0, index] - 1) % (V - 2)
            moved = ((phase.forward(model, changed)[0] - before).abs() > 1e-12).any(-1)
            assert moved.tolist() == [bags[j][0] == document and j >= bag for j in range(L)], f"token {index}"


def test_without_masks_positions_read_across_borders() -> None:
    model, phase = build(LLAMA), make(4)
    tokens = rows(phase, 5, 1, 3)
    changed = tokens.clone()
    changed[:, 0] += 1
    moved = ((phase.forward(model, changed) - phase.forward(model, tokens)).abs() > 1e-12).any(-1)
    assert moved.all()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
@pytest.mark.parametrize(
    ("phase", "plain"),
    [
        (make(4), SuperpositionPhase(4)),
        (make(4, masked=True, weighting="power_law"), SuperpositionPhase(4, weighting="power_law")),
        (make(3, objective="bag_mass"), SuperpositionPhase(3, objective="bag_mass")),
        (make(1), NextTokenPhase()),
        (make(1, masked=True), NextTokenPhase()),
        (DocumentBagsPhase(4, mask_attention=True), SuperpositionPhase(4)),  # not set up, as where FLOPs are counted
    ],
)
def test_without_borders_it_is_the_plain_phase(
    config: PreTrainedConfig, phase: PhaseStrategy, plain: PhaseStrategy
) -> None:
    model = build(config)
    tokens = rows(phase)
    ours, theirs = model(tokens, phase), model(tokens, plain)
    # Gemma's embedding layer gives what is averaged in float32.
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-7, atol=0)
    assert ours.count.item() == pytest.approx(theirs.count.item(), rel=1e-12) == 2 * L
    assert_same_gradients(model, ours.mean, theirs.mean)


def test_unmasked_bags_of_one_are_next_token_training_with_borders_too() -> None:
    model = build(LLAMA)
    tokens = rows(NextTokenPhase(), 3, 1, 4)
    torch.testing.assert_close(model(tokens, make(1)).mean, model(tokens, NextTokenPhase()).mean, rtol=1e-12, atol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_its_flops_are_those_of_superposition(masked: bool) -> None:
    expected = count_flops_per_row(LLAMA, SuperpositionPhase(4), L)
    assert count_flops_per_row(LLAMA, DocumentBagsPhase(4, mask_attention=masked), L) == expected


@pytest.mark.parametrize("what", ["full", "selective"])
def test_recomputed_layers_attend_within_documents_too(what: Any) -> None:
    results = []
    for choice in ("none", what):
        model = build(LLAMA)
        checkpoint_activations(model.lm, choice)
        phase = make(4, masked=True)
        results.append(torch.autograd.grad(model(rows(phase, 5, 1, 3), phase).total, list(model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.slow
@needs_compiler
def test_compiled_and_recomputed_layers_attend_within_documents_too() -> None:
    torch._dynamo.reset()
    phase, results = make(4, masked=True), []
    for compiled in (False, True):
        model = build(LLAMA).float()
        checkpoint_activations(model.lm, "full")
        if compiled:
            compile_layers(model.lm)
        loss = model(rows(phase, 5, 1, 3), phase).mean
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_one_mask_serves_all_layers_under_autocast() -> None:
    """What attention keeps for its backward: one mask, however many layers, in the dtype that it multiplies in."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape[-2:] == (L, L):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    model, phase = build(LLAMA).float(), make(4, masked=True)
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model(rows(phase, 5, 1, 3), phase).total.backward()
    assert [(tensor.dtype, tensor.untyped_storage().nbytes()) for tensor in kept.values()] == [
        (torch.bfloat16, 2 * L * L * 2)
    ]


@pytest.mark.parametrize("padding", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_embeddings_of_bags_that_miss_tokens(dtype: torch.dtype, padding: int | None) -> None:
    """Mean and gradient against a loop of gathers; a padding row counts in the mean and takes no gradient."""
    model = build_causal_lm(LlamaConfig(**SHAPE, pad_token_id=padding)).to(dtype)
    weight = model.lm.get_input_embeddings().weight
    bags = torch.randint(0, V, (2, 7, 4))
    bags[0, :3] = 5
    for j in range(7):
        bags[:, j, 1 + j % 4 :] = IGNORED
    found = model.embed_partial_bags(bags)
    wide = weight.detach().double().requires_grad_()
    rows_of = wide if padding is None else wide.where(torch.arange(V)[:, None] != padding, wide.detach())
    loop = torch.stack([rows_of[bag[bag != IGNORED]].mean(0) for bag in bags.flatten(0, 1)]).view(2, 7, -1)
    close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-6, "atol": 1e-7}
    close = {"rtol": 8e-3, "atol": 1e-6} if dtype == torch.bfloat16 else close
    torch.testing.assert_close(found.double(), loop, **close)
    upstream = torch.randn(found.shape).to(dtype)
    (gradient,) = torch.autograd.grad(found, weight, upstream)
    (expected,) = torch.autograd.grad(loop, wide, upstream.double())
    torch.testing.assert_close(gradient.double(), expected, **close)
    whole = torch.randint(0, V, (2, 7, 4))
    torch.testing.assert_close(model.embed_partial_bags(whole), mean_embedding(whole, weight), **close)


@pytest.mark.parametrize("name", ["document_bags", "document_bags_masked"])
def test_trains_through_the_command(fit: Callable[..., tuple[int, str]], name: str) -> None:
    phases = yaml.safe_load((ROOT / "configs" / "variants" / f"{name}.yaml").read_text())["model"]["phases"]
    code, said = fit(name, model__phases=phases, trainer__max_steps=10)
    assert code == 0, said


def test_an_architecture_that_cannot_is_refused_before_training(
    fit: Callable[..., tuple[int, str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    window = {
        "class_path": "transformers.MistralConfig",
        "init_args": {**SHAPE, "vocab_size": 320, "num_key_value_heads": 2, "sliding_window": 8},
    }
    masked = {
        "class_path": "tst_lightning.phases.DocumentBagsPhase",
        "init_args": {"bag_size": 4, "mask_attention": True},
    }
    code, said = fit("window", model__config=window, model__phases={"only": masked})
    assert code == 2 and "mask_attention is on, but MistralConfig does not go by PyTorch's fused attention" in said
    assert "Traceback" not in said and "set mask_attention: false" in said
    assert main(["plan", "--config", str(tmp_path / "window.yaml")]) == 2
    assert "mask_attention is on, but MistralConfig" in capfd.readouterr().err
