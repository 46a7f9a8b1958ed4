"""Main's side of the in-process engine: its process started, its rounds handed over, its end noticed."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from pathlib import Path
from socket import socketpair
from typing import TYPE_CHECKING, Any, Self

from benchbench import __version__
from benchbench.engines.diagnosis import diagnose
from benchbench.engines.endpoint import EngineError
from benchbench.engines.owned import Owned
from benchbench.loadgen.worker import WorkerDiedError
from benchbench.spec import VllmInprocessEngine

if TYPE_CHECKING:
    from benchbench.loadgen.job import DirectJob
    from benchbench.record.requests import RoundColumns

CANCEL_S = 15.0  # for the answer to a cancel; the loop itself takes up to 5 s when the engine hangs
DIED_S = 10.0  # once something has died: for the process to notice, fail the requests and hand the round over
SAID_S = 3.0  # from the end of the pipe to the supervisor's word


class DirectWorker:
    """Handle of one engine in its process, with the interface of `loadgen.worker.Worker`. A context manager.

    `facts`, once ready: `version` of vLLM, `vocab_size`, `max_model_len`, `kv_tokens` (the KV cache's capacity, None if
    not told), `config` (what the engine resolved its flags to), `notes`, `start_s`. The engine's output goes to `log`.
    Raises EngineError when the interpreter cannot be started.
    """

    def __init__(self, engine: VllmInprocessEngine, model: str, log: Path, secrets: Sequence[str] = ()) -> None:
        self.facts: dict[str, Any] = {}
        self._engine, self._python = engine, _interpreter(engine)
        ours, theirs = socketpair()
        self._pipe = Pipe(ours.detach())
        try:
            self._owned = Owned(
                [self._python, "-m", "benchbench.direct", str(theirs.fileno())],
                _environment(engine),
                engine.cwd,
                log,
                secrets,
                [theirs.fileno()],
            )
        except OSError as error:
            self._pipe.close()
            key = "cwd" if engine.cwd and error.filename == engine.cwd else "python"
            raise EngineError(f"cannot be used: {error.filename}: {error.strerror}", f"engine.{key}") from None
        finally:
            theirs.close()
        self._send(flags({"model": model} | engine.args))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._owned.pid

    @property
    def owned(self) -> Owned:
        """Its processes: their log, and what is known of their end."""
        return self._owned

    def ready(self, stop: int | None = None, progress: Callable[[float, str], None] | None = None) -> None:
        """Wait until the engine has generated a token. `progress(seconds, last line of the log)` once a second.

        Raises EngineError, and InterruptedError when `stop` (a descriptor) becomes readable.
        """
        begun, limit_s = time.monotonic(), self._engine.ready.timeout_s

        def interrupted() -> float:
            raise InterruptedError("the engine's start was stopped")

        def tick() -> None:
            if progress:
                progress(time.monotonic() - begun, "".join(self._owned.tail(1)))

        try:
            reply = self._receive(stop, interrupted, begun + limit_s, tick)
        except TimeoutError:
            last = "".join(self._owned.tail(1))
            raise EngineError(
                f"not ready within {limit_s:g} s; its log ends: {last}", "engine.ready.timeout_s"
            ) from None
        except WorkerDiedError as error:
            raise self._unstarted(str(error)) from None
        if isinstance(reply, tuple):
            message, key = reply
            raise EngineError(message, key) if key else self._unstarted(message)
        if reply["benchbench"] != __version__:
            message = f"has benchbench {reply['benchbench']} for {self._python}, this is {__version__}"
            raise EngineError(message, "engine.python")
        self.facts = reply
        self._owned.ready()

    def run(self, job: DirectJob, stop: int | None = None) -> tuple[RoundColumns, dict[str, Any]]:
        """Drive one round. When `stop` (a descriptor) becomes readable, the round is cancelled (`facts.cancelled`).

        Where the engine died in the round, its requests have failed with the reason, which is also the fact
        `engine_died`: then this worker is of no more use. Raises WorkerDiedError when the process itself is gone.
        """

        def cancel() -> float:
            self._send(None)
            return time.monotonic() + CANCEL_S

        self._send(job)
        try:
            reply = self._receive(stop, cancel)
        except TimeoutError:
            raise WorkerDiedError(self._last_words()) from None
        if isinstance(reply, Exception):
            raise WorkerDiedError(f"the in-process engine's worker failed: {reply}")
        columns, facts = reply
        if died := facts["engine_died"]:
            reason = self._owned.died() or diagnose(self._owned.text(), None).reason or died
            facts["engine_died"] = reason
            if columns is not None:
                details = columns["error_detail"]
                details[:] = [reason if detail == died else detail for detail in details]
        return columns, facts

    def close(self) -> None:
        """End the engine and wait until all its processes are gone; may be called again."""
        self._pipe.close()
        self._owned.close()

    def _send(self, message: object) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            pass  # its end is noticed in receiving

    def _receive(
        self,
        stop: int | None,
        stopped: Callable[[], float],
        deadline: float = math.inf,
        tick: Callable[[], None] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the process sends
        """The next message. `stopped` gives the new deadline once `stop` is readable; `tick` is called once a second.

        Raises WorkerDiedError at the end of the pipe and TimeoutError at the deadline, which comes near when a part of
        the engine has died.
        """
        watched: list[Any] = [self._pipe, self._owned.events_fd, *([] if stop is None else [stop])]
        while (left := deadline - time.monotonic()) > 0:
            heard = wait(watched, min(left, 1.0) if tick else left if left < math.inf else None)
            if self._pipe in heard:
                try:
                    return self._pipe.recv()
                except (EOFError, OSError):
                    raise WorkerDiedError(self._last_words()) from None
            if stop in heard:
                watched.remove(stop)
                deadline = stopped()
            if self._owned.events_fd in heard and self._owned.died():
                watched.remove(self._owned.events_fd)
                deadline = min(deadline, time.monotonic() + DIED_S)
            if tick:
                tick()
        raise TimeoutError

    def _last_words(self) -> str:
        """Why the process is gone, as soon as its supervisor knows."""
        deadline = time.monotonic() + SAID_S
        while (died := self._owned.died()) is None and (left := deadline - time.monotonic()) > 0:
            wait([self._owned.events_fd], left)
        return died or "the in-process engine does not answer"

    def _unstarted(self, said: str) -> EngineError:
        """Why it did not start: what its log shows, else what was said."""
        log = self._owned.text()
        if missing := re.search(r"No module named '?(?P<name>[\w.]+)", log.rpartition("Traceback")[2]):
            where = f"{self._python} has no {missing['name']}"
            return EngineError(f"{where}: install benchbench and vLLM for one interpreter", "engine.python")
        found = diagnose(log, None)
        return EngineError(f"the engine did not start: {found.reason or said}", found.key or "engine.args")


def _interpreter(engine: VllmInprocessEngine) -> str:
    """The interpreter that has vLLM: the one that runs us unless the sweep names another."""
    named = engine.python or (str(Path(engine.venv) / "bin" / "python") if engine.venv else sys.executable)
    return shutil.which(named) or named


def _environment(engine: VllmInprocessEngine) -> dict[str, str]:
    more = {"PYTHONUNBUFFERED": "1"}
    if engine.venv:
        more |= {"VIRTUAL_ENV": engine.venv, "PATH": f"{Path(engine.venv) / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    return {**os.environ, **more, **{name: str(value) for name, value in engine.env.items()}}


def flags(args: Mapping[str, Any]) -> list[str]:
    """TEMPORARY"""
    import json

    words = []
    for name, value in args.items():
        name = name.replace("_", "-")
        if value is None:
            continue
        if value is True or value is False:
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words
