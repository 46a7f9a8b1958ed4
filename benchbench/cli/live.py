"""How far a sweep is, on a terminal: three lines that are drawn anew between rounds.

While a round runs nothing is drawn, so nothing ticks: what is known beforehand stands there instead, such as when the
round began and how long the last one of this cell took.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from benchbench.cli.console import PLAIN_TERMINALS
from benchbench.cli.progress import Lines, duration_text, left_text, rounds_of, row_text
from benchbench.measure.observer import Observer
from benchbench.safe_text import printable
from benchbench.spec.schema import ClosedLoad, OpenLoad

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from benchbench.analysis.metrics import RoundMetrics
    from benchbench.spec import Cell, Plan

_STATUS = {"INVALID": "red", "SUSPECT": "yellow"}


class View(Lines):
    """Finished cells as lines, and below them the cell that is being measured."""

    def __init__(self, live: Live, stream: TextIO) -> None:
        super().__init__(stream)
        self._live = live
        self._begun = time.monotonic()
        self._cell = ""  # that is being measured
        self._lines: list[str] = ["starting"]
        self._so_far = ""
        self._took = ""

    def say(self, text: str) -> None:
        from rich.text import Text

        line = Text(printable(text), overflow="ignore")
        for word, colour in _STATUS.items():
            if f": {word} (" in line.plain:
                line.highlight_words([word], colour)
        self._live.console.print(line, crop=False)

    def _draw(self) -> None:
        self._live.update(self._drawn(), refresh=True)

    def _drawn(self) -> RenderableType:
        """The bar, and each line cut to the width."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        done = self._number - 1
        elapsed = f"{duration_text(time.monotonic() - self._begun)} so far"
        counted = ", ".join(filter(None, [f"{done} of {self._of} cells", elapsed, left_text(self._left)]))
        head = Table.grid(padding=(0, 1, 0, 0))
        head.add_row(ProgressBar(total=max(self._of, 1), completed=done, width=20), _cut(counted))
        lines = [_cut(line) for line in self._lines]
        return Group(*([head] if self._of else []), *(lines or [Text()]))

    def begin(self, plan: Plan, out: Path, left: int) -> None:
        super().begin(plan, out, left)
        self._draw()

    def round(self, cell: Cell, phase: str, number: int, left_s: float | None) -> None:
        if cell.key != self._cell:
            self._cell, self._so_far, self._took = cell.key, "", ""
        self._left = left_s
        what = f"round {number + 1} of {rounds_of(cell)}" if phase == "measured" else "warm-up"
        began = f"began {time.strftime('%H:%M:%S')}"
        self._lines = [f"{cell.label}: {what}, {sends_text(cell)}, {began}{self._took}"]
        self._lines += [self._so_far] if self._so_far else []
        self._draw()

    def measured(self, rounds: Sequence[RoundMetrics]) -> None:
        self._so_far = so_far_text(rounds)
        self._took = f", the last took {duration_text(rounds[-1].duration_s)}" if rounds[-1].duration_s >= 1 else ""

    def row(self, cell: Cell, row: dict[str, Any]) -> None:
        self.say(row_text(cell, row))
        self._number += 1
        self._draw()

    def starting(self, what: str, seconds: float, line: str) -> None:
        self._lines = [f"{what}: {duration_text(seconds)}", line]
        self._draw()


def _cut(line: str) -> Any:  # noqa: ANN401 - rich is imported when it is used
    from rich.text import Text

    return Text(printable(line), no_wrap=True, overflow="ellipsis")


def sends_text(cell: Cell) -> str:
    """What a round has in flight."""
    load, requests = cell.load, cell.requests
    if isinstance(load, OpenLoad):
        most = f", at most {load.max_concurrency} in flight" if load.max_concurrency else ""
        return f"{requests} requests at {cell.rate:g}/s{most}"
    if isinstance(load, ClosedLoad):
        return f"{cell.batch} of {requests} requests in flight"
    return f"{requests} request{'s'[: requests != 1]} in flight"


def so_far_text(rounds: Sequence[RoundMetrics]) -> str:
    """Means over a cell's rounds so far, which nobody has judged yet; nothing where there are none."""
    waits = [float(r.ttft_s.mean()) for r in rounds if len(r.ttft_s)]
    rates = [r.sys_tok_s for r in rounds if r.sys_tok_s is not None]
    parts = [f"TTFT {1e3 * sum(waits) / len(waits):.1f} ms"] if waits else []
    parts += [f"{sum(rates) / len(rates):.1f} tok/s"] if rates else []
    if failed := sum(r.failed for r in rounds):
        parts.append(f"{failed} of {sum(r.requests for r in rounds)} requests failed")
    counted = f"{len(rounds)} round{'s'[: len(rounds) != 1]}"
    return f"{counted}, not judged yet: {', '.join(parts)}" if parts else ""


@contextlib.contextmanager
def observer_for(stream: TextIO | None) -> Iterator[Observer]:
    """A view that is redrawn when `stream` is a terminal, plain lines otherwise; nothing at all without one."""
    if stream is None:
        yield Observer()
    elif not stream.isatty() or os.environ.get("TERM", "dumb") in PLAIN_TERMINALS:
        yield Lines(stream)
    else:
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(file=stream), auto_refresh=False, transient=True) as live:
            yield View(live, stream)
