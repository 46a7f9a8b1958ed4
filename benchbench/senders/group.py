"""Several workers that drive a round together and look like one to who measures.

Main sleeps while they work: it wakes when all could begin (then it names the instant), when none needs spare requests
any more, when one has ended, and when somebody stops the sweep. A worker that dies leaves failures; another takes its
place.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, cast

from benchbench.errors import EngineError, WorkerDiedError
from benchbench.loadgen.job import CLOSE, READY, Job
from benchbench.loadgen.worker import Worker
from benchbench.refills.quota import SERVED
from benchbench.senders.http_worker import Sender, new_worker
from benchbench.senders.shares import Reply, Share, lost, merged, split
from benchbench.spool.flat import hear

if TYPE_CHECKING:
    from benchbench.store.requests import RoundColumns


class WorkerGroup(Worker):
    """`size` workers; `count` says how many of them a job takes. `cpus`: what they are pinned to, dealt out in turn.

    Raises EngineError when they cannot be pinned there.
    """

    def __init__(self, size: int, count: Callable[[Job], int], cpus: Sequence[int] = ()) -> None:
        self._count, self._cpus = count, cpus
        self._workers: list[Sender] = []
        try:
            for number in range(size):
                self._workers.append(self._started(number, size))
        except BaseException:
            self.close()
            raise

    def _started(self, number: int, size: int) -> Sender:
        worker, cpus = new_worker(), self._cpus[number::size]
        try:
            if cpus:
                os.sched_setaffinity(worker.pid, cpus)
        except (AttributeError, OSError) as error:  # no such CPU, or a platform without
            worker.close()
            raise EngineError(f"the load generator cannot be pinned there: {error}", "loadgen.cpus") from None
        return worker

    def ready(self) -> None:
        """Wait until all have imported what they need."""
        for worker in self._workers:
            worker.ready()

    def close(self) -> None:
        """End the processes and wait for them."""
        with contextlib.ExitStack() as stack:
            for worker in self._workers:
                stack.callback(worker.close)

    def run(self, job: Job, stop: int | None = None) -> tuple[RoundColumns, dict[str, Any]]:
        """As `Worker.run`. Raises WorkerDiedError when no worker is left."""
        shares = split(job, min(self._count(job), len(self._workers)))
        if len(shares) == 1:
            self._workers[0].watch = self.watch
            return self._workers[0].run(job, stop)
        joint = Joint(self._workers[: len(shares)], shares, stop, self.watch)
        replies = joint.replies()
        columns, facts = merged(shares, replies)
        self._replace(joint.dead)
        return cast("RoundColumns", columns), facts  # None in a cancelled round, as with one worker

    def _replace(self, dead: Sequence[Sender]) -> None:
        """Others in the place of dead workers. That one cannot start is noticed in the next round."""
        for worker in dead:
            number = self._workers.index(worker)
            worker.close()
            self._workers[number] = fresh = self._started(number, len(self._workers))
            with contextlib.suppress(WorkerDiedError):
                fresh.ready()


class Joint:
    """One round of several workers: who has said what so far."""

    def __init__(
        self,
        workers: Sequence[Sender],
        shares: Sequence[Share],
        stop: int | None,
        watch: tuple[int, Callable[[], str | None]] | None,
    ) -> None:
        self._workers, self._shares = workers, shares
        self._stop, self._watch = stop, watch
        self._watched = [fd for fd in (stop, watch[0] if watch else None) if fd is not None]
        self._replies: dict[int, Reply] = {}
        self._errors: list[str] = []
        self._ready, self._served = set[int](), set[int]()
        self.dead: list[Sender] = []

    def replies(self) -> list[Reply]:
        """What each share came to, in their order. Raises WorkerDiedError when none came to anything."""
        for worker, share in zip(self._workers, self._shares, strict=True):
            worker.send(share.job)
        begun = closed = False
        places = {worker.pipe: number for number, worker in enumerate(self._workers)}
        while len(self._replies) < len(self._workers):
            waiting = [pipe for pipe, number in places.items() if number not in self._replies]
            for source in wait([*waiting, *self._watched]):
                if source in places:
                    self._hear(places[source])
                elif source == self._stop:
                    self._watched.remove(self._stop)
                    self._tell(None)
                elif self._watch and (reason := self._watch[1]()):
                    self._watched.remove(self._watch[0])
                    self._tell(reason)
            if not begun and self._all(self._ready):
                begun = True
                self._begin()
            if not closed and self._served and self._all(self._served):
                closed = True
                self._tell(CLOSE)
        if len(self._errors) == len(self._workers):
            raise WorkerDiedError(self._errors[0])
        return [self._replies[number] for number in range(len(self._workers))]

    def _all(self, places: set[int]) -> bool:
        return len(places | self._replies.keys()) == len(self._workers)

    def _tell(self, message: object) -> None:
        for number, worker in enumerate(self._workers):
            if number not in self._replies:
                worker.send(message)

    def _begin(self) -> None:
        start_ns = time.time_ns() + max(worker.lead_ns for worker in self._workers)
        for number, worker in enumerate(self._workers):
            if number not in self._replies:
                worker.begin(start_ns)

    def _hear(self, number: int) -> None:
        worker = self._workers[number]
        try:
            message = hear(worker.pipe)
        except (EOFError, OSError):
            self.dead.append(worker)
            self._lose(number, worker.end())
            return
        if message == READY:
            self._ready.add(number)
        elif message == SERVED:
            self._served.add(number)
        elif isinstance(message, Exception):
            self._lose(number, worker.end(message))
        else:
            self._replies[number] = message

    def _lose(self, number: int, reason: str) -> None:
        self._errors.append(reason)
        self._replies[number] = lost(self._shares[number], reason)
