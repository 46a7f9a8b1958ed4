"""What is known of each request, as columns: the row format of every file under `records/`.

All `*_ns` are ns of the wall clock (CLOCK_REALTIME), the clock of the kernel's receive stamps.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from benchbench.store.facts import StoredRoundFacts

FORMAT_VERSION = 1


class RequestStatus(StrEnum):
    """The column `status`."""

    OK = "ok"
    FAILED = "failed"


class ErrorKind(StrEnum):
    """The column `error_kind`: how a request failed."""

    CONNECT = "connect"  # no connection: refused, unreachable, TLS, proxy
    SEND = "send"  # the connection broke before the request was out
    STATUS = "status"  # an HTTP status other than 200
    STREAM = "stream"  # the stream broke or reported an error
    STALL = "stall"  # tokens stopped for stall_s
    TIMEOUT = "timeout"  # no connection within connect_s, or no token within first_token_s
    PROTOCOL = "protocol"  # not HTTP, not server-sent events, not JSON
    SHORT_OUTPUT = "short_output"
    LONG_OUTPUT = "long_output"
    CLIENT = "client"  # the process that sent it, one of ours, died; the phase is not known and says "send"


class ErrorPhase(StrEnum):
    """The column `error_phase`: how far a failed request had come."""

    CONNECT = "connect"  # not connected
    SEND = "send"  # not yet sent
    WAIT = "wait"  # sent, no token yet
    STREAM = "stream"  # tokens had come


class RoundColumns(TypedDict):
    """One round as columns, one entry a request; events are flat, with `event_offsets` (n + 1) as in Arrow lists.

    Missing times and counts are -1 here and null in the file.
    """

    index: npt.NDArray[np.int32]
    scheduled_ns: npt.NDArray[np.int64]
    connect_ns: npt.NDArray[np.int64]
    connected_ns: npt.NDArray[np.int64]
    tls_ns: npt.NDArray[np.int64]
    sent_ns: npt.NDArray[np.int64]
    headers_ns: npt.NDArray[np.int64]
    end_ns: npt.NDArray[np.int64]
    asked_input_tokens: npt.NDArray[np.int32]
    asked_output_tokens: npt.NDArray[np.int32]
    input_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    cached_tokens: npt.NDArray[np.int32]
    http_status: npt.NDArray[np.int32]
    resent: npt.NDArray[np.int32]
    target: npt.NDArray[np.int32]  # place of its server in engine.url
    reused: npt.NDArray[np.bool_]
    event_offsets: npt.NDArray[np.int32]
    event_ns: npt.NDArray[np.int64]
    event_tokens: npt.NDArray[np.int32]
    lag_ns: npt.NDArray[np.int64]
    tokens_from: list[str]
    finish_reason: list[str]
    response_id: list[str]
    answered_by: list[str]  # the model and the system fingerprint that the server named
    status: list[str]
    error_kind: list[str]
    error_phase: list[str]
    error_detail: list[str]
    server_metrics: list[str]
    served_by: NotRequired[list[str]]  # which of several servers, where the answer names it
    asked_cached_tokens: NotRequired[npt.NDArray[np.int32]]  # where prompts share prefixes


_LISTS = ("event_ns", "event_tokens", "lag_ns")
_LABEL_UNITS = {"input": "tokens", "output": "tokens", "batch": "requests", "rate": "req/s"}


def _unit(column: str) -> str:
    return _LABEL_UNITS.get(column) or {"ns": "ns", "tokens": "tokens"}.get(column.rpartition("_")[2], "")


def round_table(columns: RoundColumns, labels: dict[str, Any], facts: dict[str, Any]) -> pa.Table:
    """The Arrow table of one round: `labels` (cell, variant, round, attempt, phase ...) become constant columns.

    `facts` about the round as a whole (longest loop turn, clock step, CPU time ...) go into the file's metadata
    under `benchbench`, as JSON.
    """
    import numpy as np
    import orjson

    from benchbench.store import arrow as make

    count = len(columns["index"])
    arrays = {name: make.constant(value, count) for name, value in labels.items()}
    for name, values in columns.items():
        if name == "event_offsets":
            continue
        if isinstance(values, list):
            arrays[name] = make.texts(values)
        elif not isinstance(values, np.ndarray):
            raise TypeError(f"column {name} is neither a list nor an array")
        elif name in _LISTS:
            arrays[name] = make.lists(columns["event_offsets"], values)
        elif values.dtype == np.bool_:
            arrays[name] = make.flags(values)
        else:
            arrays[name] = make.numbers(values, values >= 0)
    table = make.table_with_units(arrays, {name: _unit(name) for name in arrays})
    return table.replace_schema_metadata({"benchbench": orjson.dumps(facts)})


def problem_of(table: pa.Table) -> str:
    """Why a table is none of `round_table`, by columns that every version wrote; empty when it is one."""
    import pyarrow as pa

    types = {"event_tokens": pa.list_(pa.int32())} | dict.fromkeys(("event_ns", "lag_ns"), pa.list_(pa.int64()))
    types |= dict.fromkeys(("status", "error_kind", "error_phase", "error_detail", "finish_reason"), pa.string())
    types |= dict.fromkeys(("connect_ns", "scheduled_ns", "sent_ns", "headers_ns", "end_ns"), pa.int64())
    types |= dict.fromkeys(("output_tokens", "cached_tokens", "resent"), pa.int32())
    types |= dict.fromkeys(("asked_input_tokens", "asked_output_tokens", "input_tokens"), pa.int32())
    for name, kind in types.items():
        if name not in table.schema.names or table.schema.field(name).type != kind:
            return f"no column {name} of {kind}"
    return ""


def round_facts(table: pa.Table) -> StoredRoundFacts:
    """The round's own facts out of a table's metadata; empty when there are none."""
    import orjson

    raw = (table.schema.metadata or {}).get(b"benchbench", b"{}")
    facts: StoredRoundFacts = orjson.loads(raw)
    return facts
