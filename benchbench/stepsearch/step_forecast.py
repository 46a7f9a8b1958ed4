"""What a block of starts would show of the step, and so how much it would tell. Pure; docs/bisect.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from benchbench.stepsearch.step_posterior import Posterior, Start, changed, covariance, times

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_WIDE = 0.3  # sd of the effect beforehand, where a block is chosen
_NODES = {1: 11, 2: 5}  # of the quadrature, in each dimension, by starts of the block
_LEAST = 5e-4  # of the probability that the step is between two places, below which this is not thought of


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a block more would show, given each step that is thought of, the last of them none: normal, each.

    `steps`: their places, `chances`; `mean` and `variance` of level and effect given the step (steps x 2, steps x 2 x
    2). A start at place p shows x'(level, effect) + `base`, x = (`level`, [p >= step] - `effect`), with noise, and with
    `common` for all starts of the block: drift has it follow the starts before.
    """

    steps: Array
    chances: Array
    mean: Array
    variance: Array
    base: float
    level: float
    effect: Array
    noise: float
    common: float

    @classmethod
    def of(cls, state: Posterior, starts: Sequence[Start], places: Sequence[int]) -> Forecast:
        """Noise and drift are taken as they are estimated. Steps between which no place of `places` is are one."""
        groups = [(after + 1, place) for after, place in pairwise([0, *(place for place in places if place)])]
        weights = np.array([state.weights[first - 1 : last].sum() for first, last in groups])
        kept = [number for number, weight in enumerate(weights) if weight > _LEAST]
        steps = [groups[number][0] for number in kept] + [places[-1] + 1]
        chances = np.append(weights[kept] / weights[kept].sum() * state.differ, 1 - state.differ)
        values = np.array([start.value for start in starts])
        middle = float(values.mean())
        inverse = np.linalg.inv(covariance(starts, state.noise, state.drift, state.walk))
        shown = changed(starts, steps)
        a, b = float(inverse.sum()), inverse.sum(0) @ shown
        c = np.einsum("ik,ij,jk->k", shown, inverse, shown) + 1 / _WIDE**2
        u, v = float(inverse.sum(0) @ (values - middle)), shown.T @ inverse @ (values - middle)
        variance = np.array([[c, -b], [-b, np.full(len(c), a)]]).transpose(2, 0, 1) / (a * c - b**2)[:, None, None]
        variance[-1, 1, 1] = 0.0  # without a step there is no effect
        mean = np.einsum("kij,kj->ki", variance, np.stack([np.full(len(v), u), v], 1))
        near = state.walk**2 * times(starts)
        reach = inverse @ near
        common = state.drift**2 + state.walk**2 * (len(starts) + 1) - float(near @ reach)
        return cls(
            *(np.array(steps), chances, mean, variance, float(reach @ (values - middle)), 1 - float(reach.sum())),
            *(reach @ shown, state.noise, common),
        )

    def information(self, designs: Sequence[tuple[int, ...]]) -> Array:
        """Mutual information in bits of the step and what each of the blocks (alike in size) shows.

        The integral over what is seen is Gauss and Hermite's, about each step's own mean.
        """
        size = len(designs[0])
        after = (np.array(designs)[None] >= self.steps[:, None, None]) - self.effect[
            :, None, None
        ]  # steps x designs x n
        x = np.stack([np.full_like(after, self.level), after], -1)
        means = self.base + np.einsum("kdni,ki->kdn", x, self.mean)
        spread = np.einsum("kdni,kij,kdmj->kdnm", x, self.variance, x) + self.common + self.noise**2 * np.eye(size)
        root = np.linalg.cholesky(spread)
        inverse, scale = np.linalg.inv(root), np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(-1)
        nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES[size])
        points = np.stack(np.meshgrid(*[nodes] * size), -1).reshape(-1, size)
        mass = np.prod(np.meshgrid(*[weights / math.sqrt(2 * math.pi)] * size), 0).ravel()
        gained = np.zeros(len(designs))
        for step in np.flatnonzero(self.chances):  # that there is none may have underflowed
            seen = means[step][:, None, :] + points @ np.swapaxes(root[step], -1, -2)  # designs x points x n
            off = seen[None] - means[:, :, None, :]
            logs = -scale[:, :, None]
            for i in range(size):  # an einsum of so small matrices is slower
                logs = logs - 0.5 * sum(inverse[:, :, i, j, None] * off[..., j] for j in range(i + 1)) ** 2
            relative = np.exp(np.minimum(logs - logs[step], 600))
            gained -= self.chances[step] * (np.log2(np.tensordot(self.chances, relative, 1)) @ mass)
        return gained
