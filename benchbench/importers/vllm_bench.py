"""`vllm bench serve`, in Python and in Rust, with or without --save-detailed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from benchbench.analysis.metrics import round_metrics
from benchbench.importers.result import Count, ImportedResult, Number, Positive, imported, load_of, numbers, parsed
from benchbench.store import arrow as make
from benchbench.store.requests import RequestStatus

TOOL = "vllm bench serve"
_PATHS = {
    "round_s": "duration",
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
    done = result.completed
    failed = max(result.num_prompts - done if result.failed is None else result.failed, 0)
    load = load_of(done + failed, result.max_concurrency, result.request_rate)
    values = numbers(data, _PATHS, TOOL) if done else {}
    pools: dict[str, tuple[float, ...]] = {}
    if done and (table := _requests(result)):
        whole = round_metrics(table, load="open", in_flight=None)  # vLLM's are of all requests
        pools = {name: tuple((getattr(whole, f"{name}_s") * 1e3).tolist()) for name in ("ttft", "itl", "e2el")}
        steady = round_metrics(table, load=load[0], in_flight=load[1])
        one_by_one = len(whole.itl_s) + len(whole.ttft_s) == result.total_output_tokens
        if steady.sys_tok_s and steady.windowed and one_by_one:
            values["sys_tok_s"] = steady.sys_tok_s
    elif done and result.latencies and not failed:
        pools["e2el"] = tuple(1e3 * latency for latency in result.latencies if latency is not None)
    return imported(
        values,
        done=done,
        failed=failed,
        load=load,
        inputs=(result.total_input_tokens / max(done, 1), None),
        outputs=(result.total_output_tokens / max(done, 1), None),
        tool=f"{TOOL} (Rust)" if "T" in result.date else TOOL,
        date=result.date,
        model=result.model_id or "",
        variant=result.label or "",
        pools=pools,
        conditions={"backend": result.backend, **({"burstiness": result.burstiness} if load[0] == "open" else {})},
    )


def _requests(result: _Result) -> pa.Table | None:
    """The requests one by one as a round's table, with the columns that our own formulas need.

    None where the file has no such details. Raises ValueError where they do not fit together.
    """
    starts, ttfts, itls, outputs = result.start_times, result.ttfts, result.itls, result.output_lens
    if starts is None or ttfts is None or itls is None or outputs is None:
        return None
    errors, inputs = result.errors or [None] * len(starts), result.input_lens or [0] * len(starts)
    if len({len(column) for column in (starts, ttfts, itls, outputs, errors, inputs)}) != 1:
        columns = "start_times, ttfts, itls, output_lens, input_lens and errors"
        raise ValueError(f"{TOOL}: {columns} must have the same length")
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
    flat = np.concatenate([*events, np.array([], np.int64)]).astype(np.int64)
    offsets = np.cumsum([0, *map(len, events)]).astype(np.int32)
    table = {
        "status": make.texts([RequestStatus.OK if ok else RequestStatus.FAILED for ok in good]),
        "end_ns": make.numbers(np.full(len(sent), -1)),
        "event_ns": make.lists(offsets, flat),
        "event_tokens": make.lists(offsets, np.ones(len(flat), np.int32)),
        "lag_ns": make.lists(offsets, np.zeros(len(flat), np.int64)),
    }
    table |= {name: make.numbers(np.array(sent, np.int64)) for name in ("sent_ns", "scheduled_ns")}
    table |= {name: make.numbers(np.array(inputs, np.int64)) for name in ("input_tokens", "asked_input_tokens")}
    return pa.table(table | {"output_tokens": make.numbers(np.array(outputs, np.int64))})


def _ns(seconds: float) -> int:
    if not -1e9 < seconds < 1e9:
        raise ValueError(f"{TOOL}: {seconds:g} s is no time of a request")
    return round(seconds * 1e9)
