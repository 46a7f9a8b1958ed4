"""Who watches a sweep, and how long what is left will take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchbench.spec import Cell, Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchbench.analysis.metrics import RoundMetrics


class Observer:
    """Who wants to see how far a sweep is. Called between rounds only; this one shows nothing."""

    def begin(self, plan: Plan, out: Path, left: int) -> None: ...
    def round(self, cell: Cell, phase: str, number: int, left_s: float | None) -> None: ...
    def measured(self, rounds: Sequence[RoundMetrics]) -> None: ...
    def row(self, cell: Cell, row: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def starting(self, what: str, seconds: float, line: str) -> None: ...


@dataclass(slots=True)
class Pace:
    """How long what is left will take, from the rounds so far: a round's time grows about as its output's length."""

    seconds: float = 0.0
    steps: int = 0
    left_steps: int = 0

    def left_s(self) -> float | None:
        return self.seconds / self.steps * self.left_steps if self.steps else None
