"""What the losses would not reproduce is refused, by what the architecture's own forward does beyond them.

That nothing else is: tests/test_architectures.py checks each of its models before it compares their numbers.
"""

import re

import pytest
import torch
from transformers import (
    BambaConfig,
    FalconH1Config,
    Gemma3nTextConfig,
    GraniteConfig,
    JetMoeConfig,
    Llama4TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
)

from tst_lightning.errors import ConfigError
from tst_lightning.modeling import causal_lm, check_trainable, count_parameters, logits

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
# The layers' own inputs, looked up by ids that a body given embeddings does not see.
GEMMA_3N = {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            Gemma3nTextConfig(**SHAPE, **GEMMA_3N),
            "Gemma3nForCausalLM is more than .* its own forward does embedding 0, ",
        ),
        (BambaConfig(**SHAPE, **MAMBA, z_loss_coefficient=0.1), "BambaForCausalLM is more than .*logsumexp"),
        (
            JetMoeConfig(**SHAPE | {"num_key_value_heads": 4}, kv_channels=8),
            "JetMoeForCausalLM balances its experts .*aux_loss_coef=0.01.*or set aux_loss_coef: 0",
        ),
        (Llama4TextConfig(**SHAPE, num_local_experts=4), "router_aux_loss_coef=0.001.* can't be had from its routers"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_train_another_model_is_refused(config: PreTrainedConfig, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_trainable(config)
    assert re.search(says, str(refused.value)), refused.value


@pytest.mark.parametrize(
    ("config", "table", "does"),
    [
        (GraniteConfig(**SHAPE, logits_scaling=3.0), (logits, "_DIVISORS", ()), "does div 3.0"),
        (FalconH1Config(**SHAPE, **MAMBA, mamba_d_ssm=64, lm_head_multiplier=2.5), (logits, "_FACTORS", ()), "mul 2.5"),
        (
            FalconH1Config(**SHAPE, **MAMBA, mamba_d_ssm=64, embedding_multiplier=3.0),
            (causal_lm, "_SCALED_WITH_IDS", {}),
            "mul 3.0",
        ),
        (LlamaConfig(**SHAPE), (causal_lm, "_SCALED_WITH_IDS", {"llama": "initializer_range"}), "does not mul 0.02"),
    ],
)
def test_a_number_that_is_forgotten_is_seen(
    config: PreTrainedConfig, table: tuple, does: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_trainable(config)
    monkeypatch.setattr(*table)
    with pytest.raises(ConfigError, match=re.escape(does)):
        check_trainable(config)


@pytest.mark.parametrize("changes", [{}, {"mlp_only_layers": [0, 1, 2]}, {"router_aux_loss_coef": 0.0}])
def test_a_mixture_is_checked_with_its_balance(changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Qwen3MoeConfig(**SHAPE, **EXPERTS, **changes)
    before, random = config.to_dict(), torch.get_rng_state()
    check_trainable(config)
    assert config.to_dict() == before and torch.equal(torch.get_rng_state(), random)
    monkeypatch.setattr("tst_lightning.modeling.own_forward.balance_coefficient", lambda config: 0.5)
    with pytest.raises(ConfigError, match="does not mul 0.5"):
        check_trainable(config)


def test_what_cannot_be_trained_can_be_sized() -> None:
    assert count_parameters(Gemma3nTextConfig(**SHAPE, **GEMMA_3N)).total > 0
