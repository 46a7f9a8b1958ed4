"""What the worker is given for a round, and what it says of itself afterwards. Picklable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchbench.openai.target import Target

READY, CLOSE = "ready", 0
LONG_TOKENS = 1_000_000
Commands = Callable[[int], str | int | None]  # by the descriptor at which they came


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One round. `due_ns`: offsets from the start, ascending (all 0 unless open).

    `exact`: a request whose output length is not the asked one has failed. `paced`: an open load, whose requests become
    due by `due_ns` and not as others end. `spare`: so many of the last requests are sent only where a closed load would
    else empty out too early (`Quota`). `target_of`: of each request which of several servers it goes to; `pinned`: one
    that takes another's place goes to that one's instead. `together`: a share of a round, of which other workers have
    the others. It tells READY once it could begin, and begins at the time (ns) that it is sent then. It tells SERVED
    when it needs no spare request any more, and sends them all the same until it is sent CLOSE. `turns`: so many
    payloads in a row are one conversation, each sent once the one before it has ended (`refills.quota`); then the k-th
    of the lists of lengths is that of payload k until it is sent, and afterwards that of the request with index k.
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
    turns: int = 1

    @property
    def secrets(self) -> frozenset[str]:
        """What an answer may quote and no file may hold."""
        return frozenset()

    @property
    def is_long(self) -> bool:
        """Whether what it receives leaves the sending process while it runs (`aside`)."""
        return sum(self.asked_output) >= LONG_TOKENS


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
    spooled_bytes: int = 0
    cancelled: bool = False
    peers: dict[str, int] = field(default_factory=dict)  # answers by the address that gave them
