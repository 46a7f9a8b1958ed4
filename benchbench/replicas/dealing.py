"""Which of several servers each request of a round goes to. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol


class Server(Protocol):
    """Where requests go."""

    def request(self, body: bytes) -> bytes:
        """The whole request with this body, as this server takes it."""


class Dealt(Protocol):
    """A round dealt out: `target_of` is of each request the place of its own server (empty: there is one).

    `pinned`: a request that takes another's place, beyond the first `in_flight`, goes to that one's server instead, but
    in an open load (`paced`), where none does.
    """

    @property
    def payloads(self) -> list[bytes]: ...
    @property
    def target_of(self) -> list[int]: ...
    @property
    def pinned(self) -> bool: ...
    @property
    def paced(self) -> bool: ...
    @property
    def in_flight(self) -> int: ...


def in_turn(count: int, servers: int, first: int = 0) -> list[int]:
    """Each request's own server, by its index in the whole round, whoever sends it; empty for one server."""
    return [(first + index) % servers for index in range(count)] if servers > 1 else []


def moved(payload: bytes, server: Server) -> bytes:
    """A whole request, made for another server, as this one takes it: they differ in their heads."""
    return server.request(payload.partition(b"\r\n\r\n")[2])


class Places:
    """The servers of a round's requests, as they are sent and end."""

    def __init__(self, job: Dealt, servers: Sequence[Server]) -> None:
        self._own, self._payloads, self._servers = job.target_of, job.payloads, servers
        self._kept_from = job.in_flight if job.pinned and not job.paced else None
        self._free: deque[int] = deque()  # servers of places that nobody has taken since

    def take(self, index: int, number: int | None = None) -> tuple[int, bytes]:
        """The server that request `index`, the next one, goes to, and the request: payload `number`, or `index`."""
        number = index if number is None else number
        payload = self._payloads[number]
        if not self._own:
            return 0, payload
        server = self._own[index]
        if self._kept_from is not None and index >= self._kept_from and self._free:
            server = self._free.popleft()
        return server, payload if server == self._own[number] else moved(payload, self._servers[server])

    def leave(self, server: int) -> None:
        """A request of this server has ended."""
        if self._kept_from is not None:
            self._free.append(server)
