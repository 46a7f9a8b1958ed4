"""A round as the JSON that `vllm bench serve --save-result --save-detailed` writes of a run. Pure.

Keys and formulas are vLLM's (0.33, `benchmarks/serve.py`): its figures are of all successful requests, in s and ms,
and its TPOT is (latency - TTFT) / (tokens - 1). What it has no field for stands under `benchbench`: the cell, its
status and reasons, and the round's figures by our own definitions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from benchbench.analysis.metrics import RoundMetrics
from benchbench.analysis.summary import COLUMNS, CellSummary
from benchbench.events.round_events import sums_of
from benchbench.exporters.llm_d_report import mean_input
from benchbench.speculation.acceptance import POSITION
from benchbench.store.arrow import Floats, Ints, array_of, lists_of
from benchbench.store.facts import Manifest
from benchbench.store.requests import RequestStatus, round_facts
from benchbench.version import __version__

RANKS = (50, 90, 95, 99)
SERVER_TIMES = {"server_queue_times": "queue_time_ms", "server_ttfts": "time_to_first_token_ms"}


@dataclass(frozen=True, slots=True)
class _Requests:
    """One entry a request, in s from the round's first send; 0 and [] where nothing was received, as vLLM has it."""

    ok: list[bool]
    inputs: list[int]
    outputs: list[int]
    starts: list[float]
    ttfts: list[float]
    itls: list[list[float]]
    latencies: list[float]
    errors: list[str]
    server: dict[str, list[float | None]]


def vllm_result(summary: CellSummary, place: int, table: pa.Table, manifest: Manifest) -> dict[str, Any] | None:
    """The result of the `place`-th measured round of a cell, whose `table` it is; None where no request succeeded."""
    spec = manifest.get("spec") or {}
    cell, metrics = summary.cell, summary.rounds[place]
    requests = _requests(table)
    done, seconds = sum(requests.ok), metrics.duration_s
    if not done or seconds <= 0:
        return None
    load = spec.get("load") or {}
    sent = array_of(table["sent_ns"])
    began = datetime.fromtimestamp(int(sent[sent > 0].min()) // 10**9, UTC)
    kind = "openai-chat" if (spec.get("engine") or {}).get("api") == "chat" else "openai"
    inputs = sum(n for n, ok in zip(requests.inputs, requests.ok, strict=True) if ok)
    outputs = sum(requests.outputs)
    return {
        "date": f"{began:%Y%m%d-%H%M%S}",
        "endpoint_type": kind,
        "backend": kind,
        "label": cell.variant or None,
        "model_id": spec.get("model"),
        "tokenizer_id": (spec.get("prompts") or {}).get("tokenizer") or spec.get("model"),
        "num_prompts": len(requests.ok),
        "request_rate": "inf" if cell.rate is None else cell.rate,
        "burstiness": "inf" if load.get("arrival") == "constant" else load.get("burstiness", 1.0),
        "max_concurrency": load.get("max_concurrency") if cell.batch is None else cell.batch,
        "duration": seconds,
        "completed": done,
        "failed": len(requests.ok) - done,
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": done / seconds,
        "request_goodput": metrics.goodput_req_s if cell.load != "closed" else None,  # ours is of the steady requests
        "output_throughput": outputs / seconds,
        "total_token_throughput": (inputs + outputs) / seconds,
        "input_lens": requests.inputs,
        "output_lens": requests.outputs,
        "ttfts": requests.ttfts,
        "itls": requests.itls,
        "latencies": requests.latencies,
        "start_times": requests.starts,
        "queue_times": [0.0] * len(requests.ok),
        "generated_texts": [""] * len(requests.ok),
        "errors": requests.errors,
        **requests.server,
        **_peaks(requests),
        "rtfx": 0.0,
        **_drafts(round_facts(table).get("server") or {}),
        **_latencies(requests),
        "benchbench": _ours(summary, place, metrics, table, manifest),
    }


def _requests(table: pa.Table) -> _Requests:
    offsets, events = lists_of(table["event_ns"])
    sent = array_of(table["sent_ns"]).astype(np.int64)
    origin = int(sent[sent > 0].min()) if (sent > 0).any() else 0
    status = table["status"].to_pylist()
    ok = [text == RequestStatus.OK and size > 0 for text, size in zip(status, np.diff(offsets).tolist(), strict=True)]
    received = [events[low:high] for low, high in pairwise(offsets.tolist())]
    counted, reported = sums_of(offsets, lists_of(table["event_tokens"])[1]), array_of(table["output_tokens"])
    prompts, wanted = array_of(table["input_tokens"]), array_of(table["asked_input_tokens"])
    errors = zip(ok, table["error_kind"].to_pylist(), table["error_detail"].to_pylist(), strict=True)
    return _Requests(
        ok=ok,
        inputs=np.maximum(np.where(prompts >= 0, prompts, wanted), 0).astype(int).tolist(),
        outputs=np.where(ok, np.where(reported >= 0, reported, counted), 0).astype(int).tolist(),
        starts=[max(int(at) - origin, 0) / 1e9 for at in sent],
        ttfts=[float(times[0] - at) / 1e9 if good else 0.0 for good, at, times in zip(ok, sent, received, strict=True)],
        itls=[_seconds(np.diff(times)) if good else [] for good, times in zip(ok, received, strict=True)],
        latencies=[
            float(times[-1] - at) / 1e9 if good else 0.0 for good, at, times in zip(ok, sent, received, strict=True)
        ],
        errors=["" if good else f"{kind}: {detail}".strip(": ") or "failed" for good, kind, detail in errors],
        server=_server_times(table, ok),
    )


def _seconds(times_ns: Ints) -> list[float]:
    return [gap / 1e9 for gap in times_ns.tolist()]


def _server_times(table: pa.Table, ok: list[bool]) -> dict[str, list[float | None]]:
    """The server's own times of each request, in s, under the keys of vLLM 0.33; {} where no request has any."""
    texts = table["server_metrics"].to_pylist() if "server_metrics" in table.column_names else []
    reports = [json.loads(text) if text and good else {} for text, good in zip(texts, ok, strict=bool(texts))]
    times = {
        key: [None if (ms := report.get(name)) is None else float(ms) / 1e3 for report in reports]
        for key, name in SERVER_TIMES.items()
    }
    return times if any(value is not None for values in times.values() for value in values) else {}


def _drafts(view: Mapping[str, Any]) -> dict[str, Any]:
    """What the server counted of drafted tokens, under vLLM's keys; {} where it drafted nothing, or does not tell."""
    drafts, drafted, accepted = (view.get(f"spec_{name}") for name in ("drafts", "draft_tokens", "accepted_tokens"))
    if not drafts or not drafted or accepted is None:
        return {}
    places = sorted(int(name.removeprefix(POSITION)) for name in view if name.startswith(POSITION))
    return {
        "spec_decode_acceptance_rate": 100 * accepted / drafted,
        "spec_decode_acceptance_length": 1 + accepted / drafts,
        "spec_decode_num_drafts": int(drafts),
        "spec_decode_draft_tokens": int(drafted),
        "spec_decode_accepted_tokens": int(accepted),
        "spec_decode_per_position_acceptance_rates": [view[f"{POSITION}{place}"] / drafts for place in places],
    }


def _latencies(requests: _Requests) -> dict[str, float]:
    """Mean, median, standard deviation and percentiles in ms, each by vLLM's definition."""
    good = [place for place, ok in enumerate(requests.ok) if ok]
    longer = [place for place in good if requests.outputs[place] > 1]
    pools = {
        "ttft": [requests.ttfts[place] for place in good],
        "tpot": [(requests.latencies[i] - requests.ttfts[i]) / (requests.outputs[i] - 1) for i in longer],
        "itl": [gap for place in good for gap in requests.itls[place]],
        "e2el": [requests.latencies[place] for place in good],
    }
    figures: dict[str, float] = {}
    for name, pool in pools.items():
        values: Floats = np.array(pool or [0.0]) * 1e3  # vLLM's own value of nothing
        figures |= {
            f"{kind}_{name}_ms": float(value)
            for kind, value in (("mean", values.mean()), ("median", np.median(values)), ("std", values.std()))
        }
        ranked = np.percentile(values, RANKS).tolist()
        figures |= {f"p{rank}_{name}_ms": value for rank, value in zip(RANKS, ranked, strict=True)}
    return figures


def _peaks(requests: _Requests) -> dict[str, float]:
    """The two peaks of vLLM's files, over whole seconds since the first send: token events, and requests under way."""
    good = [place for place, ok in enumerate(requests.ok) if ok]
    first = min(requests.starts[place] for place in good)
    ends = [requests.starts[place] + requests.latencies[place] for place in good]
    seconds = int(np.ceil(max(ends) - first)) + 1
    under_way = np.zeros(seconds, int)
    times = [np.cumsum([requests.starts[i] - first + requests.ttfts[i], *requests.itls[i]]) for i in good]
    for place, end in zip(good, ends, strict=True):
        under_way[int(requests.starts[place] - first) : int(end - first) + 1] += 1
    events = np.bincount(np.concatenate(times).astype(int).clip(0, seconds - 1), minlength=seconds)
    return {"max_output_tokens_per_s": float(events.max()), "max_concurrent_requests": int(under_way.max())}


def _ours(
    summary: CellSummary, place: int, metrics: RoundMetrics, table: pa.Table, manifest: Manifest
) -> dict[str, Any]:
    cell, engine = summary.cell, manifest.get("engine") or {}
    figures = {
        name: value * (1e3 if column.unit == "ms" else 1)
        for name, column in COLUMNS.items()
        if column.figure and (value := column.figure(metrics)) is not None
    }
    return {
        "version": __version__,
        "cell": cell.key,
        "round": place,
        "start": metrics.block,
        **{name: getattr(cell, name) for name in ("variant", "load", "output", "batch", "rate")},
        "input": mean_input(summary),
        "lengths": cell.lengths,
        "prompts": cell.prompts,
        "engine": engine.get("kind"),
        "engine_version": engine.get("version"),
        "notes": manifest.get("caption") or [],
        "status": summary.status,
        "reasons": [reason.code for reason in summary.reasons],
        "spare_sent": round_facts(table).get("spare_sent", 0),
        "figures": figures,
    }
