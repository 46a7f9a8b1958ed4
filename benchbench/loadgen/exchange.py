"""One request and its answer as raw reads, and the framing followed just far enough to know that it ended.

While tokens flow nothing is decoded: a read is three appends and a few byte searches. What the bytes mean is
found out later (`decode.py`). httptools parses the response head here, once, because it says how the body ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httptools

if TYPE_CHECKING:
    from benchbench.loadgen.decode import Decoder

MAX_HEAD = 65_536


class Framing:
    """Follows one HTTP/1.1 response as far as its end: chunked, by length, or until the connection closes.

    `follow(reads)` is called with all raw reads so far and remembers how far it came. Raises `ValueError` with a
    sentence when the bytes are not HTTP. Attributes: `status` (0 before the head), `keep_alive`, `done`.
    """

    def __init__(self) -> None:
        self.status = 0
        self.reason = ""
        self.headers: dict[str, str] = {}
        self.keep_alive = True
        self.chunked = False
        self.done = False
        self.until_close = False
        self._seen = 0  # reads already taken into _tail
        self._tail = b""  # bytes not yet understood
        self._left = 0  # body bytes still to skip (of the chunk, or of the content length)
        self._trailers = False

    # httptools' callbacks
    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_status(self, status: bytes) -> None:
        self.reason += status.decode("latin-1")

    def follow(self, reads: list[bytes]) -> bool:
        """True when the response is complete."""
        self._tail += b"".join(reads[self._seen :])
        self._seen = len(reads)
        while not self.status:
            if not self._take_head():
                return False
        if self.chunked:
            self._skip_chunks()
        elif not self.until_close:
            used = min(self._left, len(self._tail))
            self._left -= used
            self._tail = self._tail[used:]
            self.done = self._left == 0
        else:
            self._tail = b""
        return self.done

    def _take_head(self) -> bool:
        end = self._tail.find(b"\r\n\r\n")
        if end < 0:
            if len(self._tail) > MAX_HEAD or not b"HTTP/1.".startswith(self._tail[:7]):
                raise ValueError(f"not an HTTP response: it begins {self._tail[:60]!r}")
            return False
        self.headers, self.reason = {}, ""
        parser = httptools.HttpResponseParser(self)
        try:
            parser.feed_data(self._tail[: end + 4])
        except httptools.HttpParserError as error:
            raise ValueError(f"not an HTTP response ({error}): it begins {self._tail[:60]!r}") from None
        status = parser.get_status_code()
        self._tail = self._tail[end + 4 :]
        if 100 <= status < 200:
            return bool(self._tail)
        self.status = status
        self.keep_alive = parser.should_keep_alive()
        self.chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        length = self.headers.get("content-length", "")
        if status in {204, 304}:
            self.done = True
        elif not self.chunked and length.isdigit():
            self._left = int(length)
        elif not self.chunked:
            self.until_close, self.keep_alive = True, False
        return True

    def _skip_chunks(self) -> None:
        data, at = self._tail, 0
        while not self.done:
            if self._left:
                used = min(self._left, len(data) - at)
                at += used
                self._left -= used
                if self._left:
                    break
            end = data.find(b"\r\n", at)
            if end < 0:
                break
            line = data[at:end]
            at = end + 2
            if self._trailers:
                self.done = not line
                continue
            try:
                size = int(line.split(b";", 1)[0], 16)
            except ValueError:
                raise ValueError(f"broken chunk framing: {line[:40]!r}") from None
            if size:
                self._left = size + 2
            else:
                self._trailers = True
        self._tail = data[at:]


@dataclass(slots=True)
class Exchange:
    """One request's life. Times in ns of the wall clock; `stamps` are the kernel's, `users` the clock after `recv`."""

    index: int
    payload: bytes
    scheduled_ns: int = 0
    connect_ns: int = 0  # when this request's connection began to connect; 0 when it was there before
    connected_ns: int = 0
    tls_ns: int = 0  # time the TLS handshake took
    sent_ns: int = 0
    headers_ns: int = 0
    end_ns: int = 0
    resent: int = 0
    reused: bool = False
    reads: list[bytes] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    users: list[int] = field(default_factory=list)
    framing: Framing = field(default_factory=Framing)
    data_reads: int = 0
    received: int = 0  # bytes
    error_kind: str = ""
    error_phase: str = ""
    error_detail: str = ""
    # When undecoded bytes exceed their bound, the front of `reads` is decoded early: see `decode.compact`.
    decoder: Decoder | None = None
    decoded: int = 0  # reads
    freed: int = 0  # bytes

    def took(self, data: bytes, stamp: int, user: int) -> bool:
        """Keep one read; True when the response is complete. Raises `ValueError` on bytes that are not HTTP.

        The framing is followed for the head, and then only when a read may be the last one. A read that ends in a
        last chunk is believed at once, since walking a thousand chunks would stand before the next request's send;
        decoding finds out if it was not the end. Other ends (trailers, an end split over reads) are walked.
        """
        self.reads.append(data)
        self.stamps.append(stamp)
        self.users.append(user)
        self.received += len(data)
        if b"data:" in data or b"data:" in b"".join(self.reads[-5:])[-len(data) - 4 :]:
            self.data_reads += 1
        framing = self.framing
        if not framing.status:
            complete = framing.follow(self.reads)
            if framing.status:
                self.headers_ns = stamp
            return complete
        if not framing.chunked:
            return framing.follow(self.reads)
        if len(data) >= 5 and not data.endswith(b"\r\n\r\n"):
            return False
        if data[-7:] in {b"\r\n0\r\n\r\n", b"0\r\n\r\n"}:
            framing.done = True
            return True
        return framing.follow(self.reads)
