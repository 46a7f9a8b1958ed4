"""One start of a sweep's engine: a server to reach or a process of ours, and the worker that loads it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from benchbench.engines.opening import Hooks, Opened, open_engine
from benchbench.loadgen.worker import Worker
from benchbench.spec import Plan


@contextlib.contextmanager
def start_engine(plan: Plan, hooks: Hooks) -> Iterator[tuple[Opened, Worker]]:
    """The plan's engine and a ready worker, for as long as the block runs. Raises EngineError, WorkerDiedError."""
    with Worker() as worker, open_engine(plan, hooks) as opened:
        worker.ready()
        yield opened, worker
