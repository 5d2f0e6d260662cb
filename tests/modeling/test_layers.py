"""Checkpointed activations: the same numbers from a fraction of what is kept, and one line where it can't be had."""

import copy

import pytest
import torch
from transformers import GPT2Config, JetMoeConfig, LlamaConfig, PreTrainedConfig, Qwen3MoeConfig, SmolLM3Config

from tst_lightning.errors import ConfigError
from tst_lightning.modeling import build_causal_lm, checkpoint_activations
from tst_lightning.phases import NextTokenPhase, SuperpositionPhase

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
NO_IDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
CONFIGS = [
    LlamaConfig(**SHAPE, num_key_value_heads=2, attention_dropout=0.2),
    SmolLM3Config(**SHAPE, num_key_value_heads=2, **NO_IDS),
    GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0),
    Qwen3MoeConfig(**SHAPE, num_key_value_heads=2, num_experts=4, moe_intermediate_size=16, num_experts_per_tok=2),
]


def step(config: PreTrainedConfig, bag_size: int, checkpointing: bool) -> tuple[list[torch.Tensor], int]:
    """Loss and gradients of one step, and the numbers kept for its backward."""
    torch.manual_seed(0)
    model = build_causal_lm(copy.deepcopy(config), experts="batched_mm").double()
    if checkpointing:
        checkpoint_activations(model.lm)
    kept: dict[int, torch.Tensor] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    phase = SuperpositionPhase(bag_size) if bag_size > 1 else NextTokenPhase()
    tokens = torch.randint(0, 64, (2, phase.row_tokens(16)))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(tokens, phase).total
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))], size


@pytest.mark.parametrize("bag_size", [1, 4])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_checkpointed_activations_change_no_number(config: PreTrainedConfig, bag_size: int) -> None:
    """Dropout included: the second forward draws what the first one drew."""
    (plain, kept), (again, kept_then) = (step(config, bag_size, checkpointing) for checkpointing in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert kept_then < kept / 2


def test_scoring_is_as_it_was() -> None:
    torch.manual_seed(0)
    model = build_causal_lm(LlamaConfig(**SHAPE))
    names = list(model.state_dict())
    tokens = torch.randint(0, 64, (2, 17))
    losses = []
    for checkpointing in (False, True):
        if checkpointing:
            checkpoint_activations(model.lm)
        with torch.inference_mode():
            losses.append(model.eval()(tokens, NextTokenPhase()).total)
    assert torch.equal(*losses)
    assert list(model.state_dict()) == names


def test_an_architecture_without_it_is_refused_in_one_line() -> None:
    with torch.device("meta"):
        model = build_causal_lm(JetMoeConfig(**SHAPE, num_key_value_heads=4, kv_channels=8))
    with pytest.raises(ConfigError) as refused:
        checkpoint_activations(model.lm)
    assert str(refused.value) == (
        "model.activation_checkpointing is full, but JetMoeForCausalLM does not support it; set it to none"
    )
