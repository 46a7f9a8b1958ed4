"""What the worker is given for a round, and what it says of itself afterwards. Picklable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchbench.openai.target import Target

READY, SERVED, CLOSE = "ready", "served", 0
Commands = Callable[[int], str | int | None]  # by the descriptor at which they came
Tell = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One round. `due_ns`: offsets from the start, ascending (all 0 unless open).

    `exact`: a request whose output length is not the asked one has failed. `paced`: an open load, whose requests become
    due by `due_ns` and not as others end. `spare`: so many of the last requests are sent only where a closed load would
    else empty out too early (`Quota`). `target_of`: of each request which of several servers it goes to; `pinned`: one
    that takes another's place goes to that one's instead. `together`: a share of a round, of which other workers have
    the others. It tells READY once it could begin, and begins at the time (ns) that it is sent then. It tells SERVED
    when it needs no spare request any more, and sends them all the same until it is sent CLOSE.
    """

    payloads: list[bytes]
    due_ns: list[int]
    in_flight: int
    asked_input: list[int]
    asked_output: list[int]
    first_token_s: float
    stall_s: float
    exact: bool = True
    paced: bool = False
    spare: int = 0
    target_of: list[int] = field(default_factory=list)
    pinned: bool = False
    together: bool = False

    @property
    def secrets(self) -> frozenset[str]:
        """What an answer may quote and no file may hold."""
        return frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundJob(Job):
    """A round over HTTP: `payloads` are whole requests. In an open load connections are made as requests become due."""

    targets: tuple[Target, ...]
    connect_s: float

    @property
    def secrets(self) -> frozenset[str]:
        return self.targets[0].access.secrets  # one for all


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectJob(Job):
    """A round of the in-process engine: `payloads` are the prompts' token ids as little-endian int32.

    `detokenize`: the engine makes text of the tokens, as a server does. `reset_prefix_cache`: empty it beforehand.
    `prefixes`: prompts that are answered with one token each after that, before the round, untimed.
    """

    detokenize: bool = False
    reset_prefix_cache: bool = False
    prefixes: tuple[bytes, ...] = ()


class Quota:
    """How many requests of a job are sent: `planned`, and spare ones until those that its figures are of have ended
    (all but the last B + 1 of a closed load, see `analysis.metrics`). So the batch stays full as long as the longest of
    them runs. A share tells SERVED then, and goes on until `close`.
    """

    def __init__(self, job: Job, tell: Tell = bool) -> None:
        self._tell, self._held = tell if job.together else bool, job.together
        self.planned, self._most = len(job.payloads) - job.spare, len(job.payloads)
        self._last = self.planned - job.in_flight - 1
        self._running = max(0, self._last) if job.spare else 0

    @property
    def sendable(self) -> int:
        return self._most if self._running or self._held else self.planned

    def close(self) -> None:
        """Send no spare requests any more."""
        self._held = False
        self._leave(0)

    def ended(self, index: int) -> None:
        if index < self._last:
            self._leave(self._running - 1)

    def _leave(self, running: int) -> None:
        was, self._running = self._running, max(0, running)
        if was and not self._running:
            self._tell(SERVED)


@dataclass(slots=True)
class RoundFacts:
    """The instrument's own view of a round, times in ns."""

    started_ns: int = 0
    turn_max_ns: int = 0  # the longest time between two looks at the sockets
    clock_step_ns: int = 0  # largest change of wall clock against monotonic clock
    cpu_ns: int = 0
    wall_ns: int = 0
    connects: int = 0
    resent: int = 0
    spare_sent: int = 0
    kernel_stamps: bool = True
    held_max_bytes: int = 0
    decoded_early_bytes: int = 0
    cancelled: bool = False
