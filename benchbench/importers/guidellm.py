"""GuideLLM's JSON (seen: version 2 of 0.8): each benchmark in it is a cell."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasPath, BaseModel, Field

from benchbench.importers.result import Count, ImportedResult, Number, Positive, imported, numbers, parsed
from benchbench.plausible.loads import load_of

TOOL = "GuideLLM"
_LATENCIES = {"ttft": "metrics.time_to_first_token_ms", "e2el": "metrics.request_latency"}
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


class _Request(BaseModel):
    time_to_first_token_ms: Number = None
    request_latency: Number = None


class _Benchmark(BaseModel):
    strategy: Literal["synchronous", "concurrent", "throughput", "constant", "poisson"] = Field(
        validation_alias=AliasPath("config", "strategy", "type_")
    )
    streams: int | None = Field(None, gt=0, validation_alias=AliasPath("config", "strategy", "streams"))
    most: int | None = Field(None, gt=0, validation_alias=AliasPath("config", "strategy", "max_concurrency"))
    rate: Positive | None = Field(None, validation_alias=AliasPath("config", "strategy", "rate"))
    model: str | None = Field(None, validation_alias=AliasPath("config", "backend", "model"))
    inputs: Number = Field(None, validation_alias=AliasPath("metrics", "prompt_token_count", "successful", "mean"))
    outputs: Number = Field(None, validation_alias=AliasPath("metrics", "output_token_count", "successful", "mean"))
    done: Count = Field(validation_alias=AliasPath("metrics", "request_totals", "successful"))
    failed: Count = Field(0, validation_alias=AliasPath("metrics", "request_totals", "errored"))
    requests: list[_Request] | None = Field(None, validation_alias=AliasPath("requests", "successful"))


class _Report(BaseModel):
    version: str = Field(validation_alias=AliasPath("metadata", "guidellm_version"))
    prompt_tokens: Number = Field(None, validation_alias=AliasPath("config", "spec", "data", 0, "prompt_tokens"))
    output_tokens: Number = Field(None, validation_alias=AliasPath("config", "spec", "data", 0, "output_tokens"))
    benchmarks: list[Any] = Field(min_length=1)


def read_guidellm(data: dict[str, Any]) -> list[ImportedResult]:
    """The cells of a report, in its order. Raises ValueError."""
    report = parsed(_Report, data, TOOL)
    return [_cell(benchmark, report) for benchmark in report.benchmarks]


def _cell(data: dict[str, Any], report: _Report) -> ImportedResult:
    benchmark = parsed(_Benchmark, data, f"{TOOL}: benchmarks")
    if benchmark.strategy in {"constant", "poisson"} and benchmark.rate is None:
        raise ValueError(f"{TOOL}: config.strategy.rate: missing")
    concurrency = 1 if benchmark.strategy == "synchronous" else benchmark.streams or benchmark.most
    load = load_of(benchmark.done + benchmark.failed, concurrency, benchmark.rate)
    values = numbers(data, _PATHS, TOOL) if benchmark.done else {}
    values |= {name: value * 1e3 for name, value in values.items() if name.startswith("e2el")}  # in s there
    return imported(
        values,
        done=benchmark.done,
        failed=benchmark.failed,
        load=load,
        inputs=(benchmark.inputs, report.prompt_tokens),
        outputs=(benchmark.outputs, report.output_tokens),
        tool=TOOL,
        version=report.version,
        model=benchmark.model or "",
        pools=_pools(benchmark.requests or [], benchmark.done),
        conditions={"arrivals": benchmark.strategy} if load[0] == "open" else {},
    )


def _pools(requests: list[_Request], done: int) -> dict[str, tuple[float, ...]]:
    """Each request's latencies, where the file has all of them (sample_size leaves some out)."""
    ttft = tuple(r.time_to_first_token_ms for r in requests if r.time_to_first_token_ms is not None)
    e2el = tuple(r.request_latency * 1e3 for r in requests if r.request_latency is not None)
    return {name: pool for name, pool in (("ttft", ttft), ("e2el", e2el)) if done and len(pool) == done}
