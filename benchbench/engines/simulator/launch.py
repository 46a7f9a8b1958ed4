"""The simulator as a child process that never outlives us."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

START_S = 20.0  # until it listens
STOP_S = 3.0  # until we ask less politely


class SimulatorError(RuntimeError):
    """The simulator could not be started; the message holds what it wrote to standard error."""


class SimulatorProcess:
    """A simulator of its own process and session: Ctrl-C in the terminal is not for it, our death is.

    `profile`, `scale` and `options` are those of `load_profile` and `scaled`; `port` 0 takes a free one;
    `models` are the names that it answers to. On Linux it dies with the *thread* that started it, so start it
    from one that lives as long as it is needed.
    """

    def __init__(
        self,
        profile: str | Path = "fixed",
        *,
        scale: float = 1.0,
        port: int = 0,
        options: Mapping[str, Any] | None = None,
        models: Sequence[str] = ("sim",),
    ) -> None:
        self._config = {
            "profile": str(profile),
            "scale": scale,
            "port": port,
            "options": dict(options or {}),
            "models": list(models),
            "parent_pid": os.getpid(),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.pid = 0

    def start(self) -> Self:
        """Start it and wait until it listens. Raises SimulatorError."""
        self.launch()
        return self.listening()

    def launch(self) -> None:
        """Start the process and do not wait; `listening` does."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it listens or with us
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchbench.engines.simulator", json.dumps(self._config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )

    def listening(self) -> Self:
        """Wait until a launched simulator listens. Raises SimulatorError."""
        with self._errors as errors:
            line = self._first_line()
            if not line:
                self.close()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip()
                raise SimulatorError(f"the simulator did not start: {said or 'it said nothing'}")
        listening = json.loads(line)
        self.url, self.pid = listening["url"], listening["pid"]
        return self

    def close(self) -> None:
        """Stop it and wait until it has gone; may be called twice."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin  # noqa: S101 - both are pipes
        assert process.stdout  # noqa: S101
        process.stdin.close()  # the end of its lifeline
        for ask in (process.terminate, process.kill):
            try:
                process.wait(STOP_S)
                break
            except subprocess.TimeoutExpired:
                ask()
        process.wait()
        process.stdout.close()

    def __enter__(self) -> Self:
        return self.start() if self._process is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _first_line(self) -> bytes:
        """What it says when it listens; empty if it ends or takes too long."""
        assert self._process  # noqa: S101 - just started
        assert self._process.stdout  # noqa: S101
        out, line, deadline = self._process.stdout.fileno(), b"", time.monotonic() + START_S
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([out], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(out, 4096) if ready else b""
            if not piece:
                return b""
            line += piece
        return line
