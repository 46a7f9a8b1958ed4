"""What each of several servers did of a cell's rounds, and whether one is slower than the others. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from benchbench.events.round_events import Round
from benchbench.store.arrow import Floats, array_of
from benchbench.store.requests import RequestStatus
from benchbench.student.t_distribution import t_quantile

APART = 1.25  # x the others' mean, that a server's TTFT or TPOT is suspect beyond


class Times(Protocol):
    """Of each request of a round, s and nan where it has none; `steady`: those that the cell's latencies are of.

    `window`: that of Sys tok/s, in ns: (begin, end].
    """

    @property
    def ttft_s(self) -> Floats: ...
    @property
    def tpot_s(self) -> Floats: ...
    @property
    def steady(self) -> npt.NDArray[np.bool_]: ...
    @property
    def window(self) -> tuple[int, int] | None: ...


class ServerRound(NamedTuple):
    """One server's part of a round: latencies in s of its steady requests, output tokens/s in the round's window."""

    requests: int
    failed: int
    ttft_s: Floats
    tpot_s: Floats
    tok_s: float | None


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """One server's part of a cell: counts over its measured rounds, latencies pooled over requests, rates over rounds.

    `server`: its place in engine.url. `share`: of the output tokens per second of all.
    """

    server: int
    requests: int
    failed: int
    ttft_s: float | None  # mean
    ttft_s_p99: float | None
    tpot_s: float | None  # mean
    tok_s: float | None
    share: float | None


class ByServer(NamedTuple):
    """`figures` of each server; `apart`: of those that are slower than the others, its place and in words how much."""

    figures: tuple[ServerFigures, ...] = ()
    apart: tuple[tuple[int, str], ...] = ()


ONE_SERVER = ByServer()


def parts_of_round(taken: Round, facts: Mapping[str, Any], times: Callable[[], Times]) -> tuple[ServerRound, ...]:
    """The part of each server; none where the round's facts name one server, or, as of earlier versions, no number."""
    count, table = facts.get("targets", 1), taken.requests
    if count < 2 or "target" not in table.column_names:
        return ()
    target, took = array_of(table["target"]), times()
    failed = np.array([status != RequestStatus.OK for status in table["status"].to_pylist()], np.bool_)
    tokens = np.bincount(target, taken.events.tokens_in(*took.window), count) if took.window else np.zeros(count)
    seconds = (took.window[1] - took.window[0]) / 1e9 if took.window else 0.0
    return tuple(
        ServerRound(
            requests=int((own := target == number).sum()),
            failed=int((own & failed).sum()),
            ttft_s=_known(took.ttft_s[own & took.steady]),
            tpot_s=_known(took.tpot_s[own & took.steady]),
            tok_s=float(tokens[number]) / seconds if seconds > 0 else None,
        )
        for number in range(count)
    )


def _known(values: Floats) -> Floats:
    return values[~np.isnan(values)]


def by_server(rounds: Sequence[tuple[ServerRound, ...]]) -> ByServer:
    """The rounds of a cell summed up, server by server."""
    servers = [*zip(*(parts for parts in rounds if parts), strict=True)]
    if not servers:
        return ONE_SERVER
    rates = [_mean([part.tok_s for part in parts if part.tok_s is not None]) for parts in servers]
    total = sum(rate for rate in rates if rate is not None)
    figures = [_figures(number, parts, rates[number], total) for number, parts in enumerate(servers)]
    return ByServer(tuple(figures), tuple(_apart(servers)))


def _figures(server: int, parts: Sequence[ServerRound], rate: float | None, total: float) -> ServerFigures:
    ttft, tpot = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ttft_s", "tpot_s"))
    return ServerFigures(
        server=server,
        requests=sum(part.requests for part in parts),
        failed=sum(part.failed for part in parts),
        ttft_s=_mean(ttft.tolist()),
        ttft_s_p99=float(np.percentile(ttft, 99)) if len(ttft) else None,
        tpot_s=_mean(tpot.tolist()),
        tok_s=rate,
        share=None if rate is None or not total else rate / total,
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _apart(servers: Sequence[Sequence[ServerRound]]) -> list[tuple[int, str]]:
    """Those whose mean TTFT or TPOT of a round is surely, at 95 %, more than APART x the others': Welch's t of logs."""
    slow = []
    for number, parts in enumerate(servers):
        for name in ("ttft_s", "tpot_s"):
            own = _means([getattr(part, name) for part in parts])
            rest = [other for place, other in enumerate(servers) if place != number]
            others = _means(
                [np.concatenate([getattr(part, name) for part in parts]) for parts in zip(*rest, strict=True)]
            )
            if _surely_above(own, others, APART):
                ratio = math.exp(float(np.mean(own) - np.mean(others)))
                slow.append((number, f"its {name[:4].upper()} is {ratio:.2f} x the others'"))
    return slow


def _means(rounds: Sequence[Floats]) -> list[float]:
    """Logarithms of the means of those rounds that have one."""
    means = [float(values.mean()) for values in rounds if len(values)]
    return [math.log(mean) for mean in means if mean > 0]


def _surely_above(a: Sequence[float], b: Sequence[float], ratio: float) -> bool:
    """Whether the mean of logarithms `a` is above that of `b` by more than the ratio's, as far as 95 % go; not of
    fewer than two values each.
    """
    if min(len(a), len(b)) < 2:
        return False
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (a, b)]
    beyond = float(np.mean(a) - np.mean(b)) - math.log(ratio)
    squares = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    if not squares:
        return beyond > 0
    return beyond > t_quantile(0.975, sum(parts) ** 2 / squares) * math.sqrt(sum(parts))
