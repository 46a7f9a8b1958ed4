"""What a round's failed requests say of the engine: that it died, that it is gone, or that it refuses everything."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from benchbench.engines.open import Opened
from benchbench.errors import EngineError, StoppedError
from benchbench.openai.target import Target
from benchbench.store.requests import ErrorKind, ErrorPhase, RequestStatus

if TYPE_CHECKING:
    import pyarrow as pa

    from benchbench.store.requests import RoundColumns

# Statuses with which a server refuses every request of a sweep, and the key at fault.
REFUSALS = {401: "engine.api_key_env", 403: "engine.api_key_env", 404: "model", 405: "engine.url"}
BROKEN = {ErrorKind.CONNECT, ErrorKind.SEND, ErrorKind.STREAM}  # what a server that is gone leaves behind
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


def check_server(columns: RoundColumns, target: Target, *, answered: bool) -> None:
    """Stop when going on makes no sense. `answered`: some request of this session has succeeded.

    Raises StoppedError when the server is gone, EngineError when it refuses everything from the start.
    """
    failed = _failed(columns)
    if not failed:
        return
    everything = len(failed) == len(columns["status"])
    detail = columns["error_detail"][failed[0]]
    unreachable = everything and all(columns["error_phase"][k] == ErrorPhase.CONNECT for k in failed)
    if unreachable or ({columns["error_kind"][k] for k in failed} & BROKEN and not _listens(target)):
        raise StoppedError(f"the server at {target.host}:{target.port} is gone: {detail}")
    statuses = {int(columns["http_status"][k]) for k in failed}
    if not everything or answered or len(statuses) > 1:
        return
    status = statuses.pop()
    if status in REFUSALS:
        wrong_path = status == 404 and "model" not in detail.lower()  # a route that is not there, not a model
        raise EngineError(f"every request was refused: {detail}", "engine.url" if wrong_path else REFUSALS[status])
    if 300 <= status < 400:
        raise EngineError(f"the server redirects; give the final address: {detail}", "engine.url")


def _listens(target: Target) -> bool:
    """Whether anybody accepts connections where the target (or its proxy) is."""
    for _ in range(3):
        try:
            with socket.create_connection(target.proxy or (target.host, target.port), timeout=5):
                return True
        except OSError:
            time.sleep(0.2)
    return False
