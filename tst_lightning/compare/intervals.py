"""Means over seeds and what they are worth: sample standard deviations and 95% confidence intervals by Student's t."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

CONFIDENCE = 0.95
PAIRED, WELCH, NO_INTERVAL = "paired by seed", "Welch", "no interval"


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Summarises one quantity over seeds.

    Args:
        values: one per seed, at least one.

    Returns:
        ``n``, ``mean``, ``sd`` (of the sample, n - 1) and ``ci``, the 95% confidence interval of the mean as [low,
        high], mean +- t(n - 1) sd / sqrt(n); of one value sd and ci are None.
    """
    n, mean = len(values), fmean(values)
    if n < 2:
        return {"n": n, "mean": mean, "sd": None, "ci": None}
    sd = stdev(values)
    return {"n": n, "mean": mean, "sd": sd, "ci": _interval(mean, sd / math.sqrt(n), n - 1)}


def difference(other: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, Any]:
    """How far one arm lies from another.

    Where two seeds or more are common to both, it is the mean of the differences within a seed, and its interval is that
    of these pairs; what seeds share (initialization, order of the data) then drops out. Else it is the difference of
    the means with Welch's interval (unequal variances; degrees of freedom by Welch and Satterthwaite), which takes two
    values of each; else the difference of the means alone.

    Args:
        other: value by seed.
        reference: value by seed.

    Returns:
        ``mean``, ``ci`` (95%, [low, high] or None), ``pairs`` (their number, or None) and ``method``: "paired by seed",
        "Welch" or "no interval".
    """
    common = other.keys() & reference.keys()
    if len(common) >= 2:
        pairs = summary([other[seed] - reference[seed] for seed in common])
        return {"mean": pairs["mean"], "ci": pairs["ci"], "pairs": pairs["n"], "method": PAIRED}
    a, b = list(other.values()), list(reference.values())
    mean = fmean(a) - fmean(b)
    if min(len(a), len(b)) < 2:
        return {"mean": mean, "ci": None, "pairs": None, "method": NO_INTERVAL}
    of_a, of_b = stdev(a) ** 2 / len(a), stdev(b) ** 2 / len(b)
    both = of_a + of_b
    # Shares of the variance rather than squares of it, which underflow.
    degrees = 1 / ((of_a / both) ** 2 / (len(a) - 1) + (of_b / both) ** 2 / (len(b) - 1)) if both else 1.0
    return {"mean": mean, "ci": _interval(mean, math.sqrt(both), degrees), "pairs": None, "method": WELCH}


def ratio(numerator: Mapping[str, float], denominator: Mapping[str, float]) -> dict[str, Any]:
    """The geometric mean of ratios: :func:`difference` of logarithms, turned back. A ratio and its inverse are equal in it.

    Args:
        numerator: positive value by seed.
        denominator: positive value by seed.

    Returns:
        As :func:`difference`, as factors.
    """
    logs = ({seed: math.log(value) for seed, value in values.items()} for values in (numerator, denominator))
    found = difference(*logs)
    return found | {"mean": math.exp(found["mean"]), "ci": found["ci"] and [math.exp(end) for end in found["ci"]]}


def _interval(mean: float, standard_error: float, degrees: float) -> list[float]:
    from scipy.special import stdtrit  # what scipy.stats.t.ppf calls, without the second that importing that takes

    half = float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * standard_error
    return [mean - half, mean + half]
