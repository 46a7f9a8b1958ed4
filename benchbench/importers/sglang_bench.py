"""SGLang's `bench_serving`: one JSON object a run (seen: 0.5.23), with or without --output-details."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, Field

from benchbench.importers.result import Count, ImportedResult, Number, Positive, imported, numbers, parsed
from benchbench.plausible.loads import load_of

TOOL = "SGLang bench_serving"
_NAMES = {"ttft": "ttft", "itl": "itl", "e2el": "e2e_latency"}
_PATHS = {
    "round_s": "duration",
    "run_tok_s": "output_throughput",
    "total_tok_s": "total_throughput",
    "req_s": "request_throughput",
    "goodput_req_s": "request_goodput",
    "tpot_ms": "mean_tpot_ms",
    **{f"{ours}_ms": f"mean_{theirs}_ms" for ours, theirs in _NAMES.items()},
    **{f"{ours}_ms_p50": f"median_{theirs}_ms" for ours, theirs in _NAMES.items()},
    **{f"{ours}_ms_p{q}": f"p{q}_{theirs}_ms" for ours, theirs in _NAMES.items() for q in (90, 99)},
}


class _Result(BaseModel):
    tag: str | None = None
    backend: str = ""
    dataset_name: str = ""
    request_rate: float | str = math.inf
    max_concurrency: int | None = Field(None, gt=0)
    duration: Positive
    completed: Count
    total_input_tokens: Count
    total_output_tokens: Count
    # One entry a request, in s
    ttfts: list[Number] | None = None
    itls: list[list[Number]] | None = None
    errors: list[str | None] | None = None


def read_sglang(data: dict[str, Any]) -> ImportedResult:
    """The one cell of a run. Raises ValueError."""
    result = parsed(_Result, data, TOOL)
    done, traced = result.completed, isinstance(result.request_rate, str)
    failed = None if result.errors is None else max(len(result.errors) - done, 0)  # else the file does not tell
    rate = math.inf if isinstance(result.request_rate, str) else result.request_rate
    if not rate > 0:
        raise ValueError(f"{TOOL}: request_rate: {rate:g} (allowed: above 0)")
    load = load_of(done + (failed or 0), result.max_concurrency, rate, ramp=traced)
    limits = {"max_concurrency": result.max_concurrency or "unlimited"} if load[0] == "open" else {}
    cell = imported(
        numbers(data, _PATHS, TOOL) if done else {},
        done=done,
        failed=failed or 0,
        load=load,
        inputs=(result.total_input_tokens / max(done, 1), None),
        outputs=(result.total_output_tokens / max(done, 1), None),
        tool=TOOL,
        variant=" ".join(filter(None, (result.tag or "", f"rate: {result.request_rate}" * traced))),
        pools=_pools(result) if done else {},
        conditions={"backend": result.backend, "dataset": result.dataset_name, **limits},
    )
    return replace(cell, failed=failed)


def _pools(result: _Result) -> dict[str, tuple[float, ...]]:
    """Each request's TTFT and each gap in ms, where the file has them."""
    errors, ttfts, itls = result.errors, result.ttfts, result.itls
    if errors is None or ttfts is None or itls is None:
        return {}
    if len({len(errors), len(ttfts), len(itls)}) != 1:
        raise ValueError(f"{TOOL}: ttfts, itls and errors must have the same length")
    good = [place for place, error in enumerate(errors) if not error and ttfts[place]]
    firsts = tuple(1e3 * ttft for place in good if (ttft := ttfts[place]) is not None)
    gaps = tuple(1e3 * gap for place in good for gap in itls[place] if gap is not None)
    return {"ttft": firsts, "itl": gaps}
