"""AIPerf: profile_export_aiperf.json (seen: schema 1.4 of 0.13)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from benchbench.analysis.validity import Reason
from benchbench.report.importers.found import Count, Found, Number, known, length, load_of, parsed

TOOL = "AIPerf"


class _Metric(BaseModel):
    avg: Number = None
    p50: Number = None
    p90: Number = None
    p99: Number = None


class _Mean(BaseModel):
    mean: Number = None


class _Prompts(BaseModel):
    isl: _Mean | None = None
    osl: _Mean | None = None


class _Dataset(BaseModel):
    prompts: _Prompts | None = None


class _Phase(BaseModel):
    kind: str = "profiling"
    type: Literal["concurrency", "constant", "poisson", "gamma"]
    concurrency: int | None = Field(None, gt=0)
    rate: float | None = Field(None, gt=0, allow_inf_nan=False)


class _Name(BaseModel):
    name: str


class _Models(BaseModel):
    items: list[_Name] = []


class _Config(BaseModel):
    models: _Models = _Models()
    datasets: list[_Dataset] = []
    phases: list[_Phase]


class _Requests(BaseModel):
    avg: Count


class _Result(BaseModel):
    aiperf_version: str
    start_time: str = ""
    input_config: _Config
    request_count: _Requests
    error_request_count: _Requests = _Requests(avg=0)
    input_sequence_length: _Metric
    output_sequence_length: _Metric
    time_to_first_token: _Metric = _Metric()
    inter_token_latency: _Metric = _Metric()
    inter_chunk_latency: _Metric = _Metric()
    request_latency: _Metric = _Metric()
    output_token_throughput: _Metric = _Metric()
    output_token_throughput_per_user: _Metric = _Metric()
    total_token_throughput: _Metric = _Metric()
    request_throughput: _Metric = _Metric()
    goodput: _Metric = _Metric()
    benchmark_duration: _Metric = _Metric()


def read_aiperf(data: dict[str, Any]) -> Found:
    """The one cell of a profile. Raises ValueError."""
    result = parsed(_Result, data, TOOL)
    timed = [phase for phase in result.input_config.phases if phase.kind == "profiling"]
    if len(timed) != 1:
        raise ValueError(f"{TOOL}: input_config.phases: {len(timed)} phases are timed (allowed: one)")
    if (timed[0].concurrency if timed[0].type == "concurrency" else timed[0].rate) is None:
        raise ValueError(f"{TOOL}: input_config.phases: a phase of {timed[0].type} without its number")
    done, failed = result.request_count.avg, result.error_request_count.avg
    load, batch, rate = load_of(done + failed, timed[0].concurrency, timed[0].rate)
    asked = next((one.prompts for one in result.input_config.datasets if one.prompts), None) or _Prompts()
    lengths, reasons = [], [Reason.REQUEST_FAILED] * (failed > 0)
    for told, want, reason in (
        (result.output_sequence_length.avg, asked.osl, Reason.OUTPUT_LENGTH),
        (result.input_sequence_length.avg, asked.isl, Reason.INPUT_LENGTH),
    ):
        tokens, other = length(told or 0.0, want.mean if want else None)
        lengths.append(tokens)
        reasons += [reason] * (other and done > 0)
    rates = {"run_tok_s": result.output_token_throughput, "total_tok_s": result.total_token_throughput}
    rates |= {"req_s": result.request_throughput, "goodput_req_s": result.goodput, "round_s": result.benchmark_duration}
    rates |= {"stream_tok_s": result.output_token_throughput_per_user, "tpot_ms": result.inter_token_latency}
    values = {name: metric.avg for name, metric in rates.items()}
    values["sys_tok_s"] = values["run_tok_s"] if load == "static" else None
    told_of = {"ttft": result.time_to_first_token, "e2el": result.request_latency, "itl": result.inter_chunk_latency}
    for name, metric in told_of.items():
        values |= {f"{name}_ms": metric.avg, f"{name}_ms_p50": metric.p50}
        values |= {f"{name}_ms_p90": metric.p90, f"{name}_ms_p99": metric.p99}
    return Found(
        tool=TOOL,
        version=result.aiperf_version,
        date=result.start_time,
        model=", ".join(one.name for one in result.input_config.models.items),
        load=load,
        input=lengths[1],
        output=lengths[0],
        batch=batch,
        rate=rate,
        requests=done + failed,
        failed=failed,
        values=known(values) if done else {},
        reasons=tuple(reasons),
    )
