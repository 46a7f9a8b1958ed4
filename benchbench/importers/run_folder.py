"""Other tools' results as a run folder: a manifest that says where each came from, and summary.parquet; no records."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchbench.analysis.reasons import Reason, worst
from benchbench.analysis.stats import two_stage_estimate
from benchbench.analysis.summary import COLUMNS, UNITS
from benchbench.errors import RunError, UnknownFormatError
from benchbench.host.environment import environment, spec_hash
from benchbench.importers.read import read
from benchbench.importers.result import ImportedResult
from benchbench.plausible.loads import RAMP
from benchbench.report.summary_table import markdown_table
from benchbench.safe_text import printable
from benchbench.store.run_directory import RunDirectory, replace_file

RANKS = (50, 90, 99)
UNITED = {name for name, column in COLUMNS.items() if column.figure} | {"server_ttft_ms", "server_queue_ms"}
UNITED |= {"outside_ttft_ms"}  # of which a mean over runs is the figure of several
_AXES = ("tool", "load", "input", "output", "batch", "rate")


class Source:
    """A result file: its name, what its folder in `vllm bench sweep` says of the server, and its bytes."""

    def __init__(self, path: Path) -> None:
        self.name = printable(path.name)
        folder = path.resolve().parent.name
        server = folder.removeprefix("SERVE--").partition("BENCH--")[0].rstrip("-")
        self.variant = printable(server) if folder.startswith("SERVE--") else ""
        self.data = path.read_bytes()


Sourced = tuple[Source, ImportedResult]


def read_files(paths: Iterable[Path]) -> list[Sourced]:
    """The results in these files; of folders all JSON files below them that are results.

    Raises ValueError that names the file, and OSError.
    """
    results: list[Sourced] = []
    for path in paths:
        count = len(results)
        for file in sorted([*path.rglob("*.json"), *path.rglob("*.jsonl")]) if path.is_dir() else [path]:
            source = Source(file)
            if twin := next((other for other, _ in results if other.data == source.data), None):
                raise ValueError(f"{file}: the same as {twin.name}, given before: it would count as a second run")
            try:
                results += [(source, result) for result in read(source.data)]
            except ValueError as error:
                if not (path.is_dir() and isinstance(error, UnknownFormatError)):
                    raise ValueError(f"{file}: {error}") from None
        if len(results) == count:
            raise ValueError(f"{path}: holds no result that can be imported")
    return results


def import_files(paths: Sequence[Path], out: Path | None = None, name: str | None = None) -> Path:
    """Write the run folder (default: runs/NAME-TIME) and return it.

    Raises ValueError and OSError as `read_files`, RunError for a folder that is not empty.
    """
    results = read_files(paths)
    tools = list(dict.fromkeys(result.tool for _, result in results))
    name = name or (tools[0].split(" (")[0].lower().replace(" ", "-") if len(tools) == 1 else "imported")
    path = out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise RunError(f"{path}: the folder is not empty: choose another --out")
    rows = rows_of(results)
    manifest = _manifest(name, results, rows)
    path.mkdir(parents=True, exist_ok=True)
    run = RunDirectory(path)
    run.write_summary(rows, UNITS)
    replace_file(path / "table.md", markdown_table(rows, closing=manifest["caption"]).encode())
    run.write_manifest(manifest)  # last: with it the folder is a run
    return path


def rows_of(results: Sequence[Sourced]) -> list[dict[str, Any]]:
    """Summary rows, one a cell: several results of one shape by one tool are its rounds.

    Only if they agree in model and `conditions`: those that vary are part of the variant's name.
    """
    varied = [{"tool": result.tool, "model": result.model, **result.conditions} for _, result in results]
    values = {key: {str(facts[key]) for facts in varied if facts.get(key)} for facts in varied for key in facts}
    groups = defaultdict[tuple[Any, ...], list[ImportedResult]](list)
    for (source, result), facts in zip(results, varied, strict=True):
        varying = {key: value for key, value in facts.items() if value and len(values[key]) > 1}
        words = [str(varying.pop("tool", "")), result.variant or source.variant]
        words += [printable(f"{key}={value}") for key, value in varying.items()]
        groups[" ".join(filter(None, words)), *(getattr(result, axis) for axis in _AXES)].append(result)
    return [_row(identity, group) for identity, group in groups.items()]


def _row(identity: tuple[Any, ...], group: Sequence[ImportedResult]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | dict(zip(("variant", *_AXES), identity, strict=True))
    row["key"] = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    applying = {Reason.IMPORTED, *(reason for result in group for reason in result.reasons)}
    applying |= set() if any(result.values or result.pools for result in group) else {Reason.NO_DATA}
    row["status"] = worst(reason.status for reason in applying)
    row["reasons"] = ";".join(reason.code for reason in Reason if reason in applying)
    if all(result.requests is not None for result in group):  # a table says nothing of its rounds
        row["rounds"] = sum(result.rounds for result in group)
        row["requests"] = sum(result.requests or 0 for result in group)
        if all(result.failed is not None for result in group):
            row["failed"] = sum(result.failed or 0 for result in group)
    starts = [place if result.start is None else -1 - result.start for place, result in enumerate(group)]
    row["starts"] = len(set(starts)) if min(starts) < 0 else None
    for name in row.keys() & {name for result in group for name in result.values}:
        values = [result.values[name] for result in group if name in result.values]
        if len(values) != len(group) or (name not in UNITED and len(group) > 1):
            continue  # percentiles of several runs have no mean, nor have the ends of their intervals
        means = [float(np.array(values)[np.array(starts) == start].mean()) for start in dict.fromkeys(starts)]
        estimate = two_stage_estimate(means, len(means))
        row[name] = estimate.point if estimate else None
        if estimate and estimate.low is not None and f"{name}_low" in row:
            row |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    for name in ("ttft", "itl", "e2el"):
        if all(name in result.pools for result in group):
            pool = np.concatenate([result.pools[name] for result in group])
            tail: list[float | None] = np.percentile(pool, RANKS).tolist() if len(pool) else [None] * len(RANKS)
            row |= {key: value for q, value in zip(RANKS, tail, strict=True) if (key := f"{name}_ms_p{q}") in row}
    return row


def _manifest(name: str, results: Sequence[Sourced], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "name": name,
        "model": ", ".join(dict.fromkeys(result.model for _, result in results if result.model)),
        "engine": {"kind": "imported"},
        "variants": {row["variant"]: {} for row in rows if row["variant"]},
        "baseline": None,
        "load": {"kind": "/".join(dict.fromkeys(row["load"] or "unknown" for row in rows))},
        "prompts": {"kind": "unknown"},
        "output": "unknown",
    }
    files = {
        (source.name, result.tool): {
            "name": source.name,
            "sha256": hashlib.sha256(source.data).hexdigest(),
            **{key: getattr(result, key) or None for key in ("tool", "version", "date")},
        }
        for source, result in results
    }
    return {
        "created_ns": time.time_ns(),
        "spec": spec,
        "spec_sha256": spec_hash(spec),
        "plan": [],
        "starts": [],
        "caption": _caption(results, rows),
        "imported": {"files": list(files.values())},
        **environment(),
        "host": {},  # unknown where it was measured
    }


def _caption(results: Sequence[Sourced], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    tools = dict.fromkeys(f"{result.tool} {result.version}".strip() for _, result in results)
    lines = [f"Imported from {', '.join(tools)}: their numbers, by their definitions (docs/imports.md)."]
    if any(row["sys_tok_s"] is None and row["run_tok_s"] is not None for row in rows):
        lines.append("Run tok/s of an imported row: output tokens / duration of the whole run, by the tool's clock.")
    if any(row["sys_tok_s"] is not None and row["requests"] is not None for row in rows):
        lines.append("Sys tok/s of an imported row: of one wave, or by our formula from the times of each token.")
    lines += dict.fromkeys(note for _, result in results for note in result.notes)
    if any(row["load"] == RAMP for row in rows):
        why = "ramp-up: the rate changed within the run, or requests were held back"
        lines.append(f"{why}, so that its numbers are those of no batch and no rate.")
    return lines
