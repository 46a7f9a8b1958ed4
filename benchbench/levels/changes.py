"""Steps in a series of nights: where the level changed, decided night by night as if each were the last. Pure.

Values are logs of which more is better; a night is one run. Nights of one level are a *regime*. At each night, for each
w of WINDOWS, the last w nights are held against the n of their regime before them. A night that is further from these
than FAR standard deviations counts as FAR, and only when the next one is there, so that no single one makes a step.
With the difference of both means over its standard error, t (f = n + w - 2 degrees of freedom and those of all earlier
regimes), the odds that the level has moved by SIZE standard deviations w nights ago, against not at all, are about

    exp(-+ SIZE z sqrt(a) - SIZE^2 a / 2)
    1 / a = 1 / n + 1 / w,  z = sign(t) sqrt(f log(1 + t^2 / f)) (8 f + 1) / (8 f + 3)

(z: Wallace 1959, Bounds on normal approximations to Student's t). Their sum over all w, a share of WORSE for the worse
and the rest for the better, is the statistic of Shiryaev and Roberts; a step is called above ODDS, set so that a series
without any has at most one, of either direction, in 365 nights, in expectation (benchmarks/history.py).
Where each night is related to the one before by r (its lag-1 correlation in all regimes, less RELATED standard errors,
at least 0), 1/a is the variance of that difference under r. A step lies where two levels fit best, and the search goes
on from there. It is taken back when the nights that follow no longer tell its two levels apart (t test, KEPT).

A night is *bad*, and in no level, when the others of its regime would not have it 1 time in 10,000 (Student's t), and
the next one is back by half or more. Of nights with several starts the weight is 1 / (day + start / k), k starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import median

import numpy as np
from numpy.typing import NDArray

from benchbench.student.t_distribution import t_quantile

Whole = NDArray[np.int64]
Floats = NDArray[np.float64]
WINDOWS = np.array((4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 20, 25, 30, 40))
LEAST = 8  # nights, before anything is said
LEAST_REGIME = 5  # nights of a later regime, since the noise is known from those before
SIZE = 1.7  # of the step that is looked for, in standard deviations of a night
WORSE = 0.95  # of the odds: of a step for the worse
ODDS = 76.0
FAR = 4.0  # standard deviations: what is further off counts as this
RELATED = 0.5  # standard errors of the correlation of adjacent nights that are taken for chance
BAD = 0.0001
KEPT = 0.02
SURE = 0.95  # of the nights between which a step lies
TINY = 1e-9  # a spread below it is none: copies, or a model's output


@dataclass(frozen=True, slots=True)
class Value:
    """One night: a mean over `starts` starts, and the variance between these (None: one start, or not known)."""

    log: float
    starts: int = 1
    variance: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A change of level: `at` is the first night of the new one, between `low` and `high` with SURE.

    `seen`: the night at which it was seen. `shift` (log, above 0 is better) has the 95 % interval `ends`; `before` and
    `after` are the levels (logs), over so many nights (`nights`). `gradual`: a straight line through all these nights
    fits better than two levels.
    """

    at: int
    seen: int
    low: int
    high: int
    shift: float
    ends: tuple[float, float]
    before: float
    after: float
    nights: tuple[int, int]
    gradual: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """What a series shows: its steps, its bad nights, the noise of one night (sd of logs; None: not known yet)."""

    steps: tuple[Step, ...]
    bad: frozenset[int]
    noise: float | None


@cache
def _quantile(tail: float, degrees: int) -> float:
    return t_quantile(1 - tail, degrees)


def precisions(nights: Sequence[Value]) -> list[float]:
    """The weight of each night, about 1: by its starts, where the noise of starts is known and is not all there is."""
    inner = [(night.starts - 1, night.variance) for night in nights if night.variance is not None and night.starts > 1]
    degrees = sum(own for own, _ in inner)
    if not degrees or len({night.starts for night in nights}) == 1:
        return [1.0] * len(nights)
    start = math.fsum(own * variance for own, variance in inner) / degrees
    shares = [1 / night.starts for night in nights]
    moves = [abs(b.log - a.log) for a, b in pairwise(nights)]
    whole = (1.4826 * median(moves)) ** 2 / 2  # of a night: neighbours, so that steps count little
    day = max(0.0, whole - start * math.fsum(shares) / len(shares))
    variances = [day + start * share for share in shares]
    typical = len(variances) / math.fsum(1 / v for v in variances) if min(variances) > 0 else 0.0
    return [typical / v for v in variances] if typical else [1.0] * len(nights)


def _variance(r: Floats, n: Whole, total: Floats, w: Whole, tail: Floats) -> Floats:
    """Of the difference of the means of n nights and of the w after them, each related by r to the one before, where
    that of a night of weight 1 is 1; `total` and `tail` are the sums of weights.
    """
    wide, narrow = (1 + r) / (1 - r), 2 * r / (1 - r) ** 2
    of_each = [(wide - narrow * (1 - r**k) / k) / weight for k, weight in ((n, total), (w, tail))]
    both: Floats = of_each[0] + of_each[1] - narrow * (1 - r**n) * (1 - r**w) / (n * w)
    return both


class Search:
    """The search so far: nights of the present regime, and what earlier ones tell of the noise."""

    def __init__(self, nights: Sequence[Value]) -> None:
        self.logs = np.array([night.log for night in nights])
        self.weights = np.array(precisions(nights))
        self.regime: list[int] = []
        self.earlier: list[list[int]] = []
        self.squares, self.degrees = 0.0, 0  # of earlier regimes
        self.products = 0.0  # of adjacent nights of earlier regimes, about their means
        self.bad: set[int] = set()
        self.firsts: list[int] = []  # first nights of regimes, after the first one's
        self.seen: list[int] = []  # of each, the night at which it was seen

    def add(self, night: int) -> None:
        self.regime.append(night)
        self._set_aside()
        self._take_back()
        if (at := self._alarm()) is not None:
            place = self.regime.index(at)
            self.earlier.append(self.regime[:place])
            self.regime = self.regime[place:]
            self.firsts.append(at)
            self.seen.append(night)
            self._learn()

    def _learn(self) -> None:
        """What the earlier regimes tell of the noise."""
        self.squares, self.degrees, self.products = 0.0, 0, 0.0
        for nights in self.earlier:
            mean, squares, _ = self._level(nights)
            offs = np.sqrt(self.weights[nights]) * (self.logs[nights] - mean)
            self.squares += squares
            self.products += float(offs[1:] @ offs[:-1])
            self.degrees += len(nights) - 1

    def _level(self, nights: list[int]) -> tuple[float, float, float]:
        """Weighted mean, sum of weighted squares about it, and sum of weights."""
        weights, logs = self.weights[nights], self.logs[nights]
        total = float(weights.sum())
        mean = float(weights @ logs) / total
        offs = logs - mean
        return mean, float(weights @ (offs * offs)), total

    def _set_aside(self) -> None:
        """Take the night that is furthest off out of the regime, if it is bad; the last one is not judged yet."""
        known = self.regime[:-1]
        if len(known) + self.degrees < LEAST:
            return
        mean = self._level(known)[0]
        far = known[int(np.argmax(np.abs(self.logs[known] - mean) * np.sqrt(self.weights[known])))]
        rest = [k for k in known if k != far]
        level, squares, total = self._level(rest)
        degrees = len(rest) - 1 + self.degrees
        spread = math.sqrt((squares + self.squares) / degrees)
        off = self.logs[far] - level
        after = self.logs[self.regime[known.index(far) + 1]] - level
        error = spread * math.sqrt(1 / self.weights[far] + 1 / total)
        if spread > TINY and abs(off) > _quantile(BAD / 2, degrees) * error and after / off < 0.5:
            self.regime.remove(far)
            self.bad.add(far)

    def _take_back(self) -> None:
        """Join the regime to the one before, where its nights no longer show the step between them."""
        if not self.earlier:
            return
        (old, _, a), (new, squares, b) = self._level(self.earlier[-1]), self._level(self.regime)
        degrees = self.degrees + len(self.regime) - 1
        error = math.sqrt((self.squares + squares) / degrees * (1 / a + 1 / b))
        if abs(new - old) < _quantile(KEPT / 2, degrees) * error:
            self.regime = self.earlier.pop() + self.regime
            self.firsts.pop()
            self.seen.pop()
            self._learn()

    def _alarm(self) -> int | None:
        """The first night of a new level, where the last nights show one."""
        count = len(self.regime)
        least = LEAST if not self.degrees else LEAST_REGIME
        windows = WINDOWS[: np.searchsorted(WINDOWS, count - least, side="right")]
        if not len(windows) or self._alone():
            return None
        odds = self._odds(windows)
        return self._place(range(least, count - 1), self.regime) if odds > ODDS else None

    def _alone(self) -> bool:
        """Whether the last night is FAR off, and the one before it not by half as much: the next tells what it is."""
        level, squares, total = self._level(self.regime[:-1])
        spread = math.sqrt((squares + self.squares) / (len(self.regime) - 2 + self.degrees))
        before, last = self.logs[self.regime[-2:]] - level
        error = spread * math.sqrt(1 / self.weights[self.regime[-1]] + 1 / total)
        return bool(abs(last) > FAR * error and before / last < 0.5)

    def _odds(self, windows: Whole) -> float:
        """That the level has moved before the last nights, for each w of `windows`, against that it has not: summed."""
        x, weights = self.logs[self.regime] - self.logs[self.regime[0]], self.weights[self.regime]
        ends = len(x) - windows - 1  # the last night before each window
        total, first, second = (np.cumsum(sums)[ends] for sums in (weights, weights * x, weights * x * x))
        mean = first / total
        inner = np.maximum(second - first * mean, 0.0)
        before = np.sqrt((inner + self.squares) / (ends + self.degrees))
        if before.min() <= TINY:
            return 0.0
        related = self._related(x, weights, mean, ends, inner)
        x, weights = x[-windows[-1] :], weights[-windows[-1] :]
        own = np.where(np.arange(len(x), 0, -1) <= windows[:, None], weights, 0.0)
        far = FAR * before[:, None] / np.sqrt(weights)
        offs = np.clip(x - mean[:, None], -far, far)
        tail = own.sum(1)
        shift = (own * offs).sum(1) / tail
        inner = inner + (own * (offs - shift[:, None]) ** 2).sum(1)
        f = int(ends[0] + windows[0]) - 1 + self.degrees
        known = 1 / _variance(related, ends + 1, total, windows, tail)
        t = shift * np.sqrt(known * f / (inner + self.squares))
        pull = SIZE * np.sqrt(known * f * np.log1p(t * t / f)) * np.sign(t) * (8 * f + 1) / (8 * f + 3)
        worse, better = (np.exp(side * pull - SIZE**2 * known / 2) for side in (-1, 1))
        each = np.diff(windows, prepend=windows[0] - 1)  # the nights for which a window stands
        return float(each @ (WORSE * worse + (1 - WORSE) * better))

    def _related(self, x: Floats, weights: Floats, mean: Floats, ends: Whole, inner: Floats) -> Floats:
        """The correlation of each night with the one before, known before each window; 0 where chance may give it."""
        both = np.sqrt(weights[1:] * weights[:-1])
        sums = (both * x[1:] * x[:-1], both * (x[1:] + x[:-1]), both)
        squared, plain, count = (np.cumsum(each)[ends - 1] for each in sums)
        pairs = ends + self.degrees
        lag = (squared - mean * plain + mean**2 * count + self.products) / (inner + self.squares)
        beyond_chance = lag + (1 + len(self.earlier)) / pairs - RELATED / np.sqrt(pairs)
        related: Floats = np.minimum(np.maximum(beyond_chance, 0.0), 0.9)
        return related

    def _gain(self, nights: list[int], place: int) -> float:
        """By how much two levels, the second from `place` on, fit better than one (sum of squares)."""
        (old, _, a), (new, _, b) = self._level(nights[:place]), self._level(nights[place:])
        return (new - old) ** 2 * a * b / (a + b)

    def _place(self, places: range, nights: list[int]) -> int:
        return nights[max(places, key=lambda place: self._gain(nights, place))]

    # -- what is known in the end

    def regimes(self) -> list[list[int]]:
        ends = [0, *self.firsts, len(self.logs)]
        spans = [range(a, b) for a, b in pairwise(ends)]
        return [[k for k in span if k not in self.bad] for span in spans]

    def settle(self) -> None:
        """With all nights: each step where it fits best between its neighbours."""
        for number in range(len(self.firsts)):
            old, new = self.regimes()[number : number + 2]
            if len(old) + len(new) > 3:
                self.firsts[number] = self._place(range(2, len(old) + len(new) - 1), old + new)

    def noise(self) -> tuple[float, int]:
        """Standard deviation of a night of weight 1, over all regimes, and its degrees of freedom."""
        regimes = self.regimes()
        degrees = sum(len(nights) - 1 for nights in regimes)
        squares = math.fsum(self._level(nights)[1] for nights in regimes)
        return (math.sqrt(squares / degrees) if degrees > 0 else 0.0), degrees

    def steps(self) -> list[Step]:
        spread, degrees = self.noise()
        steps, regimes = [], self.regimes()
        for at, seen, old, new in zip(self.firsts, self.seen, regimes, regimes[1:], strict=False):
            (before, _, a), (after, _, b) = self._level(old), self._level(new)
            half = t_quantile(0.975, degrees) * spread * math.sqrt(1 / a + 1 / b)
            shift = after - before
            low, high = self._between(old, new, spread)
            ends, counts = (shift - half, shift + half), (len(old), len(new))
            steps.append(Step(at, seen, low, high, shift, ends, before, after, counts, self._gradual(old, new)))
        return steps

    def _gradual(self, old: list[int], new: list[int]) -> bool:
        nights = old + new
        mean, whole, total = self._level(nights)
        middle = math.fsum(self.weights[k] * k for k in nights) / total
        slope = math.fsum(self.weights[k] * (k - middle) * (self.logs[k] - mean) for k in nights)
        spread = math.fsum(self.weights[k] * (k - middle) ** 2 for k in nights)
        return whole - slope**2 / spread < self._level(old)[1] + self._level(new)[1]

    def _between(self, old: list[int], new: list[int], spread: float) -> tuple[int, int]:
        """The shortest list of places, likeliest first, that holds the step with SURE (each as likely beforehand)."""
        nights = old + new
        gains = {place: self._gain(nights, place) / (2 * spread**2) for place in range(1, len(nights))}
        best = max(gains.values())
        shares = {place: math.exp(gain - best) for place, gain in gains.items()}
        total, held, kept = math.fsum(shares.values()), 0.0, []
        for place in sorted(shares, key=lambda place: -shares[place]):
            kept.append(place)
            held += shares[place] / total
            if held >= SURE:
                break
        return nights[min(kept)], nights[max(kept)]


def changes_of(nights: Sequence[Value]) -> Changes:
    """The steps and bad nights of a series, in the order of its nights."""
    search = Search(nights)
    for night in range(len(nights)):
        search.add(night)
    search.settle()
    noise = search.noise()[0] if len(nights) - len(search.bad) >= LEAST else None
    if noise is not None and noise <= TINY:  # copies: what is a step of a series without noise is not known
        return Changes((), frozenset(), noise)
    return Changes(tuple(search.steps()), frozenset(search.bad), noise)
