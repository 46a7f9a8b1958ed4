"""Requests that nobody times: GETs and small POSTs before, between and after rounds, over connections that are kept.

Errors are OSErrors: `NotConnectedError` and `NoTunnelError` where no connection came about, `NoAnswerError` for what is
no whole answer, TimeoutError, and those of the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import zlib
from typing import TYPE_CHECKING, NamedTuple, Self

from benchbench.http1.framing import Framing, WireError
from benchbench.http1.resolved import Address, in_order

if TYPE_CHECKING:
    import ssl

READ_BYTES = 65_536
HEAD_BYTES = 65_536  # no head of an answer, nor of a proxy's, is longer


class NotConnectedError(OSError):
    """No connection came about; `reason` is what the system, or TLS, said."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class NoTunnelError(OSError):
    """The proxy made no tunnel; `status` is what it answered."""

    def __init__(self, status: str) -> None:
        super().__init__(f"the proxy refused the tunnel: {status}")
        self.status = status


class NoAnswerError(OSError):
    """What came is no HTTP, or ended too early."""


class Peer(NamedTuple):
    """A server. `context`: of TLS, where it is spoken. `proxy`: host and port of one, which `tunnel` asks for a tunnel.
    `connect_s`: for each address of its name.
    """

    host: str
    port: int
    context: ssl.SSLContext | None = None
    proxy: tuple[str, int] | None = None
    tunnel: bytes = b""
    connect_s: float = 10.0


class _Answer(Framing):
    """A response and its body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = bytearray()
        self._packed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._packed |= name.lower() == b"content-encoding" and value.lower() in {b"gzip", b"x-gzip", b"deflate"}

    def plain(self, limit: int) -> bytes:
        """The body, unpacked: some proxies compress what they were asked to leave alone. Raises NoAnswerError."""
        if not self._packed:
            return bytes(self.body)
        try:
            return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(self.body, limit + 1)
        except zlib.error:
            raise NoAnswerError("the answer is not compressed as it says") from None

    def on_body(self, data: bytes) -> None:  # a callback of httptools
        self.body += data


class Connections:
    """Connections to one server, kept while the block runs. An async context manager."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._idle:
            connection[1].transport.abort()
        await asyncio.sleep(0)  # the loop closes sockets in its next turn

    async def ask(self, request: bytes, limit: int, *, again: bool) -> tuple[int, bytes]:
        """Status and body of the answer, which is read until it exceeds `limit` bytes: a longer body is cut.

        `again`: the request may be sent once more, where a connection that was kept turns out to be closed.
        """
        while self._idle:
            reader, writer = self._idle.pop()
            if reader.at_eof():
                writer.transport.abort()
                continue
            answer = _Answer()
            try:
                return await self._exchange((reader, writer), request, answer, limit)
            except (NoAnswerError, ConnectionError):
                if answer.status or not again:
                    raise
        return await self._exchange(await self._connect(), request, _Answer(), limit)

    async def _exchange(
        self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: bytes, answer: _Answer, limit: int
    ) -> tuple[int, bytes]:
        reader, writer = connection
        kept = False
        try:
            writer.write(request)
            await writer.drain()
            head = 0
            while not answer.done and len(answer.body) <= limit:
                data = await reader.read(READ_BYTES)
                if not data and answer.status and answer.until_close:
                    break
                if not data:
                    raise NoAnswerError("the connection was closed before the answer was whole")
                answer.follow(data)
                head += 0 if answer.status else len(data)
                if head > HEAD_BYTES:
                    raise NoAnswerError("the answer has no end of its head")
            if kept := answer.done and answer.keep_alive:
                self._idle.append(connection)
            return answer.status, answer.plain(limit)
        except WireError:
            raise NoAnswerError("the answer is no HTTP") from None
        finally:
            if not kept:
                writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that is ready for requests, to the first address that takes one."""
        host, port = self._peer.proxy or self._peer[:2]
        try:
            addresses = await _addresses(host, port)
        except OSError as error:
            raise NotConnectedError(error) from None
        reason = OSError("the name has no address")
        for family, where in addresses:
            try:
                async with asyncio.timeout(self._peer.connect_s):
                    return await self._open(family, where)
            except NoTunnelError:
                raise
            except OSError as error:
                reason = error
        raise NotConnectedError(reason) from None

    async def _open(self, family: int, where: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        peer, loop = self._peer, asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(contextlib.closing(socket.socket(family, socket.SOCK_STREAM)))
            sock.setblocking(False)  # noqa: FBT003 - the library's signature
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, where)
            if peer.tunnel:
                await _tunnel(sock, peer.tunnel)
            name = peer.host if peer.context else None
            opened = await asyncio.open_connection(sock=sock, ssl=peer.context, server_hostname=name)
            stack.pop_all()
            return opened


async def _addresses(host: str, port: int) -> list[Address]:
    """As `in_order`. Raises OSError."""
    loop = asyncio.get_running_loop()
    try:
        try:  # an address needs no resolver, which takes a thread
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError("it is no name of a host") from None
    return in_order(infos)


async def _tunnel(sock: socket.socket, request: bytes) -> None:
    """Have the proxy at the other end make a tunnel."""
    loop, reply = asyncio.get_running_loop(), b""
    await loop.sock_sendall(sock, request)
    while b"\r\n\r\n" not in reply:
        data = await loop.sock_recv(sock, READ_BYTES)
        reply += data
        if not data or len(reply) > HEAD_BYTES:
            raise NoTunnelError("it answered no HTTP")
    words = reply.split(b"\r\n", 1)[0].split(b" ", 2)
    if len(words) < 2 or words[1] != b"200":
        raise NoTunnelError(words[1][:20].decode("latin-1") if len(words) > 1 else "it answered no HTTP")
