"""The loss in two processes over gloo, under DDP and FSDP2: with a head of its own, a tied one, and balanced experts."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.plugins import MixedPrecision, Precision
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, PreTrainedConfig, Qwen3MoeConfig

from tests.processes import free_port
from tst_lightning.fully_sharded import FullyShardedStrategy
from tst_lightning.modeling import CausalLM, build_causal_lm, checkpoint_activations, initialise
from tst_lightning.phases import NextTokenPhase, PhaseStrategy, SuperpositionPhase

pytestmark = pytest.mark.distributed

PHASES: list[PhaseStrategy] = [SuperpositionPhase(4), NextTokenPhase()]
ROWS, L = 4, 8


SHAPE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "router_aux_loss_coef": 0.25}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "moe": Qwen3MoeConfig(**SHAPE, **EXPERTS),
}


def build(name: str, strategy: FullyShardedStrategy | None = None) -> CausalLM:
    torch.manual_seed(0)
    with torch.device("meta"):
        model = build_causal_lm(copy.deepcopy(CONFIGS[name]))
    if model.routers:
        checkpoint_activations(model.lm, "full")
    if strategy:
        strategy.shard(model)
    initialise(model.lm, torch.device("cpu"))
    return model


def sharding(precision: Precision, **settings: bool) -> FullyShardedStrategy:
    """The strategy as Lightning sets it up for two processes on CPU."""
    strategy = FullyShardedStrategy(**settings)
    strategy.precision_plugin = precision
    strategy._device_mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    return strategy


def rows(phase: PhaseStrategy) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 64, (ROWS, phase.row_tokens(L)))


def train(model: torch.nn.Module, part: slice) -> dict[str, torch.Tensor]:
    """A step of each phase on some of the rows, each a micro-batch of its own; the weights after it.

    The balance of experts is that of a micro-batch, so that both layouts need the same ones.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for phase in PHASES:
        micro_batches = rows(phase)[part].split(1)
        for tokens in micro_batches:
            (model(tokens, phase).mean / len(micro_batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
    named = {name.removeprefix("module."): weight.detach() for name, weight in model.named_parameters()}
    return {name: weight.full_tensor() if isinstance(weight, DTensor) else weight for name, weight in named.items()}


CASES = [(way, name) for way in ("ddp", "fsdp2") for name in CONFIGS]
HALF = "fsdp2-bf16-mixed"


def process(rank: int, port: int, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for way, name in [*CASES, *((HALF, name) for name in CONFIGS)]:
        precision = MixedPrecision("bf16-mixed", "cpu") if way == HALF else Precision()
        model: torch.nn.Module
        if way == "ddp":
            model = DistributedDataParallel(build(name))
        else:
            model = build(name, sharding(precision))
        gathered: set[torch.dtype] = set()
        if way != "ddp":
            attention = model.lm.model.layers[0].self_attn
            attention.register_forward_pre_hook(lambda of, _, seen=gathered: seen.add(of.q_proj.weight.dtype))
        with precision.forward_context():
            weights = train(model, slice(rank, None, 2))
        if way != "ddp":
            assert gathered == {torch.bfloat16 if way == HALF else torch.float32}
            for keeps in (False, True):  # a layer's weights, whole, after its forward pass
                model = build(name, sharding(precision, reshard_after_forward=not keeps))
                model(rows(PHASES[0]), PHASES[0])
                assert isinstance(model.lm.model.layers[0].self_attn.q_proj.weight, DTensor) != keeps
        if rank == 0:
            torch.save(weights, out / f"{way}-{name}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    mp.start_processes(process, (free_port(), folder), nprocs=2, start_method="forkserver")
    return folder


@pytest.mark.parametrize(("way", "name"), CASES)
def test_two_processes_train_what_one_does(trained: Path, way: str, name: str) -> None:
    alone = train(build(name), slice(None))
    found = torch.load(trained / f"{way}-{name}.pt", weights_only=True)
    assert found.keys() == alone.keys()
    for key, weight in alone.items():
        torch.testing.assert_close(found[key], weight, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_half_precision_is_of_what_is_gathered_alone(trained: Path, name: str) -> None:
    """Two steps in bfloat16 come close to those in float32, on weights that stay in float32."""
    first, alone = build(name).state_dict(), train(build(name), slice(None))
    found = torch.load(trained / f"{HALF}-{name}.pt", weights_only=True)
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    moved = sum(float((weight - first[key]).square().sum()) for key, weight in alone.items()) ** 0.5
    off = sum(float((found[key] - weight).square().sum()) for key, weight in alone.items()) ** 0.5
    assert 1e-4 < off / moved < 0.03
