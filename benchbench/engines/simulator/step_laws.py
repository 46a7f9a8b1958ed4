"""How long a step takes by a profile's law, of what `profiles` has validated. Imports nothing heavy, as all that the
simulator's own process does.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchbench.engines.simulator.profiles import LinearLaw, TableLaw


def step_s(law: LinearLaw | TableLaw, decoding: int, mean_prompt: float, prefill_tokens: int, kv_tokens: int) -> float:
    """Seconds of one step: `decoding` requests whose mean prompt has `mean_prompt` tokens get one
    token each, `prefill_tokens` prompt tokens are computed, `kv_tokens` are held in the cache.
    """
    if law.kind == "linear":
        prefill_s, kv_s = law.per_prefill_token_s * prefill_tokens, law.per_kv_token_s * kv_tokens
        return law.base_s + law.per_seq_s * decoding + prefill_s + kv_s
    decode = 0.0
    if decoding:
        axis, place = [math.log2(b) for b in law.batches], math.log2(decoding)
        decode = _between(mean_prompt, law.inputs, [_between(place, axis, row) for row in law.decode_s])
    if not prefill_tokens:
        return decode
    return max(law.prefill_base_s, decode) + law.prefill_per_token_s * prefill_tokens


def _between(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Ys at x, linear between the entries of xs and clamped outside them."""
    i = bisect_right(xs, x)
    if i in (0, len(xs)):
        return ys[max(0, i - 1)]
    return ys[i - 1] + (x - xs[i - 1]) / (xs[i] - xs[i - 1]) * (ys[i] - ys[i - 1])
