"""What is read off a model that takes no memory is what a real one takes."""

import copy
from typing import get_args

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import LlamaConfig, PreTrainedConfig, Qwen3MoeConfig

from tst_lightning.errors import ConfigError
from tst_lightning.modeling import ActivationCheckpointing, build_causal_lm, checkpoint_activations
from tst_lightning.muon import MuonWithAdamW
from tst_lightning.phases import MultiTokenPhase, NextTokenPhase, PhaseStrategy, SuperpositionPhase
from tst_lightning.plan.activations import kept_bytes
from tst_lightning.plan.memory import measure, state_bytes_per_parameter
from tst_lightning.plan.setting import Setting

SHAPE = {"vocab_size": 512, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
LLAMA = LlamaConfig(**SHAPE, intermediate_size=160, num_hidden_layers=4)
MOE = Qwen3MoeConfig(
    **SHAPE, intermediate_size=96, moe_intermediate_size=96, num_hidden_layers=3, num_experts=8, num_experts_per_tok=2
)
PHASES = [NextTokenPhase(), SuperpositionPhase(4)]
CHOICES = get_args(ActivationCheckpointing)


def setting(config: PreTrainedConfig = LLAMA, **changes) -> Setting:
    return Setting("here", copy.deepcopy(config), {}, 10, **({"seq_len": 32, "batch_size": 8} | changes))


@pytest.mark.parametrize("phase", [*PHASES, MultiTokenPhase(PHASES[1])], ids=["next token", "bags", "extra head"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_activations_are_those_of_a_real_forward_pass(phase: PhaseStrategy, precision: str) -> None:
    model = build_causal_lm(copy.deepcopy(LLAMA))
    model.equip([phase])
    tokens = torch.randint(512, (8, phase.row_tokens(32)))
    real = kept_bytes(model, phase, tokens, 8 * 32, torch.bfloat16 if precision == "bf16-mixed" else None)
    # The CPU's embedding_bag keeps 8 bytes that say nothing.
    assert measure(setting(precision=precision), [phase]).activations == pytest.approx(real, abs=8)


@pytest.mark.parametrize(
    ("seq_len", "checkpointing", "precision"),
    # 192 is twice an expert's width, as its first matrix has.
    [(32, "none", "32-true"), (32, "selective", "32-true"), (192, "none", "32-true"), (32, "none", "bf16-mixed")],
)
def test_of_experts_the_grouped_products_activations_count(
    seq_len: int, checkpointing: ActivationCheckpointing, precision: str
) -> None:
    model = build_causal_lm(copy.deepcopy(MOE))
    checkpoint_activations(model.lm, checkpointing)
    tokens = torch.randint(512, (8, seq_len + 1))
    real = kept_bytes(
        model, NextTokenPhase(), tokens, 8 * seq_len, torch.bfloat16 if precision == "bf16-mixed" else None
    )
    # Both keep the chosen experts' inputs and outputs; the orders of sorting differ a little.
    sizes = setting(MOE, seq_len=seq_len, checkpointing=checkpointing, precision=precision)
    assert measure(sizes, [NextTokenPhase()]).activations == pytest.approx(real, rel=0.02)


def tracked_peak(
    config: PreTrainedConfig,
    phase: PhaseStrategy,
    rows: int,
    seq_len: int,
    precision: str,
    checkpointing: ActivationCheckpointing = "none",
    accumulate: int = 1,
) -> int:
    """The most that torch has allocated at once over two steps, in bytes, by its own tracker."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build_causal_lm(copy.deepcopy(config))
        checkpoint_activations(model.lm, checkpointing)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        with tracker:
            for _ in range(2):
                for _ in range(accumulate):
                    tokens = torch.zeros(rows, phase.row_tokens(seq_len), dtype=torch.int64)
                    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                        loss = model(tokens, phase).total
                    loss.backward()
                    tracker.reset_mod_stats()
                optimizer.step()
                optimizer.zero_grad()
        return sum(part["Total"] for part in tracker.get_tracker_snapshot("peak").values())


@pytest.mark.parametrize(
    ("checkpointing", "rows", "seq_len", "tied", "precision", "accumulate"),
    [
        *((checkpointing, 32, 64, False, "bf16-mixed", 1) for checkpointing in CHOICES),
        ("none", 32, 64, True, "32-true", 2),
        ("full", 32, 64, False, "32-true", 2),
        ("none", 4, 2, False, "32-true", 1),
        ("none", 4, 2, True, "32-true", 1),
        ("none", 4, 2, True, "bf16-mixed", 2),
    ],
)
def test_the_peak_is_what_torch_tracks_over_a_step(
    checkpointing: ActivationCheckpointing, rows: int, seq_len: int, tied: bool, precision: str, accumulate: int
) -> None:
    config = copy.deepcopy(LLAMA)
    config.vocab_size, config.tie_word_embeddings = 8192, tied
    changes = {"precision": precision, "checkpointing": checkpointing, "accumulate": accumulate}
    memory = measure(setting(config, seq_len=seq_len, batch_size=rows, **changes), [NextTokenPhase()])
    tracked = tracked_peak(config, NextTokenPhase(), rows, seq_len, precision, checkpointing, accumulate)
    assert memory.peak == pytest.approx(tracked, rel=0.03 if rows > 4 else 0.08)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    ("vocabulary", "width", "rows", "bag_size", "most"),
    # High by the loss; and by embeddings, had a bag's tokens each one of their own. There the ids are 3% already.
    [(8192, 256, 4, 16, 1.01), (512, 512, 16, 64, 1.05)],
)
def test_a_step_with_bags_holds_no_more_at_its_height(
    vocabulary: int, width: int, rows: int, bag_size: int, most: float, precision: str
) -> None:
    config = copy.deepcopy(LLAMA)
    config.vocab_size, config.hidden_size, config.intermediate_size = vocabulary, width, width
    config.head_dim, config.num_hidden_layers = 64, 1
    bags, single = (
        tracked_peak(config, phase, rows, 128, precision) for phase in (SuperpositionPhase(bag_size), NextTokenPhase())
    )
    assert bags <= most * single


def test_states_are_counted_in_their_dtypes_and_shared_out() -> None:
    parameters = sum(p.numel() for p in build_causal_lm(copy.deepcopy(LLAMA)).parameters())
    memory = measure(setting(), PHASES)
    assert memory.parameters == memory.gradients == 4 * parameters
    assert memory.optimizer_state == 8 * parameters and memory.communication == 0
    assert memory.checkpoint == 12 * parameters
    # An extra head that one of the phases has is there in all of them.
    assert measure(setting(), [*PHASES, MultiTokenPhase(NextTokenPhase())]).checkpoint == 12 * (parameters + 64 * 64)
    half = measure(setting(precision="bf16-true"), PHASES)
    assert half.parameters == 2 * parameters and half.optimizer_state == 4 * parameters
    replicas = measure(setting(layout="ddp", devices=4), PHASES)
    assert (replicas.parameters, replicas.communication) == (4 * parameters, 4 * parameters)
    shared = measure(setting(layout="fsdp", devices=4), PHASES)
    assert shared.parameters == -(-4 * parameters // 4) and shared.optimizer_state == 2 * parameters
    assert shared.checkpoint == memory.checkpoint and shared.activations == memory.activations


def test_states_of_two_kinds_are_counted_each_for_its_weights() -> None:
    model = build_causal_lm(copy.deepcopy(MOE))
    experts = sum(p.numel() for p in model.parameters() if p.ndim == 3)
    rest = experts + sum(p.numel() for p in model.embeddings) + sum(p.numel() for p in model.parameters() if p.ndim < 2)
    memory = measure(setting(MOE, optimizer=MuonWithAdamW), PHASES)
    assert experts > 0
    assert memory.optimizer_state == 4 * (sum(p.numel() for p in model.parameters()) - rest) + 8 * rest


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_checkpointed_layers_keep_what_real_ones_do_and_one_of_them_computes_the_rest(
    checkpointing: ActivationCheckpointing, precision: str
) -> None:
    model, phase = build_causal_lm(copy.deepcopy(LLAMA)), SuperpositionPhase(4)
    tokens = torch.randint(512, (8, phase.row_tokens(32)))
    autocast = torch.bfloat16 if precision == "bf16-mixed" else None
    whole = kept_bytes(model, phase, tokens, 8 * 32, autocast)
    checkpoint_activations(model.lm, checkpointing)
    kept = kept_bytes(model, phase, tokens, 8 * 32, autocast)
    memory = measure(setting(precision=precision, checkpointing=checkpointing), [phase])
    assert memory.activations == pytest.approx(kept, abs=8)
    whole += 32 * 8  # the positions' ids, which checkpoints hold for all layers
    assert memory.recomputed == pytest.approx((whole - kept) / LLAMA.num_hidden_layers, abs=8)


def test_of_layers_that_differ_the_one_that_computes_most_again_counts() -> None:
    config = copy.deepcopy(MOE)
    config.mlp_only_layers = [1]
    whole, selective, full = (measure(setting(config, checkpointing=of), PHASES) for of in CHOICES)
    assert whole.recomputed == 0 and selective.recomputed < full.recomputed
    assert full.activations < selective.activations < whole.activations
    # Two layers of three are such, the third computes less.
    again = whole.activations - full.activations
    assert again / 3 < full.recomputed < again / 2


def test_logits_are_those_of_a_chunk() -> None:
    memory = measure(setting(seq_len=64, batch_size=32), PHASES)
    assert memory.whole_logits == memory.logits * 32 * 64 / 512
    few = measure(setting(precision="bf16-mixed"), PHASES)  # fewer positions than a chunk has
    assert few.whole_logits == few.logits


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (torch.optim.AdamW, 8),
        (torch.optim.SGD, 0),
        (lambda p: torch.optim.SGD(p, momentum=0.9), 4),
        (lambda p: torch.optim.Adam(p, amsgrad=True), 12),
        (torch.optim.Muon, 4),
    ],
    ids=["AdamW", "SGD", "momentum", "amsgrad", "Muon"],
)
def test_optimizer_state_is_measured(optimizer, expected: float) -> None:
    assert state_bytes_per_parameter(optimizer, torch.float32) == expected


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision is 'int4'; memory can be told for 32-true"):
        measure(setting(precision="int4"), PHASES)
