"""Which builds the next block starts, and when a search ends. Pure; docs/bisect.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from benchbench.stepsearch.step_forecast import Forecast
from benchbench.stepsearch.step_posterior import Posterior, Start, posterior, several_steps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

END_BLOCKS = 7  # of good and bad, in which they must be shown to differ
LEAST_END_BLOCKS = 2
_SHOWN = 0.85  # of a difference, before anything is probed (docs/bisect.md)
_END_AGAIN = 12  # starts of which one at least is of good or bad
_LOST = 3  # blocks that came to nothing, of a search's first stage, before it is given up
_PLACES = 12  # that are considered, at most
_ALIKE = 0.5  # of the noise: where drift is less, blocks are of one start
_BUILT = 0.95  # of the most that can be told: so much is enough where it saves a build

Reason = Literal["found", "no_difference", "several", "budget"]


@dataclass(frozen=True, slots=True)
class Question:
    """`prior[k - 1]`: weight of place k as the first changed build, before; the last place is bad, 0 is good.

    `starts`: no block begins that would make it more. `paired`: each block has the good build. `several`: from which
    probability of two steps on none is told.
    """

    prior: tuple[float, ...]
    starts: int = 40
    paired: bool = False
    confidence: float = 0.95
    several: float = 0.9

    @property
    def bad(self) -> int:
        """The place of the bad build."""
        return len(self.prior)


class Ask(NamedTuple):
    """The block to measure now: the builds at these places, the good one first if it is among them."""

    places: tuple[int, ...]


class Answer(NamedTuple):
    """The search has ended. `first` to `last`: places that share the verdict, one where nothing was skipped.

    Their `confidence` is what they have in common; of `no_difference` that of there being none.
    """

    reason: Reason
    first: int
    last: int
    confidence: float


def next_block(
    question: Question,
    starts: Sequence[Start],
    tried: Sequence[tuple[int, ...]],
    skipped: AbstractSet[int] = frozenset(),
) -> Ask | Answer:
    """What comes after the blocks `tried` (their places), of which `starts` were good. It depends on nothing else.

    `skipped`: places that cannot be measured.
    """
    spent, ends = sum(map(len, tried)), (0, question.bad)
    blocks = len({start.block for start in starts if start.place == question.bad})
    state = posterior(starts, question.prior) if blocks >= LEAST_END_BLOCKS else None
    probed = any(places != ends for places in tried)
    if state is None or not (probed or state.differ >= _SHOWN):
        if state and (state.differ <= 1 - question.confidence or blocks >= END_BLOCKS):
            return Answer("no_difference", 1, question.bad, 1 - state.differ)
        over = spent + len(ends) > question.starts or len(tried) - blocks >= _LOST
        return Answer("budget", 1, question.bad, 0.0) if over else Ask(ends)
    if state.differ < 0.5:
        return Answer("no_difference", 1, question.bad, 1 - state.differ)
    best = max(groups_of(question, skipped), key=lambda group: _mass(state.weights, group))
    confidence = _mass(state.weights, best) * state.differ
    sure = confidence >= question.confidence
    if not sure:
        places = _most_telling(question, state, starts, tried, skipped)
        if spent + len(places) <= question.starts:
            return Ask(places)
        if state.differ < _SHOWN:
            return Answer("budget", 1, question.bad, 0.0)
    several = several_steps(starts, question.prior)[0] >= question.several
    return Answer("several" if several else "found" if sure else "budget", *best, confidence)


def groups_of(question: Question, skipped: AbstractSet[int]) -> list[tuple[int, int]]:
    """Places that share a verdict, first and last of each: up to one that can be measured, and no other between."""
    ends = [0, *(place for place in range(1, question.bad + 1) if place not in skipped or place == question.bad)]
    return [(before + 1, place) for before, place in pairwise(ends)]


def _lately(tried: Sequence[tuple[int, ...]], ends: tuple[int, int]) -> bool:
    """Whether good or bad is among the last starts."""
    last = [place for places in tried for place in places][1 - _END_AGAIN :]
    return not set(ends).isdisjoint(last)


def _mass(weights: Array, group: tuple[int, int]) -> float:
    return float(weights[group[0] - 1 : group[1]].sum())


def _most_telling(
    question: Question,
    state: Posterior,
    starts: Sequence[Start],
    tried: Sequence[tuple[int, ...]],
    skipped: AbstractSet[int],
) -> tuple[int, ...]:
    """The block that tells most about the step, in bits a start; of built ones where they do nearly as well.

    One start, or two where blocks differ enough that these tell more.
    """
    ends = (0, question.bad)
    below = np.concatenate([[0.0], np.cumsum(state.weights)])  # below[p]: that the step is at or before p
    places = sorted({*ends, *_worth_probing(question, below, skipped)})
    alone: list[tuple[int, ...]] = [(place,) for place in places]
    pairs: list[tuple[int, ...]] = list(combinations(places, 2))
    if question.paired:
        alone, pairs = [], [pair for pair in pairs if pair[0] == 0]
    elif not _lately(tried, ends):
        alone, pairs = ([design for design in designs if set(ends) & {*design}] for designs in (alone, pairs))
    if not question.paired and max(state.drift, state.walk * math.sqrt(_END_AGAIN)) < _ALIKE * state.noise:
        pairs = []
    forecast = Forecast.of(state, starts, sorted({start.place for start in starts} | set(places)))
    designs = [*alone, *pairs]
    bits = np.concatenate([forecast.information(few) / len(few[0]) for few in (alone, pairs) if few])
    built = {start.place for start in starts}
    enough = [i for i in range(len(bits)) if bits[i] >= _BUILT * bits.max()]
    return designs[min(enough, key=lambda i: (sum(place not in built for place in designs[i]), -bits[i]))]


def _worth_probing(question: Question, below: Array, skipped: AbstractSet[int]) -> list[int]:
    """Places on either side of which the step may be, spread evenly over its distribution where they are many."""
    allowed = [place for place in range(1, question.bad) if place not in skipped]
    inside = [place for place in allowed if 1e-3 < below[place] < 1 - 1e-3] or allowed or [question.bad]
    if len(inside) <= _PLACES:
        return inside
    levels = (np.arange(_PLACES) + 0.5) / _PLACES
    return sorted({inside[int(np.abs(below[inside] - level).argmin())] for level in levels})
