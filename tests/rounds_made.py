"""Rounds made by hand for tests: requests as plain objects, and the table that the recorder makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from benchbench.loadgen.job import Job
from benchbench.store.requests import RoundColumns, round_table

# A wall clock's size: ns since 1970 do not fit a float's 53 bits, so arithmetic in floats shows.
T0 = 1_790_000_000_000_000_001
MS = 1_000_000


@dataclass(slots=True)
class Made:
    """One request. Times are ns after T0, None is unknown; `events` are (time, tokens)."""

    events: Sequence[tuple[int, int]] = ()
    status: str = "ok"
    scheduled: int | None = 0
    sent: int | None = 0
    end: int | None = 0
    told: int | None = None  # output tokens by `usage`
    told_input: int | None = 4
    asked_input: int = 4
    cached: int | None = None
    lag: Sequence[int] = field(default=())
    metrics: str = ""  # JSON of what the server says of the request


def job(asked_input: list[int], asked_output: list[int], *, exact: bool) -> Job:
    """What a round's decoding must know of it."""
    return Job(
        payloads=[b""] * len(asked_output),
        due_ns=[0] * len(asked_output),
        in_flight=1,
        asked_input=asked_input,
        asked_output=asked_output,
        first_token_s=1.0,
        stall_s=1.0,
        exact=exact,
    )


def columns_of(requests: Sequence[Made]) -> RoundColumns:
    def known(values: list[int | None], offset: int = 0) -> Any:
        return np.array([-1 if value is None else value + offset for value in values], np.int64)

    def counts(values: list[int | None]) -> Any:
        return known(values).astype(np.int32)

    events = [event for request in requests for event in request.events]
    lags = [lag for r in requests for lag in (r.lag or [0] * len(r.events))]
    ok = [request.status == "ok" for request in requests]
    nothing = known([None] * len(requests))
    texts = [""] * len(requests)
    return RoundColumns(
        index=np.arange(len(requests), dtype=np.int32),
        scheduled_ns=known([r.scheduled for r in requests], T0),
        connect_ns=nothing,
        connected_ns=nothing,
        tls_ns=nothing,
        sent_ns=known([r.sent for r in requests], T0),
        headers_ns=nothing,
        end_ns=known([r.end for r in requests], T0),
        asked_input_tokens=counts([r.asked_input for r in requests]),
        asked_output_tokens=counts([sum(tokens for _, tokens in r.events) for r in requests]),
        input_tokens=counts([r.told_input for r in requests]),
        output_tokens=counts([r.told for r in requests]),
        cached_tokens=counts([r.cached for r in requests]),
        http_status=counts([200] * len(requests)),
        resent=counts([0] * len(requests)),
        target=counts([0] * len(requests)),
        reused=np.array([True] * len(requests), np.bool_),
        event_offsets=np.cumsum([0, *(len(r.events) for r in requests)]).astype(np.int32),
        event_ns=np.array([T0 + at for at, _ in events], np.int64),
        event_tokens=np.array([tokens for _, tokens in events], np.int32),
        lag_ns=np.array(lags, np.int64),
        tokens_from=["usage" if r.told is not None else "events" for r in requests],
        finish_reason=["length" if good else "" for good in ok],
        response_id=texts,
        answered_by=texts,
        status=[request.status for request in requests],
        error_kind=["" if good else "stream" for good in ok],
        error_phase=["" if good else "stream" for good in ok],
        error_detail=["" if good else "the stream broke" for good in ok],
        server_metrics=[r.metrics for r in requests],
    )


def table_of(requests: Sequence[Made], facts: dict[str, Any] | None = None, **labels: Any) -> pa.Table:
    return round_table(columns_of(requests), labels, facts or {})
