"""How far a sweep is, in plain lines; on a terminal by `live`. Drawn between rounds, never during one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from benchbench.measure.observer import Observer
from benchbench.safe_text import printable

if TYPE_CHECKING:
    from benchbench.spec import Cell, Plan

CUT = 200  # characters of a server's line in a log


def row_text(cell: Cell, row: dict[str, Any]) -> str:
    """One line about a finished cell."""
    parts = []
    if row["status"] != "valid":
        parts.append(f"{row['status'].upper()} ({row['reasons'].replace(';', ', ')})")
    usable = row["status"] != "invalid"
    if usable and row["ttft_ms"] is not None:
        parts.append(f"TTFT {row['ttft_ms']:.1f} ms")
    if usable and row["sys_tok_s"] is not None:
        parts.append(f"Sys {row['sys_tok_s']:.1f} tok/s")
    if row["failed"]:
        parts.append(f"{row['failed']} of {row['requests']} requests failed")
    return f"{cell.label}: {', '.join(parts)}"


def duration_text(seconds: float) -> str:
    """`1:05` or `2:01:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def left_text(left_s: float | None) -> str:
    """`about 1:05 left`, or nothing while unknown."""
    return "" if left_s is None else f"about {duration_text(left_s)} left"


def rounds_of(cell: Cell) -> str:
    """`5`, or `5-20` when it depends on what is measured."""
    return f"{cell.rounds.min}" + (f"-{cell.rounds.max}" if cell.rounds.max > cell.rounds.min else "")


class Lines(Observer):
    """One line a finished cell, and at most one a minute for long ones."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._number, self._of = 1, 0  # the cell being measured, and how many there are
        self._last = time.monotonic()
        self._left: float | None = None

    def say(self, text: str) -> None:
        """A line of its own."""
        print(printable(text), file=self._stream, flush=True)
        self._last = time.monotonic()

    def begin(self, plan: Plan, out: Path, left: int) -> None:
        self._number, self._of = 1, left  # a bisection begins once a block
        cells = sum(len(start.cells) for start in plan.sessions)  # of a sweep with variants, in each start
        self.say(f"{plan.spec.name}: {left} of {cells} cells to measure, into {out}")

    def round(self, cell: Cell, phase: str, number: int, left_s: float | None) -> None:
        self._left = left_s
        if time.monotonic() - self._last > 60:
            what = f"round {number + 1} of {rounds_of(cell)}" if phase == "measured" else "warm-up"
            self.say(f"[{self._number}/{self._of}] {cell.label}: {what}, {left_text(left_s)}")

    def row(self, cell: Cell, row: dict[str, Any]) -> None:
        left = left_text(self._left) if self._number < self._of else ""
        self.say(f"[{self._number}/{self._of}] {row_text(cell, row)}" + (f"; {left}" if left else ""))
        self._number += 1

    def note(self, text: str) -> None:
        self.say(f"note: {text}")

    def starting(self, what: str, seconds: float, line: str) -> None:
        if time.monotonic() - self._last > 30:
            self.say(f"{what}: {duration_text(seconds)}, {line if len(line) <= CUT else f'{line[:CUT]}...'}")
