"""Grouped products of experts: in autocast's dtype, from float32 weights, against one product an expert."""

import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GptOssConfig, PreTrainedConfig, Qwen3MoeConfig

from tst_lightning.modeling import build_causal_lm
from tst_lightning.modeling.experts import NAME
from tst_lightning.phases import NextTokenPhase

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
}
CONFIGS = [
    Qwen3MoeConfig(**SHAPE, num_experts=4, moe_intermediate_size=16),
    # Biases, transposed weights and a gate of its own.
    GptOssConfig(**SHAPE, num_local_experts=4, intermediate_size=16, head_dim=8),
]


class GroupedProducts(TorchDispatchMode):
    """Dtypes of the two sides of each grouped product."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[tuple[torch.dtype, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "grouped_mm" in func.overloadpacket.__name__:
            self.dtypes.append((args[0].dtype, args[1].dtype))
        return func(*args, **(kwargs or {}))


def step(config: PreTrainedConfig, experts: str | None, autocast: bool) -> tuple[list[torch.Tensor], list[Any]]:
    """Loss and gradients, and the dtypes of grouped products, those of the backward too."""
    torch.manual_seed(0)
    model = build_causal_lm(copy.deepcopy(config), experts=experts)
    tokens = torch.randint(0, 64, (2, 17))
    with GroupedProducts() as products:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(tokens, NextTokenPhase()).mean
        gradients = torch.autograd.grad(loss, list(model.parameters()))
    return [loss.detach(), *gradients], products.dtypes


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_grouped_products_are_in_autocasts_dtype(config: PreTrainedConfig, autocast: bool) -> None:
    """As good as one linear layer an expert, which autocast knows."""
    exact, none = step(config, "eager", False)
    usual, _ = step(config, "eager", autocast)
    found, dtypes = step(config, None, autocast)
    assert not none
    # Two products a layer, each forwards and twice backwards.
    assert dtypes == [(torch.bfloat16 if autocast else torch.float32,) * 2] * 12
    assert {number.dtype for number in found} == {torch.float32}
    ours, theirs, right = (torch.cat([number.flatten() for number in numbers]) for numbers in (found, usual, exact))
    torch.testing.assert_close(ours[0], right[0], rtol=1e-3 if autocast else 1e-6, atol=0)
    error, tolerated = (ours - right).norm(), (theirs - right).norm()
    assert error < max(1.2 * tolerated, 1e-6 * right.norm())


def test_the_models_configuration_does_not_name_them() -> None:
    config = build_causal_lm(copy.deepcopy(CONFIGS[0])).lm.config
    assert config._experts_implementation == NAME and NAME not in config.to_json_string()
