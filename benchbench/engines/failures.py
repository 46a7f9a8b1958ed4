"""What a round's failed requests say of the engine: that it died, that it is gone, or that it refuses everything."""

from __future__ import annotations

import errno
import os
import re
import socket
import time

import pyarrow as pa

from benchbench.engines.open import Opened
from benchbench.errors import EngineError, StoppedError
from benchbench.openai.target import Target
from benchbench.spec import Cell
from benchbench.store.requests import ErrorKind, ErrorPhase, RequestStatus, RoundColumns

# Statuses with which a server refuses every request of a sweep, and the key at fault.
REFUSALS = {401: "engine.api_key_env", 403: "engine.api_key_env", 404: "model", 405: "engine.url"}
BROKEN = {ErrorKind.CONNECT, ErrorKind.SEND, ErrorKind.STREAM}  # what a server that is gone leaves behind
_NO_IDS = re.compile(r"\b(string|str|token.?ids?)\b(?!.*(context|vocab))", re.IGNORECASE)  # what a prompt should be
HANGING = {ErrorKind.STALL, ErrorKind.TIMEOUT}
DEATH_S = 5.0  # an engine whose connections broke ends within this time, or it lives


def _failed(columns: RoundColumns) -> list[int]:
    return [k for k, status in enumerate(columns["status"]) if status == RequestStatus.FAILED]


def death_of(opened: Opened, columns: RoundColumns) -> str | None:
    """Why the engine that we own is of no use any more, judged by a round's failures; then their details say so too.

    It ends some moments after its connections broke. One that lives and left every request without a token hangs.
    """
    if opened.watch is None:
        return None
    failed, details = _failed(columns), columns["error_detail"]
    kinds = {columns["error_kind"][k] for k in failed}
    broken = bool(kinds & BROKEN) or any(columns["http_status"][k] >= 500 for k in failed)
    _, why = opened.watch
    reason, until = why(), time.monotonic() + DEATH_S
    while reason is None and broken and time.monotonic() < until:
        time.sleep(0.05)
        reason = why()
    if reason is None and failed and len(failed) == len(columns["status"]) and kinds <= HANGING:
        reason = f"the engine hangs: {details[failed[0]]}"
    if reason is not None:
        details[:] = [text if not text or reason in text else f"{text}; {reason}" for text in details]
    return reason


def first_failure(table: pa.Table) -> str:
    """How many requests of a round failed, and how the first of them did; empty when none has."""
    statuses = table["status"].to_pylist()
    count = statuses.count(RequestStatus.FAILED)
    if not count:
        return ""
    at = statuses.index(RequestStatus.FAILED)
    kind, phase, detail = (table[f"error_{name}"][at].as_py() for name in ("kind", "phase", "detail"))
    return f"{count} of {len(statuses)} requests failed, first: {kind} ({phase}): {detail}"


def check_server(columns: RoundColumns, target: Target, cell: Cell, *, answered: bool) -> None:
    """Stop when going on makes no sense. `answered`: some request of this session has succeeded.

    `columns`: of the requests that this server got. Raises StoppedError when it is gone, EngineError when it refuses
    everything from the start.
    """
    failed = _failed(columns)
    if not failed:
        return
    everything = len(failed) == len(columns["status"])
    detail = columns["error_detail"][failed[0]]
    unreachable = everything and all(columns["error_phase"][k] == ErrorPhase.CONNECT for k in failed)
    if unreachable or ({columns["error_kind"][k] for k in failed} & BROKEN and not _listens(target)):
        raise StoppedError(f"{_gone(target, detail)}: {detail}")
    statuses = {int(columns["http_status"][k]) for k in failed}
    if not everything or answered or len(statuses) > 1:
        return
    status = statuses.pop()
    message = f"every request was refused: {detail}"
    if status in {400, 415, 422}:
        if "max_completion_tokens" in detail:
            raise EngineError(message, "engine.max_tokens_field", allowed="max_completion_tokens")
        if cell.output_mode == "exact" and ("ignore_eos" in detail or "min_tokens" in detail):
            raise EngineError(message, "output", allowed="as_served: answers end when they do")
        if cell.prompts.kind == "token_ids" and _NO_IDS.search(detail):
            raise EngineError(f"{message}; it takes no token ids", "prompts.kind", allowed="text")
    if status in {401, 403} and not target.access.headers:
        message = f"{target.access.refusal(status)}: {detail}"
    if status == 404 and "model" not in detail.lower():  # a route that is not there, not a model
        hint = ", engine.api: chat is for one without completions" if cell.engine.api == "completions" else ""
        raise EngineError(f"{message}; engine.path names the API's path where it is not /v1{hint}", "engine.url")
    if status in REFUSALS:
        raise EngineError(message, REFUSALS[status])
    if 300 <= status < 400:
        raise EngineError(f"the server redirects; give the final address: {detail}", "engine.url")


def _gone(target: Target, detail: str) -> str:
    """Who is at fault when connections fail: this host, the proxy on the way, or the server."""
    server = f"{target.host}:{target.port}"
    if os.strerror(errno.EADDRNOTAVAIL) in detail and ":" not in target.host:  # what IPv6 says where there is none
        return f"this host has no local port left for connections to {server} (net.ipv4.ip_local_port_range)"
    if os.strerror(errno.EMFILE) in detail:
        return f"this host allows no more connections to {server} (ulimit -n)"
    if target.proxy and "refused the tunnel" not in detail:
        return f"the proxy of engine.proxy at {target.proxy[0]}:{target.proxy[1]} is gone"
    return f"the server at {server} is gone"


def _listens(target: Target) -> bool:
    """Whether anybody accepts connections where the target (or its proxy) is."""
    for _ in range(3):
        try:
            with socket.create_connection(target.proxy or (target.host, target.port), timeout=5):
                return True
        except OSError:
            time.sleep(0.2)
    return False
