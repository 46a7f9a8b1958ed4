"""Whether rounds were steady: drifts of a cell, what the order of rounds shows over a sweep. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchbench.student.t_distribution import two_sided_p

SUSPECTED_P, CONFIRMED_P = 0.01, 0.001  # of a drift: asks for more rounds; is one after them
MORE_ROUNDS = 5
LEAST_CONFIRMED = 9  # rounds in all: with fewer a p below CONFIRMED_P is out of reach of most drifts
LEAST_SPREAD = 0.001  # of the mean: rounds more equal than this are not judged by their order
# One-sided for autocorrelation (a negative one makes intervals too wide), two-sided for the trend: 0.25 % each.
_Z_AUTOCORRELATION, _Z_TREND = 2.807, 3.023


def drift(values: Sequence[float]) -> tuple[float, float] | None:
    """Least-squares line through the rounds in their order: (fitted change over the cell / mean, p).

    The change is slope x (n-1) / mean, from the first round to the last; p is two-sided, of the slope's t test with
    n-2 degrees of freedom. None for n < 4 or mean 0.
    """
    n = len(values)
    mean = math.fsum(values) / n if n >= 4 else 0.0
    if mean == 0:
        return None
    at = [number - (n - 1) / 2 for number in range(n)]
    squares = math.fsum(x * x for x in at)
    slope = math.fsum(x * (value - mean) for x, value in zip(at, values, strict=True)) / squares
    left = math.fsum((value - mean - slope * x) ** 2 for x, value in zip(at, values, strict=True))
    change = slope * (n - 1) / mean
    error = math.sqrt(left / (n - 2) / squares)
    if error == 0:
        return change, 0.0 if slope else 1.0
    return change, two_sided_p(slope / error, n - 2)


def has_drift(values: Sequence[float], rel_ci: float, p: float = SUSPECTED_P) -> bool:
    """Whether the rounds drift by more than the precision asked (|change| > `rel_ci`) and not by chance (below `p`)."""
    fitted = drift(values)
    return fitted is not None and abs(fitted[0]) > rel_ci and fitted[1] < p


def rounds_to_confirm(values: Sequence[float], needed: int, most: int, rel_ci: float) -> int:
    """Rounds to measure in all: `needed` (`most` at most), and 5 more where those seem to drift and `most` allows.

    Fewer than 5 when `most` leaves no room for them, none when there would be less than 9 in all. Only the first
    `needed` rounds are looked at, so the answer does not change while the others are measured. A drift is a function of
    the rounds' deviations from their mean, of which the mean is independent (normal rounds): intervals stay exact.
    """
    first = min(needed, most)
    if len(values) < first or not has_drift(values[:first], rel_ci):
        return first
    goal = min(first + MORE_ROUNDS, most)
    return goal if goal >= LEAST_CONFIRMED else first


def drift_of(values: Sequence[float], needed: int, most: int, rel_ci: float) -> tuple[bool, bool]:
    """(drifts, confirmed by further rounds) of a cell's finished rounds; arguments as in `rounds_to_confirm`.

    Rounds that seem to drift (p < 0.01) drift when all, those that followed included, still do at p < 0.001. Where
    none followed, as `most` or a time budget came first, they are taken to drift, unconfirmed; but of rounds that are
    too few for the asked interval, a cell that is suspect anyway, only at p < 0.001.
    """
    first = min(needed, len(values))
    if not has_drift(values[:first], rel_ci):
        return False, False
    if len(values) > first and len(values) >= rounds_to_confirm(values, needed, most, rel_ci):
        drifts = has_drift(values, rel_ci, CONFIRMED_P)
        return drifts, drifts
    return len(values) >= needed or has_drift(values, rel_ci, CONFIRMED_P), False


def order_of(values: Sequence[float]) -> tuple[float, float] | None:
    """(lag-1 autocorrelation, correlation with the round's number); None for n < 4 or rounds equal within 0.1 %.

    With c the deviations from the mean: sum c(k) c(k+1) / sum c^2, and Pearson's r of value and k.
    """
    if len(values) < 4:
        return None
    array = np.asarray(values)
    away = array - array.mean()
    squares = float(away @ away)
    if squares <= (len(values) - 1) * (LEAST_SPREAD * float(array.mean())) ** 2:
        return None
    at = np.arange(len(values)) - (len(values) - 1) / 2
    return float(away[1:] @ away[:-1]) / squares, float(at @ away) / math.sqrt(float(at @ at) * squares)


def order_warnings(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the order of rounds shows over a whole sweep, from its summary rows; empty where it shows nothing.

    Pooled over cells of n rounds: z = sum (n r + 1) / sqrt(sum n^2 var(r)) of the autocorrelations r, whose mean is
    -1/n and whose variance is J.-M. Dufour's and R. Roy's (J. Econometrics 29, 1985), and z = sum sqrt(n-1) t /
    sqrt(cells) of the trends t, with mean 0 and variance 1/(n-1) in any random order. Both together warn of less than
    0.5 % of steady sweeps.
    """
    cells = [
        (int(row.get("starts") or row["rounds"]), row["lag1"], row["trend"])
        for row in rows
        if row.get("status") != "invalid" and _is_number(row.get("lag1")) and _is_number(row.get("trend"))
    ]
    if not cells:
        return []
    n, lag1, trend = np.array(cells, np.float64).T
    variance = (n**4 - 4 * n**3 + 3 * n**2 + 4 * n - 4) / ((n + 1) * n**2 * (n - 1) ** 2)
    warnings = []
    if float((n * lag1 + 1).sum() / np.sqrt((n**2 * variance).sum())) > _Z_AUTOCORRELATION:
        pooled = float((n * lag1 + 1).sum() / n.sum())
        warnings.append(
            f"Warning: successive rounds are correlated (lag-1 autocorrelation {pooled:+.2f} over {len(cells)} cells): "
            "95 % intervals are too narrow."
        )
    if abs(float((np.sqrt(n - 1) * trend).sum()) / math.sqrt(len(cells))) > _Z_TREND:
        pooled = float(trend.mean())
        warnings.append(
            f"Warning: Sys tok/s {'rises' if pooled > 0 else 'falls'} over the rounds of a cell (correlation with "
            f"their number {pooled:+.2f}, mean over {len(cells)} cells): 95 % intervals do not hold; warm up longer."
        )
    return warnings


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
