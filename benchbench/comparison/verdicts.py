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

Holm's families: the cells x PRIMARY; the geometric means of PRIMARY; of any other metric its cells, and its mean; and
each cell against the rest of the grid x PRIMARY, where d_b is the cell's minus the mean of the other cells'. Each is
over all candidates that are compared with the baseline at once:

    d_b(c) - mean over c' != c of d_b(c')        without what a start does to all its cells alike

T. Kalibera, R. Jones, Rigorous Benchmarking in Reasonable Time, ISMM 2013 (the level to repeat; intervals of ratios);
D. J. Schuirmann, J. Pharmacokin. Biopharm. 15 (1987) 657-680 (two one-sided tests); S. Holm, Scand. J. Statist. 6
(1979) 65-70.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

from benchbench.analysis.stats import Estimate
from benchbench.comparison.shifts import Shift, chance_to_decide, detectable, holm, paired_shift, t_p_value, welch_shift
from benchbench.student.t_distribution import t_quantile

Verdict = Literal["equivalent", "faster", "slower", "undecided"]

PRIMARY = ("sys_tok_s", "ttft")
_FAMILY = dict.fromkeys(PRIMARY, "primary")  # the others have their own
TITLES = {"sys_tok_s": "Sys tok/s", "ttft": "TTFT", "tpot": "TPOT", "e2el": "E2EL", "goodput_req_s": "Goodput"}
BETTER = {"sys_tok_s": 1, "ttft": -1, "tpot": -1, "e2el": -1, "goodput_req_s": 1}  # 1: more is better, -1: less is
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
class Effect:
    """What is known of one ratio. What follows from a spread is None where there is none, and so is a p-value.

    `noise`: standard deviation of one start (of logs: 0.01 is about 1 %). `mde`: the smallest effect, as a share (0.02
    is 2 %), that a test at 5 % finds with power 80 % at this noise and this many starts; `mde_family`: the same for
    5 % / m, Holm's worst case of m tests in the family. `more_blocks`, of the undecided only: how many more decide
    with probability 80 % if effect and noise are as seen; None above MORE_MAX. `ratio.n`: starts of the smaller side.
    `significant`: p after Holm <= 0.05 and outside of the noise floor, whatever the verdict.
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
    significant: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Effect):
    """One cell; `base` and `candidate` are geometric means over the starts, in the metric's own unit."""

    cell: str
    base: float
    candidate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overall(Effect):
    """The geometric mean over `cells`; those `left_out` have values too, but not in every start."""

    cells: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparisons:
    """A whole comparison; `left_out` are the (cell, metric) that no block has, or no start of one side.

    `relative`: each cell against the rest of the grid, where that has three cells or more; its `base` and `candidate`
    are the cell's share of the others' geometric mean.
    """

    cells: tuple[Comparison, ...]
    overall: tuple[Overall, ...]
    relative: tuple[Comparison, ...]
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
    samples: Iterable[Sample],
    *,
    paired: bool = True,
    margin: float = 0.01,
    floor: Iterable[Noise] = (),
    planned: int | None = None,
    beside: Sequence[Comparisons] = (),
) -> Comparisons:
    """All metrics and cells in the order of first appearance, and each metric's geometric mean.

    `paired=False` is for two runs that were not interleaved: Welch's t over starts, of which the run with fewer has
    `planned` (by default as many as there are blocks). With a `floor` nothing is faster or slower whose ratio lies
    within `Noise.bound` of its cells. `beside`: this baseline's other candidates, whose p-values are in the same
    families. Raises ValueError for an unknown metric, a value not above 0, a cell given twice for a block, or a margin
    not above 0.
    """
    if not margin > 0:
        raise ValueError(f"margin must be above 0, not {margin}")
    floors = {(frozenset(noise.cells), noise.metric): noise for noise in floor}
    rules = _Rules(paired, math.log1p(margin), floors, beside)
    grids = grids_of(samples, paired=paired, planned=planned)
    means = [grid.mean() for grid in grids]
    relative = [contrast for grid in grids if grid.metric in PRIMARY for contrast in grid.relative()]
    warnings = [] if paired else ["not interleaved: the change is confounded with drift between the runs"]
    empty = [mean.metric for mean in means if not mean.cells]
    warnings += [f"no geometric mean of {metric}: no cell has a value in every start" for metric in empty]
    return Comparisons(
        cells=_compared([contrast for grid in grids for contrast in grid.contrasts()], rules, "cells"),
        overall=tuple(
            Overall(cells=c.cells, left_out=c.left_out, **effect)
            for c, effect in _effects([mean for mean in means if mean.cells], rules, "overall")
        ),
        relative=_compared(relative, replace(rules, floor={}), "relative"),
        left_out=tuple((cell, grid.metric) for grid in grids for cell in grid.base if cell not in grid.both),
        warnings=tuple(warnings),
    )


def _compared(contrasts: Sequence[_Contrast], rules: _Rules, kind: str) -> tuple[Comparison, ...]:
    return tuple(
        Comparison(cell=c.cells[0], base=c.geometric(c.base), candidate=c.geometric(c.new), **effect)
        for c, effect in _effects(contrasts, rules, kind)
    )


def noise(samples: Iterable[Sample]) -> tuple[Noise, ...]:
    """The noise of one start in an interleaved A/A run: of each cell and metric, and of each geometric mean.

    sd = sd(d) / sqrt(2) with blocks - 1 degrees of freedom. What has no spread is left out. Whether A and A differ,
    which they must not, is what `compare` of the same samples says.
    """
    grids = grids_of(samples)
    cells = [contrast for grid in grids for contrast in grid.contrasts()]
    means = [mean for grid in grids if len((mean := grid.mean()).cells) > 1]
    return tuple(
        Noise(
            cells=contrast.cells,
            sd=effect["noise"],
            degrees=effect["ratio"].n - 1,
            **{name: effect[name] for name in ("metric", "mde", "mde_family")},
        )
        for group in (cells, means)
        for contrast, effect in _effects(group, _Rules(paired=True), "cells")
        if effect["noise"] is not None
    )


def power(effect: float, sd: float, blocks: int, tests: int = 1, *, paired: bool = True) -> float:
    """Chance that `blocks` blocks, or two runs of so many starts, find an effect (0.02: 2 % better) at noise `sd` > 0
    per start, as one of `tests`.

    Noncentral t at 5 % / tests, Holm's worst case; 0 for a single block. `tests` is cells x PRIMARY for a cell, and
    len(PRIMARY) for a geometric mean.
    """
    if blocks < 2:
        return 0.0
    degrees = (blocks - 1) * (1 if paired else 2)
    return chance_to_decide(math.log1p(effect), sd * math.sqrt(2 / blocks), degrees, ALPHA / tests)


@dataclass(frozen=True, slots=True)
class _Contrast:
    """What is to be tested: per start a cell's value, or a mean over cells, as logs of which more is better."""

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
class Grid:
    """One metric: cell -> block -> log of which more is better. When paired, both sides have the same blocks."""

    metric: str
    base: dict[str, dict[int, float]]
    new: dict[str, dict[int, float]]
    blocks: set[int]
    planned: int | None = None

    @property
    def both(self) -> list[str]:
        return [cell for cell in self.base if self.base[cell] and self.new[cell]]

    def contrasts(self) -> Iterator[_Contrast]:
        for cell in self.both:
            sides = (list(self.base[cell].values()), list(self.new[cell].values()))
            yield _Contrast(self.metric, (cell,), (), *sides, self.planned or len(self.blocks))

    def mean(self) -> _Contrast:
        """The mean over those cells that every start has; a start with fewer than half of the cells does not count."""
        full, kept = self._full()
        kept_cells = {*full}
        left_out = tuple(cell for cell in self.both if cell not in kept_cells)
        base, new = ([fmean(side[cell][b] for cell in full) for b in blocks] if full else [] for side, blocks in kept)
        return _Contrast(self.metric, tuple(full), left_out, base, new, self.planned or len(self.blocks))

    def relative(self) -> Iterator[_Contrast]:
        """Each cell of the mean minus the mean of the others, start by start; none of fewer than three cells."""
        full, kept = self._full()
        totals = [{b: math.fsum(side[cell][b] for cell in full) for b in blocks} for side, blocks in kept]
        for cell in full if len(full) > 2 else []:
            base, new = (
                [side[cell][b] - (total - side[cell][b]) / (len(full) - 1) for b, total in sums.items()]
                for (side, _), sums in zip(kept, totals, strict=True)
            )
            yield _Contrast(self.metric, (cell,), (), base, new, self.planned or len(self.blocks))

    def _full(self) -> tuple[list[str], list[tuple[dict[str, dict[int, float]], list[int]]]]:
        """The cells that all starts have which count, and each side with those starts' blocks."""
        cells, sides = self.both, (self.base, self.new)
        kept = [
            (side, [b for b in self.blocks if 2 * sum(b in side[cell] for cell in cells) >= len(cells)])
            for side in sides
        ]
        full = [cell for cell in cells if all(b in side[cell] for side, blocks in kept for b in blocks)]
        return (full if all(blocks for _, blocks in kept) else []), kept


def grids_of(samples: Iterable[Sample], *, paired: bool = True, planned: int | None = None) -> list[Grid]:
    """The values of each metric, in the order of first appearance. Raises ValueError, as `compare`."""
    grids: dict[str, Grid] = {}
    seen = set()
    for sample in samples:
        where = f"cell {sample.cell}, {sample.metric}, block {sample.block}"
        if sample.metric not in BETTER:
            raise ValueError(f"{where}: unknown metric, known are {', '.join(BETTER)}")
        if where in seen:
            raise ValueError(f"{where}: given twice")
        seen.add(where)
        grid = grids.setdefault(sample.metric, Grid(sample.metric, {}, {}, set(), planned))
        grid.blocks.add(sample.block)
        for side, value in ((grid.base, sample.base), (grid.new, sample.candidate)):
            values = side.setdefault(sample.cell, {})
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{where}: {value} is not a finite number above 0")
            if value is not None and not (paired and None in {sample.base, sample.candidate}):
                values[sample.block] = BETTER[sample.metric] * math.log(value)
    return list(grids.values())


@dataclass(frozen=True, slots=True)
class _Rules:
    paired: bool
    margin: float = 0.0  # log
    floor: Mapping[tuple[frozenset[str], str], Noise] = field(default_factory=dict)
    beside: Sequence[Comparisons] = ()


def _effects(contrasts: Sequence[_Contrast], rules: _Rules, kind: str) -> Iterator[tuple[_Contrast, dict[str, Any]]]:
    """Each contrast with the fields of its Effect; `kind`: which of Comparisons' fields they are."""
    shifts = [(paired_shift if rules.paired else welch_shift)(c.base, c.new, LEAST_SPREAD) for c in contrasts]
    families: dict[str, dict[int, float]] = {}
    for index, (contrast, shift) in enumerate(zip(contrasts, shifts, strict=True)):
        if shift.parts:
            families.setdefault(_FAMILY.get(contrast.metric, contrast.metric), {})[index] = t_p_value(shift)
    tested = {}
    beside = [effect for other in rules.beside for effect in getattr(other, kind) if effect.p_value is not None]
    for name, family in families.items():
        others = [effect.p_value for effect in beside if _FAMILY.get(effect.metric, effect.metric) == name]
        for index, adjusted in zip(family, holm([*family.values(), *others]), strict=False):  # its own come first
            tested[index] = (family[index], adjusted, len(family) + len(others))
    for index, (contrast, shift) in enumerate(zip(contrasts, shifts, strict=True)):
        effect = _test(contrast, shift, *tested[index], rules) if index in tested else _untested(shift)
        least = min(shift.starts)
        if least < contrast.planned:
            effect["warnings"] = (f"{least} of {contrast.planned} starts", *effect["warnings"])
        yield contrast, {"metric": contrast.metric, **effect}


def _untested(shift: Shift) -> dict[str, Any]:
    """An effect that has no spread: never a verdict, since the variance between starts is unknown."""
    if min(shift.starts) < 2:
        method, warning = "one start", "only one start of one side, so no interval"
    else:
        method, warning = "no spread", "no variance between starts (copies, or a deterministic server), so no interval"
    empty = dict.fromkeys(("p_value", "p_adjusted", "noise", "mde", "mde_family", "more_blocks"))
    ratio = Estimate(_exp(shift.point), None, None, CONFIDENCE, min(shift.starts), method)
    return {"ratio": ratio, **empty, "verdict": "undecided", "significant": False, "warnings": (warning,)}


def _test(
    contrast: _Contrast, shift: Shift, p_value: float, p_adjusted: float, tests: int, rules: _Rules
) -> dict[str, Any]:
    error, degrees = shift.error()
    half = t_quantile((1 + CONFIDENCE) / 2, degrees) * error
    method = "paired t over blocks, logs" if rules.paired else "Welch's t over starts, logs"
    low, high = _exp(shift.point - half), _exp(shift.point + half)
    floor = rules.floor.get((frozenset(contrast.cells), contrast.metric))
    bound = floor.bound(shift.starts) if floor else 0.0
    warnings = []
    if min(shift.starts) == 2:
        warnings.append("only two starts of one side: a very wide interval")
    if rules.floor and floor is None:
        warnings.append("not in the noise run: no noise floor applied")
    verdict: Verdict = "undecided"
    significant = p_adjusted <= ALPHA and abs(shift.point) > bound
    if abs(shift.point) + t_quantile(1 - ALPHA, degrees) * error < rules.margin:
        verdict = "equivalent"
    elif significant:
        verdict = "faster" if shift.point > 0 else "slower"
    elif p_adjusted <= ALPHA:
        warnings.append(f"within the noise floor of {100 * (_exp(bound) - 1):.2f} %: no verdict")
    return {
        "ratio": Estimate(_exp(shift.point), low, high, CONFIDENCE, min(shift.starts), method),
        "p_value": p_value,
        "p_adjusted": p_adjusted,
        "noise": shift.noise,
        "mde": _exp(detectable(degrees, ALPHA, POWER) * error) - 1,
        "mde_family": _exp(detectable(degrees, ALPHA / tests, POWER) * error) - 1,
        "more_blocks": _more_blocks(shift, tests, rules.margin, floor) if verdict == "undecided" else None,
        "verdict": verdict,
        "significant": significant,
        "warnings": tuple(warnings),
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
