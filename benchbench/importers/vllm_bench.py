"""`vllm bench serve`, in Python and in Rust, with or without --save-detailed; and what `bench export` writes as such.

A file of ours has a section `benchbench`: then the cell, its status and its figures are ours, and so is the name.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from benchbench.analysis.metrics import round_metrics
from benchbench.importers.own_cell import OwnCell
from benchbench.importers.result import Count, ImportedResult, Number, Positive, imported, numbers, parsed
from benchbench.plausible.loads import Load, load_of, was_another
from benchbench.store import arrow as make
from benchbench.store.requests import RequestStatus

TOOL = "vllm bench serve"
MAX_S = 1e9
_PATHS = {
    "round_s": "duration",
    "run_tok_s": "output_throughput",
    "total_tok_s": "total_token_throughput",
    "req_s": "request_throughput",
    "goodput_req_s": "request_goodput",
    "acceptance_rate": "spec_decode_acceptance_rate",
    "acceptance_length": "spec_decode_acceptance_length",
    **{f"{metric}_ms": f"mean_{metric}_ms" for metric in ("ttft", "tpot", "e2el")},
    **{f"{metric}_ms_p50": f"median_{metric}_ms" for metric in ("ttft", "itl", "e2el")},
    **{f"{metric}_ms_p{q}": f"p{q}_{metric}_ms" for metric in ("ttft", "tpot", "itl", "e2el") for q in (90, 99)},
}


class _Ours(OwnCell):
    version: str
    spare_sent: Count = 0
    figures: dict[str, float] = Field({})


class _Result(BaseModel):
    date: str = ""
    label: str | None = None
    model_id: str | None = None
    request_rate: float = Field(math.inf, gt=0)
    max_concurrency: int | None = Field(None, gt=0)
    burstiness: float = 1.0
    backend: str | None = None
    ramp_up_strategy: str | None = None
    ramp_up_start_rps: Number = None
    ramp_up_end_rps: Number = None
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
    # vLLM 0.33, of a server with --enable-per-request-metrics: in its queue, and from there to the first token
    server_queue_times: list[Number] | None = None
    server_ttfts: list[Number] | None = None
    benchbench: _Ours | None = None


def read_vllm_bench(data: dict[str, Any]) -> ImportedResult:
    """The one cell of a result. Raises ValueError."""
    result = parsed(_Result, data, TOOL)
    ours, done = result.benchbench, result.completed
    failed = max(result.num_prompts - done if result.failed is None else result.failed, 0)
    values = numbers(data, _PATHS, TOOL) if done else {}
    values |= {name: values[name] / 100 for name in ("acceptance_rate",) if name in values}  # theirs are in %
    offered = (done + failed, result.max_concurrency, result.request_rate)
    ramp = "" if ours else _ramp(result, values, load_of(*offered))
    load = (ours.load, ours.batch, ours.rate) if ours else load_of(*offered, ramp=bool(ramp))
    values |= _server_times(result) if done else {}
    pools: dict[str, tuple[float, ...]] = {}
    if done and (table := _requests(result)):
        steady = round_metrics(table, load=load[0], in_flight=load[1])
        whole = steady if ours else round_metrics(table, load="open", in_flight=None)  # vLLM's are of all requests
        pools = {name: tuple((getattr(whole, f"{name}_s") * 1e3).tolist()) for name in ("ttft", "itl", "e2el")}
        one_by_one = len(whole.itl_s) + len(whole.ttft_s) == result.total_output_tokens
        if steady.sys_tok_s and steady.windowed and one_by_one and not ramp:
            values["sys_tok_s"] = steady.sys_tok_s
    elif done and result.latencies and not failed:
        pools["e2el"] = tuple(1e3 * latency for latency in result.latencies if latency is not None)
    if ours and done:
        values |= numbers(ours.figures, {name: name for name in ours.figures}, TOOL)
    common: dict[str, Any] = {"done": done, "failed": failed, "date": result.date, "model": result.model_id or ""}
    named = ours.labels(ours.version) if ours else _named(result, ramp)
    return imported(values, load=load, pools=pools, conditions=_conditions(result, load[1]), **common, **named)


def _ramp(result: _Result, values: dict[str, float], load: Load) -> str:
    """How the rate of a run changed, where it did; "" of any other. vLLM's Rust client does not write it."""
    if result.ramp_up_strategy:
        return f"{result.ramp_up_strategy} {result.ramp_up_start_rps or 0:g} to {result.ramp_up_end_rps or 0:g} req/s"
    return was_another(load, values, result.completed, result.total_output_tokens / max(result.completed, 1))


def _named(result: _Result, ramp: str) -> dict[str, Any]:
    """What a file of vLLM's own says of its cell."""
    done = max(result.completed, 1)
    return {
        "inputs": (result.total_input_tokens / done, None),
        "outputs": (result.total_output_tokens / done, None),
        "tool": f"{TOOL} (Rust)" if "T" in result.date else TOOL,
        "variant": f"{result.label or ''} {'ramp-up: ' if ramp else ''}{ramp}".strip(),
    }


def _conditions(result: _Result, batch: int | None) -> dict[str, object]:
    limits = {"burstiness": result.burstiness, "max_concurrency": result.max_concurrency or "unlimited"}
    return {"backend": result.backend, **({} if batch else limits)}


def _server_times(result: _Result) -> dict[str, float]:
    """Means in ms over the requests of which the server told both times, as summary.csv has them."""
    ttfts, queue, first = result.ttfts or [], result.server_queue_times or [], result.server_ttfts or []
    if len({len(ttfts), len(queue), len(first)}) != 1:
        return {}
    each = np.array(list(zip(ttfts, queue, first, strict=True)), np.float64).reshape(-1, 3)  # None: nan
    known = each[((each >= 0) & (each < MAX_S)).all(axis=1) & (each[:, 0] > 0)] * 1e3
    if not len(known):
        return {}
    ours, waited, took = known.mean(axis=0).tolist()
    times = {"server_ttft_ms": waited + took, "server_queue_ms": waited, "outside_ttft_ms": ours - waited - took}
    return {name: value for name, value in times.items() if value >= 0}


def _requests(result: _Result) -> pa.Table | None:
    """The requests one by one as a round's table, with the columns that our own formulas need.

    None where the file has no such details. Raises ValueError where they do not fit together.
    """
    starts, ttfts, itls, outputs = result.start_times, result.ttfts, result.itls, result.output_lens
    if starts is None or ttfts is None or itls is None or outputs is None:
        return None
    errors, inputs = result.errors or [None] * len(starts), result.input_lens or [0] * len(starts)
    if len({len(column) for column in (starts, ttfts, itls, outputs, errors, inputs)}) != 1:
        raise ValueError(f"{TOOL}: start_times, ttfts, itls, output_lens and the like must have the same length")
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
        "output_tokens": make.numbers(np.array(outputs, np.int64)),
        "event_ns": make.lists(offsets, flat),
        "event_tokens": make.lists(offsets, np.ones(len(flat), np.int32)),
        "lag_ns": make.lists(offsets, np.zeros(len(flat), np.int64)),
    }
    table |= {name: make.numbers(np.array(sent, np.int64)) for name in ("sent_ns", "scheduled_ns")}
    table |= {name: make.numbers(np.array(inputs, np.int64)) for name in ("input_tokens", "asked_input_tokens")}
    facts = {"spare_sent": result.benchbench.spare_sent if result.benchbench else 0}
    return pa.table(table).replace_schema_metadata({"benchbench": json.dumps(facts)})


def _ns(seconds: float) -> int:
    if not -MAX_S < seconds < MAX_S:
        raise ValueError(f"{TOOL}: {seconds:g} s is no time of a request")
    return round(seconds * 1e9)
