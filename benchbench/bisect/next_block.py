"""Which builds the next block starts beside the good one, and when a search ends. Pure; docs/bisect.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from benchbench.bisect.step_posterior import Posterior, Start, posterior, several_steps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

END_BLOCKS = 7  # of good and bad, in which they must be shown to differ
LEAST_END_BLOCKS = 2
_SHOWN = 0.93  # of a difference, before anything is probed: 1 in 20 builds without one pass (docs/bisect.md)
_GOOD_AGAIN, _BAD_AGAIN = 3, 6  # blocks of which one has the good build, the bad build
_LOST = 3  # blocks that came to nothing, of a search's first stage, before it is given up
_PLACES = 24  # that are considered, at most
_BUILT = 0.95  # of the most that can be told: so much is enough where it saves a build
_NODES = 7  # of the quadrature, in each dimension

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
    places = _most_telling(question, state, starts, tried, skipped)
    sure = confidence >= question.confidence
    if sure or spent + len(places) > question.starts:
        several = several_steps(starts, question.prior)[0] >= question.several
        return Answer("several" if several else "found" if sure else "budget", *best, confidence)
    return Ask(places)


def groups_of(question: Question, skipped: AbstractSet[int]) -> list[tuple[int, int]]:
    """Places that share a verdict, first and last of each: up to one that can be measured, and no other between."""
    ends = [0, *(place for place in range(1, question.bad + 1) if place not in skipped or place == question.bad)]
    return [(before + 1, place) for before, place in pairwise(ends)]


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

    It has two builds or three. The good one is not among them where two other places tell more: where blocks differ
    little, and not for long.
    """
    below = np.concatenate([[0.0], np.cumsum(state.weights)])  # below[p]: that the step is at or before p
    inside = _worth_probing(question, below, skipped)
    blocks = len({start.block for start in starts})
    free = state.drift**2 + (state.noise**2 + state.drift**2) / blocks  # variance of what a block has in common
    held = free * state.noise**2 / (free + state.noise**2)  # the same once its good build is measured
    single = [(place, question.bad) for place in inside]
    pairs = [(a, b) for i, a in enumerate(inside) for b in inside[i + 1 :]] + [
        pair for pair in single if len({*pair}) > 1
    ]
    recent = tried[-_GOOD_AGAIN + 1 :]
    without = not question.paired and bool(pairs) and any(0 in places for places in recent)
    designs: list[tuple[int, ...]] = []
    bits: list[float] = []
    for good, common in ((1, held), (0, free)) if without else ((1, held),):
        noise = state.noise**2 * np.eye(2) + common
        for probes, each in ((1, single), (2, pairs)):
            if not each or good + probes < 2:
                continue
            designs += [(0,) * good + pair[:probes] for pair in each]
            bits += list(_information(below, each, state.effect, noise[:probes, :probes]) / (good + probes))
    built = {start.place for start in starts}
    enough = [i for i in range(len(bits)) if bits[i] >= _BUILT * max(bits)]
    best = designs[min(enough, key=lambda i: (sum(place not in built for place in designs[i]), -bits[i]))]
    measured = any(question.bad in places for places in [*tried[-_BAD_AGAIN + 1 :], best])
    return best if measured else (*best, question.bad)


def _worth_probing(question: Question, below: Array, skipped: AbstractSet[int]) -> list[int]:
    """Places on either side of which the step may be, spread evenly over its distribution where they are many."""
    allowed = [place for place in range(1, question.bad) if place not in skipped]
    inside = [place for place in allowed if 1e-3 < below[place] < 1 - 1e-3] or allowed or [question.bad]
    if len(inside) <= _PLACES:
        return inside
    levels = (np.arange(_PLACES) + 0.5) / _PLACES
    return sorted({inside[int(np.abs(below[inside] - level).argmin())] for level in levels})


def _information(below: Array, pairs: Sequence[tuple[int, int]], effect: float, covariance: Array) -> Array:
    """Mutual information in bits of where the step is and what a block shows of each pair of places.

    A block tells three cases apart: the step is at or before the first place, between them, or after the second. The
    integral over the normal noise is Gauss and Hermite's. With a covariance of one the first place is measured alone.
    """
    first, second = np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])
    chances = np.stack([below[first], below[second] - below[first], 1 - below[second]])  # cases x pairs
    chances = np.clip(chances, 1e-12, 1)
    probes = len(covariance)
    means = effect * np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])[:, :probes]
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    points = np.stack(np.meshgrid(*[nodes] * probes), -1).reshape(-1, probes)
    mass = np.prod(np.meshgrid(*[weights / math.sqrt(2 * math.pi)] * probes), 0).ravel()
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), means.T).T
    gained = np.zeros(len(pairs))
    for case in range(3):
        offsets = whitened[case] + points  # what is seen, whitened
        distances = ((offsets[:, None, :] - whitened[None, :, :]) ** 2).sum(2)  # points x cases
        relative = np.exp(-0.5 * (distances - distances[:, case : case + 1]))
        gained -= chances[case] * (mass @ np.log2(relative @ chances))
    return gained
