"""The LM head and its loss alone, forwards and backwards: seconds and memory over vocabulary and bag size.

Ours, step by step and compiled (as by ``model.compile``), beside what others write: one cross-entropy on whole logits (one
target, the ordinary one), the paper's s of them, patch-level training's one log-softmax with s gathers, and PyTorch's own
chunked ``F.linear_cross_entropy`` (one target). All take the same hidden states, head and targets, in turn within a round,
the order shuffled; the first round is not counted. Memory is the peak resident set (on a GPU the peak allocated) during a
call over that just before.

Beside them stands the floor: the three matrix products that no LM head does without, timed alone in each round, and the
bytes that must move at least (states, head, their gradients, each once) at the measured speed of a copy.

    python benchmarks/loss_memory.py --out benchmarks/results/loss_memory.json
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from provenance import hardware, source
from torch import Tensor

from tst_lightning.bags import bag_weights
from tst_lightning.losses import multi_hot_cross_entropy, next_token_cross_entropy

Call = Callable[[Tensor, Tensor, Tensor], Tensor]
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def ours(hidden: Tensor, head: Tensor, targets: Tensor, compiled: bool = False) -> Tensor:
    weights = bag_weights("uniform", targets.shape[1]).to(hidden.device)
    return multi_hot_cross_entropy(hidden, head, targets, weights, compiled=compiled).mean


def ours_one_label(hidden: Tensor, head: Tensor, targets: Tensor, compiled: bool = False) -> Tensor:
    return next_token_cross_entropy(hidden, head, targets[:, 0], compiled=compiled).mean


def whole_logits(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, head).float(), targets[:, 0])


def paper_listing(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, head).float()
    return torch.stack([F.cross_entropy(logits, targets[:, i]) for i in range(targets.shape[1])]).mean()


def patch_level(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    log_probs = F.log_softmax(F.linear(hidden, head).float(), -1)
    return torch.stack([F.nll_loss(log_probs, targets[:, i]) for i in range(targets.shape[1])]).mean()


def torch_chunked(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, head, targets[:, 0], options=options)


def arms(bags: list[int]) -> dict[tuple[str, int], Call]:
    """(name, bag size) to a loss of (N, d) states, a (V, d) head and (N, s) targets."""
    found: dict[tuple[str, int], Call] = {
        ("ours, one label", 1): ours_one_label,
        ("ours compiled, one label", 1): partial(ours_one_label, compiled=True),
        ("whole logits", 1): whole_logits,
    }
    if hasattr(F, "linear_cross_entropy"):  # PyTorch 2.13
        found["torch chunked", 1] = torch_chunked
    kinds: dict[str, Call] = {
        "ours": ours,
        "ours compiled": partial(ours, compiled=True),
        "paper listing": paper_listing,
        "patch-level": patch_level,
    }
    for name, call in kinds.items():
        found |= {(name, bag): call for bag in bags}
    return found


class Clock:
    """Seconds and peak bytes of a call."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def _resident(self, key: str) -> int:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024

    def measure(self, call: Callable[[], Any]) -> tuple[float, int]:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            RESET.write_text("5")  # the peak starts anew
            before = self._resident("VmRSS")
        began = time.perf_counter()
        call()
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        return seconds, (torch.cuda.max_memory_allocated() if self.cuda else self._resident("VmHWM")) - before


def floor(hidden: Tensor, head: Tensor, clock: Clock) -> dict[str, float]:
    """Seconds of the three products alone, a chunk at a time, and of moving what must be read and written."""

    def products() -> None:
        for states in hidden.split(1024 if clock.cuda else 512):
            logits = states @ head.T
            logits @ head
            logits.T @ states

    moved = 2 * (hidden.numel() + head.numel()) * hidden.element_size()
    # Far more than a GPU's cache holds, and far longer than a launch takes.
    source = torch.empty((1 << 30) if clock.cuda else (64 << 20), dtype=torch.uint8, device=hidden.device)
    target = torch.zeros_like(source)
    seconds, _ = clock.measure(lambda: target.copy_(source))
    return {"products_seconds": clock.measure(products)[0], "bytes_seconds": moved * seconds / (2 * source.numel())}


def measure(vocabulary: int, options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of one vocabulary, and its floor."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    torch.manual_seed(options.seed)
    hidden = torch.randn(options.positions, options.width, device=device, dtype=dtype, requires_grad=True)
    head = (torch.randn(vocabulary, options.width, device=device) / options.width**0.5).to(dtype).requires_grad_()
    targets = torch.randint(0, vocabulary, (options.positions, max(options.bags)), device=device)
    clock, chance, calls = Clock(device), random.Random(options.seed), arms(options.bags)
    found: dict[tuple[str, int], list[tuple[float, int]]] = {key: [] for key in calls}
    floors = []

    def run(key: tuple[str, int]) -> None:
        torch.autograd.grad(calls[key](hidden, head, targets[:, : key[1]]), (hidden, head))

    for _ in range(options.rounds + 1):
        floors.append(floor(hidden.detach(), head.detach(), clock))
        for key in chance.sample(list(calls), len(calls)):
            found[key].append(clock.measure(lambda key=key: run(key)))
    base = [seconds for seconds, _ in found["ours, one label", 1][1:]]
    rows = []
    for (name, bag), measured in found.items():
        seconds = [each for each, _ in measured[1:]]
        rows.append(
            {
                "name": name,
                "bag_size": bag,
                "vocabulary": vocabulary,
                "seconds_median": statistics.median(seconds),
                "seconds_min": min(seconds),
                "seconds_max": max(seconds),
                "peak_memory_bytes": max(memory for _, memory in measured[1:]),
                "ratio_to_one_label": statistics.median(mine / one for mine, one in zip(seconds, base, strict=True)),
            }
        )
    floor_of = {key: statistics.median(each[key] for each in floors[1:]) for key in floors[0]}
    return rows, {"vocabulary": vocabulary, **floor_of}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--positions", type=int, default=1024, help="N")
    parser.add_argument("--width", type=int, default=256, help="d")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[1024, 32_768, 128_256], help="V")
    parser.add_argument("--bags", type=int, nargs="+", default=[1, 4, 16], help="s")
    parser.add_argument("--rounds", type=int, default=3, help="counted calls of each")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--seed", type=int, default=1, help="of the numbers and of the order")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = source() | {"hardware": hardware(options.threads, options.device)}
    rows, floors = [], []
    for vocabulary in options.vocabularies:
        mine, least = measure(vocabulary, options)
        rows, floors = rows + mine, [*floors, least]
        print(f"V {vocabulary:,}: floor {1e3 * least['products_seconds']:.0f} ms of products,", end=" ")
        print(f"{1e3 * least['bytes_seconds']:.0f} ms to move the bytes")
        for row in mine:
            print(
                f"  {row['name']:<24} s {row['bag_size']:>2}  {1e3 * row['seconds_median']:8.0f} ms"
                f"  x{row['ratio_to_one_label']:.3f}  {row['peak_memory_bytes'] / 2**20:8.0f} MiB"
            )
        if options.out:  # after each vocabulary, which may take minutes
            settings = {key: value for key, value in vars(options).items() if key != "out"}
            result = facts | {"settings": settings, "floor": floors, "rows": rows}
            options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
