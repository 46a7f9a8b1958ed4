"""What a probe's rounds say: how far each is from the SLO, and whether they may count at all. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from benchbench.analysis.evidence import evidence_of, measured
from benchbench.analysis.metrics import Pools, request_times
from benchbench.analysis.reasons import Reason
from benchbench.analysis.validity import status_of
from benchbench.boundary.certify import FAILED
from benchbench.slo.attainment import share_of
from benchbench.spec.cell import CellInfo
from benchbench.spec.schema import Slo
from benchbench.store.arrow import Floats

OF_THE_LOAD = {Reason.REQUEST_FAILED, Reason.PREEMPTED}  # what the server does at a load that is too large
OF_THE_INSTRUMENT = {
    *(Reason.SEND_SKEW, Reason.LATE_SENDS, Reason.CLIENT_LAG, Reason.SHARED_READS, Reason.FIRST_TOKEN_SHARED),
    *(Reason.BUFFERED_STREAM, Reason.CLOCK_STEP, Reason.CLOCKS_APART),
}
OF_THE_DESIGN = {Reason.TOO_FEW_ROUNDS, Reason.DRIFT}  # a probe has as many rounds as its question needs


class Observed(NamedTuple):
    """A probe's observations, as `boundary_search.Probe` has them, and what is to be known of its rounds.

    `limited`: reasons of the load generator's, for which they say nothing of the server. `invalid`: others that make
    them worthless. `suspect`: reasons that are told. `failing`: reasons that count against the load.
    """

    excess: tuple[float, ...]
    limited: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()
    suspect: tuple[str, ...] = ()
    failing: tuple[str, ...] = ()


def pooling(slo: Slo, requests: int) -> int:
    """Rounds of so many requests that make one observation: of a share such as 99 %, 100 requests at least."""
    share = share_of(slo.statistic)
    return 1 if share is None else math.ceil((1 - 1e-9) / (1 - share) / requests)


def of_share(ratios: Floats, share: float) -> float:
    """The k-th smallest of requests' times as shares of their limits, k = ceil((n + 1) share), - 1.

    On average no more than 1 - `share` of all requests lie beyond it, however many were looked at.
    """
    place = min(len(ratios), math.ceil((len(ratios) + 1) * share - 1e-9)) - 1
    return float(np.partition(ratios, place)[place]) - 1


def ratios_of(table: pa.Table, cell: CellInfo) -> dict[str, Floats]:
    """Of each limit of the SLO, the requests' times as shares of it; 0 where a time does not exist."""
    times = request_times(table, load=cell.load, in_flight=cell.batch)
    named = {"ttft_ms": times.ttft_s, "tpot_ms": times.tpot_s, "e2el_ms": times.e2el_s}
    limits = {name: limit for name in named if (limit := getattr(cell.slo, name)) is not None}
    return {name: np.nan_to_num(named[name][times.steady]) / (limit / 1e3) for name, limit in limits.items()}


def observations(tables: Iterable[pa.Table], cell: CellInfo) -> tuple[float, ...]:
    """The excess of each observation: `pooling` rounds in a row, their requests as of one.

    Of a share a request counts by the limit that it is nearest to or farthest beyond; of the mean a round by that of
    its means. Rounds without a steady request are FAILED.
    """
    share, excess, pool = share_of(cell.slo.statistic), list[float](), list[Floats]()
    size = pooling(cell.slo, max(1, cell.requests))
    for table in tables:
        ratios = list(ratios_of(table, cell).values())
        if not len(ratios[0]):
            excess.append(FAILED)
        elif share is None:
            excess.append(max(float(values.mean()) for values in ratios) - 1)
        else:
            pool.append(np.maximum.reduce(ratios))
            if len(pool) == size:
                excess.append(of_share(np.concatenate(pool), share))
                pool.clear()
    return tuple(excess)


def observe(tables: Sequence[pa.Table], cell: CellInfo) -> Observed:
    """What the rounds of one probe say, judged by themselves as `bench explain` judges a cell."""
    taken = [measured(cell, table) for table in tables]
    evidence = evidence_of(cell, taken, (), Pools([of_round.metrics for of_round in taken]))
    groups: dict[str, list[str]] = {"limited": [], "invalid": [], "suspect": [], "failing": []}
    for reason in status_of(evidence, cell.validity)[1]:
        if reason in OF_THE_LOAD:
            groups["failing"].append(reason.code)
        elif reason in OF_THE_INSTRUMENT:
            groups["limited"].append(reason.code)
        elif reason not in OF_THE_DESIGN:
            groups[reason.status].append(reason.code)
    excess = (FAILED,) if groups["failing"] or not tables else observations(tables, cell)
    return Observed(excess, **{name: tuple(codes) for name, codes in groups.items()})
