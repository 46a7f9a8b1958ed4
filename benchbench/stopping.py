"""Work that a signal ends: what waits for a server is given up when a descriptor becomes readable."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from benchbench.errors import InterruptedSweep

T = TypeVar("T")


async def unless_stopped(stop: int | None, work: Coroutine[Any, Any, T], grace_s: float = 0.0) -> T:
    """What `work` gives. Raises InterruptedSweep `grace_s` after the descriptor `stop` has become readable."""
    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()

    def give_up() -> None:
        loop.remove_reader(stop or 0)
        loop.call_later(grace_s, task.cancel)

    if stop is not None:
        loop.add_reader(stop, give_up)
    try:
        return await task
    except asyncio.CancelledError:
        raise InterruptedSweep from None
    finally:
        if stop is not None:
            loop.remove_reader(stop)
