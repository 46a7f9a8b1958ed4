"""Result files of other tools -> what they say of each cell. Pure: bytes in; docs/imports.md maps the names."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from benchbench.errors import UnknownFormatError
from benchbench.importers.aiperf import read_aiperf
from benchbench.importers.guidellm import read_guidellm
from benchbench.importers.llm_d import read_llm_d
from benchbench.importers.markdown_results import read_markdown
from benchbench.importers.result import ImportedResult
from benchbench.importers.sglang_bench import read_sglang
from benchbench.importers.vllm_bench import read_vllm_bench
from benchbench.safe_text import printable

ALLOWED = (
    "allowed: JSON of vllm bench serve, AIPerf's profile_export_aiperf.json, GuideLLM's JSON, SGLang's bench_serving "
    "JSONL, llm-d's Benchmark Report 0.2 as JSON, a Markdown table with Input, Output, Batch and TTFT (ms) or Sys tok/s"
)
_LABELS = ("tool", "version", "date", "model", "variant")
_VLLM_BENCH = {"total_output_tokens", "output_throughput", "duration"}


def read(data: bytes) -> list[ImportedResult]:
    """The cells of a result file, whatever its name; the format is recognized by its content.

    Raises UnknownFormatError for what no reader knows, ValueError for a known format with something wrong in it.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnknownFormatError(f"not text: {error.reason} at byte {error.start} ({ALLOWED})") from None
    results = _read_json(text) if text.lstrip()[:1] == "{" else read_markdown(text)
    if not results:
        raise UnknownFormatError(f"no result that can be imported ({ALLOWED})")
    return [_printable(result) for result in results]


def _printable(result: ImportedResult) -> ImportedResult:
    labels: dict[str, Any] = {name: printable(getattr(result, name)) for name in _LABELS}
    return replace(result, **labels, notes=tuple(map(printable, result.notes)))


def _read_json(text: str) -> list[ImportedResult]:
    """Of one JSON object, or of one a line, as SGLang and `vllm bench serve --append-result` write them."""
    try:
        data: list[Any] = [json.loads(text)]  # not orjson: Python's tools write NaN and Infinity
    except (ValueError, RecursionError) as error:
        try:
            data = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            raise ValueError(f"not whole JSON: {error}") from None
    return [result for item in data for result in _read_object(item)]


def _read_object(data: Any) -> list[ImportedResult]:  # noqa: ANN401 - JSON
    if isinstance(data, dict):
        if "aiperf_version" in data:
            return [read_aiperf(data)]
        if isinstance(data.get("metadata"), dict) and "guidellm_version" in data["metadata"]:
            return read_guidellm(data)
        if data.keys() >= {"version", "run", "results"}:
            return [read_llm_d(data)]
        if data.keys() >= _VLLM_BENCH:
            return [read_sglang(data) if "mean_e2e_latency_ms" in data else read_vllm_bench(data)]
    raise UnknownFormatError(f"JSON, but no result that can be imported ({ALLOWED})")
