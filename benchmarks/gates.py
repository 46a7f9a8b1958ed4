"""How often a gate fails an unchanged build, and finds a slower one, on two runs of other days; Markdown on stdout.

A run is `starts` starts of one build. Values per cell and metric (Sys tok/s, TTFT) are logs of which more is better,
with noise that all cells of a start share, a cell's own, and a day's, which all starts of a run share and no interval
contains. The rules of benchbench.gates are rewritten here for whole arrays of runs; `--check` judges some runs with the
package too.
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from benchbench.comparison.shifts import holm
from benchbench.comparison.verdicts import PRIMARY, Sample, compare

Floats = NDArray[np.float64]
Truths = NDArray[np.bool_]

START, LIKE, OWN = 0.007, 0.5, 0.0054  # of a start; correlation between metrics; of a cell in a start, rounds included
ALPHA = 0.05
CHUNK = 2_000


class Design(NamedTuple):
    starts: int
    cells: int
    day: float = 0.0  # standard deviation, of logs


def draw(rng: np.random.Generator, design: Design, runs: int) -> Floats:
    """Axes: runs, sides, metrics, cells, starts."""
    shape = (runs, 2, 2, 1, design.starts)
    common, each = rng.standard_normal((runs, 2, 1, 1, design.starts)), rng.standard_normal(shape)
    start = START * (math.sqrt(LIKE) * common + math.sqrt(1 - LIKE) * each)
    day = design.day * rng.standard_normal((runs, 2, 1, 1, 1))
    logs: Floats = start + day + OWN * rng.standard_normal((runs, 2, 2, design.cells, design.starts))
    return logs


def welch(logs: Floats) -> tuple[Floats, Floats]:
    """Shift of the means, candidate - base, and p; for the last axis, sides first of the others after runs."""
    n = logs.shape[-1]
    shift = logs[:, 1].mean(axis=-1) - logs[:, 0].mean(axis=-1)
    parts = logs.var(axis=-1, ddof=1) / n
    total = parts[:, 0] + parts[:, 1]
    degrees = (n - 1) * total**2 / (parts[:, 0] ** 2 + parts[:, 1] ** 2)
    p: Floats = 2 * stdtr(degrees, -np.abs(shift) / np.sqrt(total))
    return shift, p


def failed(logs: Floats, limit: float) -> tuple[Truths, Truths]:
    """Whether a run fails `slower>limit`: in any cell, and in a geometric mean."""
    families = (logs.reshape(len(logs), 2, -1, logs.shape[-1]), logs.mean(axis=3))
    cells, means = (
        ((np.apply_along_axis(holm, -1, p) <= ALPHA) & (np.exp(shift) < 1 - limit) & (shift < 0)).any(axis=-1)
        for shift, p in (welch(family) for family in families)
    )
    return cells, means


def rates(design: Design, effect: float, limit: float, runs: int) -> list[float]:
    """Share of runs that fail in a cell, in a mean, at all, whose candidate is slower by `effect` (0.03: 3 %)."""
    rng, counts = np.random.default_rng(0), np.zeros(3)
    for begin in range(0, runs, CHUNK):
        logs = draw(rng, design, min(CHUNK, runs - begin))
        logs[:, 1] += math.log1p(-effect)
        cells, means = failed(logs, limit)
        counts += [cells.sum(), means.sum(), (cells | means).sum()]
    return [float(count) / runs for count in counts]


def ratio_rate(cells: int, runs: int, blocks: int = 6) -> float:
    """Share of unchanged builds, a start a side, with any ratio of Sys tok/s below the highest R that can be judged."""
    rng = np.random.default_rng(1)
    aa, one = draw(rng, Design(blocks, cells), runs)[:, :, 0], draw(rng, Design(1, cells), runs)[:, :, 0]
    alarms = np.zeros(runs, np.bool_)
    for known, seen in ((aa, one), (aa.mean(axis=2, keepdims=True), one.mean(axis=2, keepdims=True))):
        sd = (known[:, 1] - known[:, 0]).std(axis=-1, ddof=1) / math.sqrt(2)
        bound = stdtrit(blocks - 1, 1 - ALPHA / (cells + 1)) * sd * math.sqrt(2)
        alarms |= (seen[:, 1, :, 0] - seen[:, 0, :, 0] < -bound).any(axis=-1)
    return float(alarms.mean())


def check(design: Design, effect: float, limit: float, runs: int) -> int:
    """Of so many runs those that the package judges as the arrays here do."""
    logs = draw(np.random.default_rng(2), design, runs)
    logs[:, 1] += math.log1p(-effect)
    cells, means = failed(logs, limit)
    same = 0
    for run in range(runs):
        samples = [
            Sample(f"c{cell}", metric, start, *(math.exp(sign * logs[run, side, m, cell, start]) for side in (0, 1)))
            for m, (metric, sign) in enumerate(zip(PRIMARY, (1, -1), strict=True))
            for cell in range(design.cells)
            for start in range(design.starts)
        ]
        compared = compare(samples, paired=False)
        judged = [
            any(e.significant and e.ratio.point < 1 - limit and e.ratio.point < 1 for e in effects)
            for effects in (compared.cells, compared.overall)
        ]
        same += judged == [bool(cells[run]), bool(means[run])]
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--check", type=int, default=0, metavar="RUNS", help="judge so many with the package too")
    options = parser.parse_args()

    def row(*texts: object) -> None:
        print("| " + " | ".join(map(str, texts)) + " |")

    row("starts a side", "cells", "day's noise", "`slower`: a cell", "a mean", "either", "`slower>2%`: either",
        "3 % slower fails `slower`", "`slower>2%`")  # fmt: skip
    row(*["---"] * 9)
    designs = [Design(n, c) for n in (3, 6, 10) for c in (5, 18)] + [Design(6, 18, day) for day in (0.003, 0.005, 0.01)]
    for design in designs:
        unchanged = [*rates(design, 0.0, 0.0, options.runs), rates(design, 0.0, 0.02, options.runs)[2]]
        found = [rates(design, 0.03, limit, options.runs)[2] for limit in (0.0, 0.02)]
        shares = [f"{100 * rate:.1f} %" for rate in (*unchanged, *found)]
        row(design.starts, design.cells, f"{100 * design.day:g} %", *shares)
    print()
    for cells in (5, 18):
        rate = ratio_rate(cells, options.runs)
        print(
            f"`ratio<R`, highest R that can be judged, {cells} cells, a start a side: {100 * rate:.1f} % false alarms"
        )
    if options.check:
        for design in (Design(3, 5), Design(6, 18)):
            same = check(design, 0.01, 0.01, options.check)
            print(f"{design}: {same} of {options.check} runs judged alike by the package")


if __name__ == "__main__":
    main()
