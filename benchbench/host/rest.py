"""The machine at rest before an engine starts: its GPUs' memory is free, they are cool, and nobody else uses them."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Mapping

from benchbench.host.energy import IDLE_SHARE
from benchbench.host.sampler import Sampler

SLACK_BYTES = 512 << 20  # of a GPU's memory: drivers keep some
FREE_S, COOL_S = 60.0, 900.0  # how long memory and heat are waited for
USE_S, USE_PAUSE_S = 3.0, 0.5  # utilisation is a mean of up to a second, so that an engine just ended is still in it


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
        if stopped(stop, 1.0):
            return 0.0


def stopped(stop: int | None, within_s: float) -> bool:
    """Whether the descriptor `stop` became readable within so many seconds."""
    return bool(select.select([] if stop is None else [stop], [], [], within_s)[0])


def in_use(sampler: Sampler, stop: int | None) -> dict[str, float]:
    """The GPUs that compute for USE_S while no engine of ours runs: by label, the least utilisation seen (a share)."""
    begun, busy = time.monotonic(), _computing(sampler)
    while busy and time.monotonic() - begun < USE_S and not stopped(stop, USE_PAUSE_S):
        now = _computing(sampler)
        busy = {gpu: min(share, now[gpu]) for gpu, share in busy.items() if gpu in now}
    return busy


def _computing(sampler: Sampler) -> dict[str, float]:
    return {gpu: share for gpu, share in sampler.read("utilisation").items() if share >= IDLE_SHARE}


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
