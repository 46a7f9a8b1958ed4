"""An upper 95 % bound of a percentile of requests that come in rounds, and share a round's luck. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchbench.student.t_distribution import incomplete_beta
from benchbench.tails.ranked import settle

CONFIDENCE = 0.95
DOUBT = 0.025  # with this probability rounds that differ more would look as alike as these
LEVELS = (0.5, 0.75, 0.9)  # and the percentile's own: where the share beyond is looked at, round by round

Numbers = npt.NDArray[np.floating[Any] | np.integer[Any]]


class TailBound(NamedTuple):
    """`upper`: in the unit of the values, None where they are too few.

    `samples` values in `groups` rounds (or starts) count as `effective` independent ones; `needed` have a bound.
    """

    upper: float | None
    samples: int
    groups: int
    effective: float
    needed: int


def tail_bound(groups: Sequence[Numbers], percent: float, unit: float = 1.0) -> TailBound:
    """The bound of a percentile of what the groups are samples of: one of their values, at the pooled one or above; in
    `unit` of theirs.

    Values of a group may depend on each other in any way; groups are independent. The variance, over groups, of the
    share of values beyond a threshold is set against that of independent values, p (1 - p) / N: the N values count as
    n = N / (deff (k - 1) / chi2(DOUBT; k - 1)) for k groups, where deff is the largest ratio at LEVELS and at the
    percentile, 1 at least, and the other factor is what k groups may hide; but for N^2 / sum of squared sizes at least
    (k where sizes are equal), as if the values of a group were all one. Of n independent values, at most e lie
    beyond the true percentile in 5 of 100 cases; so e N / n of the N may lie beyond the bound.

    After E. L. Korn and B. I. Graubard, Survey Methodology 24 (1998), who take t for chi2. benchmarks/tails.py: how
    often it holds, and where it does not.
    """
    filled = [values for values in groups if len(values)]
    tail, k = 1 - percent / 100, len(filled)
    needed = math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-tail))
    if k < 2:
        return TailBound(None, sum(map(len, filled)), k, float(k), needed)
    ranked = np.concatenate(filled)
    count = len(ranked)
    places = [min(count, math.ceil(level * count)) - 1 for level in (*LEVELS, percent / 100)]
    settle(ranked, places)  # in place, here and below: there may be millions
    deff = max(_deff(filled, ranked[place], count) for place in places)
    least = count**2 / sum(len(values) ** 2 for values in filled)
    effective = max(least, count / (deff * (k - 1) / chi2_low(DOUBT, k - 1)))
    beyond = allowed_beyond(effective, tail)
    if beyond is None:
        return TailBound(None, count, k, effective, needed)
    place = count - 1 - math.floor(beyond / effective * count)
    ranked.partition(place)
    return TailBound(float(ranked[place]) * unit, count, k, effective, needed)


def _deff(groups: Sequence[Numbers], threshold: float, count: int) -> float:
    """N Var(share beyond) / (p (1 - p)), the variance over groups, each with the weight of its values; 1 at least."""
    beyond = [int(np.count_nonzero(values > threshold)) for values in groups]
    share = sum(beyond) / count
    if not 0 < share < 1:
        return 1.0
    squares = math.fsum((n - len(values) * share) ** 2 for n, values in zip(beyond, groups, strict=True))
    return max(1.0, len(groups) / (len(groups) - 1) * squares / count / (share * (1 - share)))


@lru_cache(maxsize=256)
def allowed_beyond(count: float, tail: float) -> float | None:
    """The largest real e with P(Bin(count, tail) <= e) <= 5 %, where counts need not be whole.

    None where not even 0 does.
    """
    if (1 - tail) ** count > 1 - CONFIDENCE:
        return None
    low, high = 0.0, tail * count
    for _ in range(60):
        middle = (low + high) / 2
        if incomplete_beta(middle + 1, count - middle, tail) >= CONFIDENCE:
            low = middle
        else:
            high = middle
    return low


@lru_cache(maxsize=256)
def chi2_low(probability: float, degrees: int) -> float:
    """Quantile of the chi-square distribution below its mean, by bisection of the series of DLMF 8.11.4."""
    low, high = 0.0, float(degrees)
    for _ in range(60):
        middle = (low + high) / 2
        half, a = middle / 2, degrees / 2
        term = total = 1.0
        for n in range(1, 10_000):
            term *= half / (a + n)
            total += term
            if term < 1e-16 * total:
                break
        below = math.exp(a * math.log(half) - half - math.lgamma(a + 1)) * total
        low, high = (middle, high) if below < probability else (low, middle)
    return (low + high) / 2
