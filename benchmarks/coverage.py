"""How often the printed 95 % interval holds the truth, the stopping of rounds included; Markdown on stdout.

Cells are simulated (their true mean is 1) and put through the rules of benchbench.analysis, rewritten here for whole
arrays of cells; tests/test_rounds_rule.py shows that both forms give the same. One row of an
array is a cell, one column a round.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from benchbench.explain.outliers import OUTLIER_BOUNDS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NOISES = (0.005, 0.01, 0.02, 0.03, 0.05)
PILOT, LONG_PILOT = 5, 8
MORE = 5  # rounds that confirm a drift
LIMIT = 20
REL_CI = 0.02
WIDTH = 600  # rounds drawn for "no limit": at 5 % noise more are needed in one cell of 10^8
CHUNK = 2_000  # cells at a time, so that arrays stay in the cache
SWEEP = 54  # cells of the largest shipped grid


class Outcome(NamedTuple):
    """Per cell: rounds run, the printed mean and half-width, and whether the limit came before the rule was met."""

    rounds: Ints
    mean: Floats
    half: Floats
    cut: Bools

    @property
    def covered(self) -> Bools:
        return np.abs(self.mean - 1) <= self.half


def draw(rng: np.random.Generator, cells: int, width: int, noise: float, skewed: bool = False) -> Floats:
    """Cells x rounds with mean 1 and standard deviation `noise`: normal, or exponential (skewness 2)."""
    if skewed:
        return 1 + noise * (rng.standard_exponential((cells, width)) - 1)
    return 1 + noise * rng.standard_normal((cells, width))


def needed(values: Floats, rel_ci: float = REL_CI, mean: float | None = None, pilot: int = PILOT) -> Ints:
    """stats.rounds_needed for each cell; `mean` replaces the pilot's, to see what that costs."""
    first = values[:, :pilot]
    width = stdtrit(pilot - 1, 0.975) * first.std(axis=1, ddof=1) / (first.mean(axis=1) if mean is None else mean)
    rounds: Ints = np.maximum(pilot, np.ceil((width / rel_ci) ** 2)).astype(np.int64)
    return rounds


def two_stage(values: Floats, wanted: Ints, limit: int, pilot: int = PILOT) -> Outcome:
    """stats.two_stage_estimate for each cell, over the rounds wanted or `limit` of them."""
    rounds = np.minimum(wanted, limit)
    total = np.where(np.arange(values.shape[1]) < rounds[:, None], values, 0.0).sum(axis=1)
    half = stdtrit(pilot - 1, 0.975) * values[:, :pilot].std(axis=1, ddof=1) / np.sqrt(rounds)
    return Outcome(rounds, total / rounds, half, wanted > limit)


def long_pilots(values: Floats) -> Bools:
    """evidence.pilot_for: whether a cell has the long pilot, as half of its sweep's earlier cells are noisy."""
    noisy = (needed(values) >= LONG_PILOT).reshape(-1, SWEEP)
    earlier = np.cumsum(noisy, axis=1) - noisy
    long: Bools = ((2 * earlier >= np.arange(SWEEP)) & (np.arange(SWEEP) > 0)).ravel()
    return long


def cells_run(values: Floats, long: Bools, limit: int = LIMIT) -> tuple[Outcome, Bools]:
    """All of it for each cell, the rounds that confirm a drift included; and steadiness.drift_of.

    `long` says which cells have the long pilot.
    """
    short, tall = (
        (needed(values, pilot=pilot), stdtrit(pilot - 1, 0.975) * values[:, :pilot].std(axis=1, ddof=1))
        for pilot in (PILOT, LONG_PILOT)
    )
    asked = np.where(long, tall[0], short[0])
    rounds, drifts_now = confirmed(values, asked, limit)
    total = np.where(np.arange(values.shape[1]) < rounds[:, None], values, 0.0).sum(axis=1)
    half = np.where(long, tall[1], short[1]) / np.sqrt(rounds)
    return Outcome(rounds, total / rounds, half, asked > limit), drifts_now


def confirmed(values: Floats, asked: Ints, limit: int = LIMIT) -> tuple[Ints, Bools]:
    """steadiness.rounds_to_confirm and drift_of for each cell whose interval needs `asked` rounds."""
    first = np.minimum(asked, limit)
    suspected = drifting(values, first)
    goal = np.where(suspected, np.minimum(first + MORE, limit), first)
    goal = np.where(goal >= 9, goal, first)
    strict = (goal > first) | (asked > limit)
    return goal, suspected & drifting(values, goal, np.where(strict, 0.001, 0.01))


def naive(values: Floats, limit: int, rel_ci: float = REL_CI) -> Outcome:
    """Stop as soon as Student's interval of all rounds so far is narrow enough, from the pilot's last round on."""
    values = values[:, :limit]
    n = np.arange(1, values.shape[1] + 1)
    mean, spread = _running(values)
    half = np.full_like(mean, np.inf)
    half[:, PILOT - 1 :] = stdtrit(n - 1, 0.975)[PILOT - 1 :] * spread[:, PILOT - 1 :] / np.sqrt(n[PILOT - 1 :])
    narrow = half <= rel_ci * mean
    met: Bools = np.any(narrow, axis=1)
    last = np.where(met, narrow.argmax(axis=1), values.shape[1] - 1)
    cell = np.arange(len(values))
    return Outcome(n[last], mean[cell, last], half[cell, last], np.logical_not(met))


def _running(values: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation (n-1) of the first n rounds, for each n; the spread of one round is 0."""
    n = np.arange(1, values.shape[1] + 1)
    first = values[:, :1]  # taken off, so that squares lose no digits
    total = np.cumsum(values - first, axis=1)
    squares = np.cumsum((values - first) ** 2, axis=1)
    variance = np.maximum(squares - total**2 / n, 0.0) / np.maximum(n - 1, 1)
    return first + total / n, np.sqrt(variance)


def drifts(values: Floats, rounds: Ints) -> tuple[Floats, Floats]:
    """steadiness.drift for each cell's first `rounds` rounds."""
    within = np.arange(values.shape[1]) < rounds[:, None]
    mean = np.where(within, values, 0.0).sum(axis=1) / rounds
    off = np.where(within, values - mean[:, None], 0.0)
    at = np.where(within, np.arange(values.shape[1]) - (rounds[:, None] - 1) / 2, 0.0)
    squares = (at**2).sum(axis=1)
    slope = (at * off).sum(axis=1) / squares
    left = ((off - slope[:, None] * at) ** 2).sum(axis=1)
    error = np.sqrt(left / (rounds - 2) / squares)
    return slope * (rounds - 1) / mean, 2 * stdtr(rounds - 2, -np.abs(slope / error))


def drifting(values: Floats, rounds: Ints, chance: float | Floats = 0.01) -> Bools:
    """steadiness.has_drift for each cell's first `rounds` rounds."""
    change, p = drifts(values, rounds)
    return (np.abs(change) > REL_CI) & (p < chance)


def outliers(values: Floats, rounds: Ints, bounds: dict[int, float] | None = None) -> Bools:
    """Whether outlier_rounds finds any among each cell's first `rounds` rounds."""
    run = np.where(np.arange(values.shape[1]) < rounds[:, None], values, np.nan)
    middle = np.nanmedian(run, axis=1)
    away = np.abs(run - middle[:, None])
    by_number = OUTLIER_BOUNDS if bounds is None else bounds
    mads = np.interp(rounds, list(by_number), list(by_number.values()))
    flagged: Bools = np.nanmax(away, axis=1) > np.maximum(
        mads * 1.4826 * np.nanmedian(away, axis=1), 0.001 * np.abs(middle)
    )
    return flagged


def warned(values: Floats, rounds: Ints, cells: int = SWEEP) -> tuple[Bools, Bools]:
    """steadiness.order_warnings for sweeps of `cells` cells in turn: (autocorrelation, trend)."""
    within = np.arange(values.shape[1]) < rounds[:, None]
    away = np.where(within, values - np.where(within, values, 0.0).sum(axis=1, keepdims=True) / rounds[:, None], 0.0)
    squares = (away**2).sum(axis=1)
    at = np.where(within, np.arange(values.shape[1]) - (rounds[:, None] - 1) / 2, 0.0)
    lag1 = (away[:, 1:] * away[:, :-1]).sum(axis=1) / squares
    trend = (at * away).sum(axis=1) / np.sqrt((at**2).sum(axis=1) * squares)
    n = rounds.astype(np.float64)
    variance = (n**4 - 4 * n**3 + 3 * n**2 + 4 * n - 4) / ((n + 1) * n**2 * (n - 1) ** 2)

    def pooled(of_cells: Floats) -> Floats:
        sums: Floats = of_cells.reshape(-1, cells).sum(axis=1)
        return sums

    z_lag1 = pooled(n * lag1 + 1) / np.sqrt(pooled(n**2 * variance))
    return z_lag1 > 2.807, np.abs(pooled(np.sqrt(n - 1) * trend)) / cells**0.5 > 3.023


def _chunks(
    seed: int, cells: int, noise: float, *, width: int = WIDTH, skewed: bool = False, chunk: int = CHUNK
) -> Iterator[Floats]:
    rng = np.random.default_rng([seed, round(noise * 1e6), int(skewed)])
    for start in range(0, cells, chunk):
        yield draw(rng, min(chunk, cells - start), width, noise, skewed)


def _joined(parts: list[Outcome]) -> Outcome:
    return Outcome(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _percent(share: float | np.floating, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _told(outcome: Outcome) -> str:
    return (
        f"{_percent(outcome.covered.mean(), 2)} | {outcome.rounds.mean():.1f} | "
        f"{np.percentile(outcome.rounds, 95):.0f} | {_percent(outcome.cut.mean())}"
    )


def coverage_table(seed: int, cells: int, *, skewed: bool = False) -> Iterator[str]:
    yield (
        "| noise | max | two-stage: covers | rounds | p95 | cut by max | narrow-looking t: covers | rounds | p95 | "
        "cut by max |"
    )
    yield "|---|---|" + "---|" * 8
    for noise in NOISES:
        runs: list[tuple[int, list[Outcome], list[Outcome]]] = [(LIMIT, [], []), (WIDTH, [], [])]
        for values in _chunks(seed, cells, noise, skewed=skewed):
            wanted = needed(values)
            for limit, ours, theirs in runs:
                ours.append(two_stage(values, wanted, limit))
                theirs.append(naive(values, limit))
        for limit, ours, theirs in runs:
            shown = limit if limit == LIMIT else "none"
            yield f"| {_percent(noise)} | {shown} | {_told(_joined(ours))} | {_told(_joined(theirs))} |"


def relative_table(seed: int, cells: int) -> Iterator[str]:
    """What it costs to make the width relative by the pilot's mean and not by the unknown true one; no limit."""
    yield "| noise | covers, n by the pilot's mean | n by the true mean | bias of the mean | half-width / mean, p99 |"
    yield "|---|---|---|---|---|"
    for noise in NOISES:
        ours, ideal = [], []
        for values in _chunks(seed, cells, noise):
            ours.append(two_stage(values, needed(values), WIDTH))
            ideal.append(two_stage(values, needed(values, mean=1.0), WIDTH))
        by_pilot, by_truth = _joined(ours), _joined(ideal)
        yield (
            f"| {_percent(noise)} | {_percent(by_pilot.covered.mean(), 2)} | {_percent(by_truth.covered.mean(), 2)} | "
            f"{100 * (by_pilot.mean.mean() - 1):+.3f} % | "
            f"{_percent(np.percentile(by_pilot.half / by_pilot.mean, 99), 2)} |"
        )


def pilot_table(seed: int, cells: int) -> Iterator[str]:
    """The pilot of 5, the one that earlier cells make 8, and what choosing it by the cell's own spread would do."""
    yield (
        "| noise | pilot 5: covers | rounds | too few | by earlier cells: has 8 | covers | rounds | too few | "
        "by its own spread: covers |"
    )
    yield "|---" * 9 + "|"
    for noise in NOISES:
        columns: list[list[Outcome]] = [[], [], []]
        share = []
        for values in _chunks(seed, cells // SWEEP * SWEEP, noise, width=LIMIT, chunk=20 * SWEEP):
            long = long_pilots(values)
            share.append(long.mean())
            choices = (np.zeros(len(values), np.bool_), long, needed(values) >= LONG_PILOT)
            for outcomes, choice in zip(columns, choices, strict=True):
                outcomes.append(cells_run(values, choice)[0])
        five, ours, own = (_joined(column) for column in columns)
        texts = (
            *(_percent(noise), _percent(five.covered.mean()), f"{five.rounds.mean():.1f}", _percent(five.cut.mean())),
            *(_percent(np.mean(share), 0), _percent(ours.covered.mean()), f"{ours.rounds.mean():.1f}"),
            *(_percent(ours.cut.mean()), _percent(own.covered.mean())),
        )
        yield f"| {' | '.join(texts)} |"


def drift_table(seed: int, cells: int) -> Iterator[str]:
    """False drifts in steady sweeps and drifts found, by the first rounds alone and with those that confirm."""
    slopes = (0.005, 0.01, 0.02)
    heads = (f"{_percent(slope)} a round: found | confirmed" for slope in slopes)
    yield f"| noise | {SWEEP}-cell sweeps with a false one | now | rounds more | {' | '.join(heads)} |"
    yield "|---" * (4 + 2 * len(slopes)) + "|"
    for noise in NOISES:
        shapes = [slope * np.arange(LIMIT) for slope in (0.0, *slopes)]
        before, now, more = [[] for _ in shapes], [[] for _ in shapes], []
        for values in _chunks(seed, cells // SWEEP * SWEEP, noise, width=LIMIT, chunk=20 * SWEEP):
            for shape, alone, both in zip(shapes, before, now, strict=True):
                shaped = values + shape
                alone.append(drifting(shaped, np.minimum(needed(shaped), LIMIT)))
                outcome, kept = cells_run(shaped, long_pilots(shaped))
                both.append(kept)
                if shape is shapes[0]:
                    asked = np.where(long_pilots(values), needed(values, pilot=LONG_PILOT), needed(values))
                    more.append((outcome.rounds - np.minimum(asked, LIMIT)).mean())
        old, new = ([np.concatenate(parts) for parts in column] for column in (before, now))
        found = (_percent(part.mean(), 0) for pair in zip(old[1:], new[1:], strict=True) for part in pair)
        texts = (_percent(noise), _percent(_sweeps(old[0])), _percent(_sweeps(new[0])), f"{np.mean(more):.2f}", *found)
        yield f"| {' | '.join(texts)} |"


def outlier_table(seed: int, cells: int) -> Iterator[str]:
    """Cells of n normal rounds of which one is flagged."""
    yield "| rounds | bound | flagged | by 5 x 1.4826 MAD |"
    yield "|---|---|---|---|"
    for n in (4, 5, 6, 7, 8, 9, 10, 12, 15, 17, 20, 25, 40):
        values = draw(np.random.default_rng([seed, n]), cells, n, 0.01)
        rounds = np.full(cells, n)
        bound = np.interp(n, list(OUTLIER_BOUNDS), list(OUTLIER_BOUNDS.values()))
        shares = (outliers(values, rounds).mean(), outliers(values, rounds, {0: 5.0}).mean())
        yield f"| {n} | {bound:.1f} | {' | '.join(map(_percent, shares))} |"


def order_table(seed: int, cells: int) -> Iterator[str]:
    """Sweeps that are warned of, and how often their intervals hold the truth."""
    kinds = ("steady", "AR(1) of 0.5", "settling by 3 %")
    heads = (f"{kind}: {SWEEP} cells | 10 cells | covers" for kind in kinds)
    yield f"| noise | {' | '.join(heads)} |"
    yield "|---" * (1 + 3 * len(kinds)) + "|"
    for noise in NOISES:
        texts = [_percent(noise)]
        for kind in kinds:
            large, small, covered = [], [], []
            for values in _chunks(seed, cells // (10 * SWEEP) * (10 * SWEEP), noise, width=LIMIT, chunk=10 * SWEEP):
                shaped = _unsteady(values, noise, kind)
                outcome, _ = cells_run(shaped, long_pilots(shaped))
                covered.append(outcome.covered)
                large.append(np.any(warned(shaped, outcome.rounds), axis=0))
                small.append(np.any(warned(shaped, outcome.rounds, 10), axis=0))
            digits = 2 if kind == "steady" else 0
            texts += [_percent(np.concatenate(part).mean(), digits) for part in (large, small)]
            texts.append(_percent(np.concatenate(covered).mean(), 0))
        yield f"| {' | '.join(texts)} |"


def _unsteady(values: Floats, noise: float, kind: str) -> Floats:
    """Independent rounds made to follow each other (same spread), or to settle, 3 % low first, e-fold in 2 rounds."""
    if kind == "steady":
        return values
    if kind == "settling by 3 %":
        return values - 0.03 * np.exp(-np.arange(values.shape[1]) / 2)
    noises = (values - 1) / noise
    for k in range(1, values.shape[1]):
        noises[:, k] = 0.5 * noises[:, k - 1] + 0.75**0.5 * noises[:, k]
    return 1 + noise * noises


def _sweeps(alarms: Bools) -> float:
    """Share of sweeps of SWEEP cells, taken in turn, in which at least one cell alarms."""
    return float(alarms.reshape(-1, SWEEP).any(axis=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=50_000, help="cells per noise level (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    error = 100 * (0.95 * 0.05 / asked.cells) ** 0.5
    print(
        f"{asked.cells:,} cells per noise level, rel_ci {REL_CI}, min {PILOT}, seed {asked.seed}; "
        f"standard error of a coverage {error:.2f} points.\n"
    )
    for title, lines in (
        ("Normal rounds", coverage_table(asked.seed, asked.cells)),
        ("Skewed rounds (exponential)", coverage_table(asked.seed, asked.cells, skewed=True)),
        ("The width made relative by the pilot's mean", relative_table(asked.seed, asked.cells)),
        (f"The pilot, max {LIMIT}", pilot_table(asked.seed, asked.cells)),
        (f"Drift, max {LIMIT}", drift_table(asked.seed, 2 * asked.cells)),
        ("Outliers", outlier_table(asked.seed, 2 * asked.cells)),
        (f"The order of rounds, max {LIMIT}", order_table(asked.seed, 6 * asked.cells)),
    ):
        print(f"### {title}\n")
        for line in lines:
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
