"""Bags spelled out in integers, and the mean embedding against the paper's own loop."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tst_lightning.bags import (
    BAG_WEIGHTINGS,
    PowerLaw,
    bag_weights,
    fold,
    inputs_and_targets,
    mean_embedding,
    pad_documents,
)
from tst_lightning.losses import IGNORED


def test_fold_spelled_out() -> None:
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15]])
    assert fold(tokens, 2).tolist() == [[[0, 1], [2, 3], [4, 5]], [[10, 11], [12, 13], [14, 15]]]


def test_inputs_and_targets_spelled_out() -> None:
    # s = 3, L = 2: a row of 9 tokens; the last bag is only a target, the first only an input.
    inputs, targets = inputs_and_targets(torch.arange(9)[None], 3)
    assert inputs.tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert targets.tolist() == [[[3, 4, 5], [6, 7, 8]]]


def test_bag_size_one_is_the_ordinary_shift() -> None:
    inputs, targets = inputs_and_targets(torch.arange(5)[None], 1)
    assert inputs.flatten().tolist() == [0, 1, 2, 3]
    assert targets.flatten().tolist() == [1, 2, 3, 4]


def test_ragged_row_is_refused() -> None:
    with pytest.raises(ValueError, match="7 tokens is not a whole number of bags of 2"):
        fold(torch.zeros(1, 7), 2)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 8))
def test_no_target_was_seen_and_none_is_skipped(rows: int, positions: int, bag_size: int) -> None:
    length = bag_size * (positions + 1)
    tokens = torch.arange(rows * length).view(rows, length)
    inputs, targets = inputs_and_targets(tokens, bag_size)
    assert inputs.shape == targets.shape == (rows, positions, bag_size)
    for position in range(positions):
        seen = inputs[:, : position + 1].flatten(1)
        # The target bag is exactly the s tokens after everything that was seen.
        assert torch.equal(targets[:, position], seen[:, -1:] + torch.arange(1, bag_size + 1))


def test_documents_padded_spelled_out() -> None:
    # Documents of 3, 5 and at least 4 tokens, 0 their end, in bags of 3: one place is missing, so one token is left out.
    tokens = torch.tensor([[11, 12, 0, 21, 22, 23, 24, 0, 31, 32, 33, 34]])
    expected = [[11, 12, 0], [21, 22, 23], [24, 0, IGNORED], [31, 32, 33]]
    assert fold(pad_documents(tokens, 3, 0), 3)[0].tolist() == expected
    assert pad_documents(tokens, 3, None) is tokens
    assert torch.equal(pad_documents(tokens, 1, 0), tokens)


@given(st.data(), st.integers(1, 4), st.integers(1, 8))
def test_no_bag_holds_two_documents_and_no_token_is_kept_twice(data: st.DataObject, rows: int, bag_size: int) -> None:
    length = bag_size * data.draw(st.integers(1, 8))
    ends = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows * length, max_size=rows * length)))
    # Ids that tell a token's place, but for the ends'.
    tokens = torch.arange(1, rows * length + 1).where(~ends, 0).view(rows, length)
    bags = fold(pad_documents(tokens, bag_size, 0), bag_size)
    for row, found in zip(tokens, bags, strict=True):
        kept = found[found != IGNORED]
        assert torch.equal(kept, row[: len(kept)]), "the row's tokens in order, each once, up to the last that is kept"
        assert (found[:, 0] != IGNORED).all(), "no bag is empty"
        for bag in found:
            present = bag != IGNORED
            assert torch.equal(present, present.sort(descending=True).values), "tokens stand before what is missing"
            assert not (bag[:-1] == 0).any() or (bag[bag.tolist().index(0) + 1 :] == IGNORED).all()
            assert present.all() or bag[present][-1] == 0, "a bag is short where its document ends, not elsewhere"


def test_documents_are_padded_without_storage_too() -> None:
    assert pad_documents(torch.zeros(2, 12, dtype=torch.int64, device="meta"), 3, 0).shape == (2, 12)


@pytest.mark.parametrize("weighting", BAG_WEIGHTINGS)
@pytest.mark.parametrize("bag_size", [1, 2, 7, 16])
def test_weights_sum_to_one_and_never_rise(weighting: str, bag_size: int) -> None:
    weights = bag_weights(weighting, bag_size)
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert (weights.diff() <= 0).all()


def test_weights_by_hand() -> None:
    assert bag_weights("uniform", 4).tolist() == [0.25] * 4
    assert bag_weights("first", 3).tolist() == [1.0, 0.0, 0.0]
    assert bag_weights("power_law", 3).tolist() == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    assert (bag_weights("exponential", 2)[0] / bag_weights("exponential", 2)[1]).item() == pytest.approx(2.718281828)
    # Paper's constants: 3.63 + 1.35 at i = 1, 3.63 + 1.35 * 2 ** -1.25 at i = 2.
    fitted = bag_weights("fitted_power_law", 2)
    assert (fitted[0] / fitted[1]).item() == pytest.approx(4.98 / (3.63 + 1.35 * 2**-1.25))


def test_weights_of_given_constants() -> None:
    assert bag_weights(PowerLaw(0, 1, -1), 65_536).equal(bag_weights("power_law", 65_536))
    assert bag_weights(PowerLaw(3.63, 1.35, -1.25), 16).equal(bag_weights("fitted_power_law", 16))
    assert bag_weights(PowerLaw(2, 0, -1), 4).equal(bag_weights("uniform", 4))
    assert bag_weights(PowerLaw(1, 3, 2), 3).tolist() == pytest.approx([4 / 45, 13 / 45, 28 / 45])


@pytest.mark.parametrize(
    ("constants", "bag_size"),
    [
        *(((math.nan, 1, -1), 2), ((1, math.inf, -1), 2), ((1, 1, math.nan), 2)),
        *(((-1.5, 1, 0), 2), ((-0.6, 1, -1), 2), ((0, 0, -1), 4)),
        *(((0, 1, 2_000), 2), ((1e308, 1, -1), 2)),  # beyond a float; their sum is
    ],
)
def test_constants_that_give_no_weights_are_refused(constants: tuple[float, ...], bag_size: int) -> None:
    with pytest.raises(
        ValueError, match=rf"PowerLaw\(.*\) does not give the {bag_size} tokens of a bag finite weights"
    ):
        bag_weights(PowerLaw(*constants), bag_size)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_mean_embedding_equals_a_loop_of_gathers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 8, dtype=dtype, requires_grad=True)
    bags = torch.randint(0, 50, (3, 5, 4))
    bags[0, 0] = 7  # a token four times in one bag
    mean = mean_embedding(bags, weight)
    loop = sum(weight[bags[..., i]] for i in range(4)) / 4
    torch.testing.assert_close(mean, loop)
    upstream = torch.randn_like(mean)
    (gradient,) = torch.autograd.grad(mean, weight, upstream, retain_graph=True)
    (expected,) = torch.autograd.grad(loop, weight, upstream)
    torch.testing.assert_close(gradient, expected)


def test_mean_embedding_accumulates_bfloat16_in_float32() -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 64).bfloat16()
    bags = torch.randint(0, 50, (1, 40, 64))
    exact = weight.double()[bags].mean(2)
    error = (mean_embedding(bags, weight).double() - exact).norm() / exact.norm()
    assert error < 3e-3  # one rounding to 8 bits of mantissa; a bfloat16 accumulation over 64 is ten times worse
