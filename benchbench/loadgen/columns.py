"""Finished exchanges -> the columns of a round: decode, judge each request, and flatten its events."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson

from benchbench.loadgen.decode import Answer, Decoder
from benchbench.loadgen.exchange import Exchange, Log

if TYPE_CHECKING:
    from benchbench.store.requests import RoundColumns


def judge(exchange: Exchange, answer: Answer | None, asked_output: int, *, exact: bool) -> tuple[str, str, str]:
    """(kind, phase, detail) of a request's failure; three empty strings when it is good.

    A status is told before a broken connection (a server may refuse and close), that before what decoding found.
    `exact`: another number of output tokens than asked is a failure, as is none at all.
    """
    if answer is not None and answer.problem is not None and answer.problem[0] == "status":
        return "status", "wait", answer.problem[1]
    if exchange.error_kind and not (exchange.error_kind == "stall" and answer is not None and answer.done):
        detail = exchange.error_detail
        if answer is not None and answer.problem is not None and answer.problem[0] == "stream":
            detail = answer.problem[1]
        return exchange.error_kind, exchange.error_phase, detail
    if answer is None:
        return "protocol", "wait", "no answer"
    if answer.problem is not None:
        return answer.problem[0], "stream" if answer.event_read else "wait", answer.problem[1]
    got = answer.output_tokens if answer.output_tokens is not None else sum(answer.event_tokens)
    if exact and got != asked_output:
        kind = "short_output" if got < asked_output else "long_output"
        reason = f" (finish_reason: {answer.finish_reason})" if answer.finish_reason else ""
        return kind, "stream", f"{got} output tokens, asked for exactly {asked_output}{reason}"
    return "", "", ""


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
    answers = decode_log(exchanges, log, start)
    return columns_of(exchanges, answers, stamps, lags, asked_input, asked_output, exact=exact)


def columns_of(
    exchanges: Sequence[Exchange],
    answers: Sequence[Answer | None],
    stamps_ns: npt.NDArray[np.int64],
    lags_ns: npt.NDArray[np.int64],
    asked_input: Sequence[int],
    asked_output: Sequence[int],
    *,
    exact: bool,
) -> RoundColumns:
    """The columns of a round; `Answer.event_read` are places in `stamps_ns` and `lags_ns`."""
    judged = [
        judge(e, answer, asked_output[e.index], exact=exact) for e, answer in zip(exchanges, answers, strict=True)
    ]
    where = [answer.event_read if answer is not None else [] for answer in answers]
    tokens = [answer.event_tokens if answer is not None else [] for answer in answers]
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
        "status": ["failed" if kind else "ok" for kind, _, _ in judged],
        "error_kind": [kind for kind, _, _ in judged],
        "error_phase": [phase for _, phase, _ in judged],
        "error_detail": [detail for _, _, detail in judged],
        "server_metrics": [orjson.dumps(a.server_metrics).decode() if a and a.server_metrics else "" for a in answers],
    }
    for name in ("scheduled_ns", "connect_ns", "connected_ns", "tls_ns", "sent_ns", "headers_ns", "end_ns"):
        columns[name] = np.array([getattr(e, name) or -1 for e in exchanges], np.int64)
    for name in ("input_tokens", "output_tokens", "cached_tokens"):
        values = [getattr(a, name) if a is not None else None for a in answers]
        columns[name] = np.array([-1 if v is None else v for v in values], np.int32)
    for name in ("tokens_from", "finish_reason", "response_id"):
        columns[name] = [getattr(a, name) if a is not None else "" for a in answers]
    return columns  # type: ignore[return-value]


def decode_log(exchanges: Sequence[Exchange], log: Log, start: int = 0) -> list[Answer | None]:
    """The answers of a round's exchanges, whose indices are their places; None for one that received nothing.

    `start`: reads before it were decoded by `compact`. Exchange by exchange, so that a decoder stays in the cache.
    """
    owners = np.array(log.owners[start:], np.int64)
    order = (np.argsort(owners, kind="stable") + start).tolist()
    ends = np.cumsum(np.bincount(owners, minlength=len(exchanges))).tolist() if len(exchanges) else []
    answers: list[Answer | None] = []
    reads, begin = log.reads, 0
    for exchange, end in zip(exchanges, ends, strict=True):
        decoder = exchange.decoder
        if decoder is None:
            decoder = Decoder()
        for at in order[begin:end]:
            decoder.feed(reads[at], at)
        # After a stall, [DONE] tells an answer that is whole (its server left the connection open) from a cut one.
        closed = exchange.error_kind == "stall" or (exchange.framing.until_close and exchange.framing.done)
        answers.append(decoder.answer(closed=closed) if end > begin or exchange.decoder else None)
        begin = end
    return answers


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
