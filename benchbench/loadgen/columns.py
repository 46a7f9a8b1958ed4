"""Finished exchanges -> the columns of a round: decode, find what failed, and flatten its events."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson

from benchbench.loadgen.decode import Decoder
from benchbench.loadgen.exchange import Exchange, Failure, Log, to_ns
from benchbench.loadgen.response import Response
from benchbench.store.requests import ErrorKind, ErrorPhase, RequestStatus

if TYPE_CHECKING:
    from benchbench.store.requests import RoundColumns


def failure_of(exchange: Exchange, response: Response | None, asked_output: int, *, exact: bool) -> Failure | None:
    """Why a request failed; None when it is good.

    A status is told before a broken connection (a server may refuse and close), that before what decoding found.
    `exact`: another number of output tokens than asked is a failure, as is none at all.
    """
    kind, detail = response.problem if response is not None and response.problem is not None else (None, "")
    if kind is ErrorKind.STATUS:
        return Failure(kind, ErrorPhase.WAIT, detail)
    if (failure := exchange.failure) is not None:
        if kind is ErrorKind.STREAM:
            return failure._replace(detail=detail)
        broken = failure.kind in {ErrorKind.STALL, ErrorKind.STREAM}
        if not (broken and response is not None and response.is_whole):  # all was said, only the end is missing
            return failure
    if response is None or kind is not None:
        phase = ErrorPhase.STREAM if response is not None and response.event_read else ErrorPhase.WAIT
        return Failure(kind or ErrorKind.PROTOCOL, phase, detail or "no answer")
    got = response.output_tokens if response.output_tokens is not None else sum(response.event_tokens)
    if exact and got != asked_output:
        kind = ErrorKind.SHORT_OUTPUT if got < asked_output else ErrorKind.LONG_OUTPUT
        reason = f" (finish_reason: {response.finish_reason})" if response.finish_reason else ""
        return Failure(kind, ErrorPhase.STREAM, f"{got} output tokens, asked for exactly {asked_output}{reason}")
    return None


def collect(
    exchanges: Sequence[Exchange],
    log: Log,
    asked_input: Sequence[int],
    asked_output: Sequence[int],
    *,
    exact: bool,
    start: int = 0,
) -> RoundColumns:
    """Decode a round's log (from `start` on; what is before has been decoded) and judge its exchanges, by index."""
    stamps = log.stamps_ns()
    lags = np.array(log.users, np.int64) - stamps
    responses = decode_log(exchanges, log, start)
    return columns_of(exchanges, responses, stamps, lags, asked_input, asked_output, exact=exact)


def columns_of(
    exchanges: Sequence[Exchange],
    responses: Sequence[Response | None],
    stamps_ns: npt.NDArray[np.int64],
    lags_ns: npt.NDArray[np.int64],
    asked_input: Sequence[int],
    asked_output: Sequence[int],
    *,
    exact: bool,
) -> RoundColumns:
    """The columns of a round; `Response.event_read` are places in `stamps_ns` and `lags_ns`."""
    failures = [
        failure_of(e, response, asked_output[e.index], exact=exact)
        for e, response in zip(exchanges, responses, strict=True)
    ]
    where = [response.event_read if response is not None else [] for response in responses]
    tokens = [response.event_tokens if response is not None else [] for response in responses]
    at = np.fromiter(chain.from_iterable(where), np.int64)
    columns: dict[str, Any] = {
        "index": np.array([e.index for e in exchanges], np.int32),
        "asked_input_tokens": np.array(asked_input, np.int32),
        "asked_output_tokens": np.array(asked_output, np.int32),
        "http_status": np.array([e.framing.status or -1 for e in exchanges], np.int32),
        "resent": np.array([e.resent for e in exchanges], np.int32),
        "reused": np.array([e.reused for e in exchanges], np.bool_),
        "event_offsets": np.cumsum([0, *map(len, where)]).astype(np.int32),
        "event_ns": stamps_ns[at],
        "event_tokens": np.fromiter(chain.from_iterable(tokens), np.int32),
        "lag_ns": lags_ns[at],
        "status": [RequestStatus.OK if failure is None else RequestStatus.FAILED for failure in failures],
        "error_kind": ["" if failure is None else failure.kind for failure in failures],
        "error_phase": ["" if failure is None else failure.phase for failure in failures],
        "error_detail": ["" if failure is None else failure.detail for failure in failures],
        "server_metrics": [
            orjson.dumps(r.server_metrics).decode() if r and r.server_metrics else "" for r in responses
        ],
    }
    for name in ("scheduled_ns", "connect_ns", "connected_ns", "tls_ns", "sent_ns", "headers_ns", "end_ns"):
        columns[name] = np.array([getattr(e, name) or -1 for e in exchanges], np.int64)
    for name in ("input_tokens", "output_tokens", "cached_tokens"):
        values = [getattr(r, name) if r is not None else None for r in responses]
        columns[name] = np.array([-1 if v is None else v for v in values], np.int32)
    for name in ("tokens_from", "finish_reason", "response_id"):
        columns[name] = [getattr(r, name) if r is not None else "" for r in responses]
    return columns  # type: ignore[return-value]


def decode_log(exchanges: Sequence[Exchange], log: Log, start: int = 0) -> list[Response | None]:
    """The responses of a round's exchanges, whose indices are their places; None for one that received nothing.

    `start`: reads before it were decoded by `compact`. Exchange by exchange, so that a decoder stays in the cache.
    """
    owners = np.array(log.owners[start:], np.int64)
    order = (np.argsort(owners, kind="stable") + start).tolist()
    ends = np.cumsum(np.bincount(owners, minlength=len(exchanges))).tolist() if len(exchanges) else []
    responses: list[Response | None] = []
    reads, begin = log.reads, 0

    def when(read: int) -> int:
        return to_ns(log.stamps[read])

    for exchange, end in zip(exchanges, ends, strict=True):
        decoder = exchange.decoder
        if decoder is None:
            decoder = Decoder()
        for at in order[begin:end]:
            decoder.feed(reads[at], at)
        closed, cut = exchange.framing.until_close and exchange.framing.done, exchange.failure is not None
        received = end > begin or exchange.decoder is not None
        responses.append(decoder.response(when, closed=closed, cut=cut) if received else None)
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
            with contextlib.suppress(ValueError):  # no HTTP: decoding says so
                exchange.framing.follow(data)  # it must not miss bytes that are about to go
            exchange.followed = at + 1
        if exchange.decoder is None:
            exchange.decoder = Decoder()
        exchange.decoder.feed(data, at)
        log.reads[at] = b""
        freed += len(data)
    return freed
