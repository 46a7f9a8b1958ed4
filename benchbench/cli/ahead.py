"""What a sweep will need and takes a while by itself: it begins while this process still imports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchbench.cli.console import lean_imports

if TYPE_CHECKING:
    from benchbench.spec import SweepSpec


@contextlib.contextmanager
def sender_ahead(*, wanted: bool) -> Iterator[None]:
    """The first process that sends begins before the sweep is read, as nearly every sweep needs one.

    It imports as long as we read and check the file: two cores then have no third process to share them with, which
    took 0.04 s of each start.
    """
    with contextlib.ExitStack() as stack:
        if wanted:
            with lean_imports():
                from benchbench.senders.http_worker import worker_ahead

            stack.enter_context(worker_ahead())
        yield


@contextlib.contextmanager
def look_ahead(spec: SweepSpec) -> Iterator[None]:
    """Look at an engine that runs already meanwhile; a sweep that needs no sender of ours ends the one begun ahead."""
    from benchbench.identity.running import looking_at
    from benchbench.senders.http_worker import end_ahead
    from benchbench.spec import EndpointEngine, VllmInprocessEngine

    if spec.loadgen.ray or isinstance(spec.engine, VllmInprocessEngine):
        end_ahead()
    with contextlib.ExitStack() as stack:
        if isinstance(spec.engine, EndpointEngine) and not spec.variants:
            stack.enter_context(looking_at(spec.engine))
        yield
