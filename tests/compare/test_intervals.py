"""Means and intervals: a case worked by hand, scipy's own tests as the judge, and invariants."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import ttest_ind, ttest_rel

from tst_lightning.compare.intervals import NO_INTERVAL, PAIRED, WELCH, difference, ratio, summary

BASELINE = {"1": 3.313, "2": 3.277, "3": 3.346}
TST = {"1": 3.604, "2": 3.634, "3": 3.571}
# With two degrees of freedom Student's quantile has a closed form, (2p - 1) / sqrt(2p (1 - p)).
T2 = 0.95 / math.sqrt(2 * 0.975 * 0.025)


def test_three_values_by_hand():
    found = summary(list(BASELINE.values()))
    sd = math.sqrt((0.001**2 + 0.035**2 + 0.034**2) / 2)
    half = T2 * sd / math.sqrt(3)
    assert found["n"] == 3 and found["mean"] == pytest.approx(3.312) and found["sd"] == pytest.approx(sd)
    assert found["ci"] == pytest.approx([3.312 - half, 3.312 + half])
    assert half == pytest.approx(0.0857, abs=5e-5)


def test_three_pairs_by_hand():
    """Differences 0.291, 0.357 and 0.225: their mean is 0.291 and their standard deviation 0.066."""
    found = difference(TST, BASELINE)
    half = T2 * 0.066 / math.sqrt(3)
    assert found["ci"] == pytest.approx([0.291 - half, 0.291 + half])
    assert (found["mean"], found["pairs"], found["method"]) == (pytest.approx(0.291), 3, PAIRED)


def test_pairs_are_the_common_seeds_alone():
    found = difference(TST | {"9": 100.0}, {"3": 3.346, "1": 3.313, "7": -100.0})
    assert found["mean"] == pytest.approx((0.291 + 0.225) / 2) and found["pairs"] == 2


def test_fewer_than_two_common_seeds_are_no_pairs():
    other = {"3": 3.604, "4": 3.634, "5": 3.571}
    found = difference(other, BASELINE)
    oracle = ttest_ind(list(other.values()), list(BASELINE.values()), equal_var=False).confidence_interval(0.95)
    assert found["ci"] == pytest.approx([oracle.low, oracle.high])
    assert (found["pairs"], found["method"]) == (None, WELCH)


def test_one_value_has_no_spread():
    assert summary([3.0]) == {"n": 1, "mean": 3.0, "sd": None, "ci": None}
    assert difference({"1": 2.5}, {"1": 3.0}) == {"mean": -0.5, "ci": None, "pairs": None, "method": NO_INTERVAL}
    assert difference({"1": 2.5}, BASELINE)["method"] == NO_INTERVAL


def test_ratios_are_averaged_as_logarithms():
    found = ratio({"1": 2.0, "2": 8.0}, {"1": 1.0, "2": 1.0})
    assert found["mean"] == pytest.approx(4.0)
    assert found["ci"][0] * found["ci"][1] == pytest.approx(16.0)


LOSSES = st.floats(0.5, 12)


def arms(least=1, most=5):
    return st.dictionaries(st.sampled_from("123456789"), LOSSES, min_size=least, max_size=most)


@given(arms(2))
def test_an_arm_does_not_differ_from_itself(arm):
    found = difference(arm, arm)
    assert found["mean"] == 0 and found["ci"] == [0, 0] and found["method"] == PAIRED


@given(arms(), arms())
def test_the_interval_holds_the_mean_and_order_does_not_matter(a, b):
    for found in (summary(list(a.values())), difference(a, b), ratio(a, b)):
        if found["ci"]:
            rounding = 1e-12 * abs(found["mean"])
            assert found["ci"][0] - rounding <= found["mean"] <= found["ci"][1] + rounding
    turned = dict(reversed(a.items()))
    assert difference(turned, b) == difference(a, b)
    assert summary(list(turned.values())) == summary(list(a.values()))


@given(arms(), arms(), st.sampled_from([2.0**-10, 0.5, 4.0, 2.0**20]))
def test_scaling_scales_differences_and_leaves_ratios(a, b, factor):
    big_a, big_b = ({seed: value * factor for seed, value in arm.items()} for arm in (a, b))
    plain, big = difference(a, b), difference(big_a, big_b)
    assert big["mean"] == plain["mean"] * factor  # powers of two scale without rounding
    if plain["ci"]:
        assert big["ci"] == pytest.approx([end * factor for end in plain["ci"]], rel=1e-9, abs=1e-9 * factor)
    assert ratio(big_a, big_b)["mean"] == pytest.approx(ratio(a, b)["mean"])


@given(arms(), arms())
def test_a_ratio_times_its_inverse_is_one(a, b):
    there, back = ratio(a, b), ratio(b, a)
    assert there["mean"] * back["mean"] == pytest.approx(1)
    if there["ci"]:
        assert there["ci"][0] * back["ci"][1] == pytest.approx(1)


@pytest.mark.filterwarnings("ignore:Precision loss")
@given(arms(2), arms(2))
def test_scipy_agrees(a, b):
    found = difference(a, b)
    common = a.keys() & b.keys()
    assume(found["ci"][1] - found["ci"][0] > 1e-3)
    if found["method"] == PAIRED:
        oracle = ttest_rel([a[seed] for seed in common], [b[seed] for seed in common])
    else:
        oracle = ttest_ind(list(a.values()), list(b.values()), equal_var=False)
    interval = oracle.confidence_interval(0.95)
    assert found["ci"] == pytest.approx([interval.low, interval.high], rel=1e-6, abs=1e-6)
