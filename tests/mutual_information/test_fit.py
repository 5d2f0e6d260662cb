import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tst_lightning.bags import DCLM_FIT, PowerLaw, bag_weights
from tst_lightning.mutual_information.fit import FLATTEST, STEEPEST, fit_power_law

DISTANCES = range(1, 65)


@given(st.floats(0, 5), st.floats(0.05, 5), st.floats(-3, -0.2))
def test_known_constants_are_found(constant: float, factor: float, exponent: float) -> None:
    law = PowerLaw(constant, factor, exponent)
    fit = fit_power_law(DISTANCES, [law(i) for i in DISTANCES])
    assert fit.law.constant == pytest.approx(constant, abs=1e-5)
    assert fit.law.factor == pytest.approx(factor, abs=1e-5)
    assert fit.law.exponent == pytest.approx(exponent, abs=1e-5)
    assert fit.r_squared == pytest.approx(1, abs=1e-9) and fit.residual < 1e-7


def test_the_papers_constants_through_noise() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 64)
    fit = fit_power_law(DISTANCES, [DCLM_FIT(i) + e for i, e in zip(DISTANCES, noise, strict=True)])
    assert (fit.law.constant, fit.law.factor) == pytest.approx((3.63, 1.35), abs=0.03)
    assert fit.law.exponent == pytest.approx(-1.25, abs=0.06)
    assert 0.98 < fit.r_squared < 1 and fit.residual == pytest.approx(0.01, rel=0.2)


@given(st.lists(st.floats(-1, 3), min_size=4, max_size=20))
def test_no_law_near_the_fit_is_better_and_none_is_negative(values: list[float]) -> None:
    distances = range(1, len(values) + 1)
    fit = fit_power_law(distances, values)
    law = fit.law
    assert law.constant >= 0 and law.factor >= 0 and STEEPEST <= law.exponent <= FLATTEST * 0.999

    def left(law: PowerLaw) -> float:
        return math.sqrt(sum((law(i) - y) ** 2 for i, y in zip(distances, values, strict=True)) / len(values))

    assert left(law) == pytest.approx(fit.residual, abs=1e-9)
    for constant in (-0.01, 0, 0.01):
        for factor in (-0.01, 0, 0.01):
            for steeper in (0.99, 1, 1.01):
                other = PowerLaw(law.constant + constant, law.factor + factor, law.exponent * steeper)
                if min(other.constant, other.factor) >= 0 and STEEPEST <= other.exponent <= FLATTEST:
                    assert left(other) >= fit.residual - 1e-9


def test_values_that_do_not_fall() -> None:
    rising = fit_power_law(DISTANCES, list(map(float, DISTANCES)))
    assert (rising.law.constant, rising.law.factor, rising.r_squared) == (32.5, 0, 0)
    nothing = fit_power_law(DISTANCES, [-1e-3] * 64)
    assert (nothing.law.constant, nothing.law.factor) == (0, 0)
    with pytest.raises(ValueError, match="does not give the 4 tokens of a bag finite weights"):
        bag_weights(nothing.law, 4)
