"""GuideLLM's JSON (seen: version 2 of 0.8): each benchmark in it is a cell."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from benchbench.analysis.validity import Reason
from benchbench.importers.result import Count, ImportedResult, Number, length, load_of, measured, numbers, parsed

TOOL = "GuideLLM"
_LATENCIES = {"ttft": "metrics.time_to_first_token_ms", "e2el": "metrics.request_latency"}
_LENGTHS = {
    "input": "metrics.prompt_token_count.successful.mean",
    "output": "metrics.output_token_count.successful.mean",
}
_PATHS = {
    "tpot_ms": "metrics.inter_token_latency_ms.successful.mean",
    "run_tok_s": "metrics.output_tokens_per_second.successful.mean",
    "total_tok_s": "metrics.tokens_per_second.successful.mean",
    "req_s": "metrics.requests_per_second.successful.mean",
    "round_s": "duration",
    **{f"{ours}_ms": f"{theirs}.successful.mean" for ours, theirs in _LATENCIES.items()},
    **{
        f"{ours}_ms_p{q}": f"{theirs}.successful.percentiles.p{q}"
        for ours, theirs in _LATENCIES.items()
        for q in (50, 90, 99)
    },
}


class _Totals(BaseModel):
    successful: Count
    errored: Count = 0


class _Metrics(BaseModel):
    request_totals: _Totals


class _Strategy(BaseModel):
    type_: Literal["synchronous", "concurrent", "throughput", "constant", "poisson"]
    streams: int | None = Field(None, gt=0)
    max_concurrency: int | None = Field(None, gt=0)
    rate: float | None = Field(None, gt=0, allow_inf_nan=False)


class _Backend(BaseModel):
    model: str | None = None


class _Config(BaseModel):
    strategy: _Strategy
    backend: _Backend = _Backend()


class _Request(BaseModel):
    time_to_first_token_ms: Number = None
    request_latency: Number = None


class _Requests(BaseModel):
    successful: list[_Request] | None = None


class _Benchmark(BaseModel):
    config: _Config
    metrics: _Metrics
    requests: _Requests = _Requests()


class _Data(BaseModel):
    prompt_tokens: Number = None
    output_tokens: Number = None


class _Spec(BaseModel):
    data: list[Any] = []


class _Settings(BaseModel):
    spec: _Spec = _Spec()


class _Metadata(BaseModel):
    guidellm_version: str


class _Report(BaseModel):
    metadata: _Metadata
    config: _Settings = _Settings()
    benchmarks: list[Any] = Field(min_length=1)


def read_guidellm(data: dict[str, Any]) -> list[ImportedResult]:
    """The cells of a report, in its order. Raises ValueError."""
    report = parsed(_Report, data, TOOL)
    described = next((data for data in report.config.spec.data if isinstance(data, dict)), {})
    targets = parsed(_Data, described, f"{TOOL}: config.spec.data.0")
    return [_cell(benchmark, targets, report.metadata.guidellm_version) for benchmark in report.benchmarks]


def _cell(data: dict[str, Any], targets: _Data, version: str) -> ImportedResult:
    benchmark = parsed(_Benchmark, data, f"{TOOL}: benchmarks")
    metrics, strategy = benchmark.metrics, benchmark.config.strategy
    done, failed = metrics.request_totals.successful, metrics.request_totals.errored
    if strategy.type_ in {"constant", "poisson"} and strategy.rate is None:
        raise ValueError(f"{TOOL}: config.strategy.rate: missing")
    concurrency = 1 if strategy.type_ == "synchronous" else strategy.streams or strategy.max_concurrency
    load, batch, rate = load_of(done + failed, concurrency, strategy.rate)
    means = numbers(data, _LENGTHS, TOOL)
    tokens, other_input = length(means.get("input", 0.0), targets.prompt_tokens)
    outputs, other_output = length(means.get("output", 0.0), targets.output_tokens)
    values = measured(data, _PATHS, load, TOOL) if done else {}
    values |= {name: value * 1e3 for name, value in values.items() if name.startswith("e2el")}  # in s there
    reasons = {
        Reason.REQUEST_FAILED: failed > 0,
        Reason.OUTPUT_LENGTH: other_output and done > 0,
        Reason.INPUT_LENGTH: other_input and done > 0,
    }
    return ImportedResult(
        tool=TOOL,
        version=version,
        model=benchmark.config.backend.model or "",
        load=load,
        input=tokens,
        output=outputs,
        batch=batch,
        rate=rate,
        requests=done + failed,
        failed=failed,
        values=values,
        pools=_pools(benchmark.requests.successful or [], done),
        reasons=tuple(reason for reason, applies in reasons.items() if applies),
        conditions={"arrivals": strategy.type_} if load == "open" else {},
    )


def _pools(requests: list[_Request], done: int) -> dict[str, tuple[float, ...]]:
    """Each request's latencies, where the file has all of them (sample_size leaves some out)."""
    ttft = tuple(r.time_to_first_token_ms for r in requests if r.time_to_first_token_ms is not None)
    e2el = tuple(r.request_latency * 1e3 for r in requests if r.request_latency is not None)
    return {name: pool for name, pool in (("ttft", ttft), ("e2el", e2el)) if done and len(pool) == done}
