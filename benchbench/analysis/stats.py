"""Means over rounds: intervals, and how many rounds they need. Tests of shifts. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


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
    half = t_quantile((1 + confidence) / 2, pilot - 1) * _mean_spread(values[:pilot])[1] / math.sqrt(n)
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
    mean, spread = _mean_spread(values[:pilot])
    if mean == 0:
        return pilot
    width = t_quantile((1 + confidence) / 2, pilot - 1) * spread / abs(mean)
    return max(pilot, math.ceil((width / rel_ci) ** 2))


def agree(a: float, b: float, rel: float) -> bool:
    """Whether two positive figures, as of successive warm-up rounds, differ by at most `rel` x their mean."""
    return abs(a - b) <= rel * (a + b) / 2


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: p(i) of the sorted m becomes max over j <= i of min(1, (m - j + 1) p(j)).

    Calling all with an adjusted p <= alpha keeps the chance of any false call at alpha, whatever depends on what.
    S. Holm, Scand. J. Statist. 6 (1979) 65-70.
    """
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True, slots=True)
class Shift:
    """A difference of two means, candidate - base, and the (variance, n) of each sample that it rests on.

    Paired, that is one sample, of differences; unpaired it is two. `noise` is the standard deviation of one start.
    `parts` is empty and `noise` None where no spread is known: a single start, or a spread below `least_spread`.
    """

    point: float
    starts: tuple[int, int]
    parts: tuple[tuple[float, int], ...] = ()
    noise: float | None = None

    def error(self, more: int = 0) -> tuple[float, float]:
        """Standard error sqrt(sum v/n) and its degrees of freedom, as they are or with `more` starts of each.

        Degrees after Welch and Satterthwaite: (sum v/n)^2 / sum((v/n)^2 / (n-1)), which is n-1 for one sample.
        B. L. Welch, Biometrika 34 (1947) 28-35.
        """
        squares = [(variance / (n + more), n + more) for variance, n in self.parts]
        total = math.fsum(square for square, _ in squares)
        # As shares of the total: the square of a small variance would be lost.
        return math.sqrt(total), 1 / math.fsum((square / total) ** 2 / (n - 1) for square, n in squares)


def paired_shift(base: Sequence[float], candidate: Sequence[float], least_spread: float = 0.0) -> Shift:
    """Mean of candidate - base over n blocks; its variance is that of the n differences, with n-1.

    Noise per start is s / sqrt(2), since a difference has two starts in it. Student, Biometrika 6 (1908) 1-25.
    """
    n = len(base)
    differences = [new - old for old, new in zip(base, candidate, strict=True)]
    mean, spread = _mean_spread(differences) if n > 1 else (differences[0], 0.0)
    if spread <= least_spread:
        return Shift(mean, (n, n))
    return Shift(mean, (n, n), ((spread**2, n),), spread / math.sqrt(2))


def welch_shift(base: Sequence[float], candidate: Sequence[float], least_spread: float = 0.0) -> Shift:
    """mean(candidate) - mean(base) of starts that are no pairs; noise per start pools both sides' variances."""
    point = math.fsum(candidate) / len(candidate) - math.fsum(base) / len(base)
    starts = (len(base), len(candidate))
    if min(starts) < 2:
        return Shift(point, starts)
    parts = tuple((_mean_spread(side)[1] ** 2, len(side)) for side in (base, candidate))
    pooled = math.sqrt(math.fsum(variance * (n - 1) for variance, n in parts) / (sum(starts) - 2))
    return Shift(point, starts, parts, pooled) if pooled > least_spread else Shift(point, starts)


def t_p_value(shift: Shift) -> float:
    """Two-sided p of the t test that the true difference is 0. The shift has parts."""
    from scipy.special import stdtr

    error, degrees = shift.error()
    return 2 * float(stdtr(degrees, -abs(shift.point) / error))


def chance_to_decide(effect: float, error: float, degrees: float, alpha: float, margin: float = 0.0) -> float:
    """Chance that a comparison ends with |mean| > t(1-alpha/2) s, or with |mean| + t(0.95) s < `margin`.

    The first is the t test, the second is two one-sided tests of equivalence at 5 %. mean is normal(effect, error^2)
    and s = error x u, u^2 = chi2(df)/df, independent of it. So, given u, either event is a normal probability; the
    mean over u is by Gauss-Legendre quadrature over u's quantiles. With margin 0 this is the power of the t test,
    which has a noncentral t distribution. `alpha` may be 0: then only equivalence counts.
    """
    from scipy.special import ndtr

    u, weights = _spread_quantiles(degrees)
    z, reach = abs(effect) / error, margin / error
    beyond = t_quantile(1 - alpha / 2, degrees) * u
    within = np.minimum(reach - t_quantile(0.95, degrees) * u, beyond)
    inside = np.where(within > 0, ndtr(within - z) - ndtr(-within - z), 0.0)
    return float(weights @ (ndtr(z - beyond) + ndtr(-z - beyond) + inside))


@lru_cache(maxsize=1024)
def detectable(degrees: float, alpha: float, power: float = 0.8) -> float:
    """The effect, in standard errors, that a two-sided t test at `alpha` finds with probability `power`."""
    from scipy.optimize import brentq

    highest = 2 * t_quantile(1 - alpha / 2, degrees) + 10
    return float(brentq(lambda z: chance_to_decide(z, 1.0, degrees, alpha) - power, 0.0, highest))


@lru_cache(maxsize=1024)
def _spread_quantiles(degrees: float) -> tuple[Floats, Floats]:
    """Quantiles of sqrt(chi2(df)/df) at the Gauss-Legendre nodes of (0, 1), and the weights."""
    from scipy.special import gammaincinv

    nodes, weights = _legendre()
    return np.sqrt(2 * gammaincinv(degrees / 2, (nodes + 1) / 2) / degrees), weights / 2


@lru_cache(maxsize=1)
def _legendre() -> tuple[Floats, Floats]:
    """Apart, since it takes 20 ms."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    return nodes, weights


def _mean_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n-1) of two or more values."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
