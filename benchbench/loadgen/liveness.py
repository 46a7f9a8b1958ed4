"""Which streams of a round still make progress. Progress is a token: no heartbeat, empty delta or role is one.

Looked at about four times a second, for `data:` alone. Only where a stream would be given up are its reads parsed, the
newest first and until one holds a token: once for each silence, and once a `stall_s` for a stream that goes on.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from benchbench.decoding.token_counts import has_output, parts_of
from benchbench.loadgen.exchange import Away, Exchange, Log
from benchbench.loadgen.job import RoundJob
from benchbench.store.requests import ErrorKind

LOOKS = 20  # streams parsed in one check, some 30 us each; the others' turn comes with the next
_CHUNK_HEAD = re.compile(rb"\r\n[0-9a-fA-F]+(?:;[^\r\n]*)?\r\n")


@dataclass(slots=True)
class _Stream:
    """Times are monotonic ns, 0 is never. `checks`: those that saw data since tokens were looked for."""

    has_data: bool = False
    tail: bytes = b""  # the end of the last read without `data:`
    data_ns: int = 0
    token_ns: int = 0
    reported: int = 0  # tokens in all, by the server's running usage
    checks: list[int] = field(default_factory=list)


class Liveness:
    """What a round's log shows of its streams, by the index of their exchanges.

    `received`: bytes in all, as of the last check. `seen`: reads that the checks have seen.
    """

    def __init__(self, log: Log, job: RoundJob) -> None:
        self._log, self._job = log, job
        self._streams: defaultdict[int, _Stream] = defaultdict(_Stream)
        self._starts: list[int] = []  # of each check: where its reads begin in the log,
        self._times: list[int] = []  # and when it was
        self._looks = 0
        self.received = self.seen = 0

    def update(self) -> None:
        """A check: look at the reads since the last one."""
        self._looks = 0
        self._read_on()

    def _read_on(self) -> None:
        log, start, number, now = self._log, self.seen, len(self._starts), time.monotonic_ns()
        self._starts.append(start)
        self._times.append(now)
        self.seen = len(log)
        owners, fresh = log.owners[start - log.base :], log.reads[start - log.base :]
        newest = dict(zip(owners, fresh, strict=True))
        sure = [pair for pair in newest.items() if b"data:" in pair[1]]
        for owner, data in (*sure, *(zip(owners, fresh, strict=True) if len(sure) < len(newest) else ())):
            stream = self._streams[owner]
            if stream.checks and stream.checks[-1] == number:
                continue
            if b"data:" in (stream.tail + data if stream.tail else data):
                stream.has_data, stream.tail, stream.data_ns = True, b"", now
                stream.checks.append(number)
            else:
                stream.tail = (stream.tail + data)[-4:]
        self.received += sum(map(len, fresh))

    def forget(self, index: int) -> None:
        """A request has ended, and the checks have seen all of it."""
        self._streams.pop(index, None)

    def has_data(self, index: int) -> bool:
        """Whether a stream has held `data:`, as of now."""
        self._read_on()
        return self._streams[index].has_data

    def overdue(self, index: int, sent_ns: int, now: int) -> ErrorKind | None:
        """How a request, sent at `sent_ns` (monotonic), has failed: by a timeout before its first token, a stall after
        it; None while it may go on.
        """
        stream, first_ns, stall_ns = self._streams[index], self._job.first_token_s * 1e9, self._job.stall_s * 1e9
        is_silent = bool(stream.checks) and now - stream.data_ns > stall_ns
        for has_looked in (False, True):
            limit_ns = stall_ns if stream.token_ns else first_ns
            if now - (stream.token_ns or sent_ns) <= limit_ns and not (is_silent and not has_looked):
                return None
            if stream.checks and not has_looked:
                if self._looks >= LOOKS:
                    return None
                self._looks += 1
                stream.token_ns = self._newest_token(index, stream) or stream.token_ns
        return ErrorKind.STALL if stream.token_ns else ErrorKind.TIMEOUT

    def _newest_token(self, index: int, stream: _Stream) -> int:
        """When a check saw the newest token among the reads not looked at yet; 0 if none did."""
        log, numbers, after = self._log, stream.checks, b""
        stream.checks = []
        for number in reversed(numbers):
            end = self._starts[number + 1] if number + 1 < len(self._starts) else self.seen
            for data in reversed(log.reads_of(index, self._starts[number], end)):
                after = data + after
                if b"data:" in after[: len(data) + 4]:  # else what an event goes on with
                    if _holds_token(after, stream):
                        return self._times[number]
                    after = data
        return 0


class Spool(Away, Protocol):
    """Where a long round's reads go while it runs. `crowd`: so many may stay. `size`: bytes of responses in it."""

    crowd: int
    size: int

    def patience_s(self, log: Log) -> float:
        """There are more reads than `crowd`: how long nothing must come before some are moved."""

    def move(self, log: Log, liveness: Liveness, done: list[Exchange], *, is_idle: bool) -> None:
        """Move some, and with them those of `done` whose reads are all moved."""

    def check(self, liveness: Liveness) -> None:
        """Look whether there are too many bytes."""


def _holds_token(data: bytes, stream: _Stream) -> bool:
    lines = _CHUNK_HEAD.sub(b"", data).split(b"\n")
    return any(_is_token(line[5:].strip(), stream) for line in reversed(lines) if line.startswith(b"data:"))


def _is_token(payload: bytes, stream: _Stream) -> bool:
    """Whether an event holds output: text, ids, any part of a delta but its role, or a running usage that has grown."""
    try:
        event = orjson.loads(payload)
        count = (event.get("usage") or {}).get("completion_tokens")
        if type(count) is int and count > stream.reported:
            stream.reported = count
            return True
        choices = event.get("choices") or ()
        return any(choice.get("token_ids") or has_output(parts_of(choice)) for choice in choices)
    except (AttributeError, TypeError, orjson.JSONDecodeError):
        return False
