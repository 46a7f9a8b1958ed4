"""`vllm bench serve`, in Python and in Rust, with or without --save-detailed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from benchbench.analysis.metrics import RoundMetrics, round_metrics
from benchbench.analysis.validity import Reason
from benchbench.importers.result import Count, ImportedResult, Number, Positive, load_of, measured, parsed
from benchbench.store import arrow as make
from benchbench.store.requests import RequestStatus

TOOL = "vllm bench serve"
_PATHS = {
    "run_tok_s": "output_throughput",
    "total_tok_s": "total_token_throughput",
    "req_s": "request_throughput",
    "goodput_req_s": "request_goodput",
    **{f"{metric}_ms": f"mean_{metric}_ms" for metric in ("ttft", "tpot", "e2el")},
    **{f"{metric}_ms_p50": f"median_{metric}_ms" for metric in ("ttft", "itl", "e2el")},
    **{f"{metric}_ms_p{q}": f"p{q}_{metric}_ms" for metric in ("ttft", "itl", "e2el") for q in (90, 99)},
}


class _Result(BaseModel):
    date: str = ""
    label: str | None = None
    model_id: str | None = None
    request_rate: float = math.inf
    max_concurrency: int | None = Field(None, gt=0)
    burstiness: float = 1.0
    backend: str | None = None
    ramp_up_strategy: str | None = None
    num_prompts: Count
    duration: Positive
    completed: Count
    failed: Count | None = None
    total_input_tokens: Count
    total_output_tokens: Count
    # One entry a request, in s
    ttfts: list[Number] | None = None
    itls: list[list[Number]] | None = None
    latencies: list[Number] | None = None
    start_times: list[Number] | None = None
    input_lens: list[Count] | None = None
    output_lens: list[Count] | None = None
    errors: list[str | None] | None = None


def read_vllm_bench(data: dict[str, Any]) -> ImportedResult:
    """The one cell of a result. Raises ValueError."""
    result = parsed(_Result, data, TOOL)
    if result.ramp_up_strategy:
        raise ValueError(
            f"{TOOL}: ramp_up_strategy {result.ramp_up_strategy}: unsupported (the rate changes within the run)"
        )
    failed = result.num_prompts - result.completed if result.failed is None else result.failed
    requests = result.completed + max(failed, 0)
    load, batch, rate = load_of(requests, result.max_concurrency, result.request_rate)
    reasons = (Reason.REQUEST_FAILED,) if failed > 0 else ()
    done = result.completed
    values = {"round_s": result.duration}
    pools: dict[str, tuple[float, ...]] = {}
    if done:
        values |= measured(data, _PATHS, load, TOOL)
        if (whole := _round(result, "open", None)) and (steady := _round(result, load, batch)):  # vLLM's are of all
            pools = {name: tuple((getattr(whole, f"{name}_s") * 1e3).tolist()) for name in ("ttft", "itl", "e2el")}
            one_by_one = len(whole.itl_s) + len(whole.ttft_s) == result.total_output_tokens
            if steady.sys_tok_s and steady.windowed and one_by_one:
                values["sys_tok_s"] = steady.sys_tok_s
        elif result.latencies and not failed:
            pools["e2el"] = tuple(1e3 * latency for latency in result.latencies if latency is not None)
    return ImportedResult(
        tool=f"{TOOL} (Rust)" if "T" in result.date else TOOL,
        date=result.date,
        model=result.model_id or "",
        variant=result.label or "",
        load=load,
        input=round(result.total_input_tokens / done) if done else 0,
        output=round(result.total_output_tokens / done) if done else 0,
        batch=batch,
        rate=rate,
        requests=requests,
        failed=max(failed, 0),
        values=values,
        pools=pools,
        reasons=reasons,
        conditions={"backend": result.backend, **({"burstiness": result.burstiness} if load == "open" else {})},
    )


def _round(result: _Result, load: str, batch: int | None) -> RoundMetrics | None:
    """The requests one by one through our own formulas; None where the file has no such details.

    Raises ValueError where they do not fit together.
    """
    starts, ttfts, itls, outputs = result.start_times, result.ttfts, result.itls, result.output_lens
    if starts is None or ttfts is None or itls is None or outputs is None:
        return None
    if len({len(starts), len(ttfts), len(itls), len(outputs)}) != 1:
        raise ValueError(f"{TOOL}: start_times, ttfts, itls and output_lens must have the same length")
    errors = result.errors or [None] * len(starts)
    inputs = result.input_lens or [0] * len(starts)
    if not len(errors) == len(inputs) == len(starts):
        raise ValueError(f"{TOOL}: errors, input_lens and start_times must have the same length")
    offset = min((start for start in starts if start is not None), default=0.0) - 1.0
    sent = [-1 if start is None else _ns(start - offset) for start in starts]
    good = [
        bool(at > 0 and ttft and output and not error) and None not in gaps
        for at, ttft, output, error, gaps in zip(sent, ttfts, outputs, errors, itls, strict=True)
    ]
    events = [
        at + np.cumsum([_ns(gap or 0) for gap in (ttft, *gaps)]) if ok else np.array([], np.int64)
        for at, ttft, gaps, ok in zip(sent, ttfts, itls, good, strict=True)
    ]
    return _metrics(sent, events, good, (inputs, outputs), load, batch)


def _ns(seconds: float) -> int:
    if not -1e9 < seconds < 1e9:
        raise ValueError(f"{TOOL}: {seconds:g} s is no time of a request")
    return round(seconds * 1e9)


def _metrics(
    sent: list[int],
    events: list[Any],
    good: list[bool],
    lengths: tuple[list[Any], list[Any]],
    load: str,
    batch: int | None,
) -> RoundMetrics:
    """As a round's table, with the columns that the metrics need."""
    import pyarrow as pa

    inputs, outputs = (make.numbers(np.array(tokens, np.int64)) for tokens in lengths)
    flat = np.concatenate([*events, np.array([], np.int64)]).astype(np.int64)
    offsets = np.cumsum([0, *map(len, events)]).astype(np.int32)
    at = make.numbers(np.array(sent, np.int64))
    table = pa.table(
        {
            "status": make.texts([RequestStatus.OK if ok else RequestStatus.FAILED for ok in good]),
            "sent_ns": at,
            "scheduled_ns": at,
            "end_ns": make.numbers(np.full(len(sent), -1)),
            "input_tokens": inputs,
            "asked_input_tokens": inputs,
            "output_tokens": outputs,
            "event_ns": make.lists(offsets, flat),
            "event_tokens": make.lists(offsets, np.ones(len(flat), np.int32)),
            "lag_ns": make.lists(offsets, np.zeros(len(flat), np.int64)),
        }
    )
    return round_metrics(table, load=load, in_flight=batch)
