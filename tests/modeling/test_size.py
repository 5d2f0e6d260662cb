"""Parameters counted without building the model, against the model, and against published sizes."""

import pytest
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig, Qwen3MoeConfig

from tst_lightning.modeling import Parameters, build_causal_lm, count_parameters

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
MOE = SHAPE | {"num_key_value_heads": 2, "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 8}
MOE |= {"num_experts_per_tok": 2}


def llama(width: int, layers: int, heads: int, kv_heads: int, ffn: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=ffn,
    )


TEN_BILLION = Qwen3MoeConfig(
    vocab_size=128_256,
    hidden_size=1536,
    num_hidden_layers=32,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=128,
    num_experts=128,
    num_experts_per_tok=8,
    moe_intermediate_size=512,
)


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [
        (llama(576, 30, 9, 9, 1536), "267.2M", "267.2M"),
        (llama(576, 30, 9, 3, 1536), "254.0M", "254.0M"),
        (llama(960, 32, 15, 15, 2560), "600.2M", "600.2M"),
        (llama(960, 32, 15, 5, 2560), "560.9M", "560.9M"),
        (llama(2048, 36, 16, 4, 11008), "3,338M", "3,338M"),
        (TEN_BILLION, "10,316M", "1,256M"),
    ],
    ids=["270M", "270M-gqa", "600M", "600M-gqa", "3B", "10B-A1B"],
)
def test_sizes_of_the_published_runs(config: PreTrainedConfig, total: str, active: str) -> None:
    found = [f"{count / 1e6:.1f}M" if count < 1e9 else f"{count / 1e6:,.0f}M" for count in count_parameters(config)]
    assert found == [total, active]


def test_active_parameters_by_hand() -> None:
    attention = 2 * 32 * 32 + 2 * 32 * 16 + 2 * 8  # q, o; k, v; their norms
    norms, expert, router = 2 * 32, 3 * 32 * 16, 8 * 32
    ends = 2 * 64 * 32 + 32  # embedding and head, final norm
    rest = ends + 3 * (attention + norms + router)
    found = count_parameters(Qwen3MoeConfig(**MOE, num_hidden_layers=3))
    assert found == Parameters(total=rest + 3 * 8 * expert, active=rest + 3 * 2 * expert)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SHAPE, num_hidden_layers=5),
        LlamaConfig(**SHAPE, num_hidden_layers=5, tie_word_embeddings=True),
        GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=4, n_positions=16),
        Qwen3MoeConfig(**MOE, num_hidden_layers=5, mlp_only_layers=[0, 3]),
        Qwen3MoeConfig(**MOE, num_hidden_layers=5, decoder_sparse_step=2),
    ],
    ids=["llama", "tied", "gpt2", "moe-dense-layers", "moe-every-other"],
)
def test_total_is_that_of_the_model(config: PreTrainedConfig) -> None:
    found = count_parameters(config)
    assert found.total == sum(parameter.numel() for parameter in build_causal_lm(config).parameters())
    assert (found.active < found.total) == isinstance(config, Qwen3MoeConfig)
