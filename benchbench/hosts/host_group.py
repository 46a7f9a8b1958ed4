"""Workers on several hosts as Ray actors, which look like a group on one host: times come back on our clock."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from importlib import import_module
from multiprocessing import connection
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from benchbench.errors import WorkerDiedError
from benchbench.hosts.actor import HostActor, parted
from benchbench.hosts.clock_offsets import Offset, Trip, offset_between, offset_of, window_uncertainty_ns
from benchbench.loadgen.job import Job, RoundJob
from benchbench.senders.group import Joint, WorkerGroup
from benchbench.senders.http_worker import Sender
from benchbench.senders.shares import Reply, merged, split

if TYPE_CHECKING:
    from benchbench.store.requests import RoundColumns

TRIPS = 20  # after each other's clock
ANSWER_S, START_S = 10.0, 60.0  # for an answer of an actor, and for the first one
_TIMES = ("scheduled_ns", "connect_ns", "connected_ns", "sent_ns", "headers_ns", "end_ns", "event_ns")


class RayWorker(Sender):
    """A worker behind an actor on the node of this id, whose host has this name."""

    lead_ns = 200_000_000

    def __init__(self, host: str, node: str) -> None:
        ray: Any = import_module("ray")  # an extra, which type checkers need not have
        strategies: Any = import_module("ray.util.scheduling_strategies")
        self._ray, self.offset_ns, self.host = ray, 0, host
        self._why = "its pipe was closed"
        options = {
            "num_cpus": 0,
            "max_restarts": 0,
            "scheduling_strategy": strategies.NodeAffinitySchedulingStrategy(node, soft=False),
            "concurrency_groups": {"out": 1},
        }
        actor = type("SendingActor", (HostActor,), {"receive": ray.method(concurrency_group="out")(HostActor.receive)})
        self._actor = ray.remote(**options)(actor).remote()
        ours, self._theirs = connection.Pipe()
        super().__init__(ours)
        self._thread = threading.Thread(target=self._forward, daemon=True)
        self._thread.start()

    def _forward(self) -> None:
        """Hand on what the actor's worker says, until there is no more: then the pipe ends."""
        try:
            while True:
                self._theirs.send(self._ray.get(self._actor.receive.remote()))
        except Exception as error:  # noqa: BLE001 - of Ray, of the pipe: the end, whatever it is
            self._why = _in_words(error)
        finally:
            self._theirs.close()

    def about(self) -> tuple[str, str]:
        """Its host's name, and the version of this program there. Raises WorkerDiedError."""
        self.host, version = self._asked("about", START_S)
        return self.host, version

    def ready(self) -> None:
        """Wait until it can drive rounds. Raises WorkerDiedError."""
        self.host, _ = self.about()
        try:
            self._receive(deadline=time.monotonic() + START_S)
        except TimeoutError:
            self._why = "it did not start in time"
            raise WorkerDiedError(self.end()) from None

    def measure_clock(self) -> Offset:
        """Its host's clock against ours. Raises WorkerDiedError."""
        trips = []
        for _ in range(TRIPS):
            sent_ns = time.time_ns()
            there_ns = self._asked("clock")
            trips.append(Trip(sent_ns, there_ns, time.time_ns()))
        return offset_of(trips)

    def _asked(self, method: str, timeout_s: float = ANSWER_S) -> Any:  # noqa: ANN401 - as the method
        try:
            return self._ray.get(getattr(self._actor, method).remote(), timeout=timeout_s)
        except self._ray.exceptions.RayError as error:
            self._why = _in_words(error)
            raise WorkerDiedError(self.end()) from None

    def send(self, message: object) -> None:
        if isinstance(message, RoundJob):
            self._actor.drive.remote(*parted(message))
        else:
            self._actor.send.remote(message)

    def begin(self, start_ns: int) -> None:
        self.send(start_ns + self.offset_ns)

    def end(self, error: Exception | None = None) -> str:
        if error:
            return f"the load generator failed on {self.host}: {error!r}"
        return f"the load generator on {self.host} is gone: {self._why}"

    def close(self) -> None:
        """End the actor, and with it its worker."""
        self._ray.kill(self._actor)
        self._thread.join(ANSWER_S)
        self.pipe.close()


class HostGroup(WorkerGroup):
    """`size` workers on the cluster's nodes (host's name, id), one after the other. All of them send each round."""

    def __init__(self, size: int, nodes: Sequence[tuple[str, str]]) -> None:
        self._nodes = nodes
        super().__init__(size, lambda _job: size)

    def _started(self, number: int, size: int) -> Sender:  # noqa: ARG002 - as the group's
        return RayWorker(*self._nodes[number % len(self._nodes)])

    def about(self) -> dict[str, str]:
        """The hosts, and the version of this program on each. Raises WorkerDiedError."""
        return dict(worker.about() for worker in self._hosts())

    def _hosts(self) -> list[RayWorker]:
        return cast("list[RayWorker]", self._workers)

    def run(self, job: Job, stop: int | None = None) -> tuple[RoundColumns, dict[str, Any]]:
        """As `Worker.run`, in times of our clock; `facts.clocks` says how far the others were from it.

        Raises WorkerDiedError when no worker is left.
        """
        shares = split(job, len(self._workers))
        before = [self._clock(number) for number in range(len(shares))]
        workers = self._hosts()[: len(shares)]
        for worker, offset in zip(workers, before, strict=True):
            worker.offset_ns = offset.offset_ns
        joint = Joint(workers, shares, stop, self.watch)
        replies = joint.replies()
        offsets = [
            offset_between(offset, _or_none(worker) or offset) for worker, offset in zip(workers, before, strict=True)
        ]
        columns, facts = merged(shares, list(map(on_our_clock, replies, offsets)))
        alive = [o for worker, o in zip(workers, offsets, strict=True) if worker not in joint.dead]
        facts["clocks"] = [{"host": w.host, **o._asdict()} for w, o in zip(workers, offsets, strict=True)]
        facts["clock_uncertainty_ns"] = window_uncertainty_ns(alive)
        self._replace(joint.dead)
        return cast("RoundColumns", columns), facts

    def _clock(self, number: int) -> Offset:
        """Before a round; another worker takes the place of one that died since the last."""
        try:
            return self._hosts()[number].measure_clock()
        except WorkerDiedError:
            self._replace([self._workers[number]])
            return self._hosts()[number].measure_clock()


def on_our_clock(reply: Reply, offset: Offset) -> Reply:
    """A share's times less its host's offset; a time that is 0 is not known and stays so."""
    columns, facts = reply
    if "started_ns" in facts:
        facts = facts | {"started_ns": facts["started_ns"] - offset.offset_ns}
    if columns is None:
        return None, facts
    own = cast("dict[str, Any]", columns)
    moved = {name: np.where(own[name] > 0, own[name] - offset.offset_ns, own[name]) for name in _TIMES}
    return cast("RoundColumns", own | moved), facts


def _or_none(worker: RayWorker) -> Offset | None:
    with contextlib.suppress(WorkerDiedError):
        return worker.measure_clock()
    return None


def _in_words(error: Exception) -> str:
    """Ray's errors say much; the first line is enough."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
