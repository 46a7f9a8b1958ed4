"""Which load a run of another tool was: as it was asked for, unless its own times show that it was none. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

RAMP = "ramp"  # the load whose rate or number in flight changed
WAVE = 1.5  # a wave is over after its longest request; a run that lasts so many times that one is none
FULL = 1 / 3  # of the mean number in flight of a load that is kept full, below which it was not
Load = tuple[str, int | None, float | None]
"""Kind, batch, rate."""


def load_of(requests: int, concurrency: int | None, rate: float | None, *, ramp: bool = False) -> Load:
    """(load, batch, rate) of our kinds. Requests that all start at once are one wave, so a static batch.

    `ramp`: the rate changed within the run, which so has neither batch nor rate.
    """
    if ramp:
        return RAMP, None, None
    if rate is not None and math.isfinite(rate):
        return "open", None, rate
    if concurrency is None or concurrency >= requests:
        return "static", requests, None
    return "closed", concurrency, None


def was_another(load: Load, values: Mapping[str, float], requests: int, tokens: float) -> str:
    """How many were in flight, where they were not all at once, or not kept so many as a load says; "" otherwise.

    Tools ramp up without writing it, and hold requests back that a file says to be sent at once. By Little's law,
    requests x mean E2EL / duration were in flight on average. `values`: by columns of summary.csv, of the `requests`
    that succeeded, with so many `tokens` each in the mean.
    """
    kind, batch, _ = load
    seconds, most = values.get("round_s"), batch or requests
    if kind not in {"static", "closed"} or not requests or not seconds:
        return ""
    following = max(tokens - 1, 0)
    if values.keys() >= {"ttft_ms", "tpot_ms"}:
        means = [values[name] for name in ("ttft_ms", "tpot_ms")]
        tails = [values.get(f"{name}_p99", values[name]) for name in ("ttft_ms", "tpot_ms")]
        mean_s, longest_s = ((ttft + tpot * following) / 1e3 for ttft, tpot in (means, tails))
    elif "e2el_ms" in values and (kind == "closed" or "e2el_ms_p99" in values):
        mean_s, longest_s = (values.get(name, 0.0) / 1e3 for name in ("e2el_ms", "e2el_ms_p99"))
    else:
        return ""
    under_way = requests * mean_s / seconds
    is_none = seconds > WAVE * longest_s if kind == "static" else under_way < FULL * requests / -(-requests // most)
    return f"unknown, {under_way:.3g} of {most} in flight" if is_none else ""
