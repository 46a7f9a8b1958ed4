"""Tables of model cards, and this tool's own table.md, as its headings name the columns."""

from __future__ import annotations

import re
from collections.abc import Iterator

from benchbench.analysis.summary import COLUMNS
from benchbench.importers.result import ImportedResult
from benchbench.report.markdown import read_tables
from benchbench.report.summary_table import AXES, column_title

TOOL = "Markdown table"

_NAMES = {column_title(name).lower(): name for name in COLUMNS}
_NAMES |= {"batch size": "batch", "concurrency": "batch", "input tokens": "input", "output tokens": "output"}
_NAMES |= {"output tok/s": "run_tok_s", "system tok/s": "sys_tok_s"}
_METRICS = [name for name in COLUMNS if name.endswith(("_ms", "_s")) or "_ms_" in name or "_s_" in name]
_ABSENT = {"", "-", "\N{EN DASH}", "\N{EM DASH}", "n/a"}


def read_markdown(text: str) -> list[ImportedResult]:
    """The cells of all tables with input, output, batch or rate, and a latency or rate; none where there is no such.

    Raises ValueError with the line of a field that is no number.
    """
    loads = [load for load in ("static", "closed", "open") if f"({load} load" in text]
    load = loads[0] if len(loads) == 1 else ""
    return [_cell(row, line, load) for line, row in _rows(text)]


def _rows(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, column of summary.csv -> text) of each row of the tables of results."""
    for table in read_tables(text):
        names = [_NAMES.get(title.lower(), "") for title in table.head]
        have = set(names)
        if {"input", "output"} <= have and have & {"batch", "rate"} and have & set(_METRICS):
            for line, cells in table.rows:
                if any(cells[1:]):  # else a line of text without a blank line before it
                    yield line, dict(zip(names, cells, strict=True))


def _cell(row: dict[str, str], line: int, load: str) -> ImportedResult:
    axes = {name: _number(row.get(name, ""), name, line) for name in ("input", "output", "batch", "rate")}
    whole = {name: axes[name] for name in ("input", "output", "batch")}
    if whole["input"] is None or whole["output"] is None or (whole["batch"] is None and axes["rate"] is None):
        raise ValueError(f"{TOOL}: line {line}: input, output and batch (or rate) must be numbers")
    if any(value is not None and (value != round(value) or value < 0) for value in whole.values()):
        raise ValueError(f"{TOOL}: line {line}: input, output and batch must be whole numbers")
    values = {name: _number(row[name], name, line) for name in _METRICS if name in row and name not in AXES}
    return ImportedResult(
        tool=row.get("tool") or TOOL,
        variant=row.get("variant", ""),
        load=row.get("load") or load,
        input=round(whole["input"]),
        output=round(whole["output"]),
        batch=None if whole["batch"] is None else round(whole["batch"]),
        rate=axes["rate"],
        values={name: value for name, value in values.items() if value is not None},
    )


def _number(text: str, name: str, line: int) -> float | None:
    """A field's number; None where there is none, and of one that is struck through."""
    bare = text.rstrip("*").strip()
    if name == "output":
        bare = bare.partition(" of ")[0].partition(".")[0]  # received, of the limit asked
    if bare.lower() in _ABSENT or bare.startswith("~~"):
        return None
    if not re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?|\d{1,15}(\.\d+)?", bare):
        raise ValueError(f"{TOOL}: line {line}: {column_title(name)}: {bare[:40]!r} is not a number")
    return float(bare.replace(",", ""))
