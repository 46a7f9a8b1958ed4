"""Main's handle of one process at the other end of a pipe that drives rounds."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from typing import Any

from benchbench.errors import WorkerDiedError
from benchbench.loadgen.job import Job
from benchbench.loadgen.worker import Worker
from benchbench.spool.flat import hear
from benchbench.store.requests import RoundColumns


class PipedWorker(Worker):
    """A worker that is one process at the other end of a pipe."""

    reply_s = math.inf  # for the reply to a cancel,
    died_s = math.inf  # and for the round's end once the engine has died

    def __init__(self, pipe: Pipe[Any, Any]) -> None:
        self.pipe = pipe

    def end(self, error: Exception | None = None) -> str:
        """Why the process is gone or does not answer, or what its `error` comes from."""
        raise NotImplementedError

    def run(self, job: Job, stop: int | None = None) -> tuple[RoundColumns, dict[str, Any]]:
        def cancel() -> float:
            self.send(None)
            return time.monotonic() + self.reply_s

        result: tuple[RoundColumns, dict[str, Any]] = self._ask(job, stop, cancel)
        return result

    def _ask(self, job: object, stop: int | None, stopped: Callable[[], float], deadline: float = math.inf) -> Any:  # noqa: ANN401 - whatever the process sends
        self.send(job)
        try:
            reply = self._receive(stop, stopped, deadline)
        except TimeoutError:
            raise WorkerDiedError(self.end()) from None
        if isinstance(reply, Exception):
            raise WorkerDiedError(self.end(reply))
        return reply

    def send(self, message: object) -> None:
        """Hand it to the process; that it is gone is no error here."""
        with contextlib.suppress(OSError):  # its end is noticed in receiving
            self.pipe.send(message)

    def _receive(
        self,
        stop: int | None = None,
        stopped: Callable[[], float] = lambda: math.inf,
        deadline: float = math.inf,
        tick: Callable[[], None] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the process sends
        """The next message. `stopped` gives the new deadline once `stop` is readable; `tick` is called once a second.

        Raises WorkerDiedError at the end of the pipe and TimeoutError at the deadline, which comes near when a part of
        the engine has died.
        """
        events, why = self.watch or (None, lambda: None)
        watched: list[Any] = [self.pipe, *(fd for fd in (stop, events) if fd is not None)]
        while (left := deadline - time.monotonic()) > 0:
            ready = wait(watched, min(left, 1.0) if tick else left if left < math.inf else None)
            if self.pipe in ready:
                try:
                    return hear(self.pipe)
                except (EOFError, OSError):
                    raise WorkerDiedError(self.end()) from None
            if stop in ready:
                watched.remove(stop)
                deadline = stopped()
            if events in ready and (reason := why()):
                watched.remove(events)
                self.send(reason)
                deadline = min(deadline, time.monotonic() + self.died_s)
            if tick:
                tick()
        raise TimeoutError
