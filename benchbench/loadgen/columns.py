"""Finished exchanges -> the columns of a round: decode, find what failed, and flatten its events."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from benchbench.decoding.response import Response
from benchbench.decoding.usual_event import QuickDecoder
from benchbench.http1.framing import WireError
from benchbench.loadgen.exchange import Exchange, Failure, Log
from benchbench.loadgen.job import Job
from benchbench.secrets import mask_text, without
from benchbench.store.requests import ErrorKind, ErrorPhase, RequestStatus, RoundColumns

NO_ANSWER = (ErrorKind.PROTOCOL, "no answer")


def failure_of(exchange: Exchange, response: Response, asked_output: int, *, exact: bool) -> Failure | None:
    """Why a request failed; None when it is good.

    A status is told before a broken connection (a server may refuse and close), that before what decoding found.
    `exact`: another number of output tokens than asked is a failure, as is none at all.
    """
    kind, detail = response.problem or (None, "")
    if kind is ErrorKind.STATUS:
        return Failure(kind, ErrorPhase.WAIT, detail)
    if (failure := exchange.failure) is not None:
        if kind is ErrorKind.STREAM:
            return failure._replace(detail=detail)
        broken = failure.kind in {ErrorKind.STALL, ErrorKind.STREAM}
        if not (broken and response.is_whole):  # all was said, only the end is missing
            return failure
    if kind is not None:
        return Failure(kind, ErrorPhase.STREAM if response.event_read else ErrorPhase.WAIT, detail)
    got = response.output_tokens if response.output_tokens is not None else sum(response.event_tokens)
    if exact and got != asked_output:
        kind = ErrorKind.SHORT_OUTPUT if got < asked_output else ErrorKind.LONG_OUTPUT
        reason = f" (finish_reason: {response.finish_reason})" if response.finish_reason else ""
        return Failure(kind, ErrorPhase.STREAM, f"{got} output tokens, asked for exactly {asked_output}{reason}")
    return None


def collect(exchanges: Sequence[Exchange], log: Log, job: Job, start: int = 0) -> RoundColumns:
    """Decode a round's log (from `start` on; what is before has been decoded) and judge its exchanges, by index."""
    stamps = log.stamps_ns()
    lags = np.array(log.users, np.int64) - stamps
    return columns_of(exchanges, decode_log(exchanges, log, start), stamps, lags, job)


def columns_of(
    exchanges: Sequence[Exchange],
    responses: Sequence[Response],
    stamps_ns: npt.NDArray[np.int64],
    lags_ns: npt.NDArray[np.int64],
    job: Job,
) -> RoundColumns:
    """The columns of a round; `Response.event_read` are places in `stamps_ns` and `lags_ns`."""
    failures = [
        failure_of(exchange, response, job.asked_output[exchange.index], exact=job.exact)
        for exchange, response in zip(exchanges, responses, strict=True)
    ]
    at = np.fromiter(chain.from_iterable(r.event_read for r in responses), np.int64)
    columns: dict[str, Any] = {
        "index": np.array([e.index for e in exchanges], np.int32),
        "asked_input_tokens": np.array(job.asked_input[: len(exchanges)], np.int32),
        "asked_output_tokens": np.array(job.asked_output[: len(exchanges)], np.int32),
        "http_status": np.array([e.framing.status or -1 for e in exchanges], np.int32),
        "resent": np.array([e.resent for e in exchanges], np.int32),
        "target": np.array([e.target for e in exchanges], np.int32),
        "reused": np.array([e.reused for e in exchanges], np.bool_),
        "event_offsets": np.cumsum([0, *(len(r.event_read) for r in responses)]).astype(np.int32),
        "event_ns": stamps_ns[at],
        "event_tokens": np.fromiter(chain.from_iterable(r.event_tokens for r in responses), np.int32),
        "lag_ns": lags_ns[at],
        "status": [RequestStatus.OK if failure is None else RequestStatus.FAILED for failure in failures],
        "server_metrics": [orjson.dumps(r.server_metrics).decode() if r.server_metrics else "" for r in responses],
    }
    # Servers quote what they refuse.
    failures = [f and f._replace(detail=mask_text(f.detail, job.secrets)) for f in failures]
    for name in Failure._fields:
        columns[f"error_{name}"] = ["" if failure is None else getattr(failure, name) for failure in failures]
    for name in ("scheduled_ns", "connect_ns", "connected_ns", "tls_ns", "sent_ns", "headers_ns", "end_ns"):
        columns[name] = np.array([getattr(e, name) or -1 for e in exchanges], np.int64)
    for name in ("input_tokens", "output_tokens", "cached_tokens"):
        counts = [getattr(r, name) for r in responses]
        columns[name] = np.array([-1 if count is None else count for count in counts], np.int32)
    for name in ("tokens_from", "finish_reason", "response_id", "answered_by"):
        columns[name] = [without(getattr(r, name), job.secrets) for r in responses]
    return columns  # type: ignore[return-value]


def decode_log(exchanges: Sequence[Exchange], log: Log, start: int = 0) -> list[Response]:
    """The responses of a round's exchanges, whose indices are their places.

    `start`: reads before it were decoded by `compact`. Exchange by exchange, so that a decoder stays in the cache.
    """
    owners = np.array(log.owners[start:])
    order = (np.argsort(owners, kind="stable") + start).tolist()
    ends = np.cumsum(np.bincount(owners, minlength=len(exchanges))).tolist() if len(exchanges) else []
    responses: list[Response] = []
    reads, begin = log.reads, 0
    for exchange, end in zip(exchanges, ends, strict=True):
        decoder = exchange.decoder
        if decoder is None:
            if begin == end:
                responses.append(Response(problem=NO_ANSWER))
                continue
            decoder = QuickDecoder()
        decoder.feed_all(reads, order[begin:end])
        closed, cut = exchange.framing.until_close and exchange.framing.done, exchange.failure is not None
        responses.append(decoder.response(log.stamp_ns, closed=closed, cut=cut))
        begin = end
    return responses


def compact(exchanges: Mapping[int, Exchange], log: Log, start: int, count: int) -> int:
    """Decode `count` reads of the log from `start` on, of exchanges that may still run, and drop their bytes.

    Returns the bytes dropped. Stamps stay, and so do the places in the log.
    """
    freed = 0
    for at in range(start, min(start + count, len(log.reads))):
        exchange, data = exchanges[log.owners[at]], log.reads[at]
        if at >= exchange.followed and not exchange.framing.done:
            with contextlib.suppress(WireError):  # no HTTP: decoding says so
                exchange.framing.follow(data)  # it must not miss bytes that are about to go
            exchange.followed = at + 1
        if exchange.decoder is None:
            exchange.decoder = QuickDecoder()
        exchange.decoder.feed_all(log.reads, (at,))
        log.reads[at] = b""
        freed += len(data)
    return freed
