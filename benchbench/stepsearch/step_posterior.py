"""At which commit a build changed: the posterior over all of them, from starts in blocks. Pure; docs/bisect.md.

Builds have places: 0 is good, then each commit in order, the last is bad. A start of the build at place p in block b
has y = ln(figure), higher is better. With one step of size d at place k:

    y = m + u_b + w_b + d [p >= k] + e,   e ~ N(0, s^2) of each start,   u_b ~ N(0, (r s)^2) of each block,
    w a random walk of steps N(0, (q s)^2) from start to start

Priors: m flat; s log-normal around 1 %, a factor of 2.2 wide; drift none, or r on a grid up to so much that only
differences within a block count, or a walk; d normal, its scale 1, 3, 10 or 30 %. m and d are integrated in closed
form, the others on their grids. Two steps likewise, with one d each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_NOISES = np.geomspace(1e-4, 0.4, 28)
_NOISE_PRIOR = np.exp(-0.5 * (np.log(_NOISES / 0.01) / 0.8) ** 2)
# Drift in units of s: sd of a block's own level, and of the step of a random walk from start to start.
_DRIFTS = ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (3.0, 0.0), (20.0, 0.0), (0.0, 0.1), (0.0, 0.3))
_DRIFT_PRIOR = np.array([0.4, 0.15, 0.15, 0.1, 0.05, 0.1, 0.05])
_SCALES = np.array([0.01, 0.03, 0.1, 0.3])
_DIFFER = 0.8  # prior of any step: who asks has seen one
_SEVERAL = 0.1  # prior of two steps, where there is one at least
_FINE = 801  # points of the effect's distribution


class Start(NamedTuple):
    """One start of the build at `place`, in a block: ln of its figure, higher is better."""

    block: int
    place: int
    value: float


class Effect(NamedTuple):
    """The step in ln: mean and 95 % interval (equal tails), whichever commit it is."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Posterior:
    """`weights[k - 1]`: that the step is at place k, if there is one; `differ`: that there is one, prior 1/2.

    `effect`: the step's mean in ln; `noise`: of a start, in ln, and `drift`: of a block; `walk`: of each step of a
    random walk: their means.
    """

    weights: Array
    differ: float
    effect: float
    noise: float
    drift: float
    walk: float


@dataclass(frozen=True, slots=True)
class _Likelihoods:
    """Logarithms over drift x noise x scale x step (`stepped`), and drift x noise (`none`), with the grids' priors.

    `mean` and `variance` are the step's, given all of these.
    """

    stepped: Array
    none: Array
    mean: Array
    variance: Array


def posterior(starts: Sequence[Start], prior: Sequence[float]) -> Posterior:
    """What `starts` say. `prior[k - 1]`: weight of place k, before; they need not sum to 1."""
    shares, cuts, sums = _alike(starts, prior)
    likelihoods = _likelihoods(starts, [cut + 1 for cut in cuts])
    weighted = likelihoods.stepped + np.log(sums)
    top = max(weighted.max(), likelihoods.none.max())
    stepped, none = np.exp(weighted - top), np.exp(likelihoods.none - top)
    total, nothing = stepped.sum(), none.sum()
    grid = stepped.sum((2, 3)) / total
    noise = float((grid.sum(0) * _NOISES).sum())
    drift, walk = (float(value) for value in grid @ _NOISES @ np.array(_DRIFTS))
    return Posterior(
        weights=np.repeat(stepped.sum((0, 1, 2)) / total / sums, np.diff([*cuts, len(prior)])) * shares,
        differ=float(total * _DIFFER / (total * _DIFFER + nothing * (1 - _DIFFER))),
        effect=float((stepped * likelihoods.mean).sum() / total),
        noise=noise,
        drift=drift,
        walk=walk,
    )


def effect_of(starts: Sequence[Start], prior: Sequence[float]) -> Effect:
    """The size of the step, over all places, noises and scales, each as likely as `starts` leave it."""
    _, cuts, sums = _alike(starts, prior)
    likelihoods = _likelihoods(starts, [cut + 1 for cut in cuts])
    weighted = likelihoods.stepped + np.log(sums)
    weights = _normal(np.exp(weighted - weighted.max()))
    kept = weights > 1e-7
    weights, means = _normal(weights[kept]), likelihoods.mean[kept]
    spreads = np.sqrt(np.broadcast_to(likelihoods.variance, kept.shape)[kept])
    mean = float(weights @ means)
    reach = 8 * math.sqrt(float(weights @ (spreads**2 + (means - mean) ** 2)))
    points = np.linspace(mean - reach, mean + reach, _FINE)
    density = np.zeros(_FINE)
    for few in np.array_split(np.arange(weights.size), weights.size // 2000 + 1):
        z = (points[:, None] - means[few]) / spreads[few]
        density += (np.exp(-0.5 * z**2) / spreads[few]) @ weights[few]
    below = np.cumsum(density) / density.sum()
    low, high = np.interp([0.025, 0.975], below, points)
    return Effect(mean, float(low), float(high))


def several_steps(starts: Sequence[Start], prior: Sequence[float]) -> tuple[float, tuple[int, int]]:
    """The probability of two steps rather than one (prior 1/10), and the places of the likeliest two.

    Of places between which nothing was measured the last stands for all.
    """
    measured = sorted({start.place for start in starts} - {0})
    if len(measured) < 2:
        return 0.0, (0, 0)
    sums = np.add.reduceat(_normal(np.asarray(prior, float)), [0, *measured[:-1]])
    first, second = np.triu_indices(len(measured), 1)
    likelihoods = _likelihoods(starts, measured)
    top = likelihoods.stepped.max()
    single = np.exp(likelihoods.stepped - top).sum((0, 1, 2)) @ sums
    pairs = _normal(sums[first] * sums[second])
    double = np.zeros(len(first))
    for number, ratio in enumerate(_DRIFTS):
        square, cross, gram, constant = _products(starts, measured, ratio)
        for scale in _SCALES:
            r = (scale / _NOISES[:, None]) ** 2
            a, b, c = 1 + r * gram[first, first], 1 + r * gram[second, second], r * gram[first, second]
            determinant = a * b - c**2
            u, v = cross[first], cross[second]
            explained = r * (b * u**2 - 2 * c * u * v + a * v**2) / determinant
            fit = (square - explained) / (2 * _NOISES[:, None] ** 2)
            log = constant - (len(starts) - 1) * np.log(_NOISES[:, None]) - 0.5 * np.log(determinant) - fit
            log += np.log(_NOISE_PRIOR)[:, None] + math.log(_DRIFT_PRIOR[number])
            double += np.exp(np.minimum(log - top, 600)).sum(0)
    both = double * pairs * _SEVERAL
    best = int(both.argmax())
    share = float(both.sum() / (both.sum() + single * (1 - _SEVERAL)))
    return share, (measured[first[best]], measured[second[best]])


def _alike(starts: Sequence[Start], prior: Sequence[float]) -> tuple[Array, list[int], Array]:
    """The prior's shares; after which places something was measured that tells steps apart; shares between these."""
    shares = _normal(np.asarray(prior, float))
    cuts = sorted({0} | {start.place for start in starts if start.place < len(prior)})
    return shares, cuts, np.add.reduceat(shares, cuts)


def _likelihoods(starts: Sequence[Start], steps: Sequence[int]) -> _Likelihoods:
    shape = (len(_DRIFTS), len(_NOISES), len(_SCALES), len(steps))
    stepped, mean, variance, none = np.empty(shape), np.empty(shape), np.empty(shape), np.empty(shape[:2])
    noises, scales = _NOISES[:, None, None], _SCALES[None, :, None]
    ratio = (scales / noises) ** 2
    for number, drift in enumerate(_DRIFTS):
        square, cross, gram, constant = _products(starts, steps, drift)
        common = constant - (len(starts) - 1) * np.log(_NOISES) + np.log(_NOISE_PRIOR * _DRIFT_PRIOR[number])
        none[number] = common - square / (2 * _NOISES**2)
        share = ratio / (1 + ratio * np.diag(gram))
        fit = (square - share * cross**2) / (2 * noises**2)
        stepped[number] = common[:, None, None] - 0.5 * np.log1p(ratio * np.diag(gram)) - fit
        mean[number] = share * cross
        variance[number] = noises**2 * share
    return _Likelihoods(stepped - math.log(len(_SCALES)), none, mean, variance)


def covariance(starts: Sequence[Start], noise: float, drift: float, walk: float) -> Array:
    """Of the starts, one with the other: noise of each, and what those of a block and of near blocks share."""
    block, when = np.array([start.block for start in starts]), times(starts)
    same = block[:, None] == block[None, :]
    total: Array = noise**2 * np.eye(len(starts)) + drift**2 * same + walk**2 * np.minimum(when[:, None], when)
    return total


def times(starts: Sequence[Start]) -> Array:
    """When the block of each start was, counted in starts."""
    _, block, counts = np.unique([start.block for start in starts], return_inverse=True, return_counts=True)
    middles: Array = np.cumsum(counts) - counts / 2
    return middles[block]


def changed(starts: Sequence[Start], steps: Sequence[int]) -> Array:
    """Starts x steps: 1 where the start's build is at or after the step."""
    places = np.array([start.place for start in starts])
    return (places[:, None] >= np.array(steps)[None, :]).astype(float)


def _products(
    starts: Sequence[Start], steps: Sequence[int], drift: tuple[float, float]
) -> tuple[float, Array, Array, float]:
    """y'Py, X'Py, X'PX and ln of what the determinants add: P takes out the mean and, as far as it goes, drift."""
    root = np.linalg.cholesky(covariance(starts, 1.0, *drift))
    values = np.array([[1.0, start.value] for start in starts])
    columns = np.linalg.solve(root, np.hstack([values, changed(starts, steps)]))
    ones, rest = columns[:, 0], columns[:, 1:]
    weight = float(ones @ ones)
    rest = rest - np.outer(ones, ones @ rest) / weight
    products = rest.T @ rest
    constant = -float(np.log(np.diag(root)).sum()) - 0.5 * math.log(weight)
    return float(products[0, 0]), products[0, 1:], products[1:, 1:], constant


def _normal(weights: Array) -> Array:
    scaled: Array = weights / weights.sum()
    return scaled
