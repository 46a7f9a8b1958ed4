"""Finished exchanges -> the columns of a round: decode, judge each request, and flatten its events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from benchbench.loadgen.decode import Answer, decode
from benchbench.loadgen.exchange import Exchange

if TYPE_CHECKING:
    from benchbench.record.requests import RoundColumns


def judge(exchange: Exchange, answer: Answer | None, asked_output: int, *, exact: bool) -> tuple[str, str, str]:
    """(kind, phase, detail) of a request's failure; three empty strings when it is good.

    A status is told before a broken connection (a server may refuse and close), that before what decoding found.
    `exact`: another number of output tokens than asked is a failure, as is none at all.
    """
    if answer is not None and answer.problem is not None and answer.problem[0] == "status":
        return "status", "wait", answer.problem[1]
    if exchange.error_kind:
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
    exchanges: Sequence[Exchange], asked_input: Sequence[int], asked_output: Sequence[int], *, exact: bool
) -> RoundColumns:
    """Decode the exchanges of a round, in the order of their index; frees their raw bytes on the way."""
    answers: list[Answer | None] = []
    judged: list[tuple[str, str, str]] = []
    event_ns, event_tokens, lag_ns, counts = [], [], [], []
    for exchange in exchanges:
        answer = decode(exchange) if exchange.reads else None
        exchange.reads, exchange.decoder = [], None
        answers.append(answer)
        judged.append(judge(exchange, answer, asked_output[exchange.index], exact=exact))
        where = answer.event_read if answer is not None else []
        stamps = exchange.stamps_ns()[where]
        event_ns.append(stamps)
        lag_ns.append(np.array(exchange.users, np.int64)[where] - stamps)
        event_tokens.append(np.array(answer.event_tokens if answer is not None else [], np.int32))
        counts.append(len(where))
    indices = [exchange.index for exchange in exchanges]
    columns: dict[str, Any] = {
        "index": np.array(indices, np.int32),
        "asked_input_tokens": np.array([asked_input[i] for i in indices], np.int32),
        "asked_output_tokens": np.array([asked_output[i] for i in indices], np.int32),
        "http_status": np.array([e.framing.status or -1 for e in exchanges], np.int32),
        "resent": np.array([e.resent for e in exchanges], np.int32),
        "reused": np.array([e.reused for e in exchanges], np.bool_),
        "event_offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        "event_ns": np.concatenate(event_ns) if event_ns else np.array([], np.int64),
        "event_tokens": np.concatenate(event_tokens) if event_tokens else np.array([], np.int32),
        "lag_ns": np.concatenate(lag_ns) if lag_ns else np.array([], np.int64),
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
