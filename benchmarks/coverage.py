"""How often the printed 95 % interval holds the truth, the stopping of rounds included; Markdown on stdout.

Cells are simulated (their true mean is 1) and put through the rules of benchbench.analysis.stats, rewritten here for
whole arrays of cells; tests/test_rounds_rule.py shows that both forms give the same. One row of an array is a cell,
one column a round.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NOISES = (0.005, 0.01, 0.02, 0.03, 0.05)
PILOT = 5
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
    cut: NDArray[np.bool_]

    @property
    def covered(self) -> NDArray[np.bool_]:
        return np.abs(self.mean - 1) <= self.half


def draw(rng: np.random.Generator, cells: int, width: int, noise: float, skewed: bool = False) -> Floats:
    """Cells x rounds with mean 1 and standard deviation `noise`: normal, or exponential (skewness 2)."""
    if skewed:
        return 1 + noise * (rng.standard_exponential((cells, width)) - 1)
    return 1 + noise * rng.standard_normal((cells, width))


def needed(values: Floats, rel_ci: float = REL_CI, mean: float | None = None) -> Ints:
    """stats.rounds_needed for each cell; `mean` replaces the pilot's, to see what that costs."""
    pilot = values[:, :PILOT]
    width = stdtrit(PILOT - 1, 0.975) * pilot.std(axis=1, ddof=1) / (pilot.mean(axis=1) if mean is None else mean)
    rounds: Ints = np.maximum(PILOT, np.ceil((width / rel_ci) ** 2)).astype(np.int64)
    return rounds


def two_stage(values: Floats, wanted: Ints, limit: int) -> Outcome:
    """stats.two_stage_estimate for each cell, over the rounds wanted or `limit` of them."""
    rounds = np.minimum(wanted, limit)
    total = np.where(np.arange(values.shape[1]) < rounds[:, None], values, 0.0).sum(axis=1)
    half = stdtrit(PILOT - 1, 0.975) * values[:, :PILOT].std(axis=1, ddof=1) / np.sqrt(rounds)
    return Outcome(rounds, total / rounds, half, wanted > limit)


def naive(values: Floats, limit: int, rel_ci: float = REL_CI) -> Outcome:
    """Stop as soon as Student's interval of all rounds so far is narrow enough, from the pilot's last round on."""
    values = values[:, :limit]
    n = np.arange(1, values.shape[1] + 1)
    mean, spread = _running(values)
    half = np.full_like(mean, np.inf)
    half[:, PILOT - 1 :] = stdtrit(n - 1, 0.975)[PILOT - 1 :] * spread[:, PILOT - 1 :] / np.sqrt(n[PILOT - 1 :])
    narrow = half <= rel_ci * mean
    met: NDArray[np.bool_] = np.any(narrow, axis=1)
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
    """stats.drift for each cell's first `rounds` rounds."""
    within = np.arange(values.shape[1]) < rounds[:, None]
    mean = np.where(within, values, 0.0).sum(axis=1) / rounds
    off = np.where(within, values - mean[:, None], 0.0)
    at = np.where(within, np.arange(values.shape[1]) - (rounds[:, None] - 1) / 2, 0.0)
    squares = (at**2).sum(axis=1)
    slope = (at * off).sum(axis=1) / squares
    left = ((off - slope[:, None] * at) ** 2).sum(axis=1)
    error = np.sqrt(left / (rounds - 2) / squares)
    return slope * (rounds - 1) / mean, 2 * stdtr(rounds - 2, -np.abs(slope / error))


def drifting(values: Floats, rounds: Ints) -> NDArray[np.bool_]:
    """stats.has_drift for each cell's first `rounds` rounds."""
    change, p = drifts(values, rounds)
    return (np.abs(change) > REL_CI) & (p < 0.01)


def outliers(values: Floats, rounds: Ints) -> NDArray[np.bool_]:
    """Whether stats.outlier_rounds finds any among each cell's first `rounds` rounds."""
    run = np.where(np.arange(values.shape[1]) < rounds[:, None], values, np.nan)
    middle = np.nanmedian(run, axis=1)
    away = np.abs(run - middle[:, None])
    bound = np.maximum(5 * 1.4826 * np.nanmedian(away, axis=1), 0.001 * np.abs(middle))
    found: NDArray[np.bool_] = np.nanmax(away, axis=1) > bound
    return found


def _chunks(seed: int, cells: int, noise: float, *, width: int = WIDTH, skewed: bool = False) -> Iterator[Floats]:
    rng = np.random.default_rng([seed, round(noise * 1e6), int(skewed)])
    for start in range(0, cells, CHUNK):
        yield draw(rng, min(CHUNK, cells - start), width, noise, skewed)


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


def steadiness_table(seed: int, cells: int) -> Iterator[str]:
    """False alarms of the drift and outlier rules in steady cells, and drifts found in ones that are not."""
    slopes = (0.005, 0.01, 0.02)
    found = " | ".join(f"{_percent(slope)} a round: found" for slope in slopes)
    yield (
        f"| noise | false drift: cells | {SWEEP}-cell sweeps with one | the same, plain 5 % test | {found} | "
        "outlier flagged: cells |"
    )
    yield "|---" * (5 + len(slopes)) + "|"
    for noise in NOISES:
        alarms, plain, flagged = [], [], []
        caught: dict[float, list[NDArray[np.bool_]]] = {slope: [] for slope in slopes}
        for values in _chunks(seed, cells, noise, width=LIMIT):
            rounds = np.minimum(needed(values), LIMIT)
            alarms.append(drifting(values, rounds))
            plain.append(drifts(values, rounds)[1] < 0.05)
            flagged.append(outliers(values, rounds))
            for slope, hits in caught.items():
                sloped = values + slope * np.arange(LIMIT)
                hits.append(drifting(sloped, np.minimum(needed(sloped), LIMIT)))
        false, five = np.concatenate(alarms), np.concatenate(plain)
        cells_told = (
            _percent(noise),
            _percent(false.mean(), 2),
            _percent(_sweeps(false), 0),
            _percent(_sweeps(five), 0),
            *(_percent(np.concatenate(hits).mean(), 0) for hits in caught.values()),
            _percent(np.concatenate(flagged).mean()),
        )
        yield f"| {' | '.join(cells_told)} |"


def _sweeps(alarms: NDArray[np.bool_]) -> float:
    """Share of sweeps of SWEEP cells, taken in turn, in which at least one cell alarms."""
    whole = len(alarms) // SWEEP * SWEEP
    return float(alarms[:whole].reshape(-1, SWEEP).any(axis=1).mean())


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
        (f"Drift and outliers, max {LIMIT}", steadiness_table(asked.seed, asked.cells)),
    ):
        print(f"### {title}\n")
        for line in lines:
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
