"""Which settings can still be the best of a cell, from their starts, valid though one looks after every block. Pure.

A start gives y(v, b), the log of its figure, of which more is better: setting v in block b. A block is one start of
each setting that is still wanted. Noise is pooled over all settings, about y(v, b) = setting v + block b:

    s^2 = residual sum of squares of that fit by least squares / f,  f = starts - fitted parameters
    d(b) = y(w, b) - y(v, b) over the n blocks that both have;  error^2 = max(2 s^2, sd(d)^2) / n
    v is beaten by w where mean d > t(1 - level; f) error

With a limit, x(v, b) is the log of a start's 99th percentile (or its mean: `slo.statistic`) of (what a request took /
its limit), above 0 where the start misses it. r^2 is the variance of x about each setting's own mean, pooled, so that
blocks are in it:

    error^2 = max(r^2, sd(x)^2) / n;  v meets the limit where mean x < -t(1 - level'; g) error, misses it where
    mean x > +t(1 - level'; g) error; g after Satterthwaite, since settings share what a block does

What misses the limit, or is beaten by one that meets it, is out. The truly best setting is out by mistake if one of
K - 1 others beats it by luck, at one of the looks: so level = 5 % / ((C + 1) (K - 1) L) for C cells and the default
for all of them, K settings and L looks (Bonferroni), and all sets together hold with 95 %, whichever starts were left
out. With a limit half of the 5 % are for the comparisons, and half for the C K L limits.

`max` is for a setting that is noisier than the others: with the pooled noise alone a bad start could put it out.

J. C. Hsu, Ann. Statist. 9 (1981) 1026-1034 (comparisons with the best); E. Paulson, Ann. Math. Statist. 35 (1964)
174-180 (elimination, block by block); F. E. Satterthwaite, Biometrics Bull. 2 (1946) 110-114.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import NamedTuple

import numpy as np

from benchbench.analysis.stats import mean_spread
from benchbench.student.t_distribution import t_quantile

ERROR = 0.05
# In logs: starts that agree so well are copies, or a model's output, and tell nothing of noise (comparison.verdicts).
LEAST_SPREAD = 1e-9
Starts = Mapping[str, Mapping[int, float]]  # setting -> block -> y or x


@dataclass(frozen=True, slots=True)
class Levels:
    """How the error of 5 % is shared: K `settings`, C `cells`, L `looks`, and whether there is a limit."""

    settings: int
    cells: int
    looks: int
    limited: bool = False

    @property
    def beaten(self) -> float:
        """Of one comparison at one look."""
        tests = (self.cells + 1) * max(1, self.settings - 1) * self.looks
        return ERROR * (0.5 if self.limited else 1.0) / tests

    @property
    def limit(self) -> float:
        """Of one setting's limit in one cell at one look."""
        return ERROR * 0.5 / (self.cells * self.settings * self.looks)


class Noise(NamedTuple):
    """Standard deviation of a start, of logs, and its degrees of freedom."""

    sd: float
    degrees: float


class Gap(NamedTuple):
    """By how much one setting is better than another, in logs: mean, and simultaneous half-width (inf: unknown)."""

    mean: float
    half: float


class Fit(NamedTuple):
    """Settings + blocks, by least squares: residual sum of squares, degrees of freedom, blocks, each setting's y."""

    squares: float
    degrees: int
    blocks: int
    levels: Mapping[str, float]


def noise_of(starts: Starts) -> Noise | None:
    """S and f of the fit of settings and blocks; None where nothing is known of noise."""
    fit = fitted(starts)
    return _noise(fit.squares, fit.degrees)


def noise_with_blocks(starts: Starts) -> Noise | None:
    """R and g: the spread about each setting's own mean."""
    within = [list(blocks.values()) for blocks in starts.values() if len(blocks) > 1]
    total = math.fsum(mean_spread(values)[1] ** 2 * (len(values) - 1) for values in within)
    count = sum(len(values) - 1 for values in within)
    if (known := _noise(total, count)) is None:
        return None
    fit = fitted(starts)
    parts = [(max(0.0, total - fit.squares), fit.blocks - 1), (fit.squares, fit.degrees)]
    return Noise(known.sd, total**2 / math.fsum(part**2 / df for part, df in parts if df > 0))


def fitted(starts: Starts) -> Fit:
    """The fit of y = setting + block. A setting's level is as of the mean block: levels of settings with unlike blocks
    can be compared.
    """
    points = [(v, b, y) for v, blocks in starts.items() for b, y in blocks.items()]
    settings = {v: place for place, v in enumerate(dict.fromkeys(v for v, _, _ in points))}
    blocks = {b: len(settings) + place for place, b in enumerate(dict.fromkeys(b for _, b, _ in points))}
    if not points:
        return Fit(0.0, 0, 0, {})
    design, values = np.zeros((len(points), len(settings) + len(blocks))), np.array([y for _, _, y in points])
    for row, (v, b, _) in enumerate(points):
        design[row, settings[v]] = design[row, blocks[b]] = 1.0
    effects, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    squares = float(np.sum((values - design @ effects) ** 2))
    middle = float(np.mean(effects[len(settings) :]))
    levels = {v: float(effects[place]) + middle for v, place in settings.items()}
    return Fit(squares, len(points) - int(rank), len(blocks), levels)


def _noise(squares: float, degrees: int) -> Noise | None:
    if degrees < 1 or squares <= degrees * LEAST_SPREAD**2:
        return None
    return Noise(math.sqrt(squares / degrees), degrees)


@lru_cache(maxsize=4096)
def _critical(level: float, degrees: float) -> float:
    return t_quantile(1 - level, degrees)


def gap(better: Mapping[int, float], worse: Mapping[int, float], noise: Noise | None, level: float) -> Gap | None:
    """By how much `better` is above `worse`; None where they have no block in common."""
    pairs = [better[b] - worse[b] for b in better if b in worse]
    if not pairs:
        return None
    if noise is None:
        return Gap(fmean(pairs), math.inf)
    mean, own = mean_spread(pairs) if len(pairs) > 1 else (pairs[0], 0.0)
    error = math.sqrt(max(2 * noise.sd**2, own**2) / len(pairs))
    return Gap(mean, _critical(level, noise.degrees) * error)


def limits_met(excess: Starts, level: float) -> dict[str, bool | None]:
    """Of each setting whether it meets the limit; None where that is undecided."""
    noise = noise_with_blocks(excess)
    met: dict[str, bool | None] = {}
    for setting, blocks in excess.items():
        values = list(blocks.values())
        if len(values) < 2 or noise is None:
            met[setting] = None
            continue
        mean, own = mean_spread(values)
        error = max(noise.sd, own) / math.sqrt(len(values))
        met[setting] = None if abs(mean) <= _critical(level, noise.degrees) * error else mean < 0
    return met


def beaten(starts: Starts, met: Mapping[str, bool | None] | None, levels: Levels, pool: Starts) -> dict[str, str]:
    """Of the settings in `starts` those that are not the best, each with the one that beats it by most.

    `met` (None: no limit) says which of them may beat others: those that meet the limit. Noise is that of `pool`.
    """
    noise = noise_of(pool)
    out: dict[str, str] = {}
    for setting, own in starts.items():
        margins = {
            rival: known.mean - known.half
            for rival, theirs in starts.items()
            if rival != setting and (met is None or met.get(rival) is True)
            if (known := gap(theirs, own, noise, levels.beaten)) and known.mean > known.half
        }
        if margins:
            out[setting] = max(margins, key=lambda rival: margins[rival])
    return out


def alike(settings: Sequence[str], starts: Starts, levels: Levels, pool: Starts, margin: float) -> bool:
    """Whether all of the settings are within `margin` (log) of each other, with simultaneous confidence."""
    noise = noise_of(pool)
    gaps = [gap(starts[a], starts[b], noise, levels.beaten) for a in settings for b in settings if a < b]
    return all(known is not None and abs(known.mean) + known.half <= margin for known in gaps)
