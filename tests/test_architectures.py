"""Five steps of each phase on many architectures, held against what each architecture's own forward makes of a batch.

The reference knows no body and no head: whole logits from the model as transformers runs it on ids, with its plainest
attention, and one ordinary cross-entropy a target.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    JambaConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    RecurrentGemmaConfig,
    SmolLM3Config,
)

from tst_lightning.bags import fold
from tst_lightning.modeling import CausalLM, build_causal_lm, check_trainable
from tst_lightning.phases import NextTokenPhase, PhaseStrategy, SuperpositionPhase

L, STEPS, PADDING = 12, 5, 3
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.25}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_d_ssm": 64}
# Bounds and factors are far from what would change nothing; windows are shorter than the rows. Padding is an ordinary id
# whose embedding has no gradient.
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "qwen3-moe": Qwen3MoeConfig(**SHAPE, **EXPERTS, moe_intermediate_size=16),
    "smollm3": SmolLM3Config(**SHAPE | {"pad_token_id": PADDING}, no_rope_layers=[1, 0]),
    "gemma": GemmaConfig(**SHAPE),
    "gemma2": Gemma2Config(
        **SHAPE, sliding_window=5, attn_logit_softcapping=0.1, final_logit_softcapping=0.5, query_pre_attn_scalar=8
    ),
    "gemma3": Gemma3TextConfig(
        **SHAPE, sliding_window=5, layer_types=["sliding_attention", "full_attention"], final_logit_softcapping=0.5
    ),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=L, embd_pdrop=0.2, attn_pdrop=0.0),
    "gpt-oss": GptOssConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2, sliding_window=5),
    "granite": GraniteConfig(
        **SHAPE, embedding_multiplier=3.0, logits_scaling=0.4, residual_multiplier=0.7, attention_multiplier=0.9
    ),
    "mamba": MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, residual_in_fp32=False),
    "mamba2": Mamba2Config(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_heads=8,
        head_dim=8,
        state_size=8,
        n_groups=1,
        chunk_size=4,
    ),
    "falcon-h1": FalconH1Config(
        **SHAPE, **MAMBA2, embedding_multiplier=3.0, lm_head_multiplier=2.5, key_multiplier=0.7
    ),
    "jamba": JambaConfig(
        **{key: value for key, value in SHAPE.items() if key != "head_dim"} | {"num_hidden_layers": 4},
        **EXPERTS,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "recurrent-gemma": RecurrentGemmaConfig(**SHAPE, attention_window_size=L, lru_width=32, logits_soft_cap=0.5),
}
PHASES: dict[str, PhaseStrategy] = {"bags": SuperpositionPhase(3), "next token": NextTokenPhase()}


def plain_loss(model: CausalLM, tokens: Tensor, bag_size: int) -> Tensor:
    """Nats a position: the mean of what the embedding layer gives for a bag's tokens, in an ordinary forward of ids; whole
    logits; and the mean of one cross-entropy a target.
    """
    bags = fold(tokens, bag_size)
    inputs, targets = bags[:, :-1], bags[:, 1:].flatten(0, 1)
    layer = model.lm.get_input_embeddings()
    mean = sum(layer(inputs[:, :, i]) for i in range(bag_size)) / bag_size
    hook = layer.register_forward_hook(lambda *_: mean)
    asked = {"output_router_logits": True} if model.routers else {}
    out = model.lm(input_ids=inputs[:, :, 0], use_cache=False, **asked)
    hook.remove()
    loss = sum(F.cross_entropy(out.logits.flatten(0, 1), targets[:, i]) for i in range(bag_size)) / bag_size
    return loss + model.lm.config.router_aux_loss_coef * out.aux_loss if model.routers else loss


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", CONFIGS)
def test_five_steps(name: str, phase: str) -> None:
    check_trainable(CONFIGS[name])
    torch.manual_seed(0)
    model = build_causal_lm(copy.deepcopy(CONFIGS[name]), experts="batched_mm").double()
    tokens = torch.randint(0, 64, (2, PHASES[phase].row_tokens(L)))
    tokens[:, ::5] = PADDING
    with torch.no_grad():  # initial weights are too small for much of what is compared here to show
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight) * (weight.ndim > 1))
    reference = copy.deepcopy(model)
    reference.lm.set_attn_implementation("eager")
    results = []
    for this in (model, reference):
        torch.manual_seed(1)  # for dropout
        loss = model(tokens, PHASES[phase]).mean if this is model else plain_loss(this, tokens, PHASES[phase].bag_size)
        results.append((loss, torch.autograd.grad(loss, list(this.parameters()), allow_unused=True)))
    (loss, found), (plain, expected) = results
    # Norms, eager attention's softmax and some architectures' logits are in float32, whatever the model is in.
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0, check_dtype=False)
    largest = max(gradient.norm() for gradient in expected if gradient is not None)
    for (key, _), ours, theirs in zip(model.named_parameters(), found, expected, strict=True):
        assert (ours is None) == (theirs is None), key
        assert ours is None or (ours - theirs).norm() < 1e-5 * largest, key

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(STEPS):
        torch.manual_seed(1)
        losses.append(model(tokens, PHASES[phase]).mean)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(later < earlier for earlier, later in zip(losses[:-1], losses[1:], strict=True)), losses
