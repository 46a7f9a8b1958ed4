"""One request and its answer as raw reads, and the framing followed just far enough to know that it ended.

While tokens flow nothing is decoded: a read is four appends and one look at its end. What the bytes mean is found
out later (`decode.py`). Of an answer the head is parsed here, once, because it says how the body ends.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from benchbench.http1.framing import Framing
from benchbench.linux import to_ns
from benchbench.store.requests import ErrorKind, ErrorPhase

STAMP = 16  # bytes of a timespec


class Away(Protocol):
    """Where the first reads of a log went."""

    def reads_of(self, owner: int, start: int, end: int) -> list[bytes]: ...
    def counts(self) -> Counter[int]: ...


class Log:
    """All reads of a round in the order in which they came, as four columns that grow together.

    Read k belongs to the exchange `owners[k]`, is `reads[k]`, was received by the kernel at `stamps[16 * k :]` (the
    timespec as it came: two int64, seconds and ns) and by us at `users[k]` (ns). One log, since appending to lists of
    each stream costs more in cache misses than all else in the loop; no objects but the reads: as lists the
    other three took 120 bytes a read instead of 28.

    The first `base` reads of a long round are no more in the columns: `drop` has moved them `away`. Places count on.
    """

    __slots__ = ("away", "base", "owners", "reads", "stamps", "users")

    def __init__(self) -> None:
        self.owners = array("i")
        self.reads: list[bytes] = []
        self.stamps = bytearray()
        self.users = array("q")
        self.base, self.away = 0, cast("Away | None", None)

    def __len__(self) -> int:
        return self.base + len(self.reads)

    def add(self, owner: int, data: bytes, stamp: bytes, user: int) -> None:
        self.owners.append(owner)
        self.reads.append(data)
        self.stamps += stamp
        self.users.append(user)

    def stamps_ns(self) -> npt.NDArray[np.int64]:
        """The kernel's receive time of each read, ns of the wall clock."""
        pairs = np.frombuffer(self.stamps, np.int64).reshape(-1, 2)
        return pairs[:, 0] * 1_000_000_000 + pairs[:, 1]

    def stamp_ns(self, read: int) -> int:
        """That of one read that is in the columns."""
        at = STAMP * (read - self.base)
        return to_ns(self.stamps[at : at + STAMP])

    def drop(self, count: int, away: Away) -> None:
        """Take so many of the first reads out of the columns: they are `away` now."""
        del self.owners[:count], self.reads[:count], self.stamps[: STAMP * count], self.users[:count]
        self.base += count
        self.away = away

    def reads_of(self, owner: int, start: int, end: int) -> list[bytes]:
        """An exchange's reads among those from place `start` to `end`."""
        here = slice(max(0, start - self.base), max(0, end - self.base))
        far = self.away.reads_of(owner, start, min(end, self.base)) if self.away and start < self.base else []
        return far + [data for whose, data in zip(self.owners[here], self.reads[here], strict=True) if whose == owner]

    def counts(self) -> Counter[int]:
        """How many reads each exchange has."""
        return Counter(self.owners) + (self.away.counts() if self.away else Counter())


class Failure(NamedTuple):
    """Why a request failed, and how far it had come; `detail` is a sentence."""

    kind: ErrorKind
    phase: ErrorPhase
    detail: str


class Ended(NamedTuple):
    """What a record keeps of an exchange, beside what its response says; times as there.

    `http_status` is -1 where there was none. `closed`: the end of the connection was that of the answer.
    """

    request: int  # its index
    asked_input_tokens: int
    asked_output_tokens: int
    target: int
    http_status: int
    closed: bool
    resent: int
    reused: bool
    failure: Failure | None
    scheduled_ns: int
    connect_ns: int
    connected_ns: int
    tls_ns: int
    sent_ns: int
    headers_ns: int
    end_ns: int


@dataclass(slots=True)
class Exchange:
    """One request's life; its reads are in the round's log. Times are ns of the wall clock; 0 is not yet."""

    index: int
    payload: bytes
    log: Log
    scheduled_ns: int = 0
    connect_ns: int = 0  # when its connection began to connect
    connected_ns: int = 0
    tls_ns: int = 0  # time the TLS handshake took
    sent_ns: int = 0
    headers_ns: int = 0
    end_ns: int = 0
    target: int = 0  # place of its server among the job's targets
    resent: int = 0
    reused: bool = False
    received: int = 0  # reads that the loop looked at itself: none yet is 0
    framing: Framing = field(default_factory=Framing)
    followed: int = 0  # position in the log up to which `framing` has seen our reads
    walking: bool = False  # the framing is followed read by read
    failure: Failure | None = None  # what the loop saw; decoding may find another

    def ended(self, asked_input: int, asked_output: int) -> Ended:
        framing, same = self.framing, {name: getattr(self, name) for name in _KEPT}
        closed = framing.until_close and framing.done
        return Ended(
            request=self.index,
            asked_input_tokens=asked_input,
            asked_output_tokens=asked_output,
            http_status=framing.status or -1,
            closed=closed,
            **same,
        )

    def took(self, data: bytes, stamp: bytes, user: int) -> bool:
        """Keep one read; True when the response is complete. Raises `WireError` on bytes that are not HTTP."""
        self.log.add(self.index, data, stamp, user)
        self.received += 1
        if self.framing.status and self.framing.chunked:
            return self.ends(data)
        complete = self._show(data)
        if self.framing.status and not self.headers_ns:
            self.headers_ns = to_ns(stamp)
        return complete

    def ends(self, data: bytes) -> bool:
        """Whether a chunked response, whose head has come before, ends with the read `data`, just kept.

        The framing is followed only when a read may be the last one. A read that ends in a last chunk is believed at
        once, since walking a thousand chunks would stand before the next request's send; decoding finds out if it
        was not the end. After another such read (CRLF in the body, trailers, an end split over reads) all are walked.
        """
        if not self.walking:
            if not may_end(data):
                return False
            if data[-7:] in {b"\r\n0\r\n\r\n", b"0\r\n\r\n"}:
                self.framing.done = True
                return True
            self.walking = True
            return self._catch_up()
        return self._show(data)

    def _show(self, data: bytes) -> bool:
        """Show the framing the read just kept; it has seen all of ours before."""
        self.followed = len(self.log)
        return self.framing.follow(data)

    def _catch_up(self) -> bool:
        """Show the framing those of our reads that it has not seen. Walks the log of all streams: once an exchange."""
        for data in self.log.reads_of(self.index, self.followed, len(self.log)):
            self.framing.follow(data)
        self.followed = len(self.log)
        return self.framing.done


_KEPT = tuple(name for name in Ended._fields if name in Exchange.__slots__)


def may_end(data: bytes) -> bool:
    """Whether a read of a chunked body could be its last: it ends in an empty line, or is a piece of one."""
    return data.endswith(b"\r\n\r\n") or len(data) < 5
