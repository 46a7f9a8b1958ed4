"""The simulator as a child process that never outlives us."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from benchbench.engines.simulator.profiles import load_profile, scaled
from benchbench.errors import SimulatorError

STOP_S = 3.0  # until we ask less politely


class SimulatorProcess:
    """A simulator of its own process and session: Ctrl-C in the terminal is not for it, our death is.

    `profile`, `scale` and `options` are those of `load_profile` and `scaled`; `port` 0 takes a free one;
    `models` are the names that it answers to; `start` names this start, for the profile's `start_noise`. On Linux it
    dies with the *thread* that started it, so start it from one that lives as long as it is needed. Raises
    ProfileError.
    """

    def __init__(
        self,
        profile: str | Path = "fixed",
        *,
        scale: float = 1.0,
        port: int = 0,
        options: Mapping[str, Any] | None = None,
        models: Sequence[str] = ("sim",),
        start: str = "",
    ) -> None:
        settings = scaled(load_profile(profile, options), scale).model_dump()
        settings["faults"]["start"] = settings["faults"]["start"] or start
        config = {"profile": settings, "models": models, "port": port, "parent_pid": os.getpid()}
        command, pipe = [sys.executable, "-m", "benchbench.engines.simulator"], subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
        assert self._process.stdin  # noqa: S101 - a pipe
        self._process.stdin.write(json.dumps(config) + "\n")
        self._process.stdin.flush()

    @functools.cached_property
    def url(self) -> str:
        """Where it listens, waited for. Raises SimulatorError."""
        assert self._process.stdout  # noqa: S101 - a pipe
        if url := self._process.stdout.readline().strip():
            return url
        output = self.close().strip() or "it said nothing"
        raise SimulatorError(f"the simulator did not start: {output.splitlines()[-1]}")

    def close(self) -> str:
        """Stop it and wait until it has gone; may be called twice. What it said on standard error."""
        process = self._process
        if process.returncode is not None:
            return ""
        try:
            return process.communicate(timeout=STOP_S)[1]  # ends its input, its lifeline
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
