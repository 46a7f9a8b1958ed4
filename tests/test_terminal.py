"""On a terminal a sweep draws a bar; the same sweep must end the same way as in a pipe."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from driving import CARRIED_OUT, write_sweep


def test_a_sweep_on_a_terminal_draws_and_ends(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s.yaml", "", engine={"kind": "simulator", "profile": "tiny"})
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "benchbench.cli.main", "sweep", str(sweep), "--no-plots", "--out", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        drawn = b""
        while True:
            try:
                piece = os.read(ours, 65_536)
            except OSError:  # the other side is closed
                break
            drawn += piece
        assert process.stdout
        printed = process.stdout.read().decode()
    os.close(ours)
    assert process.returncode in CARRIED_OUT, drawn.decode()
    assert "| Input | Output | Batch |" in printed
    assert b"round 1 of " in drawn
    assert b"Traceback" not in drawn
    assert b"\x1b[?25h" in drawn, "the cursor is hidden for ever"
