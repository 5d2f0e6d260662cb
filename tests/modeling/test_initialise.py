"""First weights drawn from the meta device: transformers' own rules, every weight and buffer given a value."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    Qwen3MoeConfig,
)

from tst_lightning.errors import ConfigError
from tst_lightning.modeling import build_causal_lm, initialise, redraw_embeddings

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 2}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "router_aux_loss_coef": 0.0}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL, **ATTENTION),
    "tied": LlamaConfig(**SMALL, **ATTENTION, tie_word_embeddings=True, pad_token_id=3),
    # Scales the last projection of a block down from outside of it.
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=8, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1),
    "experts": Qwen3MoeConfig(**SMALL, **ATTENTION, **EXPERTS, head_dim=16),
    # The model, not the layer, gives a buffer of each layer its value.
    "hybrid": FalconH1Config(**SMALL, **ATTENTION, **MAMBA),
}


def drawn(config: PreTrainedConfig, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    with torch.device("meta"):
        lm = build_causal_lm(config).lm
    initialise(lm, torch.device("cpu"))
    return lm


@pytest.mark.parametrize("name", CONFIGS)
def test_the_values_are_those_that_transformers_gives(name: str) -> None:
    config = CONFIGS[name]
    lm, plain = drawn(config), build_causal_lm(config).lm
    assert [n for n, _ in lm.named_parameters()] == [n for n, _ in plain.named_parameters()]
    for (key, value), other in zip(lm.named_parameters(), plain.parameters(), strict=True):
        spread, expected = value.std().item(), other.std().item()
        if expected == 0:
            assert torch.equal(value, other), key
        elif value.numel() > 500:  # two draws
            assert spread == pytest.approx(expected, rel=0.15), key
        assert bool(value.isfinite().all()) and value.requires_grad
    for (key, buffer), other in zip(lm.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, other), key
    tied = config.tie_word_embeddings
    if tied and config.pad_token_id is not None:
        # The embedding's draw is the one that counts: a head's has no row of zeros for padding.
        assert not lm.get_input_embeddings().weight[config.pad_token_id].any()
    assert (lm.get_input_embeddings().weight is lm.get_output_embeddings().weight) == tied


def test_the_seed_decides() -> None:
    one, same, other = (drawn(CONFIGS["llama"], seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_a_weight_without_a_rule_is_refused() -> None:
    class UnrulyConfig(LlamaConfig):
        model_type = "unruly"

    class Unruly(LlamaForCausalLM):
        config_class = UnrulyConfig

        def _init_weights(self, module: torch.nn.Module) -> None:
            """None for the LM head, which is this class's own."""

    AutoModelForCausalLM.register(UnrulyConfig, Unruly)
    with pytest.raises(ConfigError, match="Unruly has no rule for the first values of 'lm_head.weight'"):
        drawn(UnrulyConfig(**SMALL, **ATTENTION))


@pytest.mark.parametrize("name", CONFIGS)
def test_embedding_and_head_alone_are_drawn_anew(name: str) -> None:
    lm = drawn(CONFIGS[name])
    kept, ends = {key: value.clone() for key, value in lm.state_dict().items()}, lm.get_input_embeddings().weight
    state = torch.get_rng_state()
    redraw_embeddings(lm, 5)
    assert torch.equal(torch.get_rng_state(), state)
    both = {id(ends), id(lm.get_output_embeddings().weight)}
    assert id(lm.get_input_embeddings().weight) == id(ends), "drawn in place"
    changed = [key for key, value in lm.state_dict().items() if not torch.equal(value, kept[key])]
    expected = [key for key, value in lm.named_parameters(remove_duplicate=False) if id(value) in both]
    assert changed == expected and len(changed) == 2
    for key in changed:
        assert lm.state_dict()[key].std() == pytest.approx(kept[key].std().item(), rel=0.15)
    if CONFIGS[name].pad_token_id is not None:
        assert not ends[CONFIGS[name].pad_token_id].any()
    first = ends.detach().clone()
    redraw_embeddings(lm, 6)
    assert not torch.equal(ends, first)
    redraw_embeddings(lm, 5)
    assert torch.equal(ends, first)
