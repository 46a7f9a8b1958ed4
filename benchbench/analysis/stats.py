"""Means over rounds: intervals, and how many rounds they need. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchbench.student.t_distribution import t_quantile


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number that is known with some uncertainty: `low` and `high` are None when there is no interval."""

    point: float
    low: float | None
    high: float | None
    confidence: float
    n: int
    method: str


def two_stage_estimate(values: Sequence[float], pilot: int, confidence: float = 0.95) -> Estimate | None:
    """Mean of all n rounds with Stein's interval, mean +- t(n0-1) s0/sqrt(n); s0 is of the first n0 = `pilot` rounds.

    For independent normal rounds the confidence is exact for *every* metric of the rounds at once, not only for
    the one that asked for the most rounds: n is a function of the pilot's covariance matrix S0 alone, and the mean of
    any fixed number of rounds is independent of S0. So, given S0, each metric's mean is normal(mu, sigma^2/n), and
    sqrt(n) (mean - mu)/s0 is t with n0-1 degrees of freedom, whatever rule made n of S0 (also one cut by a largest n).
    An interval from the spread of all n has no such property, since rounds end when that spread happens to be small.

    `pilot` counts as at least 2, since one round has no spread, and as n when fewer rounds were finished. No interval
    for n = 1, None when there are no values. What is never negative has no interval below 0.
    C. Stein, Ann. Math. Statist. 16 (1945).
    """
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, None, confidence, 1, "one round")
    pilot = min(max(pilot, 2), n)
    half = t_quantile((1 + confidence) / 2, pilot - 1) * mean_spread(values[:pilot])[1] / math.sqrt(n)
    low = mean - half if min(values) < 0 else max(0.0, mean - half)
    return Estimate(mean, low, mean + half, confidence, n, f"two-stage t, n0={pilot}")


def rounds_needed(values: Sequence[float], pilot: int, rel_ci: float, confidence: float = 0.95) -> int:
    """Rounds in all for a half-width of `rel_ci` x mean: n = max(n0, ceil((t(n0-1) s0 / (rel_ci |mean0|))^2)).

    Only the first n0 = `pilot` rounds (at least 2) are looked at: the answer is n0 until they are finished and never
    changes after, so it may be asked before each round, or on --resume. n0 also when they have no spread or mean 0.

    Stein's rule is for an absolute width. Made relative by the pilot's mean, n is no longer quite independent of the
    mean of all; the cost in coverage is less than 0.1 points up to 5 % noise at rel_ci 0.02 (benchmarks/coverage.py),
    and the half-width may miss rel_ci by as much as the two means differ. C. Stein, Ann. Math. Statist. 16 (1945).
    """
    pilot = max(pilot, 2)
    if len(values) < pilot:
        return pilot
    mean, spread = mean_spread(values[:pilot])
    if mean == 0:
        return pilot
    width = t_quantile((1 + confidence) / 2, pilot - 1) * spread / abs(mean)
    return max(pilot, math.ceil((width / rel_ci) ** 2))


def agree(a: float, b: float, rel: float) -> bool:
    """Whether two positive figures, as of successive warm-up rounds, differ by at most `rel` x their mean."""
    return abs(a - b) <= rel * (a + b) / 2


def mean_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n-1) of two or more values."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
