"""Student's t distribution in plain Python. scipy.special gives the same, and takes 0.15 s of each sweep's start."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

_TINY = 1e-300  # instead of 0 in a denominator
_TERMS, _STEPS = 100_000, 500  # more than any of ours takes


@lru_cache(maxsize=4096)  # the same few levels and degrees are asked for in every cell and metric
def t_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t distribution with `degrees` > 0 (need not be whole); infinite for probability 0 and 1.

    Newton's method on the upper tail, which is convex: from the normal quantile, which is nearer to 0, it comes to the
    quantile from below and never passes it.
    """
    if probability == 0.5:
        return 0.0
    tail = min(probability, 1 - probability)
    if tail == 0:
        return math.copysign(math.inf, probability - 0.5)
    t = -NormalDist().inv_cdf(tail)
    scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(degrees * math.pi) / 2
    for _ in range(_STEPS):
        density = math.exp(scale - (degrees + 1) / 2 * math.log1p(t * t / degrees))
        step = (two_sided_p(t, degrees) / 2 - tail) / density
        t += step
        if abs(step) <= 1e-13 * t:
            break
    return math.copysign(t, probability - 0.5)


def two_sided_p(t: float, degrees: float) -> float:
    """P(|T| > |t|) = I(df/2, 1/2) at x = df/(df + t^2), I the regularized incomplete beta function."""
    if math.isnan(t):
        return math.nan
    if math.isinf(t):
        return 0.0
    square = t * t
    return incomplete_beta(degrees / 2, 0.5, degrees / (degrees + square), square / (degrees + square))


def incomplete_beta(a: float, b: float, x: float, rest: float | None = None) -> float:
    """The regularized incomplete beta function I(a, b) at x in [0, 1]; `rest`: 1 - x, where that is known better."""
    rest = 1 - x if rest is None else rest
    if x == 0 or rest == 0:
        return float(rest == 0)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly, that of the other end is quick
        return 1 - _fraction(b, a, rest, x)
    return _fraction(a, b, x, rest)


def _fraction(a: float, b: float, x: float, rest: float) -> float:
    """I(a, b) at x by its continued fraction (DLMF 8.17.22), evaluated by Lentz's method. `rest` is 1 - x."""
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    c, d = 1.0, 1 / _kept(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / _kept(1 + term * d), _kept(1 + term / c)
            change = d * c
            value *= change
        if abs(change - 1) < 1e-16:
            break
    return math.exp(front) * value / a


def _kept(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
