"""GuideLLM's JSON (seen: version 2 of 0.8): each benchmark in it is a cell."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from benchbench.analysis.validity import Reason
from benchbench.report.importers.found import Count, Found, Number, known, length, load_of, parsed

TOOL = "GuideLLM"


class _Percentiles(BaseModel):
    p50: Number = None
    p90: Number = None
    p99: Number = None


class _Distribution(BaseModel):
    mean: Number = None
    percentiles: _Percentiles | None = None


class _Metric(BaseModel):
    successful: _Distribution | None = None


class _Totals(BaseModel):
    successful: Count
    errored: Count = 0


class _Metrics(BaseModel):
    request_totals: _Totals
    prompt_token_count: _Metric
    output_token_count: _Metric
    time_to_first_token_ms: _Metric = _Metric()
    inter_token_latency_ms: _Metric = _Metric()
    request_latency: _Metric = _Metric()
    output_tokens_per_second: _Metric = _Metric()
    tokens_per_second: _Metric = _Metric()
    requests_per_second: _Metric = _Metric()


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
    duration: Number = None


class _Data(BaseModel):
    prompt_tokens: Number = None
    output_tokens: Number = None


class _Spec(BaseModel):
    data: list[Any] = []


class _Asked(BaseModel):
    spec: _Spec = _Spec()


class _Metadata(BaseModel):
    guidellm_version: str


class _Report(BaseModel):
    metadata: _Metadata
    config: _Asked = _Asked()
    benchmarks: list[_Benchmark] = Field(min_length=1)


def read_guidellm(data: dict[str, Any]) -> list[Found]:
    """The cells of a report, in its order. Raises ValueError."""
    report = parsed(_Report, data, TOOL)
    described = next((one for one in report.config.spec.data if isinstance(one, dict)), {})
    asked = parsed(_Data, described, f"{TOOL}: config.spec.data.0")
    return [_cell(one, asked, report.metadata.guidellm_version) for one in report.benchmarks]


def _cell(one: _Benchmark, asked: _Data, version: str) -> Found:
    metrics, strategy = one.metrics, one.config.strategy
    done, failed = metrics.request_totals.successful, metrics.request_totals.errored
    if strategy.type_ in {"constant", "poisson"} and strategy.rate is None:
        raise ValueError(f"{TOOL}: config.strategy.rate: missing")
    concurrency = 1 if strategy.type_ == "synchronous" else strategy.streams or strategy.max_concurrency
    load, batch, rate = load_of(done + failed, concurrency, strategy.rate)
    tokens, other_input = length(_mean(metrics.prompt_token_count) or 0.0, asked.prompt_tokens)
    outputs, other_output = length(_mean(metrics.output_token_count) or 0.0, asked.output_tokens)
    reasons = {
        Reason.REQUEST_FAILED: failed > 0,
        Reason.OUTPUT_LENGTH: other_output and done > 0,
        Reason.INPUT_LENGTH: other_input and done > 0,
    }
    values = {
        "tpot_ms": _mean(metrics.inter_token_latency_ms),
        "run_tok_s": _mean(metrics.output_tokens_per_second),
        "total_tok_s": _mean(metrics.tokens_per_second),
        "req_s": _mean(metrics.requests_per_second),
        "round_s": one.duration,
        **_percentiles("ttft", metrics.time_to_first_token_ms, 1.0),
        **_percentiles("e2el", metrics.request_latency, 1e3),
    }
    values["sys_tok_s"] = values["run_tok_s"] if load == "static" else None
    return Found(
        tool=TOOL,
        version=version,
        model=one.config.backend.model or "",
        load=load,
        input=tokens,
        output=outputs,
        batch=batch,
        rate=rate,
        requests=done + failed,
        failed=failed,
        values=known(values) if done else {},
        pools=_pools(one.requests.successful or [], done),
        reasons=tuple(reason for reason, seen in reasons.items() if seen),
    )


def _mean(metric: _Metric) -> float | None:
    return metric.successful.mean if metric.successful else None


def _percentiles(name: str, metric: _Metric, scale: float) -> dict[str, float | None]:
    told = metric.successful or _Distribution()
    ranks = told.percentiles or _Percentiles()
    found = {"ms": told.mean, "ms_p50": ranks.p50, "ms_p90": ranks.p90, "ms_p99": ranks.p99}
    return {f"{name}_{end}": None if value is None else value * scale for end, value in found.items()}


def _pools(requests: list[_Request], done: int) -> dict[str, tuple[float, ...]]:
    """Each request's latencies, where the file has all of them (sample_size leaves some out)."""
    ttft = tuple(one.time_to_first_token_ms for one in requests if one.time_to_first_token_ms is not None)
    e2el = tuple(one.request_latency * 1e3 for one in requests if one.request_latency is not None)
    return {name: pool for name, pool in (("ttft", ttft), ("e2el", e2el)) if done and len(pool) == done}
