"""The view of a running sweep: what stands in it, cut to the width, and that nothing is drawn while a round runs."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live

from benchbench.cli.live import View, sends_text, so_far_text
from benchbench.cli.progress import CUT, Lines
from benchbench.spec import Cell, make_plan, spec_from_mapping

OPEN = {"kind": "open", "requests": 50, "max_concurrency": 9}
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def cells(**changes: Any) -> tuple[Cell, ...]:
    data = {
        "name": "s",
        "model": "m",
        "engine": {"kind": "endpoint", "url": "http://h"},
        "grid": {"input": 128, "output": 64, "batch": [8]},
        "rounds": {"min": 3, "max": 5},
        "prompts": {"vocab": [1000, 2000]},
        **changes,
    }
    return make_plan(spec_from_mapping(data)).cells


def measured(ttft_ms: float, tok_s: float, failed: int = 0) -> Any:
    return SimpleNamespace(
        ttft_s=np.array([ttft_ms / 1e3] * 2), sys_tok_s=tok_s, requests=8, failed=failed, duration_s=65.0
    )


class Screen:
    """A view on a terminal that is a string; `drawn` is what was drawn since the last look, without escapes."""

    def __init__(self, width: int, *, colour: bool = True) -> None:
        self.file = io.StringIO()
        system = "standard" if colour else None
        kind: Any = {"force_terminal": True, "color_system": system, "no_color": not colour, "_environ": {}}
        console = Console(file=self.file, width=width, height=24, **kind)
        self.live = Live(
            console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self.view = View(self.live, self.file)

    def raw(self) -> str:
        text = self.file.getvalue()
        self.file.seek(0)
        self.file.truncate()
        return text

    def drawn(self) -> list[str]:
        return [line.rstrip() for line in ESCAPE.sub("", self.raw()).replace("\r", "").split("\n") if line.strip()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock shows, s."""
    now = [1000.0]
    monkeypatch.setattr(time, "strftime", lambda _: "15:04:05")
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("width", [80, 120])
def test_what_the_view_shows(width: int, clock: list[float]) -> None:
    (cell,) = cells()
    screen = Screen(width)
    with screen.live:
        plan: Any = SimpleNamespace(spec=SimpleNamespace(name="s"), sessions=[SimpleNamespace(cells=[cell, cell])])
        screen.view.begin(plan, Path("runs/s"), 2)
        assert screen.drawn()[0] == "s: 2 of 2 cells to measure, into runs/s"
        screen.view.round(cell, "warmup", 0, None)
        assert screen.drawn()[-1] == "in=128 out=64 batch=8: warm-up, 8 requests in flight, began 15:04:05"
        clock[0] += 50
        screen.view.round(cell, "measured", 0, 65.0)
        screen.view.measured([measured(10.0, 100.0), measured(20.0, 110.0)])
        assert screen.drawn()[0].endswith("0 of 2 cells, 0:50 so far, about 1:05 left")
        clock[0] += 10
        screen.view.round(cell, "measured", 2, 30.0)
        bar, round_, so_far = screen.drawn()
        assert bar == "━" * 20 + " 0 of 2 cells, 1:00 so far, about 0:30 left"
        line = "in=128 out=64 batch=8: round 3 of 3-5, 8 requests in flight, began 15:04:05, the last took 1:05"
        assert round_ == (line if width >= len(line) else f"{line[: width - 1]}…")
        assert so_far == "2 rounds, not judged yet: TTFT 15.0 ms, 105.0 tok/s"
        row = {"status": "invalid", "reasons": "drift;resent", "failed": 0, "requests": 8, "ttft_ms": 1, "sys_tok_s": 1}
        screen.view.row(cell, row)
        raw = screen.raw()
        assert "in=128 out=64 batch=8: \x1b[31mINVALID\x1b[0m (drift, resent)" in raw
        assert "1 of 2 cells" in raw
    assert screen.raw().endswith("\x1b[1A\x1b[2K")


def test_another_cell_has_numbers_of_its_own() -> None:
    first, second = cells(grid={"input": 128, "output": 64, "batch": [1, 8]})
    screen = Screen(120)
    with screen.live:
        screen.view.round(first, "measured", 0, None)
        screen.view.measured([measured(10.0, 100.0)])
        screen.view.round(second, "warmup", 0, None)
        assert "not judged" not in "".join(screen.drawn())


@pytest.mark.parametrize("name", ["[red]x[/]", "\x1b[31m", "a\nb", "x" * 4000, ":smile:", "\x9b2J"])
def test_a_servers_line_is_cut_to_the_width_and_steers_nothing(name: str) -> None:
    screen = Screen(80, colour=False)
    with screen.live:
        screen.raw()
        screen.view.starting("starting vllm", 75.0, name)
        lines = screen.drawn()
        assert lines[0] == "starting vllm: 1:15"
        assert len(lines) == 2
        assert cell_len(lines[1]) <= 80
        assert lines[1].isprintable()
        screen.view.note(name)
        assert all(line.isprintable() for line in screen.drawn())


def test_in_a_log_a_servers_line_is_cut_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    monkeypatch.setattr(lines, "_last", -1000.0)
    lines.starting("starting vllm", 75.0, "y" * 4000)
    assert stream.getvalue() == f"starting vllm: 1:15, {'y' * CUT}...\n"


def test_nothing_ticks() -> None:
    """No thread draws: what is not called does not appear."""
    (cell,) = cells()
    screen = Screen(80)
    with screen.live:
        screen.view.round(cell, "measured", 0, 5.0)
        screen.raw()
        time.sleep(0.6)
        assert screen.raw() == ""


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "8 requests in flight"),
        ({"load": {"kind": "closed", "requests": 40}}, "8 of 40 requests in flight"),
        ({"load": OPEN, "grid": {"input": 8, "output": 4, "rate": 2.5}}, "50 requests at 2.5/s, at most 9 in flight"),
    ],
)
def test_what_a_round_sends(changes: dict[str, Any], text: str) -> None:
    assert sends_text(cells(**changes)[0]) == text


def test_numbers_so_far() -> None:
    assert so_far_text([]) == ""
    assert so_far_text([measured(10.0, 100.0, failed=2)]) == (
        "1 round, not judged yet: TTFT 10.0 ms, 100.0 tok/s, 2 of 8 requests failed"
    )
    bare: Any = SimpleNamespace(ttft_s=np.array([]), sys_tok_s=None, failed=8, requests=8)
    assert so_far_text([bare]) == "1 round, not judged yet: 8 of 8 requests failed"
