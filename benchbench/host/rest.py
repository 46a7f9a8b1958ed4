"""The machine at rest between two starts of an engine: its GPUs' memory is free again, and they are cool."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Mapping

from benchbench.host.sampler import Sampler

SLACK_BYTES = 512 << 20  # of a GPU's memory: drivers keep some
FREE_S, COOL_S = 60.0, 900.0  # how long memory and heat are waited for


def wait_for_rest(
    sampler: Sampler,
    used_before: Mapping[str, float],
    idle_c: Mapping[str, float],
    margin_c: float | None,
    stop: int | None,
    waiting: Callable[[float, str], None],
) -> float:
    """Wait until memory is as free as `used_before` an engine was started and, with `margin_c`, heat is near `idle_c`.

    `waiting(seconds, which GPUs)` is called about once a second. Returns the seconds waited, 0 when `stop` (a
    descriptor) became readable.
    """
    begun = time.monotonic()
    while True:
        waited = time.monotonic() - begun
        busy = holding(sampler.read("memory_used_bytes"), used_before) if waited < FREE_S else []
        if margin_c is not None and waited < COOL_S:
            busy += hotter(heat(sampler), idle_c, margin_c)
        if not busy:
            return waited
        waiting(waited, ", ".join(busy))
        if select.select([] if stop is None else [stop], [], [], 1.0)[0]:
            return 0.0


def heat(sampler: Sampler) -> dict[str, float]:
    """Degrees C of each GPU: of its edge, or of its hottest place where that is all it tells."""
    return sampler.read("hotspot_c") | sampler.read("temperature_c")


def holding(used: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """The GPUs with more bytes in use than before an engine was started, drivers' slack aside, in words."""
    held = {gpu: used[gpu] - before[gpu] for gpu in before if gpu in used and used[gpu] - before[gpu] > SLACK_BYTES}
    return [f"{gpu} still holds {extra / 2**30:.1f} GiB" for gpu, extra in held.items()]


def hotter(now_c: Mapping[str, float], idle_c: Mapping[str, float], margin_c: float) -> list[str]:
    """The GPUs that are more than `margin_c` degrees above their idle temperature, in words."""
    return [f"{gpu} has {c:g} C" for gpu, c in now_c.items() if gpu in idle_c and c > idle_c[gpu] + margin_c]
