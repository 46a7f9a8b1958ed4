"""One request and its answer as raw reads, and the framing followed just far enough to know that it ended.

While tokens flow nothing is decoded: a read is four appends and one look at its end. What the bytes mean is found
out later (`decode.py`). Of an answer the head is parsed here, once, because it says how the body ends.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from benchbench.http1.framing import Framing
from benchbench.linux import to_ns
from benchbench.store.requests import ErrorKind, ErrorPhase

if TYPE_CHECKING:
    from benchbench.decoding.usual_event import QuickDecoder


STAMP = 16  # bytes of a timespec


class Log:
    """All reads of a round in the order in which they came, as four columns that grow together.

    Read k belongs to the exchange `owners[k]`, is `reads[k]`, was received by the kernel at `stamps[16 * k :]` (the
    timespec as it came: two int64, seconds and ns) and by us at `users[k]` (ns). One log, since appending to lists of
    each stream costs more in cache misses than all else in the loop; no objects but the reads: as lists the
    other three took 120 bytes a read instead of 28.
    """

    __slots__ = ("owners", "reads", "stamps", "users")

    def __init__(self) -> None:
        self.owners = array("i")
        self.reads: list[bytes] = []
        self.stamps = bytearray()
        self.users = array("q")

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
        """That of one read."""
        return to_ns(self.stamps[STAMP * read : STAMP * (read + 1)])


class Failure(NamedTuple):
    """Why a request failed, and how far it had come; `detail` is a sentence."""

    kind: ErrorKind
    phase: ErrorPhase
    detail: str


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
    decoder: QuickDecoder | None = None  # made early when undecoded bytes exceed their bound

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
        self.followed = len(self.log.reads)
        return self.framing.follow(data)

    def _catch_up(self) -> bool:
        """Show the framing those of our reads that it has not seen. Walks the log of all streams: once an exchange."""
        log, framing = self.log, self.framing
        for at in range(self.followed, len(log.reads)):
            if log.owners[at] == self.index:
                framing.follow(log.reads[at])
        self.followed = len(log.reads)
        return framing.done


def may_end(data: bytes) -> bool:
    """Whether a read of a chunked body could be its last: it ends in an empty line, or is a piece of one."""
    return data.endswith(b"\r\n\r\n") or len(data) < 5
