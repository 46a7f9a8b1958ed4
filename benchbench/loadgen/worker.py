"""The load generator's process: takes rounds over a pipe, drives them, decodes between them, hands back arrays.

Run as `python -m benchbench.loadgen.worker FD PARENT_PID`. It knows nothing of sweeps, files or where it runs. It
dies with its parent: by the kernel's signal, and at the end of file of its pipe.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from socket import socketpair
from typing import TYPE_CHECKING, Any, Self

from benchbench.errors import WorkerDiedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchbench.loadgen.job import RoundJob
    from benchbench.store.requests import RoundColumns

    Watch = tuple[int, Callable[[], str | None]]


class Worker:
    """Parent's handle of one worker process. A context manager; `close` waits for the process."""

    def __init__(self) -> None:
        ours, theirs = socketpair()
        os.set_inheritable(theirs.fileno(), True)  # noqa: FBT003 - the library's signature
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchbench.loadgen.worker", str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the sweep, which then tells the worker
        )
        theirs.close()
        self._pipe = Pipe(ours.detach())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self) -> None:
        """Wait until the worker has imported what it needs, so that no import falls into a round."""
        self._receive(None)

    def run(
        self, job: RoundJob, stop: int | None = None, watch: Watch | None = None
    ) -> tuple[RoundColumns, dict[str, Any]]:
        """Drive one round. When `stop` (a descriptor) becomes readable, the round is cancelled (`facts.cancelled`).

        `watch`: when its descriptor becomes readable and its question has an answer, whatever of the round is not
        finished fails for that reason. Raises WorkerDiedError.
        """
        try:
            self._pipe.send(job)
        except OSError:
            raise WorkerDiedError(self._last_words()) from None
        result: tuple[RoundColumns, dict[str, Any]] = self._receive(stop, watch)
        return result

    def _receive(self, stop: int | None, watch: Watch | None = None) -> Any:  # noqa: ANN401 - whatever it sends
        events, why = watch or (None, lambda: None)
        watched: list[Any] = [self._pipe, *(fd for fd in (stop, events) if fd is not None)]
        try:
            while self._pipe not in (ready := wait(watched)):
                if stop in ready:
                    self._pipe.send(None)
                    watched.remove(stop)
                if events in ready and (reason := why()):
                    self._pipe.send(reason)
                    watched.remove(events)
            reply = self._pipe.recv()
        except (EOFError, OSError):
            raise WorkerDiedError(self._last_words()) from None
        if isinstance(reply, Exception):
            raise WorkerDiedError(f"the load generator failed: {reply!r}")
        return reply

    def _last_words(self) -> str:
        said = self._process.stderr.read().decode(errors="replace").strip() if self._process.stderr else ""
        code = self._process.wait()
        return f"the load generator's process ended (exit {code}): {said.splitlines()[-1] if said else 'no message'}"

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


def main(fd: int, parent: int) -> None:
    """The worker's life: announce readiness, then job in, result out, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from benchbench.linux import READ, Poller, die_with_parent, use_all_descriptors, use_timer_slack
    from benchbench.loadgen.columns import collect
    from benchbench.loadgen.round import Pool, Round

    die_with_parent(parent)
    use_all_descriptors()
    use_timer_slack(1_000)
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
            columns = (
                None
                if driver.facts.cancelled
                else collect(
                    exchanges,
                    driver.log,
                    job.asked_input,
                    job.asked_output,
                    exact=job.exact,
                    start=driver.decoded,
                )
            )
            before, spent = spent, time.process_time_ns()
            pipe.send((columns, {**asdict(driver.facts), "worker_cpu_ns": spent - before}))
            del driver, exchanges, columns, job
            gc.collect()  # here, where nothing waits for us
        except Exception as error:  # noqa: BLE001 - the sweep reports it; without a reply it would wait for ever
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
