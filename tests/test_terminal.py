"""On a terminal a sweep draws a bar; the same sweep must end the same way as in a pipe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from driving import CARRIED_OUT, read_terminal, write_sweep

from benchbench.cli.rendering import rendered


def on_terminal(sweep: Path, *options: str, stdout: bool = False, **env: str) -> tuple[str, str]:
    """Sweep with stderr, or both, on a terminal: what it drew there, and what it wrote to a pipe."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "benchbench.cli.main", "sweep", str(sweep), "--no-plots", "--out", "run", *options]
    out = theirs if stdout else subprocess.PIPE
    named = {"TERM": "xterm-256color", "COLUMNS": "100", **env}
    with subprocess.Popen(command, cwd=sweep.parent, stdout=out, stderr=theirs, env={**os.environ, **named}) as process:
        os.close(theirs)
        drawn = read_terminal(ours)
        printed = process.stdout.read().decode() if process.stdout else ""
    assert process.returncode in CARRIED_OUT, drawn
    assert "Traceback" not in drawn
    return drawn, printed


def tiny(tmp_path: Path) -> Path:
    return write_sweep(tmp_path / "s.yaml", "", engine={"kind": "simulator", "profile": "tiny"})


def test_a_sweep_on_a_terminal_draws_and_ends(tmp_path: Path) -> None:
    drawn, printed = on_terminal(tiny(tmp_path))
    assert "| Input | Output | Batch |" in printed
    assert "round 1 of " in drawn
    assert "1 request in flight" in drawn
    assert "\x1b[?25h" in drawn, "the cursor is hidden for ever"


@pytest.mark.parametrize("definitions", [False, True])
def test_the_terminal_and_the_file_hold_one_table(tmp_path: Path, definitions: bool) -> None:
    drawn, _ = on_terminal(tiny(tmp_path), *(["-v"] if definitions else []), stdout=True, NO_COLOR="1")
    markdown = (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    assert rendered(markdown, 100, colour=False, definitions=definitions) in drawn
    assert not re.search(r"\x1b\[[0-9;]*m", drawn), "colours though NO_COLOR is set"


def test_a_dumb_terminal_gets_lines_and_no_escapes(tmp_path: Path) -> None:
    drawn, _ = on_terminal(tiny(tmp_path), stdout=True, TERM="dumb")
    assert "\x1b" not in drawn
    assert "1 of 1 cells to measure" in drawn
    assert "[1/1] in=8 out=6 batch=1" in drawn


@pytest.mark.parametrize("busy", [False, True], ids=["alone", "with a thread"])
@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["validate", "none.yaml"], 2)])
def test_the_program_ends_at_once_with_its_code_and_all_that_it_has_said(
    words: list[str], code: int, busy: bool, tmp_path: Path
) -> None:
    """What is registered for the end is done, and a thread that is no daemon is waited for."""
    program = (
        "import atexit, os, threading, time\nfrom benchbench.cli.entry import run\n"
        "atexit.register(print, 'the end')\n"
        "work = threading.Thread(target=lambda: (time.sleep(0.7), os.write(1, b'thread\\n')))\n"
        f"{busy} and work.start()\nprint('begin', end=' ')\nrun()\n"
    )
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, bool(done.stderr)) == (code, bool(code))
    assert "begin " in done.stdout
    assert done.stdout.count("thread\n") == busy
    assert done.stdout.count("the end\n") == 1
