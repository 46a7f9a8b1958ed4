"""Steps in a series of nights: where the level changed, decided night by night as if each were the last. Pure.

Values are logs of which more is better; a night is one run. Nights of one level are a *regime*. At each night t, for
each w of WINDOWS, the last w nights are held against the regime before them (n nights, mean m, standard deviation s
with f degrees of freedom, of all regimes so far), in the direction of the change, d = +-(x - m), without the one of
them that speaks most for it (E, V: mean and variance of the largest of w standard normal values):

    T(w) = (sum d - max d + s E(w)) / (s sqrt(w - 2 + V(w) + (w - 1)^2 / n))

and there is a step where T(w) > t(1 - p; f) for any w: p is WORSE for a change for the worse, BETTER for the better.
The two are set so that a series without a step has at most one of either in 365 nights, in expectation
(benchmarks/history.py); they are no levels of one test. A single bad night is no step: it is the one that is left out.
A step lies where two levels fit best, and the search goes on from there. It is taken back when the nights that follow
no longer tell its two levels apart (t test, KEPT).

A night is *bad*, and in no level, when the others of its regime would not have it 1 time in 1000 (Student's t), and
the next one is back by half or more. Of nights with several starts the weight is 1 / (day + start / k), k starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import NormalDist, median

from benchbench.student.t_distribution import t_quantile

WINDOWS = (3, 4, 5, 6, 8, 12, 18, 27, 40)
LEAST = 8  # nights, before anything is said
LEAST_REGIME = 3  # nights of a later regime, since the noise is known from those before
WORSE, BETTER = 0.001, 0.0001
BAD = 0.001
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
def _largest(count: int) -> tuple[float, float]:
    """Mean and variance of the largest of `count` standard normal values, by the trapezoid rule."""
    normal, width = NormalDist(), 1 / 64
    points = [k * width - 8 for k in range(16 * 64 + 1)]
    weights = [count * normal.pdf(x) * normal.cdf(x) ** (count - 1) * width for x in points]
    mean = math.fsum(w * x for w, x in zip(weights, points, strict=True))
    return mean, math.fsum(w * (x - mean) ** 2 for w, x in zip(weights, points, strict=True))


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


class Search:
    """The search so far: nights of the present regime, and what earlier ones tell of the noise."""

    def __init__(self, nights: Sequence[Value]) -> None:
        self.logs = [night.log for night in nights]
        self.weights = precisions(nights)
        self.regime: list[int] = []
        self.earlier: list[list[int]] = []
        self.squares, self.degrees = 0.0, 0  # of earlier regimes
        self.bad: set[int] = set()
        self.firsts: list[int] = []  # first nights of regimes, after the first one's
        self.seen: list[int] = []  # of each, the night at which it was seen

    def add(self, night: int) -> None:
        self.regime.append(night)
        self._set_aside()
        self._take_back()
        if (at := self._alarm()) is not None:
            place = self.regime.index(at)
            old, self.regime = self.regime[:place], self.regime[place:]
            self.earlier.append(old)
            self.squares += self._level(old)[1]
            self.degrees += len(old) - 1
            self.firsts.append(at)
            self.seen.append(night)

    def _level(self, nights: Sequence[int]) -> tuple[float, float, float]:
        """Weighted mean, sum of weighted squares about it, and sum of weights."""
        weights, logs = self.weights, self.logs
        total = math.fsum(weights[k] for k in nights)
        mean = math.fsum(weights[k] * logs[k] for k in nights) / total
        return mean, math.fsum(weights[k] * (logs[k] - mean) ** 2 for k in nights), total

    def _set_aside(self) -> None:
        """Take the night that is furthest off out of the regime, if it is bad; the last one is not judged yet."""
        known = self.regime[:-1]
        if len(known) + self.degrees < LEAST:
            return
        mean = self._level(known)[0]
        far = max(known, key=lambda k: abs(self.logs[k] - mean) * math.sqrt(self.weights[k]))
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
            before = self.earlier.pop()
            self.squares = math.fsum(self._level(nights)[1] for nights in self.earlier)
            self.degrees -= len(before) - 1
            self.regime = before + self.regime
            self.firsts.pop()
            self.seen.pop()

    def _alarm(self) -> int | None:
        """The first night of a new level, where the last nights show one."""
        count, sums = len(self.regime), [0.0, 0.0, 0.0]
        least = LEAST if not self.degrees else LEAST_REGIME
        windows = {w for w in WINDOWS if count - w >= least}
        if not windows:
            return None
        heads: dict[int, tuple[float, float, float]] = {}
        longest = count - min(windows)
        for place, k in enumerate(self.regime[:longest]):
            w, x = self.weights[k], self.logs[k] - self.logs[self.regime[0]]
            sums = [sums[0] + w, sums[1] + w * x, sums[2] + w * x * x]
            if count - place - 1 in windows:
                heads[count - place - 1] = (sums[0], sums[1], sums[2])
        for w in sorted(windows):
            total, first, second = heads[w]
            mean = first / total + self.logs[self.regime[0]]
            degrees = count - w - 1 + self.degrees
            spread = math.sqrt((max(0.0, second - first * first / total) + self.squares) / degrees)
            if spread > TINY and any(
                self._shown(self.regime[-w:], sign, mean, spread, total) > _quantile(tail, degrees)
                for sign, tail in ((-1, WORSE), (1, BETTER))
            ):
                return self._place(range(least, count - 1), self.regime)
        return None

    def _shown(self, last: Sequence[int], sign: int, mean: float, spread: float, total: float) -> float:
        """T(w) of the last nights."""
        offs = [sign * (self.logs[k] - mean) * math.sqrt(self.weights[k]) for k in last]
        largest = max(offs)
        expected, variance = _largest(len(last))
        kept = math.fsum(math.sqrt(self.weights[k]) for k in last) - math.sqrt(self.weights[last[offs.index(largest)]])
        error = spread * math.sqrt(len(last) - 2 + variance + kept * kept / total)
        return (math.fsum(offs) - largest + spread * expected) / error

    def _gain(self, nights: Sequence[int], place: int) -> float:
        """By how much two levels, the second from `place` on, fit better than one (sum of squares)."""
        (old, _, a), (new, _, b) = self._level(nights[:place]), self._level(nights[place:])
        return (new - old) ** 2 * a * b / (a + b)

    def _place(self, places: range, nights: Sequence[int]) -> int:
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
