"""The fused loss in two processes over gloo: under DDP and FSDP2, with the head's own weight and with a tied one."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig

from tests.processes import free_port
from tst_lightning.modeling import CausalLM, build_causal_lm, decoder_layers
from tst_lightning.phases import NextTokenPhase, PhaseStrategy, SuperpositionPhase

pytestmark = pytest.mark.distributed

PHASES: list[PhaseStrategy] = [SuperpositionPhase(4), NextTokenPhase()]
ROWS, L = 4, 8


def build(tied: bool) -> CausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return build_causal_lm(LlamaConfig(vocab_size=64, tie_word_embeddings=tied, num_key_value_heads=2, **shape))


def rows(phase: PhaseStrategy) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 64, (ROWS, phase.row_tokens(L)))


def train(model: torch.nn.Module, part: slice) -> dict[str, torch.Tensor]:
    """A step of each phase on some of the rows, two micro-batches a step; the weights after it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for phase in PHASES:
        for tokens in rows(phase)[part].chunk(2):
            (model(tokens, phase).mean / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    named = {name.removeprefix("module."): weight.detach() for name, weight in model.named_parameters()}
    return {name: weight.full_tensor() if isinstance(weight, DTensor) else weight for name, weight in named.items()}


CASES = [(way, tied) for way in ("ddp", "fsdp2") for tied in (False, True)]


def process(rank: int, port: int, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for way, tied in CASES:
        model: torch.nn.Module = build(tied)
        if way == "ddp":
            model = DistributedDataParallel(model)
        else:
            layers = decoder_layers(model.lm)
            assert layers is not None
            for layer in layers:
                fully_shard(layer)
            fully_shard(model)
        # Strided, so that each micro-batch of both ranks is one micro-batch of the process alone.
        weights = train(model, slice(rank, None, 2))
        if rank == 0:
            torch.save(weights, out / f"{way}-{tied}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    mp.start_processes(process, (free_port(), folder), nprocs=2, start_method="forkserver")
    return folder


@pytest.mark.parametrize(("way", "tied"), CASES)
def test_two_processes_train_what_one_does(trained: Path, way: str, tied: bool) -> None:
    alone = train(build(tied), slice(None))
    found = torch.load(trained / f"{way}-{tied}.pt", weights_only=True)
    assert found.keys() == alone.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5, msg=name)
