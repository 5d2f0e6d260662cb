"""Architectures that can't be masked by document are refused; tests/phases/test_documents.py shows others masked."""

import re

import pytest
import torch
from transformers import (
    Gemma2Config,
    JambaConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OlmoHybridConfig,
    PreTrainedConfig,
    Qwen3_5TextConfig,
    StableLmConfig,
)

from tst_lightning.errors import ConfigError
from tst_lightning.modeling.documents import check_masks_documents

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (StableLmConfig(**SHAPE), "StableLmForCausalLM does not hand a mask of documents on to the attention of all"),
        (Gemma2Config(**SHAPE, head_dim=8), "Gemma2Config does not go by PyTorch's fused attention over all"),
        (MistralConfig(**SHAPE, sliding_window=8), "MistralConfig does not go by PyTorch's fused attention over all"),
        (
            MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2),
            "MambaConfig does not go by PyTorch's fused attention over all",
        ),
        (JambaConfig(**SHAPE, use_mamba_kernels=False), "JambaConfig does not go by"),
        (Qwen3_5TextConfig(**SHAPE, layer_types=["full_attention"] * 4), "Qwen3_5TextConfig is of .* hand on a state"),
        (
            OlmoHybridConfig(**SHAPE, layer_types=["linear_attention"] * 3 + ["full_attention"]),
            "OlmoHybridConfig does not",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refused_in_one_line(config: PreTrainedConfig, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_masks_documents(config)
    said = str(refused.value)
    assert re.search(f"^mask_attention is on, but {says}", said) and "\n" not in said, said
    assert said.endswith("; choose another architecture, or set mask_attention: false")


@pytest.mark.parametrize("config", [LlamaConfig(**SHAPE), MistralConfig(**SHAPE, sliding_window=None)])
def test_passed_and_left_as_it_was(config: PreTrainedConfig) -> None:
    before, random = config.to_dict(), torch.get_rng_state()
    check_masks_documents(config)
    assert config.to_dict() == before and torch.equal(torch.get_rng_state(), random)
