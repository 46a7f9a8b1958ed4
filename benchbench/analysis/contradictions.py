"""Figures of one run that cannot stand together, whoever measured them: a unit is another, or a file is wrong. Pure."""

from __future__ import annotations

from collections.abc import Mapping

FAR = 30  # between definitions and means that weight requests otherwise, and a factor of a thousand
APART = 10  # between a rate over the whole run, and one over the time in which requests ran


def contradiction(values: Mapping[str, float], requests: int, output: float) -> str:
    """What cannot be, in words; "" where nothing is. `values`: means, by columns of summary.csv, of the `requests` that
    succeeded; `output`: their mean tokens, 0 where that is not known.
    """
    ttft, tpot, e2el, seconds, rate = map(values.get, ("ttft_ms", "tpot_ms", "e2el_ms", "round_s", "run_tok_s"))
    if ttft and e2el and ttft > 1.02 * e2el:
        return "mean TTFT is above mean E2EL"
    if e2el and seconds and e2el > 2e3 * seconds:
        return "mean E2EL is longer than twice the whole run"
    if ttft and tpot and e2el and output and not e2el / FAR < ttft + tpot * max(output - 1, 0) < e2el * FAR:
        return "mean E2EL is far from TTFT + (tokens - 1) x TPOT"
    if seconds and rate and output and not 1 / APART < requests * output / seconds / rate < APART:
        return "tokens / duration is far from its throughput"
    return ""
