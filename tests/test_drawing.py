"""Pictures are drawn by processes of their own: the same files, nothing left behind, a failure is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchbench.api.pictures import Pictures
from benchbench.cli.drawing import drawn
from benchbench.figures.plots import Timeline, draw_plots

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "plots" / "quickstart" / "run"
TIMELINE = Timeline("one", [0.0, 0.0], [0.001, 0.002], [0.1, 0.2], [1.0, 2.0])
BENCH = (sys.executable, "-c", "from benchbench.cli.entry import run; run()")


def rows() -> list[dict[str, object]]:
    """Of few batches of one shape: two figures, and the timeline."""
    from benchbench import open_run

    every = open_run(KEPT).rows
    return [row for row in every if (row["input"], row["output"]) == (every[0]["input"], every[0]["output"])]


def test_the_files_are_those_that_are_drawn_here(tmp_path: Path) -> None:
    files, problems = drawn(Pictures(rows(), TIMELINE, [], tmp_path / "apart", "a title"))
    assert problems == []
    for form in ("png", "svg"):
        here = draw_plots(rows(), TIMELINE, tmp_path / "here", "a title", [form])
        apart = [path for path in files if path.suffix == f".{form}"]
        assert [path.name for path in apart] == [path.name for path in here]
        assert [path.read_bytes() for path in apart] == [path.read_bytes() for path in here]


def test_what_cannot_be_drawn_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    files, problems = drawn(Pictures(rows(), TIMELINE, [], tmp_path / "taken", "a title"))
    assert files == []
    (problem,) = problems
    assert "File exists" in problem
    assert "taken" in problem


def children(pid: int) -> list[int]:
    try:
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    except FileNotFoundError:
        return []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what dies with its parent is linux's")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_ends_the_drawing_too(tmp_path: Path, number: int, code: int) -> None:
    os.mkfifo(tmp_path / "throughput.svg")  # to open it for writing takes for ever
    words = [*BENCH, "plot", str(KEPT), "--out", str(tmp_path), "--format", "svg"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT) as command:
        deadline = time.monotonic() + 60
        while not (drawing := children(command.pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        (pid,) = drawing
        maps = Path(f"/proc/{pid}/maps")
        while "matplotlib" not in maps.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        command.send_signal(number)
        assert command.wait(30) == code
        while Path(f"/proc/{pid}/cmdline").exists() and time.monotonic() < deadline:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                break  # whoever adopts it has not waited for it yet
            time.sleep(0.02)
        assert time.monotonic() < deadline
