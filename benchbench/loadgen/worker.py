"""The load generator's process: takes rounds over a pipe, drives them, decodes between them, hands back arrays.

Run as `python -m benchbench.loadgen.worker FD PARENT_PID RAISED`, with RAISED 1 where it may raise its priority. It
knows nothing of sweeps, files or where it runs. It dies with its parent: by the kernel's signal, and at the end of file
of its pipe.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from typing import Any, Self

from benchbench.errors import WorkerDiedError
from benchbench.loadgen.job import Job
from benchbench.store.requests import RoundColumns

Watch = tuple[int, Callable[[], str | None]]


class Worker:
    """Main's handle of what drives rounds, over HTTP or of its own engine: a process or several. A context manager.

    `watch`: a descriptor that is readable when something happened to the engine, and the question why it is gone (None
    while it lives): then what is not finished of a round fails for that reason.
    """

    watch: Watch | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and wait for it."""
        raise NotImplementedError

    def run(self, job: Job, stop: int | None = None) -> tuple[RoundColumns, dict[str, Any]]:
        """Drive one round. When `stop` (a descriptor) becomes readable, the round is cancelled (`facts.cancelled`).

        Raises WorkerDiedError when the process is gone, failed or does not answer.
        """
        raise NotImplementedError


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
                    return self.pipe.recv()
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


def main(fd: int, parent: int, *, raised: bool) -> None:
    """The worker's life: announce readiness, then job in, result out, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from benchbench.linux import READ, Poller, die_with_parent, raise_priority, use_all_descriptors, use_timer_slack
    from benchbench.loadgen.columns import collect
    from benchbench.loadgen.connection import Pool
    from benchbench.loadgen.round import Round

    die_with_parent(parent)
    use_all_descriptors()
    use_timer_slack(1_000)
    priority = raise_priority() if raised else ""
    pipe = Pipe(fd)
    poller = Poller()
    poller.register(fd, READ)
    pool = Pool(poller)

    def commands(_fd: int) -> str | int | None:
        try:
            command: str | int | None = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        return command

    gc.collect()
    gc.freeze()
    gc.disable()
    pipe.send("ready")
    spent = time.process_time_ns()
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            pool.close()
            return
        if job is None or isinstance(job, str | int):  # a cancel that came after its round had ended
            continue
        try:
            driver = Round(job, pool, commands, pipe.send)
            exchanges = driver.run()
            done, log, start = not driver.facts.cancelled, driver.log, driver.liveness.decoded
            columns = collect(exchanges, log, job, start) if done else None
            before, spent = spent, time.process_time_ns()
            pipe.send((columns, {**asdict(driver.facts), "worker_cpu_ns": spent - before, "priority": priority}))
            del driver, exchanges, log, columns, job
            gc.collect()  # here, where nothing waits for us
        except Exception as error:  # noqa: BLE001 - the sweep reports it; without a reply it would wait for ever
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), raised=sys.argv[3] == "1")
