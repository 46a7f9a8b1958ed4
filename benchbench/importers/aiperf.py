"""AIPerf: profile_export_aiperf.json (seen: schema 1.4 of 0.13)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasPath, BaseModel, Field

from benchbench.importers.result import Count, ImportedResult, Number, Positive, imported, numbers, parsed
from benchbench.plausible.loads import load_of

TOOL = "AIPerf"
_LATENCIES = {"ttft": "time_to_first_token", "e2el": "request_latency", "itl": "inter_chunk_latency"}
_PROMPTS = ("input_config", "datasets", 0, "prompts")
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


class _Phase(BaseModel):
    kind: str = "profiling"
    type: Literal["concurrency", "constant", "poisson", "gamma"]
    concurrency: int | None = Field(None, gt=0)
    rate: Positive | None = None


class _Name(BaseModel):
    name: str


class _Result(BaseModel):
    aiperf_version: str
    start_time: str = ""
    models: list[_Name] = Field([], validation_alias=AliasPath("input_config", "models", "items"))
    phases: list[_Phase] = Field(validation_alias=AliasPath("input_config", "phases"))
    inputs_wanted: Number = Field(None, validation_alias=AliasPath(*_PROMPTS, "isl", "mean"))
    outputs_wanted: Number = Field(None, validation_alias=AliasPath(*_PROMPTS, "osl", "mean"))
    done: Count = Field(validation_alias=AliasPath("request_count", "avg"))
    failed: Count = Field(0, validation_alias=AliasPath("error_request_count", "avg"))
    inputs: Number = Field(None, validation_alias=AliasPath("input_sequence_length", "avg"))
    outputs: Number = Field(None, validation_alias=AliasPath("output_sequence_length", "avg"))


def read_aiperf(data: dict[str, Any]) -> ImportedResult:
    """The one cell of a profile. Raises ValueError."""
    result = parsed(_Result, data, TOOL)
    timed = [phase for phase in result.phases if phase.kind == "profiling"]
    if len(timed) != 1:
        raise ValueError(f"{TOOL}: input_config.phases: {len(timed)} phases are timed (allowed: one)")
    if (timed[0].concurrency if timed[0].type == "concurrency" else timed[0].rate) is None:
        raise ValueError(f"{TOOL}: input_config.phases: a phase of {timed[0].type} without its number")
    for metric in (*_LATENCIES.values(), "inter_token_latency"):
        if isinstance(latency := data.get(metric), dict) and latency.get("unit", "ms") != "ms":
            raise ValueError(f"{TOOL}: {metric}.unit: {latency['unit']!r} (allowed: ms)")
    load = load_of(result.done + result.failed, timed[0].concurrency, timed[0].rate)
    return imported(
        numbers(data, _PATHS, TOOL) if result.done else {},
        done=result.done,
        failed=result.failed,
        load=load,
        inputs=(result.inputs, result.inputs_wanted),
        outputs=(result.outputs, result.outputs_wanted),
        tool=TOOL,
        version=result.aiperf_version,
        date=result.start_time,
        model=", ".join(model.name for model in result.models),
        conditions={"arrivals": timed[0].type} if load[0] == "open" else {},
    )
