"""Whether an open load's queue grew as long as it lasted. Pure.

At a rate beyond what a server serves, each request waits longer than the one before: the mean TTFT is then that of the
load's length. Each round's requests, in the order of their arrival, are cut into thirds. TTFT grows where the last
third's mean exceeds the middle third's by more than a quarter of the mean TTFT, and over rounds by the 95 % bound of
Student's t.
The first third is left out: in it the server fills. In simulated queues (5 rounds of 100) this is so in 0 to 9 % at up
to 0.9 of the capacity, in 76 to 99 % at 1.3, in all at twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt

from benchbench.student.t_distribution import t_quantile

SHARE = 0.25  # of the mean TTFT
FLOOR_S = 0.005
CONFIDENCE = 0.95
LEAST = 4  # requests of a third

Floats = npt.NDArray[np.floating[Any]]


def grew_s(rounds: Sequence[Floats]) -> float:
    """By how much TTFT in s (from the scheduled time, in the order of arrival) grew from the middle third of a round's
    requests to the last, mean over rounds; 0.0 where it did not beyond what chance does, or where fewer than two rounds
    have twelve requests.
    """
    long = [ttft_s for ttft_s in rounds if len(ttft_s) >= 3 * LEAST]
    if len(long) < 2:
        return 0.0
    steps = [
        float(ttft_s[-third:].mean() - ttft_s[-2 * third : -third].mean())
        for ttft_s in long
        for third in [len(ttft_s) // 3]
    ]
    chance = t_quantile(CONFIDENCE, len(steps) - 1) * stdev(steps) / len(steps) ** 0.5
    least = max(SHARE * mean(float(ttft_s.mean()) for ttft_s in long), FLOOR_S, chance)
    return mean(steps) if mean(steps) > least else 0.0
