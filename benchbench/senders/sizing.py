"""How many workers a sweep has, and how many of them a round takes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from math import ceil
from urllib.parse import urlsplit

from benchbench.host.engine_provenance import is_loopback
from benchbench.loadgen.job import Job
from benchbench.senders.group import WorkerGroup
from benchbench.senders.http_worker import HttpWorker, new_worker
from benchbench.senders.shares import is_capped
from benchbench.spec import Cell, EndpointEngine, OpenLoad, Plan

# One worker sends 1,024 requests in 7 to 20 ms: within a quarter of a TTFT of 100 ms. At 100 tok/s each they are the
# 100k tok/s that one worker was found exact at (its error grows from 140k on).
STREAMS, STREAM_TOK_S = 1024, 100.0


def _needed(streams: float) -> int:
    return max(1, ceil(streams / STREAMS))


def needed_by_cell(cell: Cell) -> int:
    """Workers that a cell asks for: by its batch, or in an open load by its token rate."""
    if isinstance(cell.load, OpenLoad):
        limit = cell.load.max_concurrency
        if limit is not None and limit < cell.requests:
            return 1
        return _needed((cell.rate or 0.0) * cell.output / STREAM_TOK_S)
    return _needed(min(cell.batch or 1, cell.requests))


def needed_by_job(job: Job) -> int:
    """The same of a round: the lengths of a warm-up may be others."""
    if not job.paced:
        return _needed(job.in_flight)
    seconds = job.due_ns[-1] / 1e9
    return 1 if is_capped(job) or not seconds else _needed(sum(job.asked_output) / seconds / STREAM_TOK_S)


def cores_for(plan: Plan) -> int:
    """CPUs that workers may keep busy: of ours half where the engine is on this host, else all but one."""
    if cpus := plan.spec.loadgen.cpu_numbers:
        return len(cpus)
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    engine = plan.spec.engine
    hosts = (
        [urlsplit(url).hostname or "" for url in engine.urls] if isinstance(engine, EndpointEngine) else ["localhost"]
    )
    away = not any(map(is_loopback, hosts))
    return max(1, ours - 1 if away else ours // 2)


def size_of(plan: Plan) -> tuple[int, str]:
    """How many workers a sweep starts, and a note where that is not one by itself."""
    wanted, cores = plan.spec.loadgen.workers, cores_for(plan)
    if wanted != "auto":
        short = f", more than the {cores} CPU{'s' * (cores > 1)} left for them: they take CPU from what else runs here"
        return wanted, "" if wanted == 1 else f"{wanted} processes send (loadgen.workers){short * (wanted > cores)}"
    most = max((needed_by_cell(cell) for cell in plan.cells), default=1)
    if most == 1:
        return 1, ""
    size = min(most, cores)
    why = f"the largest cells ask for {most}, one for each {STREAMS:,} streams"
    limit = "" if size == most else f"; cores are left for {cores}: set loadgen.workers to have more"
    return size, f"{size} process{'es' * (size > 1)} may send (loadgen.workers: auto): {why}{limit}"


@contextlib.contextmanager
def open_workers(plan: Plan) -> Iterator[tuple[HttpWorker | WorkerGroup, tuple[str, ...]]]:
    """The workers of a sweep for as long as the block runs, as one, and notes on them. Raises EngineError."""
    size, note = size_of(plan)
    cpus, auto = plan.spec.loadgen.cpu_numbers, plan.spec.loadgen.workers == "auto"
    if size == 1 and not cpus:
        with new_worker() as worker:
            yield worker, (note,) if note else ()
        return
    with WorkerGroup(size, needed_by_job if auto else partial(_all, size), cpus) as group:
        yield group, (note,) if note else ()


def _all(size: int, _job: Job) -> int:
    return size
