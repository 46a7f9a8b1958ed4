"""Two builds, start by start: ratios with intervals, and a verdict. Pure; reasons and figures: docs/comparing.md.

One start of a server is one observation: its mean over the rounds of a cell. A block is one start of each build.
A ratio above 1 says that the candidate is better: rates are candidate / base, latencies base / candidate. All is
computed on natural logarithms, so that to swap the builds inverts a ratio and flips its verdict, no more.

    d_b   = log better(b, candidate) - log better(b, base)       per block b; better = rate, or 1 / latency
    ratio = exp(mean d),  95 % interval exp(mean d +- t(0.975; n-1) sd(d) / sqrt(n))
    geometric mean of the grid: d_b is first the mean over cells within a block, then the same over blocks

Verdict, the first that holds:

    equivalent        |mean d| + t(0.95; n-1) sd(d) / sqrt(n) < log(1 + margin): two one-sided tests at 5 %,
                      or the 90 % interval inside [1 / (1 + margin), 1 + margin]
    faster, slower    p after Holm's correction <= 0.05; ratio above, below 1
    undecided         else

Holm's families: the cells x PRIMARY; the geometric means of PRIMARY; of any other metric its cells, and its mean.

T. Kalibera, R. Jones, Rigorous Benchmarking in Reasonable Time, ISMM 2013 (the level to repeat; intervals of ratios);
D. J. Schuirmann, J. Pharmacokin. Biopharm. 15 (1987) 657-680 (two one-sided tests); S. Holm, Scand. J. Statist. 6
(1979) 65-70.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from benchbench.analysis.stats import (
    Estimate,
    Shift,
    chance_to_decide,
    detectable,
    holm,
    paired_shift,
    t_p_value,
    t_quantile,
    welch_shift,
)

Verdict = Literal["equivalent", "faster", "slower", "undecided"]

PRIMARY = ("sys_tok_s", "ttft")
BETTER = {"sys_tok_s": 1, "ttft": -1, "tpot": -1, "e2el": -1}  # 1: more is better, -1: less is
CONFIDENCE = 0.95
ALPHA = 0.05
POWER = 0.8
MORE_MAX = 200
# In logs. Times are kept in ns: starts that agree to 1e-9 are copies, or a model's output, and tell nothing of noise.
LEAST_SPREAD = 1e-9


@dataclass(frozen=True, slots=True)
class Sample:
    """One cell and metric in one block: each start's mean over its rounds, above 0, or None without a valid one.

    In runs that are not interleaved `block` only numbers the starts of each side.
    """

    cell: str
    metric: str
    block: int
    base: float | None
    candidate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What is known of one ratio. What follows from a spread is None where there is none, and so is a p-value.

    `noise`: standard deviation of one start (of logs: 0.01 is about 1 %). `mde`: the smallest effect, as a share (0.02
    is 2 %), that a test at 5 % finds with power 80 % at this noise and this many starts; `mde_family`: the same for
    5 % / m, Holm's worst case of m tests in the family. `more_blocks`, of the undecided only: how many more decide
    with probability 80 % if effect and noise are as seen; None above MORE_MAX. `ratio.n`: starts of the smaller side.
    """

    metric: str
    ratio: Estimate
    p_value: float | None
    p_adjusted: float | None
    noise: float | None
    mde: float | None
    mde_family: float | None
    more_blocks: int | None
    verdict: Verdict
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Judgement):
    """One cell; `base` and `candidate` are geometric means over the starts, in the metric's own unit."""

    cell: str
    base: float
    candidate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overall(Judgement):
    """The geometric mean over `cells`; those `left_out` have values too, but not in every start."""

    cells: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """A whole comparison; `left_out` are the (cell, metric) that no block has, or no start of one side."""

    cells: tuple[Comparison, ...]
    overall: tuple[Overall, ...]
    left_out: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The noise of one start (sd of logs) of one cell, or of the geometric mean of several, from an A/A run."""

    cells: tuple[str, ...]
    metric: str
    sd: float
    degrees: int
    mde: float
    mde_family: float

    def bound(self, starts: Iterable[int]) -> float:
        """Log-ratio that A/A with so many starts a side exceeds 5 times in 100: t(0.975; df) sd sqrt(1/n + 1/m)."""
        return t_quantile((1 + CONFIDENCE) / 2, self.degrees) * self.sd * math.sqrt(sum(1 / n for n in starts))


def compare(
    samples: Iterable[Sample], *, paired: bool = True, margin: float = 0.01, floor: Iterable[Noise] = ()
) -> Compared:
    """All metrics and cells in the order of first appearance, and each metric's geometric mean.

    `paired=False` is for two runs that were not interleaved: Welch's t over starts. With a `floor` nothing is called
    faster or slower whose ratio lies within `Noise.bound` of its cells. Raises ValueError for an unknown metric, a
    value not above 0, a cell given twice for a block, or a margin not above 0.
    """
    if not margin > 0:
        raise ValueError(f"margin must be above 0, not {margin}")
    rules = _Rules(paired, math.log1p(margin), {(frozenset(one.cells), one.metric): one for one in floor})
    grids = _grids(samples, paired)
    wholes = [grid.whole() for grid in grids]
    told = [] if paired else ["not interleaved: drift between the runs is not separated from the change"]
    told += [
        f"no geometric mean of {one.metric}: no cell has a value in every start" for one in wholes if not one.cells
    ]
    return Compared(
        cells=tuple(
            Comparison(cell=one.cells[0], base=one.geometric(one.base), candidate=one.geometric(one.new), **known)
            for one, known in _judged([claim for grid in grids for claim in grid.claims()], rules)
        ),
        overall=tuple(
            Overall(cells=one.cells, left_out=one.left_out, **known)
            for one, known in _judged([one for one in wholes if one.cells], rules)
        ),
        left_out=tuple((cell, grid.metric) for grid in grids for cell in grid.base if cell not in grid.both),
        warnings=tuple(told),
    )


def noise(samples: Iterable[Sample]) -> tuple[Noise, ...]:
    """The noise of one start in an interleaved A/A run: of each cell and metric, and of each geometric mean.

    sd = sd(d) / sqrt(2) with blocks - 1 degrees of freedom. What has no spread is left out. Whether A and A differ,
    which they must not, is what `compare` of the same samples says.
    """
    grids = _grids(samples, paired=True)
    cells = [claim for grid in grids for claim in grid.claims()]
    wholes = [whole for grid in grids if len((whole := grid.whole()).cells) > 1]
    return tuple(
        Noise(
            cells=claim.cells,
            sd=known["noise"],
            degrees=known["ratio"].n - 1,
            **{name: known[name] for name in ("metric", "mde", "mde_family")},
        )
        for group in (cells, wholes)
        for claim, known in _judged(group, _Rules(paired=True))
        if known["noise"] is not None
    )


def power(effect: float, sd: float, blocks: int, tests: int = 1) -> float:
    """Chance that `blocks` blocks find an effect (0.02: 2 % better) at noise `sd` > 0 per start, as one of `tests`.

    Noncentral t at 5 % / tests, Holm's worst case; 0 for a single block. `tests` is cells x PRIMARY for a cell, and
    len(PRIMARY) for a geometric mean.
    """
    if blocks < 2:
        return 0.0
    return chance_to_decide(math.log1p(effect), sd * math.sqrt(2 / blocks), blocks - 1, ALPHA / tests)


@dataclass(frozen=True, slots=True)
class _Claim:
    """What is to be judged: per start a cell's value, or a mean over cells, as logs of which more is better."""

    metric: str
    cells: tuple[str, ...]
    left_out: tuple[str, ...]
    base: list[float]
    new: list[float]  # when paired, of the same blocks as `base`
    planned: int

    def geometric(self, logs: Sequence[float]) -> float:
        """Geometric mean over starts, in the metric's unit."""
        return _exp(BETTER[self.metric] * fmean(logs))


@dataclass(frozen=True, slots=True)
class _Grid:
    """One metric: cell -> block -> log of which more is better. When paired, both sides have the same blocks."""

    metric: str
    base: dict[str, dict[int, float]]
    new: dict[str, dict[int, float]]
    blocks: set[int]

    @property
    def both(self) -> list[str]:
        return [cell for cell in self.base if self.base[cell] and self.new[cell]]

    def claims(self) -> Iterator[_Claim]:
        for cell in self.both:
            sides = (list(self.base[cell].values()), list(self.new[cell].values()))
            yield _Claim(self.metric, (cell,), (), *sides, len(self.blocks))

    def whole(self) -> _Claim:
        """The mean over those cells that every start has; a start with fewer than half of the cells does not count."""
        cells, sides = self.both, (self.base, self.new)
        kept = [[b for b in self.blocks if 2 * sum(b in side[cell] for cell in cells) >= len(cells)] for side in sides]
        full = [
            cell for cell in cells if all(b in side[cell] for side, of in zip(sides, kept, strict=True) for b in of)
        ]
        if not all(kept) or not full:
            return _Claim(self.metric, (), tuple(cells), [], [], len(self.blocks))
        base, new = ([fmean(side[cell][b] for cell in full) for b in of] for side, of in zip(sides, kept, strict=True))
        left_out = tuple(cell for cell in cells if cell not in full)
        return _Claim(self.metric, tuple(full), left_out, base, new, len(self.blocks))


def _grids(samples: Iterable[Sample], paired: bool) -> list[_Grid]:
    grids: dict[str, _Grid] = {}
    seen = set()
    for one in samples:
        where = f"cell {one.cell}, {one.metric}, block {one.block}"
        if one.metric not in BETTER:
            raise ValueError(f"{where}: unknown metric, known are {', '.join(BETTER)}")
        if where in seen:
            raise ValueError(f"{where}: given twice")
        seen.add(where)
        grid = grids.setdefault(one.metric, _Grid(one.metric, {}, {}, set()))
        grid.blocks.add(one.block)
        for side, value in ((grid.base, one.base), (grid.new, one.candidate)):
            values = side.setdefault(one.cell, {})
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{where}: {value} is not a finite number above 0")
            if value is not None and not (paired and None in {one.base, one.candidate}):
                values[one.block] = BETTER[one.metric] * math.log(value)
    return list(grids.values())


@dataclass(frozen=True, slots=True)
class _Rules:
    paired: bool
    margin: float = 0.0  # log
    floor: Mapping[tuple[frozenset[str], str], Noise] = field(default_factory=dict)


def _judged(claims: Sequence[_Claim], rules: _Rules) -> Iterator[tuple[_Claim, dict[str, Any]]]:
    """Each claim with the fields of its Judgement."""
    shifts = [(paired_shift if rules.paired else welch_shift)(one.base, one.new, LEAST_SPREAD) for one in claims]
    families: dict[str, dict[int, float]] = {}
    for index, (claim, shift) in enumerate(zip(claims, shifts, strict=True)):
        if shift.parts:
            families.setdefault("primary" if claim.metric in PRIMARY else claim.metric, {})[index] = t_p_value(shift)
    tested = {}
    for family in families.values():
        for index, adjusted in zip(family, holm(list(family.values())), strict=True):
            tested[index] = (family[index], adjusted, len(family))
    for index, (claim, shift) in enumerate(zip(claims, shifts, strict=True)):
        known = _judge(claim, shift, *tested[index], rules) if index in tested else _untested(shift)
        least = min(shift.starts)
        if least < claim.planned:
            known["warnings"] = (f"{least} of {claim.planned} starts", *known["warnings"])
        yield claim, {"metric": claim.metric, **known}


def _untested(shift: Shift) -> dict[str, Any]:
    """A judgement of what has no spread: never a verdict, since nothing tells how much of the ratio is luck."""
    if min(shift.starts) < 2:
        method, told = "one start", "one start of a side: no interval"
    else:
        method, told = "no spread", "no spread over starts: copies, or a deterministic server; no interval"
    empty = dict.fromkeys(("p_value", "p_adjusted", "noise", "mde", "mde_family", "more_blocks"))
    ratio = Estimate(_exp(shift.point), None, None, CONFIDENCE, min(shift.starts), method)
    return {"ratio": ratio, **empty, "verdict": "undecided", "warnings": (told,)}


def _judge(claim: _Claim, shift: Shift, p_value: float, p_adjusted: float, tests: int, rules: _Rules) -> dict[str, Any]:
    error, degrees = shift.error()
    half = t_quantile((1 + CONFIDENCE) / 2, degrees) * error
    method = "paired t over blocks, logs" if rules.paired else "Welch's t over starts, logs"
    low, high = _exp(shift.point - half), _exp(shift.point + half)
    floor = rules.floor.get((frozenset(claim.cells), claim.metric))
    bound = floor.bound(shift.starts) if floor else 0.0
    told = []
    if min(shift.starts) == 2:
        told.append("two starts of a side: a very wide interval")
    if rules.floor and floor is None:
        told.append("the noise run has no figure for this: no floor applied")
    verdict: Verdict = "undecided"
    if abs(shift.point) + t_quantile(1 - ALPHA, degrees) * error < rules.margin:
        verdict = "equivalent"
    elif p_adjusted <= ALPHA and abs(shift.point) <= bound:
        told.append(f"within the noise floor of {100 * (_exp(bound) - 1):.2f} %: not called")
    elif p_adjusted <= ALPHA:
        verdict = "faster" if shift.point > 0 else "slower"
    return {
        "ratio": Estimate(_exp(shift.point), low, high, CONFIDENCE, min(shift.starts), method),
        "p_value": p_value,
        "p_adjusted": p_adjusted,
        "noise": shift.noise,
        "mde": _exp(detectable(degrees, ALPHA, POWER) * error) - 1,
        "mde_family": _exp(detectable(degrees, ALPHA / tests, POWER) * error) - 1,
        "more_blocks": _more_blocks(shift, tests, rules.margin, floor) if verdict == "undecided" else None,
        "verdict": verdict,
        "warnings": tuple(told),
    }


def _more_blocks(shift: Shift, tests: int, margin: float, floor: Noise | None) -> int | None:
    """The fewest more starts of each side that decide with probability POWER, if all stays as seen."""

    def decide(more: int) -> bool:
        clear = floor is None or abs(shift.point) > floor.bound(n + more for n in shift.starts)
        alpha = ALPHA / tests if clear else 0.0
        return chance_to_decide(shift.point, *shift.error(more), alpha, margin) >= POWER

    more = 1 + bisect_left(range(1, MORE_MAX + 1), 1, key=decide)
    return more if more <= MORE_MAX else None


def _exp(log: float) -> float:
    """exp, but finite: two noisy starts can have an interval beyond all floats."""
    return math.exp(min(log, 700.0))
