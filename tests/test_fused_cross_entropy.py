"""The fused head and loss against readable references: chunks, ignored targets, half precision, autocast, compilation."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import needs_compiler
from tst_lightning import fused_cross_entropy as fused
from tst_lightning import losses
from tst_lightning.bags import bag_weights
from tst_lightning.losses import IGNORED, LossSum, bag_mass_cross_entropy, multi_hot_cross_entropy

Loss = Callable[[Tensor, Tensor, Tensor], LossSum]


def multi_hot(hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None = None, **more: Any) -> LossSum:
    return multi_hot_cross_entropy(hidden, head, targets, bag_weights("power_law", targets.shape[1]), softcap, **more)


def readable_multi_hot(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and count over whole logits, one ordinary cross-entropy a target."""
    weights = bag_weights("power_law", targets.shape[1])
    parts = [F.cross_entropy(logits, targets[:, i], reduction="sum") * w for i, w in enumerate(weights)]
    return torch.stack(parts).sum(), ((targets != IGNORED) * weights).sum()


def readable_bag_mass(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and count over whole logits: minus the log of the probability of each bag's set of tokens."""
    bags = [sorted(set(bag) - {IGNORED}) for bag in targets.tolist()]
    probs = logits.softmax(-1)
    parts = [-row[bag].sum().log() for row, bag in zip(probs, bags, strict=True) if bag]
    return torch.stack(parts).sum(), torch.tensor(float(len(parts)), dtype=torch.float64)


def compiled(loss: Callable[..., LossSum]) -> Callable[..., LossSum]:
    @functools.wraps(loss)
    def of_compiled_chunks(*arguments: Any, **more: Any) -> LossSum:
        return loss(*arguments, **more, compiled=True)

    return of_compiled_chunks


LOSSES = [
    (multi_hot, readable_multi_hot),
    (bag_mass_cross_entropy, readable_bag_mass),
    pytest.param(compiled(multi_hot), readable_multi_hot, id="multi_hot-compiled"),
    pytest.param(compiled(bag_mass_cross_entropy), readable_bag_mass, id="bag_mass-compiled"),
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one shorter; compiled ones by all but the compiler itself, which takes its time."""
    monkeypatch.setitem(fused._CHUNK_ROWS, "cpu", 4)
    monkeypatch.setitem(fused._COMPILED_ROWS, "cpu", 4)
    torch._dynamo.reset()
    traced = torch.compile(fused._chunk, fullgraph=True, dynamic=False, backend="aot_eager")
    monkeypatch.setattr(fused, "_compiled_chunk", lambda: traced)
    monkeypatch.setattr(fused, "_worth_compiling", lambda dtype: True)  # its arithmetic is checked in float64 too


def case(n: int = 11, d: int = 6, vocabulary: int = 17, s: int = 4, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Hidden states and head that want gradients, and targets: repeated ones, some ignored, one bag wholly."""
    torch.manual_seed(n * s)
    targets = torch.randint(0, vocabulary, (n, s))
    targets[0] = 3
    targets[1, -1] = IGNORED
    targets[2] = IGNORED
    return [
        torch.randn(n, d).to(dtype).requires_grad_(),
        (torch.randn(vocabulary, d) / 2).to(dtype).requires_grad_(),
        targets,
    ]


@pytest.mark.parametrize(("loss", "readable"), LOSSES)
def test_value_count_and_gradients_equal_the_readable_loss(loss: Loss, readable: Callable[..., Any]) -> None:
    hidden, head, targets = case()
    found, (total, count) = loss(hidden, head, targets), readable(hidden @ head.T, targets)
    torch.testing.assert_close((found.total, found.count), (total, count))
    torch.testing.assert_close(found.parts.sum(), total.detach())
    assert found.parts[2] == 0
    torch.testing.assert_close(
        torch.autograd.grad(found.mean, (hidden, head)), torch.autograd.grad(total / count, (hidden, head))
    )


@pytest.mark.parametrize(("loss", "readable"), LOSSES)
def test_gradcheck(loss: Loss, readable: object) -> None:
    hidden, head, targets = case(6, 3, 7)
    assert torch.autograd.gradcheck(lambda h, w: loss(h, w, targets).total, (hidden, head))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("loss", "readable"), LOSSES)
def test_bounded_logits(loss: Callable[..., LossSum], readable: Callable[..., Any], autocast: bool) -> None:
    """A bound that most logits come near to: their gradients are far from those of plain ones."""
    bound = 1.5
    hidden, head, targets = case(dtype=torch.float32 if autocast else torch.float64)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = loss(hidden, head, targets, softcap=bound)
        logits = F.linear(hidden, head)
    total, count = readable(bound * torch.tanh(logits.to(found.total.dtype) / bound), targets)
    torch.testing.assert_close(found.total, total, check_dtype=False)
    torch.testing.assert_close(found.parts.sum(), total.detach(), check_dtype=False)
    ours, theirs, plain = (
        torch.autograd.grad(value, (hidden, head))
        for value in (found.mean, total / count, loss(hidden, head, targets).mean)
    )
    rounding = {"rtol": 2e-2, "atol": 1e-3} if autocast else {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(ours, theirs, **rounding)
    assert all(relative_error(a, b) > 0.5 for a, b in zip(plain, ours, strict=True))
    assert autocast or torch.autograd.gradcheck(lambda h, w: loss(h, w, targets, softcap=bound).total, (hidden, head))


@settings(max_examples=40)
@given(st.integers(3, 20), st.integers(1, 6), st.integers(4, 40), st.integers(1, 25))
def test_chunks_change_nothing(n: int, s: int, vocabulary: int, rows: int) -> None:
    hidden, head, targets = case(n, 5, vocabulary, s)
    arguments = (hidden, head, targets, bag_weights("uniform", s), lambda p, y, w: (-(w * p).sum(1), -w))
    whole = fused.fused_cross_entropy(*arguments, rows=n)
    parts = fused.fused_cross_entropy(*arguments, rows=rows)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(
        torch.autograd.grad(parts[0], (hidden, head)), torch.autograd.grad(whole[0], (hidden, head))
    )


def relative_error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("mode", ["bfloat16", "float16", "autocast"])
@pytest.mark.parametrize(("loss", "readable"), LOSSES)
def test_half_precision_errs_no_more_than_whole_logits_do(loss: Loss, readable: Callable[..., Any], mode: str) -> None:
    dtype = torch.float32 if mode == "autocast" else getattr(torch, mode)
    hidden, head, targets = case(600, 64, 1000, dtype=dtype)
    exact, _ = readable(hidden.double() @ head.double().T, targets)
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        found, (plain, _) = loss(hidden, head, targets), readable(F.linear(hidden, head).float(), targets)
    assert found.total.dtype == torch.float32
    assert found.total.item() == pytest.approx(exact.item(), rel=1e-3)
    ours, theirs, right = (torch.autograd.grad(total, (hidden, head)) for total in (found.total, plain, exact))
    assert [gradient.dtype for gradient in ours] == [dtype, dtype]
    for mine, usual, true in zip(ours, theirs, right, strict=True):
        assert relative_error(mine, true) < max(1.2 * relative_error(usual, true), 2**-9)


def test_the_heads_gradient_is_added_up_in_float32() -> None:
    """150 chunks of bfloat16 products: added in bfloat16, most of each would be lost against the sum."""
    torch.manual_seed(0)
    hidden = (torch.rand(600, 8) + 0.5).bfloat16()
    head = torch.zeros(5, 8, dtype=torch.bfloat16, requires_grad=True)
    loss = multi_hot(hidden, head, torch.zeros(600, 1, dtype=torch.int64)).total
    (gradient,) = torch.autograd.grad(loss, head)
    exact = torch.outer(torch.tensor([-0.8, 0.2, 0.2, 0.2, 0.2]).double(), hidden.double().sum(0))
    assert relative_error(gradient, exact) < 2**-8


def test_logits_never_exist_whole() -> None:
    """No tensor of positions x vocabulary is made, forwards or backwards."""
    n, vocabulary = 64, 1000
    hidden, head, targets = case(n, 8, vocabulary, dtype=torch.float32)
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor))
            return out

    with Sizes():
        multi_hot(hidden, head, targets).total.backward()
    assert max(sizes) == max(vocabulary * 8, 4 * vocabulary) < n * vocabulary


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        return func(*args, **(kwargs or {}))


def test_without_gradients_none_are_taken() -> None:
    hidden, head, targets = case(12)  # three chunks
    with torch.no_grad(), Products() as scoring:
        quiet = multi_hot(hidden, head, targets)
    assert not quiet.total.requires_grad and scoring.count == 3
    for states, matrix, products in ((hidden, head.detach(), 6), (hidden.detach(), head, 6), (hidden, head, 9)):
        with Products() as training:
            multi_hot(states, matrix, targets)
        assert training.count == products
    torch.testing.assert_close(quiet.total, multi_hot(hidden, head, targets).total.detach())
    frozen = multi_hot(hidden, head.detach(), targets).total
    (gradient,) = torch.autograd.grad(frozen, hidden)
    (expected,) = torch.autograd.grad(multi_hot(hidden, head, targets).total, hidden)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("scale", [1.0, 65_536.0])
@pytest.mark.parametrize("loss", [multi_hot, bag_mass_cross_entropy])
def test_where_nothing_is_scored_nothing_is_learnt(loss: Loss, scale: float) -> None:
    hidden, head, _ = case(dtype=torch.float32)
    nothing = loss(hidden, head, torch.full((11, 4), IGNORED))
    assert nothing.mean == 0 and nothing.count == 0
    for gradient in torch.autograd.grad(nothing.mean * scale, (hidden, head)):
        assert not gradient.any()


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_as_one_graph(autocast: bool) -> None:
    hidden, head, targets = case(dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda h, w: multi_hot(h, w, targets).mean, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain, found = multi_hot(hidden, head, targets).mean, compiled(hidden, head)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(
        torch.autograd.grad(found, (hidden, head)), torch.autograd.grad(plain, (hidden, head)), rtol=1e-2, atol=1e-3
    )


def test_compiled_in_half_precision_nothing_wide_is_kept() -> None:
    """The graph that is compiled gives its products what they read in their own dtype, from s places written over."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    hidden, head, targets = case(4, dtype=torch.float32)
    traced = torch.compile(fused._chunk, fullgraph=True, dynamic=False, backend=aot_autograd(fw_compiler=keep))
    with torch.no_grad():
        grad_head = torch.zeros_like(head)
        traced(hidden.bfloat16(), head.bfloat16(), targets, torch.ones(4), grad_head, losses._multi_hot, None, True)
    (graph,) = graphs
    scatters = [node for node in graph.graph.nodes if "scatter" in str(node.target)]
    assert [node.target for node in scatters] == [torch.ops.aten.scatter.src]
    assert scatters[0].meta["val"].dtype == torch.bfloat16


@pytest.mark.slow
@needs_compiler
def test_compiled_chunks_give_the_same_loss_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real compiler: a graph for each shape of chunk, and none for those that come again."""
    monkeypatch.undo()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setitem(fused._COMPILED_ROWS, "cpu", 128)
    hidden, head, targets = case(300, 32, 500, dtype=torch.float32)
    for autocast in (False, True):
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                plain, found = multi_hot(hidden, head, targets), multi_hot(hidden, head, targets, compiled=True)
            torch.testing.assert_close(found.total, plain.total)
            torch.testing.assert_close(found.parts, plain.parts, rtol=1e-5, atol=1e-5)
            for a, b in zip(*(torch.autograd.grad(loss.mean, (hidden, head)) for loss in (found, plain)), strict=True):
                assert relative_error(a, b.double()) < (2**-8 if autocast else 1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # whole and last chunk, under autocast alone


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_128k_vocabulary_and_8k_positions_fit_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    device = torch.device("cuda")
    hidden = torch.randn(8192, 1024, device=device, dtype=torch.bfloat16, requires_grad=True)
    head = torch.randn(128_256, 1024, device=device, dtype=torch.bfloat16, requires_grad=True)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    targets = torch.randint(0, 128_256, (8192, 16), device=device)
    multi_hot_cross_entropy(hidden, head, targets, bag_weights("uniform", 16).to(device)).mean.backward()
    peak = torch.cuda.max_memory_allocated(device) - before
    # Whole float32 logits alone would be 4.2 GB.
    assert peak < 3 * 2**30
