"""What a sweep will need and takes a while by itself: it begins while this process still imports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchbench.spec import SweepSpec


@contextlib.contextmanager
def begun_ahead(spec: SweepSpec) -> Iterator[None]:
    """A worker is started, and looked is at an engine that runs already, where the sweep will need that."""
    from benchbench.identity.running import looking_at
    from benchbench.senders.http_worker import worker_ahead
    from benchbench.spec import EndpointEngine, VllmInprocessEngine

    with contextlib.ExitStack() as stack:
        if not (spec.variants or spec.loadgen.ray or isinstance(spec.engine, VllmInprocessEngine)):
            stack.enter_context(worker_ahead())
            if isinstance(spec.engine, EndpointEngine):
                stack.enter_context(looking_at(spec.engine))
        yield
