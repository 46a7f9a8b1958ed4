"""An engine's processes, owned by us: started through a supervisor, and gone when this is closed or we die."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from benchbench.engines.log_diagnosis import Diagnosis, diagnose, plain
from benchbench.engines.process_tree import in_session, living, segments, shared_memory, unlink_unheld
from benchbench.errors import LaunchStoppedError

GRACE_S = 20.0  # from SIGTERM to the first process until all are told: vLLM itself kills hung ranks after about ten
_PATIENCE_S = 60.0  # beyond the grace, for a supervisor to end
_MARK = "BENCHBENCH_ENGINE"  # variable that descendants have in common, for when the supervisor itself was killed
_TEXT_BYTES = 1 << 19  # a log's end in which reasons are looked for


@dataclass(frozen=True, slots=True)
class Hooks:
    """What starting an engine takes besides the plan.

    `logs`: folder for what a launched engine says. `progress(what, seconds, last line)` is called about once a second
    while it starts. `stop`: when this descriptor becomes readable, the start is given up.
    """

    logs: Path
    progress: Callable[[str, float, str], None] = lambda *_: None
    stop: int | None = None

    def turn(self, what: str, begun: float, line: str, watched: Sequence[int] = (), wait_s: float = 1.0) -> list[int]:
        """Tell how long `what` takes since `begun`, then wait until one of the descriptors `watched` is readable.

        Those that are. Raises LaunchStoppedError when `stop` is.
        """
        self.progress(what, time.monotonic() - begun, line)
        ready = select.select([*watched, *([] if self.stop is None else [self.stop])], [], [], wait_s)[0]
        if self.stop in ready:
            raise LaunchStoppedError
        return ready


class EngineProcess:
    """A process and all its descendants; a context manager.

    `log` is appended to: the engine's output, without the values of variables of `env` with telling names. `pass_fds`
    are inherited with their numbers; close ours afterwards. `grace_s`: from SIGTERM to the first process until all are
    told. `nice`: their priority, if not 0. `scratch`: a folder that is deleted after the engine's end. `code`: the
    first process's exit code, as subprocess has it; None while it runs, and where its end was not seen. Raises OSError,
    as subprocess does, when `argv` cannot be started in `cwd`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str | Path | None,
        log: Path,
        pass_fds: Sequence[int] = (),
        *,
        grace_s: float | None = None,
        nice: int = 0,
        scratch: Path | None = None,
    ) -> None:
        self.scratch = scratch
        self.log, self._grace_s = Path(log), GRACE_S if grace_s is None else grace_s
        self._mark, self._known = uuid.uuid4().hex, shared_memory()
        self._events: dict[str, dict[str, Any]] = {}  # what the supervisor has reported: the first of each kind
        self._closing = self._ended = self._orphaned = False
        self._unread = b""
        config = {
            "argv": list(argv),
            "env": {**env, _MARK: self._mark},
            "cwd": None if cwd is None else str(cwd),
            "pass_fds": list(pass_fds),
            "grace_s": self._grace_s,
            "nice": nice,
            "known": sorted(self._known),
        }
        with self.log.open("ab") as file:
            self._log_start = file.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchbench.engines.supervisor"],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                pass_fds=pass_fds,
                start_new_session=True,  # Ctrl-C is for the sweep, which then closes this
            )
        assert self._process.stdin  # noqa: S101 - both are pipes
        assert self._process.stdout  # noqa: S101
        self._lifeline = self._process.stdin
        self.events_fd = self._process.stdout.fileno()
        os.set_blocking(self.events_fd, False)
        try:
            self._send(json.dumps(config).encode() + b"\n")
            while not (self._events or self._ended):
                self._read(None)
        except BaseException:
            self.close()
            raise
        if not self.pid:
            self.close()
            failure = {"errno": 0, "error": "the supervisor did not start", "file": str(self.log)}
            failure |= self._events.get("failed", {})
            raise OSError(failure["errno"], failure["error"], failure["file"])

    @property
    def pid(self) -> int:
        return int(self._events.get("started", {}).get("pid", 0))

    @property
    def code(self) -> int | None:
        return self._events.get("exited", {}).get("code")

    @property
    def ranks(self) -> dict[int, str]:
        """Pid and name of each process without which the engine cannot work; known once it is `ready`."""
        return {rank["pid"]: rank["name"] for rank in self._events.get("ranks", {}).get("ranks", ())}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self) -> None:
        """Say that the engine works, so that from now on each of its `ranks` is missed when it ends."""
        self._send(b"ready\n")
        while "ranks" not in self._events and not self._ended:
            self._read(None)

    def died(self) -> str | None:
        """Why the engine is gone or cannot work any more, in one line; None while nothing is known against it.

        Never waits. A rank's end is known at once, the reason in the log a little later: ask again after `close`.
        """
        self._read(0)
        diagnosis = self.diagnosis()
        return None if diagnosis is None else self._how() + (f": {diagnosis.reason}" if diagnosis.reason else "")

    def diagnosis(self) -> Diagnosis | None:
        """What the log says about the engine's end; None while it lives."""
        if self._events.keys().isdisjoint({"exited", "lost"}) and not self._orphaned:
            return None
        return diagnose(self.text(), self.code)

    def _how(self) -> str:
        if lost := self._events.get("lost"):
            return f"the engine lost {lost['name']} (pid {lost['pid']}), which {_ended_by(-lost['signal'] or None)}"
        return "the engine's supervisor ended" if self.code is None else f"the engine {_ended_by(self.code)}"

    def text(self) -> str:
        """What the engine has written until it was told to end, the last half MiB of it."""
        with self.log.open("rb") as file:
            end = min(file.seek(0, os.SEEK_END), self._events.get("stopping", {}).get("log_bytes", sys.maxsize))
            start = max(self._log_start if self._log_start <= end else 0, end - _TEXT_BYTES)
            file.seek(start)
            return file.read(end - start).decode(errors="replace")

    def tail(self, lines: int = 20) -> list[str]:
        """The last lines that are not empty."""
        return [line for line in self.text().splitlines() if line.strip()][-lines:]

    def last_line(self) -> str:
        lines = (plain(line).strip() for line in reversed(self.tail()))
        return next(filter(None, lines), "")  # one of nothing but colours is empty, too

    def close(self) -> None:
        """Stop the engine and wait until all of it is gone, by force if need be; may be called again."""
        self._read(0)
        if self._closing:
            return
        self._closing = True
        with contextlib.suppress(OSError):
            self._lifeline.close()
        deadline = time.monotonic() + self._grace_s + _PATIENCE_S
        while not self._ended and (left := deadline - time.monotonic()) > 0:
            self._read(left)
        if not self._ended:
            self._process.kill()
        self._process.wait()
        self._read(0)
        self._ended = True
        if self._process.stdout:
            self._process.stdout.close()
        if self._events.keys().isdisjoint({"stopped", "failed"}):
            self._kill_orphans()
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)

    # ---- The supervisor -----------------------------------------------------------------------------------

    def _send(self, line: bytes) -> None:
        with contextlib.suppress(OSError):  # it is gone: `died` says so
            while line:
                line = line[self._lifeline.write(line) or 0 :]

    def _read(self, timeout: float | None) -> None:
        """Take what the supervisor has said, waiting for it up to `timeout` seconds."""
        if self._ended or not select.select([self.events_fd], [], [], timeout)[0]:
            return
        data = os.read(self.events_fd, 1 << 16)
        if not data:
            self._ended, self._orphaned = True, not self._closing
        *lines, self._unread = (self._unread + data).split(b"\n")
        for event in map(json.loads, lines):
            self._events.setdefault(event["event"], event)

    def _kill_orphans(self) -> None:
        """The supervisor was killed: find what it left by its session and by our mark in its environment."""
        noted, deadline = set[str](), time.monotonic() + _PATIENCE_S
        while (rest := [process for process in living(psutil.process_iter()) if self._is_ours(process)]) and (
            time.monotonic() < deadline
        ):
            noted |= segments(rest) - self._known
            for process in rest:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.05)
        unlink_unheld(noted)

    def _is_ours(self, process: psutil.Process) -> bool:
        if self.pid and in_session(process, self.pid):
            return True
        with contextlib.suppress(psutil.Error, OSError):
            return process.environ().get(_MARK) == self._mark
        return False


def _ended_by(code: int | None) -> str:
    if code is None:
        return "ended"
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was killed by {name}"
