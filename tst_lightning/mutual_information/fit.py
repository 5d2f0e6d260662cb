"""The power law that measured mutual information follows best, in the form in which it weights a bag."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tst_lightning.bags import PowerLaw

STEEPEST, FLATTEST = -8.0, -0.01  # exponents: beyond, one distance alone matters, or none more than another
_ROUNDS, _TRIED = 8, 400  # each round narrows the exponent's range to 2 steps of the last: 1e-16 of it at the end


@dataclass(frozen=True)
class Fit:
    """A power law, and how near it comes.

    Attributes:
        law: C0 + a * i**k in nats at distance i.
        r_squared: share of the values' variance that it explains, at most 1; 0 where they have none.
        residual: root of the mean squared difference to the values, in nats.
    """

    law: PowerLaw
    r_squared: float
    residual: float


def fit_power_law(distances: Sequence[int], values: Sequence[float]) -> Fit:
    """Fits C0 + a * i**k by least squares, with C0 >= 0, a >= 0 and k from -8 to -0.01: values that fall.

    For a given k it is linear in C0 and a, so k alone is searched: the best of 400, and again around it.

    Args:
        distances: i, from 1 up.
        values: in nats, as many.

    Returns:
        The best fit; C0 and a are both 0 where no value is positive.
    """
    i, y = np.asarray(distances, np.float64), np.asarray(values, np.float64)
    low, high = np.log(-FLATTEST), np.log(-STEEPEST)
    best = (0.0, 0.0, FLATTEST, np.inf)
    for _ in range(_ROUNDS):
        steepness = np.linspace(low, high, _TRIED)
        constants, factors, errors = _linear(i, y, -np.exp(steepness))
        at = int(errors.argmin())
        best = float(constants[at]), float(factors[at]), float(-np.exp(steepness[at])), float(errors[at])
        low, high = steepness[max(at - 1, 0)], steepness[min(at + 1, _TRIED - 1)]
    constant, factor, exponent, error = best
    spread = float(np.square(y - y.mean()).sum())
    return Fit(
        PowerLaw(constant, factor, exponent), 1 - error / spread if spread else 0.0, float(np.sqrt(error / len(y)))
    )


def _linear(
    i: NDArray[np.float64], y: NDArray[np.float64], exponents: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """For each exponent the best C0 and a of 0 and more, and the sum of squares that is left."""
    x = i ** exponents[:, None]
    centred = x - x.mean(1, keepdims=True)
    slope = (centred * (y - y.mean())).sum(1) / np.square(centred).sum(1)
    zero = np.zeros_like(slope)
    # Where the best of all is negative in one of the two, the best allowed one has a 0 there.
    choices = [
        (y.mean() - slope * x.mean(1), slope),
        (zero, np.maximum((x * y).sum(1) / np.square(x).sum(1), 0)),
        (zero + max(y.mean(), 0), zero),
    ]
    constants, factors = (np.stack(column) for column in zip(*choices, strict=True))
    errors = np.square(y - constants[..., None] - factors[..., None] * x).sum(-1)
    errors[(constants < 0) | (factors < 0)] = np.inf
    chosen = errors.argmin(0), np.arange(len(exponents))
    return constants[chosen], factors[chosen], errors[chosen]
