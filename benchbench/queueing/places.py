"""Whether requests waited until others had ended, as on a server that runs fewer at once than the batch. Pure.

B prompts that a server takes one after the other keep the last of them waiting B times as long as one takes by itself,
at most: what is beyond that, by half, waited for a place. What one takes by itself the server's own times tell; where
it tells none it is the round's smallest TTFT, of prompts that are alike. Then the tokens of B requests must never
have flowed at once either: in a batch that has its places they do, when its last prompt is through.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

WAIT_FLOOR_S = 0.005
MARGIN = 1.5
ALIKE = 1.1  # longest prompt / shortest

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]


class Places(NamedTuple):
    """Of rounds: smallest and largest TTFT (medians over them), the most requests whose tokens flowed at once, and
    whether their prompts take alike.
    """

    first_s: float
    last_s: float
    most: int
    alike: bool


def places_of(begin_ns: Ints, end_ns: Ints, ttft_s: Floats, prompts: Ints, *, shared: bool) -> Places | None:
    """Those of one round, by first and last token of its requests; None without any. `shared`: prompts have prefixes
    in common, so that a cache may have a part of some.
    """
    if not len(ttft_s):
        return None
    steps = np.repeat([1, -1], len(begin_ns))
    order = np.lexsort((steps, np.concatenate([begin_ns, end_ns])))  # of one instant, ends first
    alike = not shared and bool(0 < prompts.max() <= ALIKE * prompts.min())
    return Places(float(ttft_s.min()), float(ttft_s.max()), int(np.cumsum(steps[order]).max()), alike)


def typical(rounds: Sequence[Places | None]) -> Places | None:
    """Those of several rounds."""
    known = [places for places in rounds if places is not None]
    if not known:
        return None
    first, last, most, alike = zip(*known, strict=True)
    return Places(median(first), median(last), max(most), all(alike))


def waited(places: Places | None, batch: int, own_s: float | None = None) -> bool:
    """Whether requests waited for others to end, `batch` in flight. `own_s`: TTFT without its queue, where told."""
    if places is None or (own_s is None and not (places.alike and places.most < batch)):
        return False
    return places.last_s > MARGIN * batch * (places.first_s if own_s is None else own_s) + WAIT_FLOOR_S
