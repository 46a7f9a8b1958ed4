"""Rounds that are unlike the others of their cell. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from benchbench.steadiness.steadiness import LEAST_SPREAD

# By number of rounds: the 1.4826 MADs from the median that one exceeds in 1 % of cells of independent normal rounds.
_BOUNDS = (16.0, 18.5, 10.1, 10.7, 7.9, 8.3, 6.9, 7.1, 6.3, 6.4, 5.9, 6.0, 5.6, 5.7, 5.4, 5.4, 5.2)
OUTLIER_BOUNDS = dict(enumerate(_BOUNDS, 4)) | {25: 5.0, 30: 4.8, 50: 4.5, 100: 4.3, 1000: 4.5}


def outlier_rounds(values: Sequence[float]) -> list[int]:
    """Indices of rounds further from the median than k(n) x 1.4826 MAD and 0.1 % of the median; none for n < 4.

    1.4826 MAD estimates a normal's standard deviation; of few rounds it is uncertain, so k depends on their number: in
    1 % of cells of independent normal rounds one is flagged (benchmarks/coverage.py). The second bound is for rounds so
    equal that MAD is near 0. They are to be looked at, never dropped: the mean and its interval are of all rounds.
    """
    if len(values) < 4:
        return []
    middle = median(values)
    away = [abs(value - middle) for value in values]
    mads = float(np.interp(len(values), [*OUTLIER_BOUNDS], [*OUTLIER_BOUNDS.values()]))
    bound = max(mads * 1.4826 * median(away), LEAST_SPREAD * abs(middle))
    return [index for index, distance in enumerate(away) if distance > bound]
