"""HTTP/1.1 on one non-blocking socket: requests with the kernel's stamp of their last byte, buffered writes."""

from __future__ import annotations

import socket
import struct
from collections import deque
from dataclasses import dataclass

import httptools

from benchbench import kernel
from benchbench.engines.simulator.render import CONTINUE

READ_BYTES = 1 << 18
MAX_BODY_BYTES = 1 << 26
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, with RST


@dataclass(slots=True)
class HttpRequest:
    method: str
    path: str
    query: str
    headers: dict[bytes, bytes]  # names in lower case
    body: bytes
    received_ns: int  # kernel receive time of its last byte, CLOCK_REALTIME
    keep_alive: bool


class Connection:
    """One client. Finished requests gather in `inbox`; what the kernel does not take at once is kept."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        kernel.enable_stamps(sock)
        self.sock, self.fd = sock, sock.fileno()
        self.inbox: deque[HttpRequest] = deque()
        self.busy = False  # a request of it is being answered
        self.request_number: int | None = None  # of that request, while it is in the engine
        self.closing = False  # close once `pending` is sent
        self.closed = False
        self.pending = bytearray()
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._stamp_ns = 0
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0

    def read(self) -> bool:
        """Take what has arrived; False when the client has left or talks no HTTP."""
        if self._parser is None:
            return False
        try:
            data, ancillary, _flags, _address = self.sock.recvmsg(READ_BYTES, kernel.ANCILLARY)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        self._stamp_ns = kernel.stamp_of(ancillary)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            return False
        return self._body_bytes <= MAX_BODY_BYTES

    def send(self, data: bytes) -> bool:
        """Send, or keep what does not fit for `flush`; False when the client has left."""
        if self.pending:
            self.pending += data
            return True
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return False
        if sent < len(data):
            self.pending += data[sent:]
        return True

    def flush(self) -> bool:
        """Send what is pending; False when the client has left."""
        try:
            del self.pending[: self.sock.send(self.pending)]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def close(self, *, reset: bool = False) -> None:
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()
        self.closed = True
        self._parser = None  # it refers back to us, and nothing collects cycles while tokens flow

    # What httptools calls.

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body, self._body_bytes = b"", {}, [], 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self.send(CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        parser = self._parser
        if parser is None:
            return
        path, _, query = self._url.decode("latin-1").partition("?")
        self.inbox.append(
            HttpRequest(
                method=parser.get_method().decode("latin-1"),
                path=path,
                query=query,
                headers=self._headers,
                body=b"".join(self._body),
                received_ns=self._stamp_ns,
                keep_alive=parser.should_keep_alive(),
            )
        )
