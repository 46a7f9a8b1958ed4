"""When requests of an open load are due. Pure."""

from __future__ import annotations

import numpy as np


def due_offsets_ns(
    count: int, rate: float, arrival: str, burstiness: float, generator: np.random.Generator
) -> list[int]:
    """Offsets from the round's start in ns, ascending, the first 0, for `count` requests at `rate` a second.

    Gaps have the mean 1/rate: `constant` all equal; `poisson` exponential; `gamma` with shape `burstiness` and
    scale 1/(rate x burstiness), so that 1 is Poisson and less is burstier (as vLLM's `get_request`).
    """
    if arrival == "constant":
        return [round(k * 1e9 / rate) for k in range(count)]
    shape = burstiness if arrival == "gamma" else 1.0
    gaps = generator.gamma(shape, 1 / (rate * shape), count - 1)
    offsets: list[int] = (np.cumsum(gaps) * 1e9).astype(np.int64).tolist()
    return [0, *offsets]
