"""A cell as llm-d's Benchmark Report 0.2 (https://github.com/llm-d/llm-d-benchmark). Pure.

Its figures are ours: means over rounds, percentiles and standard deviations pooled over requests or gaps, and in a
closed load those of the steady requests and of the full batch. The whole summary row, with status, reasons and
intervals, stands under `scenario.load.native.config.benchbench`, and status and reasons are the run's keywords too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from benchbench.analysis.metrics import pooled
from benchbench.analysis.summary import CellSummary, summary_row
from benchbench.datasets.row_lengths import differs
from benchbench.spec.cell import CellInfo
from benchbench.store.facts import Manifest
from benchbench.version import __version__

VERSION = "0.2"
RANKS = {"p1": 1, "p5": 5, "p10": 10, "p25": 25, "p50": 50, "p75": 75, "p90": 90, "p95": 95, "p99": 99, "p99p9": 99.9}
_LATENCIES = {
    "time_to_first_token": ("ttft", "ms"),
    "time_per_output_token": ("tpot", "ms/token"),
    "inter_token_latency": ("itl", "ms/token"),
    "request_latency": ("e2el", "ms"),
}
_RATES = {
    "output_token_rate": ("sys_tok_s", "tokens/s"),
    "total_token_rate": ("total_tok_s", "tokens/s"),
    "request_rate": ("req_s", "queries/s"),
}
_RANDOM = {"text", "token_ids"}  # kinds of prompts that are made, not sampled


def llm_d_report(summary: CellSummary, manifest: Manifest, span_ns: tuple[int, int] | None) -> dict[str, Any]:
    """The report of a cell. `span_ns`: first send and last token of its measured rounds."""
    cell, row = summary.cell, {key: value for key, value in summary_row(summary).items() if value is not None}
    row |= {"input": mean_input(summary)}
    spec = manifest.get("spec") or {}
    latencies = {theirs: stats for theirs, (ours, unit) in _LATENCIES.items() if (stats := _pool(summary, ours, unit))}
    rates = {
        theirs: {"units": unit, "mean": row[ours]}
        for theirs, (ours, unit) in _RATES.items()
        if row.get(ours) is not None
    }
    requests = {"total": summary.evidence.requests, "failures": int(row["failed"]), **_lengths(summary)}
    return {
        "version": VERSION,
        "run": {
            "uid": hashlib.sha256(f"{manifest.get('created_ns')} {cell.key}".encode()).hexdigest()[:32],
            "eid": f"{spec.get('name')}-{manifest.get('created_ns')}",
            "time": _time(span_ns),
            "description": f"{cell.label}: {summary.status}"
            + "".join(f"; {reason.code}: {reason.meaning}" for reason in summary.reasons)
            + "".join(f". {line.rstrip('.')}" for line in manifest.get("caption") or []),
            "keywords": [str(summary.status), *dict.fromkeys(reason.code for reason in summary.reasons)],
        },
        "scenario": {"stack": [_engine(manifest, cell.variant)], "load": _load(cell, manifest, row)},
        "results": {
            "request_performance": {
                "aggregate": {"requests": requests, "latency": latencies, "throughput": rates},
            }
        },
    }


def _pool(summary: CellSummary, name: str, unit: str) -> dict[str, Any] | None:
    """Statistics in ms: the mean is that of the table (over rounds), where the table has one."""
    values = pooled(summary.rounds, f"{name}_s")
    if not len(values):
        return None
    estimate = summary.estimates.get(name)
    figures = _statistics(values, float(values.mean()) if estimate is None else estimate.point)
    return {"units": unit, **{figure: value * 1e3 for figure, value in figures.items()}}


def _statistics(values: np.ndarray[Any, Any], mean: float) -> dict[str, float]:
    ranked = np.percentile(values, list(RANKS.values())).tolist()
    return {
        "mean": mean,
        "stddev": float(values.std()),
        "min": float(values.min()),
        **dict(zip(RANKS, ranked, strict=True)),
        "max": float(values.max()),
    }


def mean_input(summary: CellSummary) -> int:
    """Tokens of a prompt: the cell's, or where prompts of a file have no length before, the mean of them."""
    return round(summary.pools["input_tokens"].mean or 0.0) if summary.cell.input is None else summary.cell.input


def _lengths(summary: CellSummary) -> dict[str, Any]:
    """Of the requests over which the latencies are: tokens received, and of prompts as the server counted them."""
    pools = {name: pooled(summary.rounds, f"{name}_tokens") for name in ("input", "output")}
    return {
        f"{name}_length": {"units": "count", **_statistics(values, float(values.mean()))}
        for name, values in pools.items()
        if len(values)
    }


def _time(span_ns: tuple[int, int] | None) -> dict[str, Any] | None:
    if span_ns is None:
        return None
    begin, end = (datetime.fromtimestamp(ns / 1e9, UTC) for ns in span_ns)
    return {
        "start": begin.isoformat(),
        "end": end.isoformat(),
        "duration": f"PT{(end - begin).total_seconds():.6f}S",
    }


def _load(cell: CellInfo, manifest: Manifest, row: Mapping[str, Any]) -> dict[str, Any]:
    exact, shape = cell.output_mode == "exact", {"lengths": cell.lengths}
    ours = {"benchbench": dict(row), "notes": manifest.get("caption") or []}
    spec = manifest.get("spec") or {}
    return {
        "metadata": {"cfg_id": cell.key, "description": cell.label},
        "standardized": {
            "tool": "benchbench",
            "tool_version": __version__,
            "source": "random" if cell.prompts in _RANDOM else "sampled",
            "input_seq_len": {"distribution": "other" if differs(shape, "input") else "fixed", "value": row["input"]},
            "output_seq_len": {
                "distribution": "fixed" if exact and not differs(shape, "output") else "other",
                "value": cell.output,
            },
            "rate_qps": cell.rate,
            "concurrency": cell.batch,
        },
        "native": {"config": {"load": spec.get("load"), "prompts": spec.get("prompts"), **ours}},
    }


def _engine(manifest: Manifest, variant: str) -> dict[str, Any]:
    """The server, as far as the manifest knows it: a generic component, since nobody tells its replicas."""
    spec, engine = manifest.get("spec") or {}, manifest.get("engine") or {}
    names = [str(device.get("name")) for device in manifest.get("devices") or [] if device.get("name")]
    config = {"engine": spec.get("engine"), "variant": (spec.get("variants") or {}).get(variant)}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()
    return {
        "metadata": {"label": variant or "engine", "cfg_id": digest},
        "standardized": {
            "kind": "generic",
            "tool": str(engine.get("kind") or (spec.get("engine") or {}).get("kind") or "unknown"),
            "tool_version": str(engine.get("version") or "unknown"),
            "model": {"name": str(spec.get("model"))},
            **({"accelerator": {"model": names[0], "count": len(names)}} if names else {}),
        },
        "native": {"config": config},
    }
