"""The multi-hot loss and its gradients against a naive float64 loop, for every weighting."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tst_lightning.bags import BAG_WEIGHTINGS, bag_weights
from tst_lightning.losses import multi_hot_cross_entropy, next_token_cross_entropy


def naive(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Token by token, as the definition reads: -sum_i w_i log softmax(h W^T)[y_i]."""
    total = torch.zeros((), dtype=torch.float64)
    for h, bag in zip(hidden.double(), targets, strict=True):
        scores = [sum(a * b for a, b in zip(h, row, strict=True)) for row in head.double()]
        normaliser = torch.stack([score.exp() for score in scores]).sum().log()
        for weight, token in zip(weights.tolist(), bag.tolist(), strict=True):
            total = total + weight * (normaliser - scores[token])
    return total


@pytest.mark.parametrize("weighting", BAG_WEIGHTINGS)
@pytest.mark.parametrize("bag_size", [1, 3, 8])
def test_value_and_gradients_equal_the_naive_loop(weighting: str, bag_size: int) -> None:
    torch.manual_seed(bag_size)
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (5, bag_size))
    targets[0] = 3  # repeated tokens in a bag count as often as they stand there
    weights = bag_weights(weighting, bag_size)
    loss = multi_hot_cross_entropy(hidden, head, targets, weights)
    expected = naive(hidden, head, targets, weights)
    torch.testing.assert_close(loss.count, torch.tensor(5.0, dtype=torch.float64))
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss.total, (hidden, head)), torch.autograd.grad(expected, (hidden, head))
    )


def test_gradcheck() -> None:
    torch.manual_seed(0)
    targets = torch.randint(0, 7, (3, 4))
    weights = bag_weights("power_law", 4)
    inputs = [torch.randn(n, 5, dtype=torch.float64, requires_grad=True) for n in (3, 7)]
    assert torch.autograd.gradcheck(lambda h, w: multi_hot_cross_entropy(h, w, targets, weights).total, inputs)


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(2, 30), st.sampled_from(list(BAG_WEIGHTINGS)))
def test_equals_the_weighted_mean_of_ordinary_cross_entropies(n: int, s: int, vocabulary: int, weighting: str) -> None:
    hidden, head = torch.randn(n, 3, dtype=torch.float64), torch.randn(vocabulary, 3, dtype=torch.float64)
    targets, weights = torch.randint(0, vocabulary, (n, s)), bag_weights(weighting, s)
    ordinary = [F.cross_entropy(hidden @ head.T, targets[:, i], reduction="sum") for i in range(s)]
    loss = multi_hot_cross_entropy(hidden, head, targets, weights)
    torch.testing.assert_close(loss.total, sum(w * o for w, o in zip(weights, ordinary, strict=True)))


def test_bag_of_one_equals_next_token_loss() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    targets = torch.randint(0, 9, (6,))
    bag = multi_hot_cross_entropy(hidden, head, targets[:, None], bag_weights("uniform", 1))
    ordinary = next_token_cross_entropy(hidden, head, targets)
    torch.testing.assert_close(bag.mean, ordinary.mean)
    torch.testing.assert_close(
        torch.autograd.grad(bag.mean, (hidden, head)), torch.autograd.grad(ordinary.mean, (hidden, head))
    )


def test_uniform_guess_costs_log_of_the_vocabulary() -> None:
    hidden, head = torch.zeros(4, 3), torch.randn(100, 3)
    loss = multi_hot_cross_entropy(hidden, head, torch.randint(0, 100, (4, 5)), bag_weights("uniform", 5))
    assert loss.mean.item() == pytest.approx(math.log(100))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(64, 16).to(dtype), (torch.randn(4096, 16) / 4).to(dtype)
    targets, weights = torch.randint(0, 4096, (64, 4)), bag_weights("uniform", 4)
    loss = multi_hot_cross_entropy(hidden, head, targets, weights)
    exact = multi_hot_cross_entropy(hidden.double(), head.double(), targets, weights)
    assert loss.total.dtype == torch.float32
    assert loss.mean.item() == pytest.approx(exact.mean.item(), rel=2e-3)
