"""The table of one run, or of several side by side, in one of its forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from benchbench.analysis.runs import Run, side_by_side
from benchbench.api.selecting import AnyRun, opened
from benchbench.report.summary_table import Parts, Row, csv_table, json_table, table_parts

Form = Literal["md", "csv", "json", "github"]
FORMS: tuple[Form, ...] = ("md", "csv", "json", "github")


def check_format(format: str) -> None:
    """Raises ValueError for a format that is none of FORMS."""
    if format not in FORMS:
        raise ValueError(f"format {format!r}: unknown (allowed: {', '.join(FORMS)})")


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """The rows of one run, or of several, each run's label in front of its variants."""
    return runs[0].rows if len(runs) == 1 else side_by_side(runs)


def runs_table(
    runs: Sequence[AnyRun],
    format: Form = "md",
    *,
    columns: Sequence[str] | None = None,
    pivot: str | None = None,
    include_invalid: bool = False,
) -> str:
    """The table as text, with a line end: `Run.table`. Raises ValueError for what cannot be asked, and RunError."""
    check_format(format)
    own = [opened(run) for run in runs]
    rows = rows_of(own)
    if format in {"csv", "json"}:
        machine, names = _machine_rows(rows, columns, pivot, include_invalid=include_invalid)
        return (csv_table if format == "csv" else json_table)(machine, names, include_invalid)
    if format == "github":
        from benchbench.provenance.labels import provenance_text

        closing = [f"{provenance_text(run)}." for run in own]
    else:
        closing = [line for run in own for line in run.caption]
    parts = parts_of(rows, list(dict.fromkeys(closing)), columns=columns, pivot=pivot, include_invalid=include_invalid)
    title = " and ".join(dict.fromkeys(run.name for run in own))
    text = parts.github(title) if format == "github" else parts.markdown()
    return text.rstrip("\n") + "\n"


def parts_of(
    rows: Sequence[Row],
    closing: Sequence[str] = (),
    *,
    columns: Sequence[str] | None = None,
    pivot: str | None = None,
    include_invalid: bool = False,
) -> Parts:
    """The table with these columns, or turned by `pivot` ("batch:sys_tok_s"). Raises ValueError."""
    from benchbench.publish.pivot import parse_pivot, pivot_parts

    if not pivot:
        return table_parts(rows, columns, include_invalid, closing)
    if columns:
        raise ValueError("--pivot and --columns: give one of them (a pivot's columns are the axis's values)")
    return pivot_parts(rows, parse_pivot(pivot), include_invalid, closing)


def _machine_rows(
    rows: list[Row], columns: Sequence[str] | None, pivot: str | None, *, include_invalid: bool
) -> tuple[list[Row], Sequence[str] | None]:
    """Rows and column names for CSV and JSON. Raises ValueError."""
    from benchbench.publish.pivot import parse_pivot, pivot_rows

    if not pivot:
        return rows, columns
    if columns or include_invalid:
        raise ValueError("--pivot: goes with neither --columns nor, in csv and json, --include-invalid")
    return pivot_rows(rows, parse_pivot(pivot)), None
