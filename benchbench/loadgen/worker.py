"""The load generator's process: takes rounds over a pipe, drives them, decodes between them, hands back arrays.

Run as `python -m benchbench.loadgen.worker FD PARENT_PID RAISED`, with RAISED 1 where it may raise its priority. It
knows nothing of sweeps, files or where it runs. It dies with its parent: by the kernel's signal, and at the end of file
of its pipe.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection as Pipe
from typing import Any, Self

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


def main(fd: int, parent: int, *, raised: bool) -> None:
    """The worker's life: announce readiness, then job in, result out, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # importing makes no garbage worth a look
    from benchbench.linux import READ, Poller, die_with_parent, raise_priority, use_all_descriptors, use_timer_slack
    from benchbench.loadgen.columns import collect
    from benchbench.loadgen.connection import Pools
    from benchbench.loadgen.round import Round

    die_with_parent(parent)
    use_all_descriptors()
    use_timer_slack(1_000)
    priority = raise_priority() if raised else ""
    pipe = Pipe(fd)
    poller = Poller()
    poller.register(fd, READ)
    pools = Pools(poller)

    def commands(_fd: int) -> str | int | None:
        try:
            command: str | int | None = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        return command

    gc.collect()
    gc.freeze()
    pipe.send("ready")
    spent = time.process_time_ns()
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            pools.close()
            os._exit(0)  # taking an interpreter apart takes time for which main would wait
        if job is None or isinstance(job, str | int):  # a cancel that came after its round had ended
            continue
        try:
            driver = Round(job, pools, commands, pipe.send)
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
