"""HTTP/1.1 on non-blocking sockets: requests with the kernel's stamp of their last byte, buffered writes, framing."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import httptools

from benchbench import linux

READ_BYTES = 1 << 18
LAST_CHUNK = b"0\r\n\r\n"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, with RST
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


@dataclass(slots=True)
class HttpRequest:
    url: bytes = b""
    authorization: bytes = b""
    body: bytes = b""
    method: str = ""
    path: str = ""
    query: str = ""
    received_ns: int = 0  # kernel receive time of its last byte, CLOCK_REALTIME


class Connection:
    """One client. Finished requests gather in `inbox`; what the kernel does not take at once waits in `pending`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        linux.enable_stamps(sock)
        self.sock, self.fd = sock, sock.fileno()
        self.inbox: deque[tuple[HttpRequest, bool]] = deque()  # and whether to keep the connection after it
        self.busy = False  # a request of it is being answered
        self.keep_alive = True  # after that request
        self.on_leave: Callable[[], None] | None = None  # who must know when the client leaves
        self.closing = False  # close once `pending` is sent
        self.closed = False
        self.pending = bytearray()
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._stamp_ns = 0
        self._request = HttpRequest()

    def read(self) -> bool:
        """Take what has arrived; False when the client has left or talks no HTTP."""
        try:
            data, ancillary, _flags, _address = self.sock.recvmsg(READ_BYTES, linux.ANCILLARY)
            self._stamp_ns = linux.to_ns(ancillary[0][2]) if ancillary else time.time_ns()
            if data and self._parser:
                self._parser.feed_data(data)
        except (OSError, httptools.HttpParserError):
            return False
        return bool(data)

    def close(self, *, reset: bool) -> None:
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()
        self.closed = True
        self._parser = None  # it refers back to us, and nothing collects cycles while tokens flow

    # What httptools calls.

    def on_message_begin(self) -> None:
        self._request = HttpRequest()

    def on_url(self, url: bytes) -> None:
        self._request.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"authorization":
            self._request.authorization = value

    def on_body(self, body: bytes) -> None:
        self._request.body += body

    def on_message_complete(self) -> None:
        request, parser = self._request, self._parser
        if parser:
            request.method, request.received_ns = parser.get_method().decode("latin-1"), self._stamp_ns
            request.path, _, request.query = request.url.decode("latin-1").partition("?")
            self.inbox.append((request, parser.should_keep_alive()))


class Wire:
    """All connections of a server on 127.0.0.1. `take` gets their requests, one at a time of each connection."""

    def __init__(self, port: int, take: Callable[[Connection, HttpRequest], None]) -> None:
        self._take = take
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        linux.enable_stamps(self._listener)  # inherited by what it accepts, which may hold a request already
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._poller = linux.Poller()
        self._poller.register(self._listener.fileno(), linux.READ)
        self._connections: dict[int, Connection] = {}

    def poll(self, timeout_s: float) -> bool:
        """Wait until something is ready, and serve all that is; False if nothing was. Below 0: for ever."""
        ready = self._poller.poll(timeout_s)
        for fd, events in ready:
            if fd == self._listener.fileno():
                self._accept()
            elif fd in self._connections:
                self._serve(self._connections[fd], events)
        return bool(ready)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # none waits any more, or the client has left again
            while True:
                connection = Connection(self._listener.accept()[0])
                self._connections[connection.fd] = connection
                self._poller.register(connection.fd, linux.READ)

    def _serve(self, connection: Connection, events: int) -> None:
        if events & linux.WRITE:
            try:
                del connection.pending[: connection.sock.send(connection.pending)]
            except OSError:
                self.leave(connection)
                return
            if not connection.pending:
                self._poller.modify(connection.fd, linux.READ)
                if connection.closing:
                    self.leave(connection)
                    return
        if events & ~linux.WRITE and not connection.read():
            self.leave(connection)
        else:
            self._next(connection)

    def _next(self, connection: Connection) -> None:
        if connection.inbox and not connection.busy:
            connection.busy = True
            request, connection.keep_alive = connection.inbox.popleft()
            self._take(connection, request)

    def send(self, connection: Connection, data: bytes, *, last: bool = False) -> None:
        """Send a part of an answer, or keep it until there is room; after the `last` one comes the next request."""
        if connection.closed:
            return
        if not connection.pending:
            try:
                data = data[connection.sock.send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                self.leave(connection)
                return
            if data:
                self._poller.modify(connection.fd, linux.READ | linux.WRITE)
        connection.pending += data
        if last and connection.keep_alive:
            connection.busy = False
            self._next(connection)
        elif last:
            connection.closing = True
            if not connection.pending:
                self.leave(connection)

    def leave(self, connection: Connection, *, reset: bool = False) -> None:
        """Close the connection now, with RST if `reset`."""
        if connection.closed:
            return
        if connection.on_leave:
            connection.on_leave()
        del self._connections[connection.fd]
        self._poller.unregister(connection.fd)
        connection.close(reset=reset)


# ---- Framing --------------------------------------------------------------------------------------------


def chunk(payload: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def head(connection: Connection, status: int, **headers: object) -> bytes:
    """A response's status line and headers, whose names have `_` for `-`."""
    fields = {"server": "benchbench-simulator", **headers, **({} if connection.keep_alive else {"connection": "close"})}
    lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, '')}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def whole(connection: Connection, status: int, body: bytes, **headers: object) -> bytes:
    """A response with its body; JSON unless `headers` say otherwise."""
    fields = {"content_length": len(body), "content_type": "application/json", **headers}
    return head(connection, status, **fields) + body
