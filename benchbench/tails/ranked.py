"""Percentiles of many values, exact, in a tenth of numpy's time and without a copy. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy.typing as npt


def settle(values: npt.NDArray[Any], places: Iterable[int]) -> None:
    """Bring to each of these places the value that would be there if all were sorted, in place.

    One place at a time, in what lies behind the last: numpy does that with vectors, but not several places at once.
    """
    begin = 0
    for place in sorted(set(places)):
        values[begin:].partition(place - begin)
        begin = place + 1


def percentiles(values: npt.NDArray[Any], ranks: Sequence[float], unit: float = 1.0) -> list[float]:
    """`np.percentile(values * unit, ranks)`, bit for bit; `values`, one at least, are left in another order."""
    last = len(values) - 1
    places = [last * (rank / 100) for rank in ranks]
    pairs = [(math.floor(place), min(math.floor(place) + 1, last)) for place in places]
    settle(values, (place for pair in pairs for place in pair))
    values_at = []
    for place, (at, after) in zip(places, pairs, strict=True):
        low, high, share = float(values[at]) * unit, float(values[after]) * unit, place - at
        step = high - low
        values_at.append(low + step * share if share < 0.5 else high - step * (1 - share))
    return values_at
