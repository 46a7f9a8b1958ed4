"""Monotone regression over a search's probes, and where it crosses the limit. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

_FLOOR, _CEILING = 0.05, 20.0  # of the limit: figures beyond are as good, and as bad, as these


def rising(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to `values` in weighted squares: pool adjacent violators.

    M. Ayer et al., Ann. Math. Statist. 26 (1955).
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        mean, total, length = value, weight, 1
        while blocks and blocks[-1][0] >= mean:
            before, heavy, count = blocks.pop()
            mean = (before * heavy + mean * total) / (heavy + total)
            total, length = heavy + total, length + count
        blocks.append((mean, total, length))
    return [mean for mean, _, length in blocks for _ in range(length)]


def score(excess: float) -> float:
    """ln(figure / limit): latencies explode above the capacity, and a straight line through them would miss it."""
    return math.log(min(max(1 + excess, _FLOOR), _CEILING))


def crossing(loads: Sequence[float], scores: Sequence[float]) -> float | None:
    """Where the rising `scores` pass 0, by straight lines over ln(load); None where all are on one side."""
    above = next((k for k, value in enumerate(scores) if value > 0), None)
    if above is None or above == 0:
        return None
    low, high = scores[above - 1], scores[above]
    share = -low / (high - low)
    return loads[above - 1] * math.exp(share * math.log(loads[above] / loads[above - 1]))
