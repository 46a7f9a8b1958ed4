"""Differences of means of starts, their tests, and what these can find. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from benchbench.analysis.stats import mean_spread
from benchbench.store.arrow import Floats
from benchbench.student.t_distribution import t_quantile, two_sided_p


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
    mean, spread = mean_spread(differences) if n > 1 else (differences[0], 0.0)
    if spread <= least_spread:
        return Shift(mean, (n, n))
    return Shift(mean, (n, n), ((spread**2, n),), spread / math.sqrt(2))


def welch_shift(base: Sequence[float], candidate: Sequence[float], least_spread: float = 0.0) -> Shift:
    """mean(candidate) - mean(base) of starts that are no pairs; noise per start pools both sides' variances."""
    point = math.fsum(candidate) / len(candidate) - math.fsum(base) / len(base)
    starts = (len(base), len(candidate))
    if min(starts) < 2:
        return Shift(point, starts)
    parts = tuple((mean_spread(side)[1] ** 2, len(side)) for side in (base, candidate))
    pooled = math.sqrt(math.fsum(variance * (n - 1) for variance, n in parts) / (sum(starts) - 2))
    return Shift(point, starts, parts, pooled) if pooled > least_spread else Shift(point, starts)


def t_p_value(shift: Shift) -> float:
    """Two-sided p of the t test that the true difference is 0. The shift has parts."""
    error, degrees = shift.error()
    return two_sided_p(shift.point / error, degrees)


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
