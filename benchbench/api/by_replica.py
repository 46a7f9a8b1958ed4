"""What each of several servers did in each cell of a run: rows, and their table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchbench.analysis.reasons import Reason
from benchbench.analysis.runs import Run
from benchbench.api.run_tables import Form, check_format
from benchbench.datasets.row_lengths import differs, short_text
from benchbench.replicas.replica_words import addresses, name_of
from benchbench.report.markdown import escape_markdown, write_table
from benchbench.report.summary_table import csv_table, json_table
from benchbench.spec.cell import CellInfo

_AXES = {"variant": "Variant", "input": "Input", "output": "Output", "batch": "Batch", "rate": "Rate"}
_COUNTS = {"requests": "Requests", "failed": "Failed"}
_FIGURES = {
    "ttft_ms": ("TTFT (ms)", 1),
    "ttft_ms_p99": ("TTFT p99 (ms)", 1),
    "tpot_ms": ("TPOT (ms)", 2),
    "tok_s": ("tok/s", 1),
    "share": ("Share of tok/s (%)", 1),
}
_MEANS = (
    "Of the measured rounds of each cell: requests sent to each server, and how many of them failed; TTFT and TPOT of "
    "its requests, as in the run's table; its output tokens per second in the window of Sys tok/s, mean over rounds."
)
_DASH = "\N{EN DASH}"


def replica_rows(run: Run) -> list[dict[str, Any]]:
    """One row a cell and server, in the order of the cells; none of a run of one server. Raises RunError."""
    run.need_records()
    return [row for cell in run.cells for row in _rows_of(run, cell)]


def _rows_of(run: Run, cell: CellInfo) -> Iterator[dict[str, Any]]:
    summary = run.summary_of(cell)
    urls, split = addresses(run.manifest["spec"], cell.variant), summary.evidence.by_server
    slow = {server for server, _ in split.apart}
    axes = {name: getattr(cell, name) for name in ("variant", "load", "input", "output", "batch", "rate")}
    reasons = ";".join(reason.code for reason in summary.reasons)
    for each in split.figures:
        yield {
            **axes,
            "replica": each.server,
            "url": urls[each.server] if each.server < len(urls) else None,
            "requests": each.requests,
            "failed": each.failed,
            "ttft_ms": _ms(each.ttft_s),
            "ttft_ms_p99": _ms(each.ttft_s_p99),
            "tpot_ms": _ms(each.tpot_s),
            "tok_s": each.tok_s,
            "share": each.share,
            "slow": each.server in slow,
            "status": summary.status,
            "reasons": reasons,
            "cell": cell.key,
            "lengths": cell.lengths,
        }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def replica_table(run: Run, format: Form = "md", *, include_invalid: bool = False) -> str:
    """The rows as text, with a line end. In Markdown invalid cells have their counts alone, or with `include_invalid`
    struck through numbers; csv and json leave them out unless asked for. Raises ValueError and RunError.
    """
    check_format(format)
    rows = replica_rows(run)
    if format in {"csv", "json"}:
        return (csv_table if format == "csv" else json_table)(rows, None, include_invalid)
    if not rows:
        return "One server: there are no replicas to tell apart (engine.url takes a list of them).\n"
    axes = [name for name in _AXES if any(row[name] not in {None, ""} for row in rows)]
    head = [*(_AXES[name] for name in axes), "Replica", *_COUNTS.values(), *(title for title, _ in _FIGURES.values())]
    lines = write_table(head, (_cells(row, axes, include_invalid) for row in rows))
    return "\n".join([*lines, "", *_closing(rows)]) + "\n"


def _cells(row: dict[str, Any], axes: Sequence[str], include_invalid: bool) -> list[str]:
    shown = [_axis(row, name) for name in axes]
    shown.append(name_of(row["replica"], [row["url"]] * (row["replica"] + 1) if row["url"] else []))
    shown += [str(row[name]) for name in _COUNTS]
    return [*map(escape_markdown, shown), *(_figure(row, name, include_invalid) for name in _FIGURES)]


def _axis(row: dict[str, Any], name: str) -> str:
    """As the run's table has it: a length that follows a law is `≈` its mean."""
    value = row[name]
    if differs(row, name):
        return short_text(row, name)
    return _DASH if value in {None, ""} else f"{value:g}" if isinstance(value, float) else str(value)


def _figure(row: dict[str, Any], name: str, include_invalid: bool) -> str:
    value, invalid = row[name], row["status"] == "invalid"
    if value is None or (invalid and not include_invalid):
        return _DASH
    text = f"{100 * value if name == 'share' else value:.{_FIGURES[name][1]}f}"
    return f"~~{text}~~" if invalid else text + "*" * (row["status"] == "suspect")


def _closing(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [_MEANS]
    if slow := sorted({row["url"] or f"server {row['replica']}" for row in rows if row["slow"]}):
        code = Reason.UNEVEN_REPLICAS.code
        lines.append(f"{', '.join(map(escape_markdown, slow))}: slower than the others in some cells ({code}).")
    if any(row["status"] == "suspect" for row in rows):
        lines.append("Numbers marked * are of suspect cells: bench explain says why.")
    if any(row["status"] == "invalid" for row in rows):
        lines.append("Numbers of invalid cells are not shown, or struck through: bench explain says why.")
    return lines
