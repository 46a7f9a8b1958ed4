"""Whether a load meets a limit, from rounds that share their luck: Student's t over rounds, its error spent. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from functools import cache

from benchbench.analysis.stats import mean_spread
from benchbench.student.t_distribution import t_quantile

LOOKS = (5, 7, 10, 14, 20, 30)  # rounds of a test after which it is looked at
_SHARES = (0.3, 0.2, 0.2, 0.1, 0.1, 0.1)  # of the test's error that each look may spend
_GENEROUS = 1.6  # a t this much larger than foreseen is still hoped for
_LEAST = 1e-6  # of the limit: what is below counts as that
FAILED = math.inf  # the excess of a round in which requests failed: no latency makes up for that
_FIRST_TWO = 0.35  # of a search's error for each of its first two tests: most need no more


class Verdict(StrEnum):
    """What a test of one load has come to."""

    HOLDS = "holds"
    FAILS = "fails"
    OPEN = "open"  # more rounds may decide it
    UNDECIDED = "undecided"  # given up: too near to the limit


def error_of(number: int, error: float) -> float:
    """What test `number` (from 0) of a search may spend of its family-wise error.

    0.35, 0.35, then 0.3 x 6/(pi^2 j^2) for j = 1, 2, ...: their sum is 1, however many tests follow. A load is either
    above the capacity or not, so only one of the two verdicts of a test is wrong, and each has the whole share.
    """
    if number < 2:
        return error * _FIRST_TWO
    return error * (1 - 2 * _FIRST_TWO) * 6 / (math.pi * (number - 1)) ** 2


@cache
def _critical(error: float, degrees: int) -> float:
    return t_quantile(1 - error, degrees)


def judged(excess: Sequence[float], error: float) -> Verdict:
    """The verdict on one load after the rounds of its test, each one's figure / limit - 1; `error` as of `error_of`.

    After 5, 7, 10, 14, 20 and 30 rounds one-sided t tests either way, at the look's share of `error`: whether the mean
    of the excess is below 0, and whether that of ln(1 + excess) is above. The second is below the first (Jensen), so
    that a load which is called failing fails, and latencies that explode do not hide it in their own scatter. The
    test's first look that decides stands. Rounds that are all the same have no spread and decide nothing, but one of
    FAILED does at once. A test is given up when 30 rounds would not do at the spread and mean seen so far, or when it
    has no rounds: of a void one.
    """
    if FAILED in excess or not excess:
        return Verdict.FAILS if excess else Verdict.UNDECIDED
    logs = [math.log(max(1 + value, _LEAST)) for value in excess]
    for look, (count, share) in enumerate(zip(LOOKS, _SHARES, strict=True)):
        if len(excess) < count:
            return Verdict.OPEN
        low, high, critical = _t(excess[:count]), _t(logs[:count]), _critical(error * share, count - 1)
        if low <= -critical:
            return Verdict.HOLDS
        if high >= critical:
            return Verdict.FAILS
        needed = max(-low, high) * math.sqrt(LOOKS[-1] / count) * _GENEROUS
        if look and 0 < needed < _critical(error * _SHARES[-1], LOOKS[-1] - 1):
            return Verdict.UNDECIDED
    return Verdict.UNDECIDED


def _t(values: Sequence[float]) -> float:
    """Student's t of their mean against 0; 0 without spread."""
    mean, spread = mean_spread(values)
    return mean / (spread / math.sqrt(len(values))) if spread else 0.0
