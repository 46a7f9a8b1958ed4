"""The largest load that meets a limit: which probe comes next, or the interval that holds it. Pure.

The answer is a pair of loads: at `holds_at` the limit is met, at `fails_at` it is not, with family-wise confidence.
Loads are first explored with a few rounds each. Where the monotone regression over all rounds then crosses the limit,
two loads are tested, with rounds of their own: those by which a load was chosen would speak for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import linear_regression
from typing import NamedTuple

from benchbench.boundary.certify import FAILED, LOOKS, Verdict, error_of, judged
from benchbench.boundary.isotonic import crossing, rising, score

EXPLORING = 2  # rounds with which a load is explored
_STRIDE = 4.0  # between explored loads while all are on one side
_NEAR = 6.0  # widths: a bracket of explored loads that is as narrow as this is explored no further
_REACH = 1.6  # times the scatter in load: a width whose two ends 30 rounds each certify
_FLATTEST = 0.25  # a slope below this is taken for one
_NEARBY = 0.4  # in ln(load): loads that tell how steeply the figure rises at the limit
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
    """Rounds at one load: the figure / limit - 1 of each. `test` numbers the tests from 0; None: explored.

    A round in which requests failed is FAILED. Of a test that cannot be carried out all probes have no rounds: its
    number is spent.
    """

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
    tests = _tests(question, probes)
    holds, fails = _ends(tests, probes)
    loads, scores = fitted(probes)
    least = max(question.width, _REACH * _scatter(probes, loads, scores))
    given_up = sum(test.verdict == Verdict.UNDECIDED and test.rounds > 0 for test in tests.values())
    width = min(least * _WIDER ** max(0, given_up - 2), _WIDEST)
    near = {test.load for test in tests.values() if test.verdict == Verdict.UNDECIDED and test.rounds}
    if ended := _ended(question, holds, fails, width, near):
        return Answer(holds, fails, ended)
    if sum(len(probe.excess) for probe in probes) >= question.rounds:
        return Answer(holds, fails, "budget")
    for number, test in tests.items():
        if test.verdict == Verdict.OPEN:
            return Ask(test.load, next(look for look in LOOKS if look > test.rounds) - test.rounds, number)
    if len(tests) >= question.tests:
        return Answer(holds, fails, "budget")
    explored = _to_explore(question, loads, scores)
    if explored is not None:
        return Ask(explored, EXPLORING, None)
    wide = replace(question, width=width)
    load = _to_test(wide, _aim(loads, scores), holds, fails)
    step = 1 if holds is not None and load > holds else -1
    while question.whole and load in near and load * question.width < 2 and question.low < load < question.high:
        load += step  # what was too near to the limit to tell is so still
    return Ask(load, LOOKS[0], len(tests))


def certified(question: Question, probes: Sequence[Probe]) -> tuple[float | None, float | None]:
    """The largest load that is certified so far to hold, and the smallest that is certified to fail."""
    return _ends(_tests(question, probes), probes)


class _Test(NamedTuple):
    load: float
    rounds: int
    verdict: Verdict


def _tests(question: Question, probes: Sequence[Probe]) -> dict[int, _Test]:
    """Each test by its number: what all its probes have come to."""
    loads = {probe.test: probe.load for probe in probes if probe.test is not None}
    excess = {number: [x for probe in probes if probe.test == number for x in probe.excess] for number in loads}
    error = 1 - question.confidence
    return {n: _Test(loads[n], len(excess[n]), judged(excess[n], error_of(n, error))) for n in loads}


def _ends(tests: Mapping[int, _Test], probes: Sequence[Probe]) -> tuple[float | None, float | None]:
    broken = [probe.load for probe in probes if FAILED in probe.excess]
    failing = [test.load for test in tests.values() if test.verdict == Verdict.FAILS]
    fails = min((*broken, *failing), default=None)
    held = [test.load for test in tests.values() if test.verdict == Verdict.HOLDS]
    return max((load for load in held if fails is None or load < fails), default=None), fails


def _ended(question: Question, holds: float | None, fails: float | None, width: float, near: Collection[float]) -> str:
    if fails is not None and fails <= question.low:
        return "never"
    if holds is not None and holds >= question.high:
        return "always"
    if holds is None or fails is None:
        return ""
    if fails - holds <= question.width * fails * (1 + 1e-9) or (question.whole and fails - holds <= 1):
        return "width"
    between = question.whole and all(load in near for load in range(int(holds) + 1, int(fails)))
    return "noise" if between or fails - holds <= width * fails * (1 + 1e-9) else ""


def fitted(probes: Sequence[Probe]) -> tuple[list[float], list[float]]:
    """Loads in order, and the monotone regression of their scores, each weighted with its rounds."""
    rounds: dict[float, list[float]] = {}
    for probe in probes:
        rounds.setdefault(probe.load, []).extend(probe.excess)
    loads = sorted(load for load in rounds if rounds[load])
    means = [score(math.fsum(rounds[load]) / len(rounds[load])) for load in loads]
    return loads, rising(means, [len(rounds[load]) for load in loads])


def _scatter(probes: Sequence[Probe], loads: Sequence[float], scores: Sequence[float]) -> float:
    """The standard deviation of one round, as a share of the load: that of ln(figure), by how steep it rises there.

    Pooled within probes; the slope over ln(load) is of the loads whose figure is near the limit. 0 while neither is
    known.
    """
    logs = [[score(value) for value in probe.excess] for probe in probes if len(probe.excess) > 1]
    crossed = crossing(loads, scores)
    if not logs or crossed is None:
        return 0.0
    points = [(abs(math.log(load / crossed)), math.log(load), value) for load, value in zip(loads, scores, strict=True)]
    near = [point[1:] for point in sorted(points) if point[0] < _NEARBY]
    near = near if len(near) > 1 else [point[1:] for point in sorted(points)[:2]]
    squares = math.fsum((value - math.fsum(of_probe) / len(of_probe)) ** 2 for of_probe in logs for value in of_probe)
    spread = math.sqrt(squares / sum(len(of_probe) - 1 for of_probe in logs))
    slope, _ = linear_regression(*zip(*near, strict=True))
    return spread / max(slope, _FLATTEST)


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
