"""What the comparison of two builds calls by mistake, covers and finds, beside other methods; Markdown on stdout.

Runs are simulated: BLOCKS blocks of one start of each build, ROUNDS rounds a cell and start, two metrics. The rules of
benchbench.comparison.verdicts are rewritten here for whole arrays of runs (tests/test_compare.py shows that both forms
give the same); only the last table calls the package. All values are logs of which more is better, so a change of
2 % is a shift by log 1.02, coverage does not depend on it, and one set of A/A runs serves for every table.

Axes: runs, metrics, cells, blocks, builds (0 base, 1 candidate), rounds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit

from benchbench.comparison.shifts import detectable
from benchbench.comparison.verdicts import Sample, Verdict, compare, power

Floats = NDArray[np.float64]
Truths = NDArray[np.bool_]
Method = Callable[[Floats, Floats], tuple[Floats, Floats]]

BLOCKS = 6
ROUNDS = 5
GRIDS = (5, 18, 54)
EFFECTS = (0.01, 0.02, 0.05)
ALPHA = 0.05
MARGIN = math.log1p(0.01)
START = 0.007  # of a start, in all its cells alike
LIKE = 0.5  # correlation of a start's effect between the two metrics
OWN = 0.003  # of a start in one cell, beyond START
ROUND = 0.01  # of a round
CARRY = 0.5  # correlation of successive rounds
STALL, STALLED = 0.01, 0.10  # this share of rounds is so much slower
REQUESTS = 32  # a round
WAYS = ("by itself", "against the rest")
CHUNK = 10_000  # runs x cells at a time, so that arrays stay small


class World(NamedTuple):
    """How runs are drawn."""

    name: str
    carry: float = 0.0
    stall: float = 0.0
    tails: str = ""  # what has t with 4 degrees of freedom: "rounds", "rounds and starts"
    shared: bool = True  # a start's effect is common to its cells


WORLDS = (
    World("plain: all normal, rounds independent"),
    World("rough: rounds AR(1), t(4), stalls", CARRY, STALL, "rounds"),
    World("rougher: start effects t(4) too", CARRY, STALL, "rounds and starts"),
    World("rough, but independent start effects per cell", CARRY, STALL, "rounds", shared=False),
)
ROUGH = WORLDS[1]


def draw(rng: np.random.Generator, world: World, runs: int, cells: int) -> Floats:
    """Rounds of A/A runs."""

    def unit(heavy: bool, *shape: int) -> Floats:
        return rng.standard_t(4, shape) / math.sqrt(2) if heavy else rng.standard_normal(shape)

    heavy = "starts" in world.tails
    starts = (runs, 1, 1 if world.shared else cells, BLOCKS, 2)
    common = unit(heavy, *starts)
    each = unit(heavy, *starts[:1], 2, *starts[2:])
    effect = START * (math.sqrt(LIKE) * common + math.sqrt(1 - LIKE) * each)
    start = effect + OWN * rng.standard_normal((runs, 2, cells, BLOCKS, 2))
    noise = unit("rounds" in world.tails, runs, 2, cells, BLOCKS, 2, ROUNDS)
    for number in range(1, ROUNDS):
        noise[..., number] *= math.sqrt(1 - world.carry**2)
        noise[..., number] += world.carry * noise[..., number - 1]
    stalled = rng.random(noise.shape) < world.stall
    rounds: Floats = start[..., None] + ROUND * noise - math.log1p(STALLED) * stalled
    return rounds


def differences(rounds: Floats) -> Floats:
    """Per block, log of candidate / base, where a start's value is its mean over rounds."""
    starts = np.log(np.exp(rounds).mean(axis=-1))
    ratio: Floats = starts[..., 1] - starts[..., 0]
    return ratio


def t_test(d: Floats) -> Floats:
    """stats.t_p_value of paired_shift, for the last axis."""
    n = d.shape[-1]
    p: Floats = 2 * stdtr(n - 1, -np.abs(d.mean(axis=-1)) / (d.std(axis=-1, ddof=1) / math.sqrt(n)))
    return p


def holm(p: Floats) -> Floats:
    """shifts.holm for each row."""
    order = np.argsort(p, axis=-1)
    steps = np.take_along_axis(p, order, axis=-1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0), axis=-1)
    return adjusted


def equivalent(d: Floats) -> Truths:
    """The verdict "equivalent", for the last axis."""
    n = d.shape[-1]
    reach = np.abs(d.mean(axis=-1)) + stdtrit(n - 1, 0.95) * d.std(axis=-1, ddof=1) / math.sqrt(n)
    inside: NDArray[np.bool_] = reach < MARGIN
    return inside


# The methods: the p-value of each cell and metric, and of each metric's geometric mean, when the candidate's logs are
# raised by `effect` (broadcast over runs, metrics, cells).


def by_blocks(rounds: Floats, effect: Floats) -> tuple[Floats, Floats]:
    d = differences(rounds) + effect[..., None]
    return t_test(d), t_test(d.mean(axis=2))


def by_blocks_above_noise(rounds: Floats, effect: Floats) -> tuple[Floats, Floats]:
    """With the noise floor of an A/A run, for which the next simulated run stands."""
    aa = differences(rounds)
    d = aa + effect[..., None]

    def kept(d: Floats, aa: Floats) -> Floats:
        bound = stdtrit(BLOCKS - 1, 0.975) * np.roll(aa.std(axis=-1, ddof=1), 1, axis=0) / math.sqrt(BLOCKS)
        p: Floats = np.where(np.abs(d.mean(axis=-1)) > bound, t_test(d), 1.0)
        return p

    return kept(d, aa), kept(d.mean(axis=2), aa.mean(axis=2))


def by_requests(scatter: float) -> Method:
    """Student's t over all requests, each `scatter` about its round's mean; the geometric mean takes cells as apart."""

    def method(rounds: Floats, effect: Floats) -> tuple[Floats, Floats]:
        n, inner = BLOCKS * ROUNDS * REQUESTS, BLOCKS * ROUNDS * (REQUESTS - 1)
        sides = np.moveaxis(rounds, 4, -1).reshape(*rounds.shape[:3], BLOCKS * ROUNDS, 2)
        shift = sides[..., 1].mean(axis=-1) - sides[..., 0].mean(axis=-1) + effect
        squares = scatter**2 * inner + REQUESTS * BLOCKS * ROUNDS * sides.var(axis=3)
        error = np.sqrt(squares.sum(axis=-1) / (n - 1) / n)
        whole = shift.mean(axis=2) / (np.sqrt((error**2).sum(axis=2)) / shift.shape[2])
        return 2 * stdtr(2 * n - 2, -np.abs(shift / error)), 2 * ndtr(-np.abs(whole))

    return method


def by_ranks(rounds: Floats, effect: Floats) -> tuple[Floats, Floats]:
    """Mann-Whitney over rounds (normal approximation, good at 30 a side); the mean over cells first, for the whole."""
    sides = np.moveaxis(rounds, 4, 3).reshape(*rounds.shape[:3], 2, BLOCKS * ROUNDS).copy()
    sides[..., 1, :] += effect[..., None]

    def p_value(sides: Floats) -> Floats:
        n = sides.shape[-1]
        both = sides.reshape(*sides.shape[:-2], 2 * n)
        first = np.argsort(both, axis=-1) < n
        u = (first * np.arange(1, 2 * n + 1)).sum(axis=-1) - n * (n + 1) / 2
        p: Floats = 2 * ndtr(-np.abs(u - n * n / 2) / math.sqrt(n * n * (2 * n + 1) / 12))
        return p

    return p_value(sides), p_value(sides.mean(axis=2))


def by_bootstrap(rounds: Floats, effect: Floats) -> tuple[Floats, Floats]:
    """Percentile bootstrap over blocks, exact: each of the ways to draw n blocks of n, with its probability."""
    ways = [np.bincount(way, minlength=BLOCKS) for way in combinations_with_replacement(range(BLOCKS), BLOCKS)]
    counts = np.array(ways, dtype=np.float64)
    chances = np.array(
        [math.factorial(BLOCKS) / math.prod(map(math.factorial, way)) for way in counts.astype(int).tolist()]
    )
    chances /= BLOCKS**BLOCKS

    def p_value(d: Floats) -> Floats:
        below = ((d @ counts.T) < 0) @ chances
        p: Floats = 2 * np.minimum(below, 1 - below).clip(0)
        return p

    d = differences(rounds) + effect[..., None]
    return p_value(d), p_value(d.mean(axis=2))


METHODS: dict[str, Method] = {
    "**paired t over blocks**": by_blocks,
    "the same, above an A/A run's noise floor": by_blocks_above_noise,
    "percentile bootstrap over blocks": by_bootstrap,
    "Mann-Whitney over rounds": by_ranks,
    "t-test over all requests, scatter 2 %": by_requests(0.02),
    "t-test over all requests, scatter 30 %": by_requests(0.30),
}
OURS = next(iter(METHODS))


class Found(NamedTuple):
    """Shares of runs, or of runs x cells x metrics. All methods' p-values are put through the same Holm."""

    alarm_cells: float  # A/A runs in which any cell and metric is called
    alarm_whole: float  # or any geometric mean
    alarm: float  # or anything at all
    covered_cells: float
    covered_whole: float
    power_whole: Floats  # per effect: geometric mean of metric 0, all of whose cells are changed
    power_all: Floats  # a cell of metric 0, all of whose cells are changed
    power_one: Floats  # the only changed cell of metric 0


def assess(method: Method, rounds: Floats) -> Found:
    cells = rounds.shape[2]
    nothing = method(rounds, np.zeros((1, 2, cells)))
    called, called_whole = (one.reshape(len(rounds), -1).any(axis=1) for one in calls(nothing))
    powers = []
    for effect in EFFECTS:
        change = np.zeros((1, 2, cells))
        change[:, 0] = math.log1p(effect)
        found, found_whole = calls(method(rounds, change))
        change[:, 0, 1:] = 0
        found_one, _ = calls(method(rounds, change))
        powers.append((found_whole[:, 0].mean(), found[:, 0].mean(), found_one[:, 0, 0].mean()))
    return Found(
        alarm_cells=float(called.mean()),
        alarm_whole=float(called_whole.mean()),
        alarm=float((called | called_whole).mean()),
        covered_cells=float((nothing[0] > ALPHA).mean()),
        covered_whole=float((nothing[1] > ALPHA).mean()),
        **dict(zip(("power_whole", "power_all", "power_one"), np.array(powers).T, strict=True)),
    )


def calls(p_values: tuple[Floats, Floats]) -> tuple[Truths, Truths]:
    """What is called after Holm: over cells x metrics, and over the geometric means."""
    cells, whole = p_values
    return (holm(cells.reshape(len(cells), -1)) <= ALPHA).reshape(cells.shape), holm(whole) <= ALPHA


def chunks(seed: int, world: World, runs: int, cells: int) -> Iterator[Floats]:
    """About so many runs, in chunks of equal size."""
    rng = np.random.default_rng([seed, WORLDS.index(world), cells])
    size = min(runs, CHUNK // cells)
    for _ in range(max(1, runs // size)):
        yield draw(rng, world, size, cells)


def assess_all(names: list[str], seed: int, world: World, runs: int, cells: int) -> dict[str, Found]:
    parts: dict[str, list[Found]] = {name: [] for name in names}
    for rounds in chunks(seed, world, runs, cells):
        for name, found in parts.items():
            found.append(assess(METHODS[name], rounds))
    return {name: Found(*(np.mean(c, axis=0) for c in zip(*found, strict=True))) for name, found in parts.items()}


def _percent(share: float | np.floating, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _row(*words: object) -> str:
    return f"| {' | '.join(map(str, words))} |"


def _told(found: Found) -> Iterator[str]:
    yield from (_percent(share) for share in found[:5])
    yield _percent(found.power_whole[1])


COLUMNS = (
    *("false alarm: any cell", "a geometric mean", "anything", "covers: cell", "geometric mean"),
    "finds 2 %: geometric mean",
)


def methods_table(seed: int, runs: int) -> Iterator[str]:
    yield _row("method", *COLUMNS, "one changed cell")
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for name, found in assess_all(list(METHODS), seed, ROUGH, runs, GRIDS[1]).items():
        yield _row(name, *_told(found), _percent(found.power_one[1]))


def worlds_tables(seed: int, runs: int) -> Iterator[str]:
    """The chosen method in all worlds, then its power per cell in the rough one."""
    yield _row("runs", "cells", *COLUMNS)
    yield "|---" * (len(COLUMNS) + 2) + "|"
    rough: dict[int, Found] = {}
    for world in WORLDS:
        for cells in GRIDS:
            found = assess_all([OURS], seed, world, runs, cells)[OURS]
            yield _row(world.name, cells, *_told(found))
            if world == ROUGH:
                rough[cells] = found
    sd = cell_noise(seed)
    yield f"\n### Power per cell, whose noise per start is {_percent(sd, 2)}\n"
    shown = [_percent(effect, 0) for effect in EFFECTS]
    yield _row("cells", *(f"{effect}: {what}" for effect in shown for what in ("forecast", "alone", "all changed")))
    yield "|---" * (3 * len(EFFECTS) + 1) + "|"
    for cells, found in rough.items():
        forecast = [power(effect, sd, BLOCKS, tests=2 * cells) for effect in EFFECTS]
        each = zip(forecast, found.power_one, found.power_all, strict=True)
        yield _row(cells, *(_percent(share) for three in each for share in three))


def cell_noise(seed: int) -> float:
    """Standard deviation of one start in one cell of the rough world."""
    return float(differences(next(chunks(seed, ROUGH, CHUNK, 1))).std() / math.sqrt(2))


def relative_table(seed: int, runs: int) -> Iterator[str]:
    """Each cell by itself, and against the mean of the others: any false alarm, and finding the only changed cell."""
    effects = (0.02, 0.03, 0.05)
    yield _row(
        "cells", "false alarm: relative", "anything", *(f"{_percent(e, 0)}: {way}" for e in effects for way in WAYS)
    )
    yield "|---" * (3 + len(WAYS) * len(effects)) + "|"
    for cells in GRIDS:
        shares = []
        for rounds in chunks(seed, ROUGH, runs, cells):
            d = differences(rounds)
            tests = [(d, d.mean(axis=2))]
            tests += [(_raised(d, effect), d.mean(axis=2)) for effect in effects]
            absolute = [calls((t_test(each), t_test(mean))) for each, mean in tests]
            relative = [calls((t_test(against_the_rest(each)), t_test(mean)))[0] for each, mean in tests]
            alarm = relative[0].reshape(len(d), -1).any(axis=1)
            anything = alarm | absolute[0][0].reshape(len(d), -1).any(axis=1) | absolute[0][1].any(axis=1)
            found = [
                way[:, 0, 0] for pair in zip(absolute[1:], relative[1:], strict=True) for way in (pair[0][0], pair[1])
            ]
            shares.append([alarm.mean(), anything.mean(), *(one.mean() for one in found)])
        yield _row(cells, *map(_percent, np.mean(shares, axis=0)))


def _raised(d: Floats, effect: float) -> Floats:
    """The first cell changed, in the first metric."""
    raised = d.copy()
    raised[:, 0, 0] += math.log1p(effect)
    return raised


def against_the_rest(d: Floats) -> Floats:
    """Of each cell minus the mean of the other cells, block by block."""
    rest: Floats = d - (d.sum(axis=2, keepdims=True) - d) / (d.shape[2] - 1)
    return rest


def kept_effect_table(seed: int, runs: int) -> Iterator[str]:
    """False alarms of a geometric mean where a start effect of 0.5 % is kept by all its starts, as in a cache."""
    numbers, kept = (3, 6, 10), 0.005
    yield _row("kept start effect", *(f"{blocks} blocks" for blocks in numbers))
    yield "|---" * (1 + len(numbers)) + "|"
    for share in (0.0, kept):
        rng = np.random.default_rng([seed, 7])
        alarms = []
        for blocks in numbers:
            d = math.sqrt(2) * START * rng.standard_normal((10 * runs, blocks))
            d += math.sqrt(2) * share * rng.standard_normal((10 * runs, 1))
            alarms.append((t_test(d) <= ALPHA).mean())
        yield _row(_percent(share), *map(_percent, alarms))


def equivalence_table(seed: int, runs: int) -> Iterator[str]:
    """How often "equivalent" is said, of a cell and of the geometric mean."""
    truths = (0.0, 0.005, 0.01)
    yield _row("true change", *map(_percent, truths))
    yield "|---" * (len(truths) + 1) + "|"
    d = np.concatenate([differences(rounds) for rounds in chunks(seed, ROUGH, runs, GRIDS[1])])
    for name, values in (("a cell", d), ("the geometric mean", d.mean(axis=2))):
        yield _row(name, *(_percent(equivalent(values + math.log1p(truth)).mean()) for truth in truths))


def blocks_table() -> Iterator[str]:
    """The smallest change that so many blocks find with a chance of 80 %, by formula, at three noises per start."""
    noises, numbers = (0.003, 0.007, 0.015), (2, 3, 4, 6, 8, 12)
    yield _row("of", "noise per start", *(f"{blocks} blocks" for blocks in numbers))
    yield "|---" * (len(numbers) + 2) + "|"
    for name, tests in (("geometric mean", 2), ("a cell of 18", 36)):
        for sd in noises:
            found = (detectable(n - 1, ALPHA / tests) * sd * math.sqrt(2 / n) for n in numbers)
            yield _row(name, _percent(sd), *(_percent(math.expm1(log)) if log < 1 else "-" for log in found))


def follow_up_table(seed: int, runs: int) -> Iterator[str]:
    """The headline of runs that are continued by `more_blocks` and judged again; the package's own functions."""
    looks = [f"{look}: {what}" for look in ("first", "in the end") for what in ("called", "equivalent", "undecided")]
    yield _row("noise per start", "true change", *looks, "more blocks suggested: median")
    yield "|---" * (len(looks) + 3) + "|"
    for sd, change in ((0.007, 0.0), (0.007, 0.005), (0.007, 0.01), (0.007, 0.02), (0.02, 0.0), (0.02, 0.02)):
        rng = np.random.default_rng([seed, round(1e4 * sd), round(1e4 * change)])
        first, end, more = [], [], []
        for _ in range(runs):
            seen = _headline_samples(rng, sd, change, range(BLOCKS))
            headline = compare(seen).overall[0]
            first.append(headline.verdict)
            if headline.more_blocks is not None:
                more.append(headline.more_blocks)
                seen += _headline_samples(rng, sd, change, range(BLOCKS, BLOCKS + more[-1]))
                headline = compare(seen).overall[0]
            end.append(headline.verdict)
        kinds: tuple[set[Verdict], ...] = ({"faster", "slower"}, {"equivalent"}, {"undecided"})
        shares = (sum(one in kind for one in look) / runs for look in (first, end) for kind in kinds)
        yield _row(_percent(sd), _percent(change), *map(_percent, shares), f"{np.median(more):.0f}")


def _headline_samples(rng: np.random.Generator, sd: float, change: float, blocks: range) -> list[Sample]:
    """One cell that stands for the whole grid."""
    values = np.exp(sd * rng.multivariate_normal([0, 0], [[1, LIKE], [LIKE, 1]], (len(blocks), 2)))
    values[:, 1, 0] *= 1 + change
    return [
        Sample("grid", metric, block, *(one[:, number] ** sign).tolist())
        for number, (metric, sign) in enumerate((("sys_tok_s", 1), ("ttft", -1)))
        for block, one in zip(blocks, values, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000, help="simulated runs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    error = 100 * (0.95 * 0.05 / asked.runs) ** 0.5
    print(
        f"About {asked.runs:,} runs of {BLOCKS} blocks, seed {asked.seed}; standard error of 5 % {error:.2f} points.\n"
    )
    for title, lines in (
        (f"Methods: rough runs of {GRIDS[1]} cells", methods_table(asked.seed, asked.runs)),
        ("Paired t over blocks", worlds_tables(asked.seed, asked.runs)),
        ("One changed cell, by itself and against the rest of the grid", relative_table(asked.seed, asked.runs)),
        ("False alarms of a geometric mean where a cache outlives a start", kept_effect_table(asked.seed, asked.runs)),
        ('Verdict "equivalent", margin 1 %', equivalence_table(asked.seed, asked.runs)),
        ("The smallest change found with 80 % power, by formula", blocks_table()),
        ("One more look, geometric mean", follow_up_table(asked.seed, max(1, asked.runs // 10))),
    ):
        print(f"### {title}\n")
        for line in lines:
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
