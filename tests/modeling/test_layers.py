"""Checkpointed activations: the same numbers from a fraction of what is kept, and one line where it can't be had."""

import copy
import re
from collections import Counter
from typing import get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, JetMoeConfig, LlamaConfig, PreTrainedConfig, Qwen3MoeConfig, SmolLM3Config

from tests.conftest import needs_compiler
from tst_lightning.errors import ConfigError
from tst_lightning.modeling import ActivationCheckpointing, build_causal_lm, checkpoint_activations, compile_layers
from tst_lightning.phases import NextTokenPhase, SuperpositionPhase
from tst_lightning.plan.activations import kept_bytes

CHOICES = get_args(ActivationCheckpointing)

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
NO_IDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
CONFIGS = [
    LlamaConfig(**SHAPE, num_key_value_heads=2, attention_dropout=0.2),
    SmolLM3Config(**SHAPE, num_key_value_heads=2, **NO_IDS),
    GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0),
    Qwen3MoeConfig(**SHAPE, num_key_value_heads=2, num_experts=4, moe_intermediate_size=16, num_experts_per_tok=2),
]


def step(config: PreTrainedConfig, bag_size: int, what: ActivationCheckpointing) -> tuple[list[torch.Tensor], int]:
    """Loss and gradients of one step, and the bytes kept for its backward."""
    torch.manual_seed(0)
    model = build_causal_lm(copy.deepcopy(config), experts="batched_mm").double()
    checkpoint_activations(model.lm, what)
    phase = SuperpositionPhase(bag_size) if bag_size > 1 else NextTokenPhase()
    tokens = torch.randint(0, 64, (2, phase.row_tokens(16)))
    loss = model(tokens, phase).total
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return [loss.detach(), *gradients], kept_bytes(model, phase, tokens, 2 * 16, None)


@pytest.mark.parametrize("bag_size", [1, 4])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_checkpointed_activations_change_no_number(config: PreTrainedConfig, bag_size: int) -> None:
    """Dropout included: the second forward draws what the first one drew."""
    plain, kept = step(config, bag_size, "none")
    selective, kept_selectively = step(config, bag_size, "selective")
    again, kept_then = step(config, bag_size, "full")
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(plain, selective, again, strict=True))
    assert kept_then < kept_selectively * 0.6 < kept * 0.5


class Ops(TorchDispatchMode):
    """Counts the ops that run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ran[func.name()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_selectively_no_product_and_no_attention_is_computed_twice(config: PreTrainedConfig) -> None:
    tokens = torch.randint(0, 64, (2, 17))
    ran = []
    for what in CHOICES:
        model = build_causal_lm(copy.deepcopy(config))
        checkpoint_activations(model.lm, what)
        with Ops() as ops:
            model(tokens, NextTokenPhase()).total.backward()
        ran.append(ops.ran)
    none, selective, full = ran
    costly = {name for name in none if re.search("mm$|grouped_mm_fallback$|attention", name)}
    assert any(full[name] > none[name] for name in costly)
    assert all(selective[name] == none[name] for name in costly)
    cheap = "aten::tanh" if isinstance(config, GPT2Config) else "aten::silu"
    assert selective[cheap] == 2 * none[cheap]


@pytest.mark.slow
@needs_compiler
def test_compiled_layers_keep_selectively_too() -> None:
    torch._dynamo.reset()
    tokens = torch.randint(0, 64, (2, 65))
    model = build_causal_lm(LlamaConfig(**SHAPE))
    plain = model(tokens, NextTokenPhase()).total
    gradients = torch.autograd.grad(plain, list(model.parameters()))
    whole = kept_bytes(model, NextTokenPhase(), tokens, 2 * 64, None)
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    checkpoint_activations(model.lm, "selective")
    compile_layers(model.lm)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):  # compiled, it keeps what it shows here
        loss = model(tokens, NextTokenPhase()).total
    for found, expected in zip(torch.autograd.grad(loss, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(loss, plain)
    assert sum(storage.nbytes() for key, storage in kept.items() if key not in weights) < whole * 0.7


def test_scoring_is_as_it_was() -> None:
    torch.manual_seed(0)
    model = build_causal_lm(LlamaConfig(**SHAPE))
    names = list(model.state_dict())
    tokens = torch.randint(0, 64, (2, 17))
    losses = []
    for what in CHOICES:
        checkpoint_activations(model.lm, what)
        with torch.inference_mode():
            losses.append(model.eval()(tokens, NextTokenPhase()).total)
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("what", ["selective", "full"])
def test_an_architecture_without_it_is_refused_in_one_line(what: ActivationCheckpointing) -> None:
    with torch.device("meta"):
        model = build_causal_lm(JetMoeConfig(**SHAPE, num_key_value_heads=4, kv_channels=8))
    with pytest.raises(ConfigError) as refused:
        checkpoint_activations(model.lm, what)
    assert str(refused.value) == (
        f"model.activation_checkpointing is {what}, but JetMoeForCausalLM does not support it; set it to none"
    )
