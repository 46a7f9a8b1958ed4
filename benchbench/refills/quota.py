"""How many requests of a round are sent, and which one is next. Pure, and quick: it is asked on the timed path."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import Protocol

SERVED = "served"
Tell = Callable[[str], object]


class Asked(Protocol):
    """What is taken of a job (`loadgen.job.Job`)."""

    @property
    def payloads(self) -> list[bytes]: ...
    @property
    def asked_input(self) -> list[int]: ...
    @property
    def asked_output(self) -> list[int]: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def spare(self) -> int: ...
    @property
    def together(self) -> bool: ...
    @property
    def turns(self) -> int: ...


def openings(turns: int, in_flight: int) -> Iterator[int]:
    """The payload with which each conversation begins: its first, but of the first `in_flight` conversations those
    that spread evenly over the turns, so that at any time as many are at each.
    """
    for conversation in count():
        yield conversation * turns + (conversation * turns // in_flight if conversation < in_flight else 0)


class Quota:
    """How many requests of a job are sent: `planned`, and spare ones until those that its figures are of have ended
    (all but the last B + 1 of a closed load, see `analysis.metrics`). So the batch stays full as long as the longest of
    them runs. A share tells SERVED then, and goes on until `close`.
    """

    def __init__(self, job: Asked, tell: Tell = bool) -> None:
        self._tell, self._held = tell if job.together else bool, job.together
        # Of conversations each place may hold one whose later turns are never sent.
        self.planned, self._most = len(job.payloads) - job.spare, len(job.payloads) - job.in_flight * (job.turns - 1)
        self._last = self.planned - job.in_flight - 1
        self._running = max(0, self._last) if job.spare else 0
        self._turns, self._following, self._openings = job.turns, deque[int](), openings(job.turns, job.in_flight)
        self._lengths = [(of, (*of,)) for of in (job.asked_input, job.asked_output) if job.turns > 1]
        self._order: list[int] = []

    @property
    def sendable(self) -> int:
        return self._most if self._running or self._held else self.planned

    def payload(self, index: int) -> int:
        """The payload of request `index`, which is sent now: of conversations the next turn of the one that ended first
        of those that wait, else the opening of the next. The job's lengths of `index` are that turn's from now on.
        """
        if self._turns == 1:
            return index
        number = self._following.popleft() if self._following else next(self._openings)
        for of_request, of_payload in self._lengths:
            of_request[index] = of_payload[number]
        self._order.append(number)
        return number

    def close(self) -> None:
        """Send no spare requests any more."""
        self._held = False
        self._leave(0)

    def ended(self, index: int) -> None:
        """Request `index` has ended, well or not: its conversation goes on."""
        self._following += [turn + 1 for turn in self._order[index : index + 1] if (turn + 1) % self._turns]
        if index < self._last:
            self._leave(self._running - 1)

    def _leave(self, running: int) -> None:
        was, self._running = self._running, max(0, running)
        if was and not self._running:
            self._tell(SERVED)
