"""The mean embedding of bags, forwards and backwards: seconds over bag size, beside the ways that others write it.

``ours`` is :func:`tst_lightning.bags.mean_embedding`; ``s gathers`` the loop of the paper's listing; ``all, then mean``
patch-level training's (B, L, s, d) tensor; ``one token`` an ordinary embedding of as many positions, which no bag can be
cheaper than. All in turn within a round; the first round is not counted. A whole step's LM head is in loss_memory.json.

    python benchmarks/bag_embedding.py --out benchmarks/results/bag_embedding.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from provenance import hardware, source
from torch import Tensor

from tst_lightning.bags import mean_embedding

WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "one token": lambda bags, weight: F.embedding(bags[..., 0], weight),
    "ours": mean_embedding,
    "s gathers": lambda bags, weight: sum(F.embedding(ids, weight) for ids in bags.unbind(-1)) / bags.shape[-1],
    "all, then mean": lambda bags, weight: F.embedding(bags, weight).mean(2),
}


def seconds_of(call: Callable[[], Tensor], upstream: Tensor, weight: Tensor) -> tuple[float, float]:
    """Forward and backward of one call, in seconds."""

    def now() -> float:
        if weight.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    began = now()
    mean = call()
    middle = now()
    torch.autograd.grad(mean, weight, upstream)
    return middle - began, now() - middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--positions", type=int, default=2048, help="B x L")
    parser.add_argument("--width", type=int, default=256, help="d")
    parser.add_argument("--vocabulary", type=int, default=32_768, help="V")
    parser.add_argument("--bags", type=int, nargs="+", default=[1, 4, 8, 16], help="s")
    parser.add_argument("--rounds", type=int, default=9, help="counted calls of each")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = source() | {"hardware": hardware(options.threads, options.device)}
    torch.manual_seed(1)
    weight = torch.randn(options.vocabulary, options.width, device=options.device, requires_grad=True)
    upstream = torch.randn(1, options.positions, options.width, device=options.device)
    rows = []
    for bag_size in options.bags:
        bags = torch.randint(0, options.vocabulary, (1, options.positions, bag_size), device=options.device)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
        for _ in range(options.rounds + 1):
            for name, way in WAYS.items():
                found[name].append(seconds_of(lambda way=way, bags=bags: way(bags, weight), upstream, weight))
        for name, measured in found.items():
            forward, backward = (statistics.median(each) for each in zip(*measured[1:], strict=True))
            both = sorted(sum(each) for each in measured[1:])
            rows.append(
                {
                    "name": name,
                    "bag_size": bag_size,
                    "forward_seconds_median": forward,
                    "backward_seconds_median": backward,
                    "seconds_min": both[0],
                    "seconds_max": both[-1],
                }
            )
            print(f"s {bag_size:>2}  {name:<15} forward {1e3 * forward:7.2f} ms, backward {1e3 * backward:7.2f} ms")
    if options.out:
        settings = {key: value for key, value in vars(options).items() if key != "out"}
        options.out.write_text(json.dumps(facts | {"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
