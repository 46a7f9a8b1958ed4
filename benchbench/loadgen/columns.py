"""Finished exchanges -> the columns of a round: decode, find what failed, and flatten its events."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from benchbench.decoding.response import Response
from benchbench.decoding.usual_event import QuickDecoder
from benchbench.loadgen.exchange import Ended, Exchange, Failure, Log
from benchbench.loadgen.job import Job
from benchbench.secrets import mask_text, without
from benchbench.store.requests import ErrorKind, ErrorPhase, RequestStatus, RoundColumns

NO_ANSWER = (ErrorKind.PROTOCOL, "no answer")
_COUNTS = ("asked_input_tokens", "asked_output_tokens", "http_status", "target")


def failure_of(ended: Ended, response: Response, *, exact: bool) -> Failure | None:
    """Why a request failed; None when it is good.

    A status is told before a broken connection (a server may refuse and close), that before what decoding found.
    `exact`: fewer output tokens than asked are a failure, as is none at all; more are one in any case.
    """
    kind, detail = response.problem or (None, "")
    if kind is ErrorKind.STATUS:
        return Failure(kind, ErrorPhase.WAIT, detail)
    if (failure := ended.failure) is not None:
        if kind is ErrorKind.STREAM:
            return failure._replace(detail=detail)
        broken = failure.kind in {ErrorKind.STALL, ErrorKind.STREAM}
        if not (broken and response.is_whole):  # all was said, only the end is missing
            return failure
    if kind is not None:
        return Failure(kind, ErrorPhase.STREAM if response.event_read else ErrorPhase.WAIT, detail)
    got = response.output_tokens if response.output_tokens is not None else sum(response.event_tokens)
    if got > (asked_output := ended.asked_output_tokens) or (exact and got < asked_output):
        kind = ErrorKind.SHORT_OUTPUT if got < asked_output else ErrorKind.LONG_OUTPUT
        how = "exactly" if exact else "at most"
        reason = f" (finish_reason: {response.finish_reason})" if response.finish_reason else ""
        return Failure(kind, ErrorPhase.STREAM, f"{got} output tokens, asked for {how} {asked_output}{reason}")
    return None


def collect(exchanges: Sequence[Exchange], log: Log, job: Job) -> RoundColumns:
    """Decode a round's log and judge its exchanges, by index."""
    stamps = log.stamps_ns()
    lags = np.array(log.users, np.int64) - stamps
    ended = all_ended(exchanges, job)
    return columns_of(ended, decode_log(exchanges, log), stamps, lags, exact=job.exact, secrets=job.secrets)


def all_ended(exchanges: Sequence[Exchange], job: Job) -> list[Ended]:
    """What records keep of a job's exchanges."""
    return [e.ended(job.asked_input[e.index], job.asked_output[e.index]) for e in exchanges]


def columns_of(
    ended: Sequence[Ended],
    responses: Sequence[Response],
    stamps_ns: npt.NDArray[np.int64],
    lags_ns: npt.NDArray[np.int64],
    *,
    exact: bool,
    secrets: frozenset[str],
) -> RoundColumns:
    """The columns of these requests; `Response.event_read` are places in `stamps_ns` and `lags_ns`.

    `exact` and `secrets` are the job's.
    """
    failures = [failure_of(*pair, exact=exact) for pair in zip(ended, responses, strict=True)]
    at = np.fromiter(chain.from_iterable(r.event_read for r in responses), np.int64)
    columns: dict[str, Any] = {
        "index": np.array([e.request for e in ended], np.int32),
        **{name: np.array([getattr(e, name) for e in ended], np.int32) for name in _COUNTS},
        "resent": np.array([e.resent + r.retried for e, r in zip(ended, responses, strict=True)], np.int32),
        "reused": np.array([e.reused for e in ended], np.bool_),
        "event_offsets": np.cumsum([0, *(len(r.event_read) for r in responses)]).astype(np.int32),
        "event_ns": stamps_ns[at],
        "event_tokens": np.fromiter(chain.from_iterable(r.event_tokens for r in responses), np.int32),
        "lag_ns": lags_ns[at],
        "status": [RequestStatus.OK if failure is None else RequestStatus.FAILED for failure in failures],
        "server_metrics": [orjson.dumps(r.server_metrics).decode() if r.server_metrics else "" for r in responses],
    }
    # Servers quote what they refuse.
    failures = [f and f._replace(detail=mask_text(f.detail, secrets)) for f in failures]
    for name in Failure._fields:
        columns[f"error_{name}"] = ["" if failure is None else getattr(failure, name) for failure in failures]
    for name in ("scheduled_ns", "connect_ns", "connected_ns", "tls_ns", "sent_ns", "headers_ns", "end_ns"):
        columns[name] = np.array([getattr(e, name) or -1 for e in ended], np.int64)
    for name in ("input_tokens", "output_tokens", "cached_tokens"):
        counts = [getattr(r, name) for r in responses]
        columns[name] = np.array([-1 if count is None else count for count in counts], np.int32)
    for name in ("tokens_from", "finish_reason", "response_id", "answered_by", "served_by"):
        columns[name] = [without(getattr(r, name), secrets) for r in responses]
    return columns  # type: ignore[return-value]


def decode_log(exchanges: Sequence[Exchange], log: Log) -> list[Response]:
    """The responses of a round's exchanges, whose indices are their places.

    Exchange by exchange, so that a decoder stays in the cache.
    """
    owners = np.array(log.owners)
    order = np.argsort(owners, kind="stable").tolist()
    ends = np.cumsum(np.bincount(owners, minlength=len(exchanges))).tolist() if len(exchanges) else []
    responses: list[Response] = []
    reads, begin = log.reads, 0
    for exchange, end in zip(exchanges, ends, strict=True):
        places, begin = order[begin:end], end
        if not places:
            responses.append(Response(problem=NO_ANSWER))
            continue
        decoder = QuickDecoder()
        decoder.feed_all([reads[at] for at in places], 0)
        closed = exchange.framing.until_close and exchange.framing.done

        def when(read: int, own: Sequence[int] = places) -> int:
            return log.stamp_ns(own[read])

        response = decoder.response(when, closed=closed, cut=exchange.failure is not None)
        response.event_read = [places[read] for read in response.event_read]
        responses.append(response)
    return responses
