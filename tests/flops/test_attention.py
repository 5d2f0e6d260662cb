"""The op that stands for attention where FLOPs are counted: its prices, its shapes, and what it saves."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tst_lightning.errors import ConfigError
from tst_lightning.flops.attention import attention_flops, attention_formulas

CAUSAL = torch.ops.tst_lightning.causal_attention
B, H, L, E, D = 2, 6, 10, 8, 5


def tensors(kv_heads: int = H) -> list[torch.Tensor]:
    shapes = [(B, H, L, E), (B, kv_heads, L, E), (B, kv_heads, L, D)]
    return [torch.empty(shape, device="meta", requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("kv_heads", [H, 2, 1])
def test_full_and_causal_by_hand(kv_heads: int) -> None:
    shapes = [tensor.shape for tensor in tensors(kv_heads)]
    # Scores take E multiply-adds a pair of positions, weighted values D; heads of keys that are shared save none of it.
    assert attention_flops(*shapes, "full") == 2 * B * H * (L * L) * (E + D)
    assert attention_flops(*shapes, "causal") == 2 * B * H * (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10) * (E + D)


@pytest.mark.parametrize("convention", ["full", "causal"])
@pytest.mark.parametrize("kv_heads", [H, 2])
def test_forward_and_backward_are_counted_by_the_convention(kv_heads: int, convention: str) -> None:
    inputs = tensors(kv_heads)
    expected = attention_flops(*(tensor.shape for tensor in inputs), convention)
    with FlopCounterMode(display=False, custom_mapping=attention_formulas(convention)) as counter:
        out, _ = CAUSAL(*inputs)
        assert counter.get_total_flops() == expected
        out.sum().backward()
        assert counter.get_total_flops() == 3 * expected
    assert out.shape == (B, H, L, D)
    assert out.transpose(1, 2).is_contiguous()  # as fused kernels lay it out
    assert [tensor.grad.shape for tensor in inputs] == [tensor.shape for tensor in inputs]


def test_saves_what_a_fused_kernel_saves() -> None:
    saved: list[torch.Size] = []
    inputs = tensors(2)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape), lambda _: None):
        CAUSAL(*inputs)
    assert saved == [*(tensor.shape for tensor in inputs), (B, H, L, D), (B, H, L)]


def test_gives_no_numbers() -> None:
    with pytest.raises(NotImplementedError):
        CAUSAL(*(torch.zeros(tensor.shape) for tensor in tensors()))


def test_unknown_convention_is_refused() -> None:
    with pytest.raises(ConfigError, match="attention is 'half'; choose full or causal"):
        attention_flops(*(tensor.shape for tensor in tensors()), "half")
