"""The load generator's process: takes rounds over a pipe, drives them, and hands back arrays.

Run as `python -m benchbench.senders.sending_process FD PARENT_PID RAISED`, with RAISED 1 where it may raise its
priority. It knows nothing of sweeps, of their files or where it runs. A short round it decodes itself when it is over;
a long one is decoded by a process of its own (`spool`). It dies with its parent: by the kernel's signal, and at the end
of file of its pipe.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from dataclasses import asdict
from multiprocessing.connection import Connection as Pipe
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from benchbench.loadgen.exchange import Exchange
    from benchbench.loadgen.round import Round
    from benchbench.spool.spool import Spool


def columns_of(driver: Round, exchanges: list[Exchange], spool: Spool) -> dict[str, Any] | None:
    """The columns of a round that is over; None when it was cancelled."""
    from benchbench.loadgen.columns import collect

    if driver.log.base and not driver.facts.cancelled:
        columns = spool.finish(driver.log, exchanges)
        driver.facts.spooled_bytes = spool.size
        return columns
    spool.cancel()
    return None if driver.facts.cancelled else cast("dict[str, Any]", collect(exchanges, driver.log, driver.job))


def main(fd: int, parent: int, *, raised: bool) -> None:
    """The worker's life: announce readiness, then job in, result out, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # importing makes no garbage worth a look
    from benchbench.linux import READ, Poller, die_with_parent, raise_priority, use_all_descriptors, use_timer_slack

    die_with_parent(parent)
    priority = raise_priority() if raised else ""  # first: on a busy host what follows is most of a start
    from benchbench.loadgen.connection import Pools
    from benchbench.loadgen.round import Round
    from benchbench.spool.flat import say
    from benchbench.spool.spool import Spool

    use_all_descriptors()
    use_timer_slack(1_000)
    pipe: Pipe[Any, Any] = Pipe(fd)
    poller = Poller()
    poller.register(fd, READ)
    pools, spool = Pools(poller), Spool()

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
            spool.close()
            os._exit(0)  # taking an interpreter apart takes time for which main would wait
        if job is None or isinstance(job, str | int):  # a cancel that came after its round had ended
            continue
        try:
            spool.begin(job)
            driver = Round(job, pools, commands, pipe.send, spool)
            columns = columns_of(driver, driver.run(), spool)
            before, spent = spent, time.process_time_ns()
            say(pipe, columns, {**asdict(driver.facts), "worker_cpu_ns": spent - before, "priority": priority})
            del driver, columns, job
        except Exception as error:  # noqa: BLE001 - the sweep reports it; without a reply it would wait for ever
            spool.cancel()
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
        gc.collect()  # here, where nothing waits for us


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), raised=sys.argv[3] == "1")
