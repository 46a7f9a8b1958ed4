"""Figures of one run that cannot stand together, whoever measured them: a unit is another, or a file is wrong. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

FAR = 30  # between definitions and means that weight requests otherwise, and a factor of a thousand
APART = 10  # between a rate over the whole run, and one over the time in which requests ran
ALIKE = 2  # between means over the same requests
SHORTEST_MS = 0.05  # of a token: no server gives one request 20,000 in a second
_NAMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}


def contradiction(
    values: Mapping[str, float], requests: int, output: float, pools: Mapping[str, Sequence[float]] | None = None
) -> str:
    """What cannot be, in words; "" where nothing is. `values`: by columns of summary.csv, of the `requests` that
    succeeded; `output`: their mean tokens, 0 where that is not known; `pools`: each request's (gap's) time in ms.
    """
    return (
        _of_means(values, output)
        or _of_rates(values, requests, output)
        or _of_percentiles(values)
        or _of_pools(values, pools or {})
    )


def _of_means(values: Mapping[str, float], output: float) -> str:
    ttft, tpot, e2el, seconds = map(values.get, ("ttft_ms", "tpot_ms", "e2el_ms", "round_s"))
    if ttft and e2el and ttft > 1.02 * e2el:
        return "mean TTFT is above mean E2EL"
    if e2el and seconds and e2el > 2e3 * seconds:
        return "mean E2EL is longer than twice the whole run"
    if ttft and tpot and e2el and output and not e2el / FAR < ttft + tpot * max(output - 1, 0) < e2el * FAR:
        return "mean E2EL is far from TTFT + (tokens - 1) x TPOT"
    return f"a mean TPOT of {tpot:g} ms is shorter than any server's" if tpot and tpot < SHORTEST_MS else ""


def _of_rates(values: Mapping[str, float], requests: int, output: float) -> str:
    seconds, rate, steady = map(values.get, ("round_s", "run_tok_s", "sys_tok_s"))
    if seconds and rate and output and not 1 / APART < requests * output / seconds / rate < APART:
        return "tokens / duration is far from its throughput"
    is_far = steady and rate and not 1 / FAR < steady / rate < FAR
    return "the rate by the times of requests is far from its throughput" if is_far else ""


def _of_percentiles(values: Mapping[str, float]) -> str:
    """A mean of times has at least half of their median, and hardly more than many times their p99."""
    for name, word in _NAMES.items():
        known = [value for q in (50, 90, 99) if (value := values.get(f"{name}_ms_p{q}")) is not None]
        if any(high < low * (1 - 1e-6) for low, high in pairwise(known)):
            return f"{word}'s percentiles do not rise"
        mean, p50, p99 = (values.get(f"{name}_ms{rank}") for rank in ("", "_p50", "_p99"))
        if mean and ((p50 and mean < p50 / ALIKE) or (p99 and mean > FAR * p99)):
            return f"mean {word} is far from its percentiles"
    return ""


def _of_pools(values: Mapping[str, float], pools: Mapping[str, Sequence[float]]) -> str:
    for name, pool in pools.items():
        mean = sum(pool) / len(pool) if pool else 0.0
        stated = values.get("tpot_ms" if name == "itl" else f"{name}_ms")  # gaps hold one token or some
        most = FAR if name == "itl" else ALIKE
        if mean and stated and not 1 / most < mean / stated < most:
            return f"the mean of each {_NAMES[name]} is far from the stated one"
    return ""
