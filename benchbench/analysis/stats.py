"""Intervals of means over rounds. Pure; numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number that is known with some uncertainty: `low` and `high` are None when there is no interval."""

    point: float
    low: float | None
    high: float | None
    confidence: float
    n: int
    method: str


def t_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def mean_estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate | None:
    """Mean of independent rounds with Student's t interval, mean +- t(n-1) s/sqrt(n); no interval for n = 1.

    None when there are no values. W. S. Gosset, "The probable error of a mean", Biometrika 6 (1908).
    """
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, None, confidence, 1, "one round")
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile((1 + confidence) / 2, n - 1) * spread / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, confidence, n, "t over rounds")
