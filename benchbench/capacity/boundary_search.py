"""The largest load that meets a limit: which probe comes next, or the interval that holds it. Pure.

The answer is a pair of loads: at `holds_at` the limit is met, at `fails_at` it is not, with family-wise confidence.
Loads are first explored with a few rounds each. Where the monotone regression over all rounds then crosses the limit,
two loads are tested, with rounds of their own: those by which a load was chosen would speak for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from benchbench.capacity.certify import LOOKS, Verdict, error_of, judged
from benchbench.capacity.isotonic import crossing, rising, score

EXPLORING = 2  # rounds with which a load is explored
_STRIDE = 4.0  # between explored loads while all are on one side
_NEAR = 6.0  # widths: a bracket of explored loads that is as narrow as this is explored no further
_WIDER = 1.25  # times the width after each test given up but the first two: what the noise allows
_WIDEST = 0.5  # at most
_KEPT = 0.85  # of the width: an end that is certified is kept if the crossing is no farther away


@dataclass(frozen=True, slots=True)
class Question:
    """Loads from `low` to `high`; `width` is (fails at - holds at) / fails at, and `whole` asks for whole loads.

    `rounds` and `tests` are the budget: no probe begins when as many are spent.
    """

    low: float
    high: float
    width: float = 0.05
    whole: bool = True
    confidence: float = 0.95
    rounds: int = 90
    tests: int = 12


class Probe(NamedTuple):
    """Rounds at one load: the figure / limit - 1 of each. `test` numbers the tests from 0; None: explored."""

    load: float
    test: int | None
    excess: tuple[float, ...]


class Ask(NamedTuple):
    """The probe to make now: `rounds` rounds at `load`."""

    load: float
    rounds: int
    test: int | None


class Answer(NamedTuple):
    """`holds_at` None: not certified at any load; `fails_at` None likewise. `reason` is why the search ended.

    It is one of `width`, `noise` (as narrow as the scatter of rounds allows, wider than asked), `always` (met at the
    largest load), `never` (missed at the smallest), `budget`.
    """

    holds_at: float | None
    fails_at: float | None
    reason: str


def next_probe(question: Question, probes: Sequence[Probe]) -> Ask | Answer:
    """What comes after `probes`, in the order in which they were made. It depends on nothing else: a search resumes.

    Confidence: each test's level is `certify.error_of` its number, its load was chosen before its first round, and
    capacity is monotone: so both ends are right with at least `confidence`, for independent normal rounds.
    """
    excess: dict[int, list[float]] = {}
    load_of: dict[int, float] = {}
    for probe in probes:
        if probe.test is not None:
            excess.setdefault(probe.test, []).extend(probe.excess)
            load_of[probe.test] = probe.load
    error = 1 - question.confidence
    verdicts = {test: judged(values, error_of(test, error)) for test, values in excess.items()}
    holds = max((load_of[t] for t, verdict in verdicts.items() if verdict == Verdict.HOLDS), default=None)
    fails = min((load_of[t] for t, verdict in verdicts.items() if verdict == Verdict.FAILS), default=None)
    given_up = sum(verdict == Verdict.UNDECIDED for verdict in verdicts.values())
    width = min(question.width * _WIDER ** max(0, given_up - 2), _WIDEST)
    if ended := _ended(question, holds, fails, width):
        return Answer(holds, fails, ended)
    if sum(len(probe.excess) for probe in probes) >= question.rounds:
        return Answer(holds, fails, "budget")
    running = next((test for test, verdict in verdicts.items() if verdict == Verdict.OPEN), None)
    if running is not None:
        count = len(excess[running])
        return Ask(load_of[running], next(look for look in LOOKS if look > count) - count, running)
    if len(verdicts) >= question.tests:
        return Answer(holds, fails, "budget")
    loads, scores = _curve(probes)
    explored = _to_explore(question, loads, scores)
    if explored is not None:
        return Ask(explored, EXPLORING, None)
    wide = replace(question, width=width)
    return Ask(_to_test(wide, _aim(loads, scores), holds, fails), LOOKS[0], len(verdicts))


def _ended(question: Question, holds: float | None, fails: float | None, width: float) -> str:
    if fails is not None and fails <= question.low:
        return "never"
    if holds is not None and holds >= question.high:
        return "always"
    if holds is None or fails is None:
        return ""
    if fails - holds <= question.width * fails * (1 + 1e-9) or (question.whole and fails - holds <= 1):
        return "width"
    return "noise" if fails - holds <= width * fails * (1 + 1e-9) else ""


def _curve(probes: Sequence[Probe]) -> tuple[list[float], list[float]]:
    """Loads in order, and the monotone regression of their scores, each weighted with its rounds."""
    rounds: dict[float, list[float]] = {}
    for probe in probes:
        rounds.setdefault(probe.load, []).extend(probe.excess)
    loads = sorted(rounds)
    means = [score(math.fsum(rounds[load]) / len(rounds[load])) for load in loads]
    return loads, rising(means, [len(rounds[load]) for load in loads])


def _to_explore(question: Question, loads: Sequence[float], scores: Sequence[float]) -> float | None:
    """A load that is new and tells most of where the crossing is; None when that is known well enough to test."""
    low, high = question.low, question.high
    if not loads:
        return _placed(question, math.sqrt(low * high))
    if scores[-1] <= 0:
        return None if loads[-1] >= high else _placed(question, min(high, loads[-1] * _STRIDE))
    if scores[0] > 0:
        return None if loads[0] <= low else _placed(question, max(low, loads[0] / _STRIDE))
    above = next(k for k, value in enumerate(scores) if value > 0)
    below, beyond = loads[above - 1], loads[above]
    if beyond / below <= 1 + _NEAR * question.width or (question.whole and beyond - below <= 1):
        return None
    aim, ratio = _aim(loads, scores), beyond / below
    load = _placed(question, min(max(aim, below * ratio**0.2), below * ratio**0.8))
    return None if load in loads else load


def _aim(loads: Sequence[float], scores: Sequence[float]) -> float:
    """The estimated capacity; beyond the range where all loads are on one side."""
    crossed = crossing(loads, scores)
    if crossed is not None:
        return crossed
    return math.inf if scores[-1] <= 0 else 0.0


def _to_test(question: Question, aim: float, holds: float | None, fails: float | None) -> float:
    """The end of the interval that is tested now: of the width asked for, around `aim`, with certified ends kept."""
    width = question.width
    if aim >= question.high:
        return question.high
    if aim <= question.low:
        return question.low
    if holds is not None and holds >= aim * (1 - _KEPT * width):
        low = holds
    elif fails is not None and fails * (1 - _KEPT * width) <= aim:
        low = fails * (1 - width)
    else:
        low = aim * (1 - width / 2)
    low = _placed(question, low) if holds is None or low != holds else holds
    if question.whole and low * (1 / (1 - width) - 1) < 1 and (holds is None or low > holds):
        low = _placed(question, math.floor(aim))
    if holds is None or low > holds:
        return low
    high = holds / (1 - width)
    return min(question.high, max(holds + 1, math.floor(high + 1e-9)) if question.whole else high)


def _placed(question: Question, load: float) -> float:
    load = float(round(load)) if question.whole else load
    return min(max(load, question.low), question.high)
