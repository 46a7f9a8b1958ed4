"""The capacity of one start of an engine, as a point: which load comes next, or where its figures cross. Pure.

Of several starts their scatter is the interval (`compared`), so that no single one is certified.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from benchbench.boundary.boundary_search import Question
from benchbench.boundary.isotonic import crossing, rising

_STRIDE = 2.0  # between loads while all are on one side
_NEAR = 2.0  # widths: how near the two loads are between which the line is drawn


class Estimate(NamedTuple):
    """`capacity` None: every load of the range meets the SLO ("always") or none does ("never")."""

    capacity: float | None
    reason: str


def next_load(question: Question, figures: Mapping[float, float], guess: float | None = None) -> float | Estimate:
    """The load to measure now, of those not in `figures` (load -> `isotonic.score`), or the estimate.

    `guess`: where another start's was, to begin there. The estimate is where straight lines through the monotone
    regression over ln(load) cross the limit, between two loads that are 2 x `width` apart, or neighbours.
    """
    loads = sorted(figures)
    if not loads:
        return _placed(question, guess or math.sqrt(question.low * question.high))
    scores = rising([figures[load] for load in loads], [1.0] * len(loads))
    stride = 1 + _NEAR * question.width if guess else _STRIDE
    if scores[-1] <= 0:
        return _placed(question, _beyond(question, loads[-1], stride)) if loads[-1] < question.high else _end("always")
    if scores[0] > 0:
        return _placed(question, _below(question, loads[0], stride)) if loads[0] > question.low else _end("never")
    above = next(k for k, score in enumerate(scores) if score > 0)
    low, high = loads[above - 1], loads[above]
    middle = _placed(question, math.sqrt(low * high))
    if high <= low * (1 + _NEAR * question.width) or middle in figures:
        return Estimate(crossing(loads, scores), "crossing")
    return middle


def _end(reason: str) -> Estimate:
    return Estimate(None, reason)


def _beyond(question: Question, load: float, stride: float) -> float:
    return max(load * stride, load + 1) if question.whole else load * stride


def _below(question: Question, load: float, stride: float) -> float:
    return min(load / stride, load - 1) if question.whole else load / stride


def _placed(question: Question, load: float) -> float:
    load = float(round(load)) if question.whole else load
    return min(max(load, question.low), question.high)
