"""AIPerf: profile_export_aiperf.json (seen: schema 1.4 of 0.13)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from benchbench.analysis.validity import Reason
from benchbench.importers.result import Count, ImportedResult, Number, length, load_of, measured, parsed

TOOL = "AIPerf"
_LATENCIES = {"ttft": "time_to_first_token", "e2el": "request_latency", "itl": "inter_chunk_latency"}
_PATHS = {
    "run_tok_s": "output_token_throughput.avg",
    "total_tok_s": "total_token_throughput.avg",
    "req_s": "request_throughput.avg",
    "goodput_req_s": "goodput.avg",
    "stream_tok_s": "output_token_throughput_per_user.avg",
    "round_s": "benchmark_duration.avg",
    "tpot_ms": "inter_token_latency.avg",
    **{f"{ours}_ms": f"{theirs}.avg" for ours, theirs in _LATENCIES.items()},
    **{f"{ours}_ms_p{q}": f"{theirs}.p{q}" for ours, theirs in _LATENCIES.items() for q in (50, 90, 99)},
}


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


class _Count(BaseModel):
    avg: Count


class _Length(BaseModel):
    avg: Number = None


class _Result(BaseModel):
    aiperf_version: str
    start_time: str = ""
    input_config: _Config
    request_count: _Count
    error_request_count: _Count = _Count(avg=0)
    input_sequence_length: _Length
    output_sequence_length: _Length


def read_aiperf(data: dict[str, Any]) -> ImportedResult:
    """The one cell of a profile. Raises ValueError."""
    result = parsed(_Result, data, TOOL)
    timed = [phase for phase in result.input_config.phases if phase.kind == "profiling"]
    if len(timed) != 1:
        raise ValueError(f"{TOOL}: input_config.phases: {len(timed)} phases are timed (allowed: one)")
    if (timed[0].concurrency if timed[0].type == "concurrency" else timed[0].rate) is None:
        raise ValueError(f"{TOOL}: input_config.phases: a phase of {timed[0].type} without its number")
    done, failed = result.request_count.avg, result.error_request_count.avg
    load, batch, rate = load_of(done + failed, timed[0].concurrency, timed[0].rate)
    targets = next((data.prompts for data in result.input_config.datasets if data.prompts), None) or _Prompts()
    lengths, reasons = [], [Reason.REQUEST_FAILED] * (failed > 0)
    for mean, target, reason in (
        (result.output_sequence_length.avg, targets.osl, Reason.OUTPUT_LENGTH),
        (result.input_sequence_length.avg, targets.isl, Reason.INPUT_LENGTH),
    ):
        tokens, other = length(mean or 0.0, target.mean if target else None)
        lengths.append(tokens)
        reasons += [reason] * (other and done > 0)
    values = measured(data, _PATHS, load, TOOL) if done else {}
    return ImportedResult(
        tool=TOOL,
        version=result.aiperf_version,
        date=result.start_time,
        model=", ".join(model.name for model in result.input_config.models.items),
        load=load,
        input=lengths[1],
        output=lengths[0],
        batch=batch,
        rate=rate,
        requests=done + failed,
        failed=failed,
        values=values,
        reasons=tuple(reasons),
        conditions={"arrivals": timed[0].type} if load == "open" else {},
    )
