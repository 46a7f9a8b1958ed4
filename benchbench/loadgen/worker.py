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
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from socket import socketpair
from typing import Any, Self

from benchbench.errors import WorkerDiedError
from benchbench.linux import may_raise_priority
from benchbench.loadgen.job import Job
from benchbench.store.requests import RoundColumns

Watch = tuple[int, Callable[[], str | None]]


class Worker:
    """Main's handle of a process that drives rounds, over HTTP or of its own engine. A context manager.

    `watch`: a descriptor that is readable when something happened to the engine, and the question why it is gone (None
    while it lives): then what is not finished of a round fails for that reason.
    """

    reply_s = math.inf  # for the reply to a cancel,
    died_s = math.inf  # and for the round's end once the engine has died

    def __init__(self, pipe: Pipe[Any, Any]) -> None:
        self._pipe = pipe
        self.watch: Watch | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and wait for it."""
        raise NotImplementedError

    def _end(self, error: Exception | None = None) -> str:
        """Why the process is gone or does not answer, or what its `error` comes from."""
        raise NotImplementedError

    def run(self, job: Job, stop: int | None = None) -> tuple[RoundColumns, dict[str, Any]]:
        """Drive one round. When `stop` (a descriptor) becomes readable, the round is cancelled (`facts.cancelled`).

        Raises WorkerDiedError when the process is gone, failed or does not answer.
        """

        def cancel() -> float:
            self._send(None)
            return time.monotonic() + self.reply_s

        result: tuple[RoundColumns, dict[str, Any]] = self._ask(job, stop, cancel)
        return result

    def _ask(self, job: object, stop: int | None, stopped: Callable[[], float], deadline: float = math.inf) -> Any:  # noqa: ANN401 - whatever the process sends
        self._send(job)
        try:
            reply = self._receive(stop, stopped, deadline)
        except TimeoutError:
            raise WorkerDiedError(self._end()) from None
        if isinstance(reply, Exception):
            raise WorkerDiedError(self._end(reply))
        return reply

    def _send(self, message: object) -> None:
        with contextlib.suppress(OSError):  # its end is noticed in receiving
            self._pipe.send(message)

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
        watched: list[Any] = [self._pipe, *(fd for fd in (stop, events) if fd is not None)]
        while (left := deadline - time.monotonic()) > 0:
            ready = wait(watched, min(left, 1.0) if tick else left if left < math.inf else None)
            if self._pipe in ready:
                try:
                    return self._pipe.recv()
                except (EOFError, OSError):
                    raise WorkerDiedError(self._end()) from None
            if stop in ready:
                watched.remove(stop)
                deadline = stopped()
            if events in ready and (reason := why()):
                watched.remove(events)
                self._send(reason)
                deadline = min(deadline, time.monotonic() + self.died_s)
            if tick:
                tick()
        raise TimeoutError


class HttpWorker(Worker):
    """A process of its own for rounds over HTTP."""

    def __init__(self) -> None:
        ours, theirs = socketpair()
        os.set_inheritable(theirs.fileno(), True)  # noqa: FBT003 - the library's signature
        # Ctrl-C is for the sweep, which then tells the worker: hence a process group of its own. Not a session of its
        # own: Linux shares the CPU out by sessions first (autogroup), and a busy server in another would get as much as
        # this whole process. Only a session whose priority may be raised is better than that.
        raised = may_raise_priority()
        words = map(str, (theirs.fileno(), os.getpid(), int(raised)))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchbench.loadgen.worker", *words],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=raised,
            process_group=None if raised else 0,
        )
        theirs.close()
        super().__init__(Pipe(ours.detach()))

    def ready(self) -> None:
        """Wait until the worker has imported what it needs, so that no import falls into a round."""
        self._receive()

    def _end(self, error: Exception | None = None) -> str:
        if error:
            return f"the load generator failed: {error!r}"
        text = self._process.stderr.read().decode(errors="replace").strip() if self._process.stderr else ""
        code = self._process.wait()
        last = text.splitlines()[-1] if text else "no message"
        return f"the load generator's process ended (exit {code}): {last}"

    def close(self) -> None:
        """End the process and wait for it: it leaves at the end of file of its pipe."""
        self._pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr:
            self._process.stderr.close()


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

    def commands(_fd: int) -> str | None:
        try:
            command: str | None = pipe.recv()
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
        if job is None or isinstance(job, str):  # a cancel that came after its round had ended
            continue
        try:
            driver = Round(job, pool, commands)
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
