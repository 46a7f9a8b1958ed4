"""One connection of the timed path: a non-blocking socket whose reads carry the kernel's receive time.

State goes connecting -> (proxy) -> (tls) -> idle <-> busy -> closed. Sends go straight to the socket. Under TLS the
same socket is read by the same `recvmsg`; `ssl.SSLObject` decrypts in memory, so stamps mean the same.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from benchbench.http1.framing import WireError
from benchbench.linux import ANCILLARY, READ, WRITE, Poller, enable_stamps, to_stamp
from benchbench.loadgen.exchange import Exchange
from benchbench.openai.target import Target

READ_SIZE = 65_536
STALE_NS = 2_000_000_000  # an idle connection older than this is not used again: vLLM closes them after 5 s
AT_ONCE_NS = 50_000_000  # one that the server closed while it was idle breaks so soon after a send (or two RTT)
_now = time.time_ns


class State(Enum):
    CONNECTING = 1
    PROXY = 2
    TLS = 3
    IDLE = 4
    BUSY = 5
    CLOSED = 6


class Connection:
    """A socket to `target`, registered with `poller` under `fd` as long as it lives.

    `on_event(mask)` moves it on and raises `WireError` when it broke. While BUSY it fills `exchange`; `on_event`
    then returns True when the response is complete. While `hot`, in the middle of a plain chunked body, the loop
    calls `recvmsg` itself: a read is kept and looked at for its end, nothing else.
    """

    __slots__ = (
        "_in", "_left", "_out", "_poller", "_proxy_reply", "_sock", "_tls", "address", "connect_ns",
        "connected_ns", "exchange", "fd", "hot", "idle_since_ns", "index", "kernel_stamps", "recvmsg", "served",
        "state", "target", "tls_ns", "where",
    )  # fmt: skip

    def __init__(
        self,
        target: Target,
        addresses: list[tuple[int, tuple[str, int]]],
        address: int,
        context: ssl.SSLContext | None,
        poller: Poller,
    ) -> None:
        self.address = min(address, len(addresses) - 1)
        family, where = addresses[self.address]
        self.target, self._poller, self.where = target, poller, f"{where[0]}:{where[1]}"
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        self._sock.setblocking(False)  # noqa: FBT003 - the library's signature
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.kernel_stamps = enable_stamps(self._sock)
        self.recvmsg = self._sock.recvmsg
        self.fd = self._sock.fileno()
        self.state = State.CONNECTING
        self.exchange: Exchange | None = None
        self.hot = False
        self.index = -1  # of the exchange
        self.served = 0
        self.connected_ns = self.tls_ns = self.idle_since_ns = 0
        self._left = b""
        self._proxy_reply = b""
        self._tls: ssl.SSLObject | None = None
        if context is not None:
            self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = context.wrap_bio(self._in, self._out, server_hostname=target.host)
        self.connect_ns = _now()
        code = self._sock.connect_ex(where)
        poller.register(self.fd, READ | WRITE)
        if code not in {0, errno.EINPROGRESS}:
            self.close()
            raise WireError(f"connect: {os.strerror(code)}")

    @property
    def is_fresh(self) -> bool:
        """Idle, and so lately that the server will hardly have closed it."""
        return self.state is State.IDLE and self.idle_since_ns > _now() - STALE_NS

    @property
    def was_idle(self) -> bool:
        """Whether it breaks because the server closed it while it was kept idle: before its request went out, or at
        once after that. A connection that is new, or that has waited, breaks since its request was dropped.
        """
        exchange, at_once_ns = self.exchange, max(AT_ONCE_NS, 2 * (self.connected_ns - self.connect_ns))
        return (
            exchange is not None
            and exchange.reused
            and not exchange.received
            and (not exchange.sent_ns or _now() - exchange.sent_ns < at_once_ns)
        )

    @property
    def ready(self) -> bool:
        return self.state is State.IDLE

    def close(self, *, reset: bool = False) -> None:
        """Close; `reset` sends RST instead of waiting for what the peer still sends (a cancelled stream)."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self._poller.unregister(self.fd)
        if reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    # -- sending

    def begin(self, exchange: Exchange) -> None:
        """Send the exchange's request on this idle connection; `sent_ns` is the clock before its last `send`."""
        self.exchange = exchange
        self.index = exchange.index
        exchange.reused = self.served > 0
        exchange.connected_ns, exchange.tls_ns = self.connected_ns, self.tls_ns
        exchange.connect_ns = self.connect_ns
        self.served += 1
        self.state = State.BUSY
        data = exchange.payload
        if self._tls is not None:
            self._tls.write(data)
            data = self._out.read()
        self._left += data
        self._push()

    def _push(self) -> None:
        """Send what is left; wait for room when the kernel takes only a part."""
        data = self._left
        try:
            now = _now()
            count = self._sock.send(data)
        except BlockingIOError:
            count = 0
        except OSError as error:
            raise WireError(f"send: {error.strerror}") from None
        self._left = data[count:] if count < len(data) else b""
        if self._left:
            self._poller.modify(self.fd, READ | WRITE)
        elif self.exchange is not None and self.state is State.BUSY and not self.exchange.sent_ns:
            self.exchange.sent_ns = now

    # -- receiving

    def on_event(self, mask: int) -> bool:
        if self._left and mask & WRITE:
            self._push()
            if not self._left:
                self._poller.modify(self.fd, READ)
        if self.state is State.CONNECTING:
            self._connected(mask)
            return False
        if mask & ~WRITE:
            return self._receive()
        return False

    def _receive(self) -> bool:
        try:
            data, ancillary, _, _ = self.recvmsg(READ_SIZE, ANCILLARY)
        except BlockingIOError:
            return False
        except OSError as error:
            raise WireError(f"connection lost: {error.strerror}") from None
        user = _now()
        return self.received(data, ancillary[0][2] if ancillary else to_stamp(user), user)

    def ends(self, data: bytes) -> bool:
        """Whether the response ends with `data`, a read of the hot path that might be its last."""
        exchange = self.exchange
        if exchange is None:
            return False
        complete = exchange.ends(data)
        self.hot = not exchange.walking
        return complete

    def received(self, data: bytes, stamp: bytes, user: int) -> bool:
        """What to do with a read that is not on the hot path; see `on_event`."""
        if not data:
            return self._ended()
        if self.state is not State.BUSY or self._tls is not None:
            data = self._opened(data)
            if not data:
                return False
        exchange = self.exchange
        if exchange is None:
            raise WireError("the server sent data that nobody asked for")
        complete = exchange.took(data, stamp, user)
        self.hot = (
            exchange.framing.chunked
            and not exchange.walking
            and self._tls is None
            and not self._left
            and self.state is State.BUSY
        )
        return complete

    def _ended(self) -> bool:
        exchange = self.exchange
        if exchange is not None and exchange.framing.status and exchange.framing.until_close:
            exchange.framing.done = True
            return True
        raise WireError("connection closed by the server")

    def finish(self) -> Exchange:
        """Take the completed exchange off; the connection is idle again, or closed when the server wants that."""
        exchange = self.exchange
        assert exchange is not None  # noqa: S101 - called only for a complete exchange
        exchange.end_ns = exchange.log.stamp_ns(len(exchange.log) - 1)  # the read that completed it came just now
        self.exchange = None
        self.hot = False
        self.idle_since_ns = _now()
        self.state = State.IDLE
        if not exchange.framing.keep_alive or self._left:  # the rest of this request would begin the next
            self.close()
        return exchange

    # -- becoming ready

    def _connected(self, mask: int) -> None:
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise WireError(f"connect: {os.strerror(code)}")
        if not mask & WRITE:
            return
        self.connected_ns = _now()
        self._poller.modify(self.fd, READ)
        if self.target.proxy:
            self.state = State.PROXY
            self._left = self.target.connect_request()
            self._push()
        else:
            self._secure()

    def _secure(self) -> None:
        """Go idle, or begin the TLS handshake, which is over before the connection counts as ready."""
        if self._tls is None:
            self.state, self.idle_since_ns = State.IDLE, _now()
            return
        self.state = State.TLS
        self.tls_ns = -_now()
        self._shake()

    def _shake(self) -> None:
        assert self._tls is not None  # noqa: S101 - TLS state only
        try:
            self._tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        except ssl.SSLError as error:
            raise WireError(f"TLS: {error.reason or error}") from None
        self._left += self._out.read()
        if self._left:
            self._push()
        if done:
            self.tls_ns += _now()
            self.state, self.idle_since_ns = State.IDLE, _now()

    def _opened(self, data: bytes) -> bytes:
        """Plain bytes of what came: nothing while a proxy or a handshake is being talked to."""
        if self.state is State.PROXY:
            self._proxy_reply += data
            head, end, _ = self._proxy_reply.partition(b"\r\n\r\n")
            if end:
                words = head.split(b"\r\n", 1)[0].split(b" ", 2)
                if len(words) < 2 or words[1] != b"200":
                    raise WireError(f"the proxy refused the tunnel: {head[:80].decode('latin-1').splitlines()[0]}")
                self._secure()
            return b""
        if self._tls is None:
            return data
        self._in.write(data)
        if self.state is State.TLS:
            self._shake()
        plain = b""
        try:
            while piece := self._tls.read(READ_SIZE):
                plain += piece
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise WireError(f"TLS: {error.reason or error}") from None
        if self._out.pending:  # an answer to a key update
            self._left += self._out.read()
            self._push()
        return plain


@dataclass(slots=True)
class Pool:
    """Connections to a target that outlive a round, and what stays true of it between rounds."""

    poller: Poller
    idle: list[Connection] = field(default_factory=list)
    target: Target | None = None
    context: ssl.SSLContext | None = None
    addresses: list[tuple[int, tuple[str, int]]] = field(default_factory=list)
    address: int = 0  # index of the one that last answered

    def aim(self, target: Target) -> None:
        """Connect to `target` from now on, whose name is resolved again. Raises OSError for an unreadable CA file."""
        if self.target != target:
            self.close()
            self.target, self.address = target, 0
            self.context = target.access.tls_context() if target.tls else None
        self.addresses = []

    def connect(self) -> Connection:
        """A new connection to the address that last answered. Raises WireError."""
        assert self.target is not None  # noqa: S101 - a round has aimed it
        try:
            self.addresses = self.addresses or self.target.addresses()
        except OSError as error:
            raise WireError(f"cannot resolve {self.target.host}: {error}") from None
        try:
            return Connection(self.target, self.addresses, self.address, self.context, self.poller)
        except OSError as error:
            raise WireError(str(error)) from None

    def other_address(self, conn: Connection) -> bool:
        """Go on to the address after that of a connection which failed; False when it was the last."""
        if conn.address + 1 >= len(self.addresses):
            return False
        self.address = conn.address + 1
        return True

    def close(self) -> None:
        while self.idle:
            self.idle.pop().close()


class Pools(list[Pool]):
    """A pool for each target that rounds have had."""

    def __init__(self, poller: Poller) -> None:
        self.poller = poller

    def aim(self, targets: Sequence[Target]) -> None:
        """As `Pool.aim`, each at one of the targets."""
        self.extend(Pool(self.poller) for _ in targets[len(self) :])
        for pool, target in zip(self, targets, strict=False):
            pool.aim(target)

    def close(self) -> None:
        for pool in self:
            pool.close()
