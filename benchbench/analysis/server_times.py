"""The server's own times beside ours: as each answer tells them, else as its histograms sum them up. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from benchbench.analysis.metrics import RoundMetrics, pooled
from benchbench.events.round_events import Round
from benchbench.store.arrow import array_of
from benchbench.store.requests import RequestStatus

Report = tuple[float, float, float, float | None]


@dataclass(frozen=True, slots=True)
class ServerTimes:
    """Means over measured successful requests, in s; None where the server does not say.

    `source` "requests": of the `requests` whose answers tell them (vLLM's --enable-per-request-metrics). TTFT is from
    the engine's queue to its first token, vLLM's `queue_time_ms` + `time_to_first_token_ms`, of which `queue_s` was
    waiting; ITL is vLLM's `mean_itl_ms`, (last token - first token) / (n - 1), which we call TPOT.
    `source` "metrics": of all, from the histograms of /metrics. TTFT is from the arrival at the API server to the first
    token there.
    `outside_s`: our mean TTFT of the same requests less theirs: network, HTTP, client and, with "requests", what the
    API server does before and after the engine.
    """

    source: Literal["requests", "metrics"]
    requests: int
    ttft_s: float
    queue_s: float | None
    itl_s: float | None
    outside_s: float


def server_times(
    reports: Sequence[Report], rounds: Sequence[RoundMetrics], facts: Sequence[Mapping[str, Any]]
) -> ServerTimes | None:
    """From a cell's measured rounds: all reports, metrics and facts, in one order; None when the server tells nothing.

    The histograms are used only where they hold our requests and no others, in every round.
    """
    if not reports:
        return times_by_metrics(rounds, facts)
    ours, queue, first = np.array([entry[:3] for entry in reports]).mean(axis=0).tolist()
    itls = [entry[3] for entry in reports if entry[3] is not None]
    itl = float(np.mean(itls)) if itls else None
    return ServerTimes("requests", len(reports), queue + first, queue, itl, ours - queue - first)


def times_by_metrics(rounds: Sequence[RoundMetrics], facts: Sequence[Mapping[str, Any]]) -> ServerTimes | None:
    """By the histograms of /metrics alone: outside them is HTTP, network and client, no work of the server."""
    views: list[Mapping[str, Any]] = [fact.get("server") or {} for fact in facts]
    count = sum(r.requests for r in rounds)
    if not count or any(
        r.failed or view.get("ttft_count") != r.requests or len(r.ttft_all_s) != r.requests
        for r, view in zip(rounds, views, strict=True)
    ):
        return None
    ttft = sum(view["ttft_s_sum"] for view in views) / count
    waited = sum(view.get("queue_count") or 0 for view in views) == count
    queue = sum(view.get("queue_s_sum") or 0.0 for view in views) / count if waited else None
    return ServerTimes("metrics", count, ttft, queue, None, float(pooled(rounds, "ttft_all_s").mean()) - ttft)


def reported_times(requests: pa.Table) -> dict[int, Mapping[str, Any]]:
    """By row, what the successful requests' answers tell of their times (vLLM's names, ms)."""
    import orjson

    if "server_metrics" not in requests.column_names:
        return {}
    rows = zip(requests["server_metrics"].to_pylist(), requests["status"].to_pylist(), strict=True)
    return {k: orjson.loads(text) for k, (text, status) in enumerate(rows) if text and status == RequestStatus.OK}


def reports_of(taken: Round, reported: Mapping[int, Mapping[str, Any]]) -> list[Report]:
    """(our TTFT, queue, scheduled to first token, ITL) in s of the requests that have them. `reported`: their times."""
    table, events = taken
    sent = array_of(table["sent_ns"])
    reports = []
    for k, times in reported.items():
        queue, first, itl = (times.get(name) for name in ("queue_time_ms", "time_to_first_token_ms", "mean_itl_ms"))
        if events.counts[k] and queue is not None and first is not None:
            ours = float(events.first_ns[k] - sent[k]) / 1e9
            reports.append((ours, queue / 1e3, first / 1e3, None if itl is None else itl / 1e3))
    return reports
