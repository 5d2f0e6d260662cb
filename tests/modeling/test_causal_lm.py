from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from tst_lightning.bags import mean_embedding
from tst_lightning.errors import ConfigError
from tst_lightning.modeling import build_causal_lm
from tst_lightning.modeling.attention import NAME, attention_for, causal_sdpa
from tst_lightning.phases import NextTokenPhase, SuperpositionPhase

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("make", [LlamaConfig, Qwen3Config])
def test_mask_free_attention_equals_eager(make: type[PreTrainedConfig], kv_heads: int) -> None:
    torch.manual_seed(0)
    model = build_causal_lm(make(**SHAPE, num_key_value_heads=kv_heads)).double()
    assert model.lm.config._attn_implementation == NAME
    tokens = torch.randint(0, 64, (2, 18))
    for phase in (NextTokenPhase(), SuperpositionPhase(2)):
        model.lm.set_attn_implementation(NAME)
        ours = model(tokens, phase).total
        gradient = torch.autograd.grad(ours, model.head)
        model.lm.set_attn_implementation("eager")
        eager = model(tokens, phase).total
        torch.testing.assert_close(ours, eager, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient, torch.autograd.grad(eager, model.head), rtol=1e-5, atol=1e-6)


def test_windows_keep_their_masks_and_bounded_scores_their_bound() -> None:
    assert attention_for(LlamaConfig(**SHAPE)) == NAME
    assert attention_for(MistralConfig(**SHAPE, sliding_window=8)) is None
    assert attention_for(Gemma3TextConfig(**SHAPE)) is None
    assert attention_for(Gemma2Config(**SHAPE, layer_types=["full_attention"] * 2)) == "eager"
    assert attention_for(GptOssConfig(**SHAPE, layer_types=["full_attention"] * 2)) is None  # has sinks


@pytest.mark.parametrize(
    "more", [{"softcap": 30.0}, {"attention_mask": torch.zeros(1, 1, 4, 4)}, {"s_aux": torch.ones(2)}]
)
def test_more_than_causality_is_refused(more: dict[str, Any]) -> None:
    """Where transformers would have it left out without a word."""
    query, key, value = torch.randn(3, 1, 2, 4, 8)
    causal_sdpa(nn.Identity(), query, key, value, None, softcap=None, position_ids=torch.arange(4))
    with pytest.raises(ConfigError, match=f"^Identity wants {next(iter(more))} of attention"):
        causal_sdpa(nn.Identity(), query, key, value, **{"attention_mask": None} | more)


def test_exported_config_names_no_attention_of_ours() -> None:
    model = build_causal_lm(LlamaConfig(**SHAPE))
    assert NAME not in model.lm.config.to_json_string()


def test_tied_head_is_the_embedding() -> None:
    model = build_causal_lm(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    assert model.head is model.lm.get_input_embeddings().weight


@pytest.mark.parametrize(
    "config",
    [GemmaConfig(**SHAPE, num_key_value_heads=4), Gemma3TextConfig(**SHAPE)],
    ids=lambda config: type(config).__name__,
)
def test_a_bag_is_the_mean_of_what_the_embedding_layer_gives(config: PreTrainedConfig) -> None:
    """Gemma's layer scales what it looks up."""
    torch.manual_seed(0)
    model = build_causal_lm(config)
    layer = model.lm.get_input_embeddings()
    assert type(layer) is not nn.Embedding and isinstance(layer, nn.Embedding)
    bags = torch.randint(0, 64, (2, 5, 4))
    ours = model.embed_bags(bags)
    expected = sum(model.embed(bags[:, :, k]) for k in range(4)) / 4
    torch.testing.assert_close(ours, expected)
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((value * weights).sum(), layer.weight)[0] for value in (ours, expected)]
    torch.testing.assert_close(*gradients)
    # The scale is there: a look-up alone gives something else.
    assert not torch.allclose(ours, mean_embedding(bags, layer.weight), rtol=0.1)
