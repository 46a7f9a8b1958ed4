"""Server starts that are far from the others of their build. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1
from statistics import fmean, median
from typing import NamedTuple

from benchbench.comparison.verdicts import BETTER, PRIMARY, Sample, grids_of

FAR = 0.05  # of logs, about 5 %
MADS = 6  # times 1.4826 MAD, which estimates a normal's standard deviation


class OutlyingStart(NamedTuple):
    """`change`: of the metric, from the median of the side's starts, as a share; geometric mean over `cells`."""

    side: str  # base or candidate
    metric: str
    block: int
    change: float
    cells: int


def outlying_starts(samples: Sequence[Sample]) -> list[OutlyingStart]:
    """Starts whose mean log over cells is more than FAR and MADS x 1.4826 MAD off its side's median, of three or more.

    A cell counts with its log minus the median of its side's starts. MAD is of both sides' starts together, each about
    its own median, so that three blocks are enough to have one.
    """
    outlying: list[OutlyingStart] = []
    for grid in grids_of([sample for sample in samples if sample.metric in PRIMARY], paired=False):
        offsets: list[OutlyingStart] = []
        for side, cells in (("base", grid.base), ("candidate", grid.new)):
            starts: dict[int, list[float]] = {}
            for logs in (logs for logs in cells.values() if len(logs) > 2):
                middle = median(logs.values())
                for block, value in logs.items():
                    starts.setdefault(block, []).append(value - middle)
            offsets += [
                OutlyingStart(side, grid.metric, block, fmean(logs), len(logs))
                for block, logs in sorted(starts.items())
            ]
        spread = 1.4826 * median(abs(start.change) for start in offsets) if offsets else 0.0
        outlying += [start for start in offsets if abs(start.change) > max(FAR, MADS * spread)]
    return [start._replace(change=expm1(BETTER[start.metric] * start.change)) for start in outlying]
