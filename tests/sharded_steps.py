"""What each of two processes does in tests/test_muon.py; here, since it is imported anew in each."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tst_lightning.muon import MuonWithAdamW
from tst_lightning.optim import decay_groups

SHAPES = [(13, 7), (4, 16), (1, 8), (9,)]  # of the third, one of two processes has nothing


def steps(place: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    """Weights and optimizer state after three steps along given gradients."""
    draws = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(place(torch.randn(shape, generator=draws))) for shape in SHAPES]
    optimizer = MuonWithAdamW(decay_groups((str(i), weight) for i, weight in enumerate(weights)), lr=0.1)
    for _ in range(3):
        for weight, shape in zip(weights, SHAPES, strict=True):
            weight.grad = place(torch.randn(shape, generator=draws))
        optimizer.step()
    weights[0].grad = None  # a step skipped leaves a weight alone
    before = weights[0].detach().clone()
    optimizer.step()
    assert torch.equal(weights[0], before)
    kept = [value for weight in weights for value in optimizer.state[weight].values()]
    return [value.full_tensor() if isinstance(value, DTensor) else value for value in (*weights, *kept)]


def take_steps(rank: int, port: int) -> None:
    """One of two processes: the same steps with sharded weights and with whole ones."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    sharded, whole = steps(lambda value: distribute_tensor(value, mesh, [Shard(0)])), steps(lambda value: value)
    assert len(sharded) == len(whole) == len(SHAPES) + 3 + 3
    for one, other in zip(sharded, whole, strict=True):
        assert torch.equal(one, other)
    dist.destroy_process_group()
