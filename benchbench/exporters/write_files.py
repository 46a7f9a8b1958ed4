"""A run's cells as files that other tools read: `vllm bench serve`'s results, llm-d's reports, CSV."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchbench.analysis.metrics import request_times
from benchbench.analysis.runs import Run
from benchbench.analysis.summary import COLUMNS, CellSummary
from benchbench.errors import RunError
from benchbench.exporters.llm_d_report import llm_d_report
from benchbench.exporters.vllm_result import vllm_result
from benchbench.safe_text import csv_text
from benchbench.spec.cell import cell_name
from benchbench.store.arrow import array_of, lists_of
from benchbench.store.run_directory import replace_file

Format = Literal["vllm", "llm-d", "csv"]
FORMATS: tuple[Format, ...] = ("vllm", "llm-d", "csv")
_DETAILS = {"input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times", "generated_texts"}
_DETAILS |= {"errors", "server_ttfts", "server_queue_times", "benchbench"}
_EVENTS = ["event_ns", "event_tokens", "lag_ns"]
_TAKEN = ("ttft_ms", "tpot_ms", "e2el_ms", "steady", "cell_status")  # what is no column of a record


@dataclass(frozen=True, slots=True)
class Exported:
    """The files that were written, and what must be known of them: cells that are suspect or were left out, and why."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]


def export_run(run: Run, form: Format, folder: str | Path | None = None, *, include_invalid: bool = False) -> Exported:
    """Write the run's cells in a format into `folder` (default: export/FORMAT in the run), which must be empty.

    Invalid cells are left out unless asked for: other tools do not know that a number may be none. Raises RunError
    for a folder that is not empty and a run without records (of CSV: the rows alone), ValueError, and OSError.
    """
    if form not in FORMATS:
        raise ValueError(f"format {form!r}: unknown (allowed: {', '.join(FORMATS)})")
    if form != "csv":
        run.need_records()
    out = Path(folder) if folder is not None else run.path / "export" / form
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RunError(f"{out}: the folder is not empty: choose another --out")
    rows, notes = _chosen(run, include_invalid=include_invalid)
    keys = {row["key"] for row in rows}
    files: list[Path] = []
    if form == "csv":
        files += _write(out / "rows.csv", csv_text(list(COLUMNS), rows))
        if run.has_records:
            files += _write(out / "requests.csv", _requests_csv(run, rows))
        else:
            notes.append("requests.csv: not written, since the run has no records of requests")
    for cell in run.cells if form != "csv" else ():
        if cell.key in keys:
            write = _vllm if form == "vllm" else _llm_d
            files += write(run, run.summary_of(cell), out, notes)
    if not files:
        raise RunError(f"{run.path}: no cell that can be exported: {'; '.join(notes) or 'it has none'}")
    return Exported(tuple(files), tuple(notes))


def _chosen(run: Run, *, include_invalid: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows to be written, and a note on each cell that is not valid."""
    rows, notes = [], []
    for row in run.rows:
        if row["status"] != "valid":
            out = row["status"] == "invalid" and not include_invalid
            notes.append(f"{cell_name(row)}: {row['status']} ({row['reasons']}){': left out' if out else ''}")
            if out:
                continue
        rows.append(row)
    return rows, notes


def _write(path: Path, text: str) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode())
    return [path]


def _name(summary: CellSummary) -> str:
    """Of files: `fa2-in=128-out=128-batch=8`, unlike any other cell's."""
    shown = "".join(c if c.isalnum() or c in "=._-" else "-" for c in cell_name(summary.cell.__dict__, "-"))
    return f"{shown}-{summary.cell.key[:8]}"


def _vllm(run: Run, summary: CellSummary, out: Path, notes: list[str]) -> Iterator[Path]:
    """As `vllm bench sweep serve` lays them out: a folder a cell, a file a round, and what its plots read."""
    folder, brief = out / _name(summary), []
    for place, table in enumerate(run.directory.read_cell(summary.cell.key)):
        result = vllm_result(summary, place, table, run.manifest)
        if result is None:
            notes.append(f"{summary.cell.label}: round {place}: left out, since none of its requests succeeded")
            continue
        yield from _write(folder / f"run={place}.json", json.dumps(result, allow_nan=False))
        brief.append({"run_number": place, **{key: result[key] for key in result.keys() - _DETAILS}})
        brief[-1] |= {"status": str(summary.status), "reasons": ";".join(reason.code for reason in summary.reasons)}
    if brief:
        yield from _write(folder / "summary.json", json.dumps(brief, indent=1, sort_keys=True, allow_nan=False))


def _llm_d(run: Run, summary: CellSummary, out: Path, notes: list[str]) -> Iterator[Path]:
    if not any(len(r.e2el_s) for r in summary.rounds):
        notes.append(f"{summary.cell.label}: left out, since none of its requests succeeded")
        return
    begins, ends = [], []
    for table in run.directory.read_cell(summary.cell.key):
        sent, events = array_of(table["sent_ns"]), lists_of(table["event_ns"])[1]
        if (sent > 0).any() and len(events):
            begins.append(int(sent[sent > 0].min()))
            ends.append(int(np.max(events)))
    report = llm_d_report(summary, run.manifest, (min(begins), max(ends)) if begins else None)
    yield from _write(out / f"{_name(summary)}.json", json.dumps(report, indent=1, allow_nan=False))


def _requests_csv(run: Run, rows: Sequence[dict[str, Any]]) -> str:
    """One line a measured request: its record without the lists of events, what it took, and its cell's status."""
    status = {row["key"]: row["status"] for row in rows}
    lines: list[dict[str, Any]] = []
    for cell in run.cells:
        for table in run.directory.read_cell(cell.key) if cell.key in status else ():
            times = request_times(table, load=cell.load, in_flight=cell.batch)
            taken = zip(*((1e3 * values).tolist() for values in times[:3]), times.steady.tolist(), strict=True)
            for record, (ttft, tpot, e2el, steady) in zip(table.drop_columns(_EVENTS).to_pylist(), taken, strict=True):
                figures = {"ttft_ms": ttft, "tpot_ms": tpot, "e2el_ms": e2el}
                known = {name: value for name, value in figures.items() if not math.isnan(value)}
                lines.append({**record, **known, "steady": steady, "cell_status": status[cell.key]})
    names = dict.fromkeys(name for line in lines for name in line)
    return csv_text([*(name for name in names if name not in _TAKEN), *_TAKEN], lines)
