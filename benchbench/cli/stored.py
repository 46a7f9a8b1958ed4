"""`bench table`, `bench plot` and `bench explain`: what is made of a stored run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchbench.cli.console import (
    BAD_INPUT,
    COLUMNS,
    FOLDER,
    FORMS,
    PIVOT,
    VERBOSE,
    fail,
    refusing,
    show,
    show_markdown,
    show_prose,
)
from benchbench.cli.gating import conclude, fail_on
from benchbench.errors import RunError
from benchbench.safe_text import printable

if TYPE_CHECKING:
    from benchbench.analysis.runs import Run
    from benchbench.analysis.summary import CellSummary
    from benchbench.report.summary_table import Parts, Row


@click.command()
@click.argument("runs", type=FOLDER, nargs=-1, required=True, metavar="RUN...")
@click.option("--format", "form", type=click.Choice([*FORMS, "junit"]), default="md")
@COLUMNS
@PIVOT
@click.option("--include-invalid", is_flag=True, help="Show invalid cells too, struck through.")
@VERBOSE
@fail_on("a column of summary.csv and its limit, as 'ttft_ms_p99>500', of any cell")
def table(runs: tuple[Path, ...], form: str, gates: tuple[str, ...], *, verbose: bool, **chosen: Any) -> None:  # noqa: ANN401 - click's
    """Print the table of a RUN, or of several side by side, recomputed from their records.

    github is Markdown for a job's summary. Markdown rounds by the 95 % intervals, CSV and JSON do not.

    Exit: 0, 2 bad input, 4 a gate did not pass, or could not be judged.
    """
    from benchbench.analysis.runs import side_by_side
    from benchbench.analysis.summary import COLUMNS as KNOWN
    from benchbench.gates.gate_checks import judge_rows
    from benchbench.gates.rules import threshold_of
    from benchbench.gates.texts import junit
    from benchbench.report.summary_table import csv_table, json_table

    with refusing():
        opened = _opened(runs, skip=not gates)
        rows = opened[0].rows if len(opened) == 1 else side_by_side(opened)
        checks = judge_rows(rows, [threshold_of(gate, KNOWN) for gate in gates])
        if form == "junit":
            text = junit(checks, "bench table")
        elif form in {"csv", "json"}:
            machine, names = machine_rows(rows, **chosen)
            text = (csv_table if form == "csv" else json_table)(machine, names, chosen["include_invalid"])
        else:
            text = _markdown(opened, rows, github=form == "github", **chosen)
        (partial(show_markdown, definitions=verbose) if form == "md" else show)(text.rstrip("\n"))
        conclude("bench table", checks, [], _markdown(opened, rows, github=True, include_invalid=True))


def _markdown(runs: Sequence[Run], rows: list[Row], *, github: bool, **chosen: Any) -> str:  # noqa: ANN401 - click's
    from benchbench.provenance.labels import provenance_text

    lines = [line for run in runs for line in ([f"{provenance_text(run)}."] if github else run.caption)]
    parts = parts_of(rows, list(dict.fromkeys(lines)), **chosen)
    return parts.github(" and ".join(dict.fromkeys(run.name for run in runs))) if github else parts.markdown()


def _opened(paths: Sequence[Path], *, skip: bool) -> list[Run]:
    """The runs; of several paths, as `runs/NAME-*` gives them, those that are no run are skipped with a note.

    Unless `skip`: a gate must not pass without the run that it was to judge. Raises RunError.
    """
    from benchbench.analysis.runs import open_run

    runs: list[Run] = []
    faults: list[RunError] = []
    for path in paths:
        try:
            runs.append(open_run(path))
        except RunError as error:
            faults.append(error)
    if faults and not (runs and skip):
        raise faults[0]
    for fault in faults:
        print(printable(f"note: skipped: {fault}"), file=sys.stderr)
    return runs


def _names(columns: str | None) -> list[str] | None:
    return [name.strip() for name in columns.split(",")] if columns else None


def parts_of(
    rows: Sequence[Row],
    closing: Sequence[str] = (),
    *,
    columns: str | None = None,
    pivot: str | None = None,
    include_invalid: bool = False,
) -> Parts:
    """The table that --columns or --pivot asks for. Raises ValueError."""
    from benchbench.publish.pivot import parse_pivot, pivot_parts
    from benchbench.report.summary_table import table_parts

    if not pivot:
        return table_parts(rows, _names(columns), include_invalid, closing)
    if columns:
        raise ValueError("--pivot and --columns: give one of them (a pivot's columns are the axis's values)")
    return pivot_parts(rows, parse_pivot(pivot), include_invalid, closing)


def machine_rows(
    rows: list[Row], *, columns: str | None, pivot: str | None, include_invalid: bool
) -> tuple[list[Row], list[str] | None]:
    """Rows and column names for CSV and JSON. Raises ValueError."""
    from benchbench.publish.pivot import parse_pivot, pivot_rows

    if not pivot:
        return rows, _names(columns)
    if columns or include_invalid:
        raise ValueError("--pivot: goes with neither --columns nor, in csv and json, --include-invalid")
    return pivot_rows(rows, parse_pivot(pivot)), None


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--out", type=FOLDER, metavar="DIR", help="Where to (default: RUN/plots).")
@click.option("--cell", metavar="KEY", help="The cell of the timeline, by its key.")
@click.option("--format", "formats", multiple=True, type=click.Choice(["png", "svg"]), help="Default: both.")
def plot(run: Path, out: Path | None, cell: str | None, formats: tuple[str, ...]) -> None:
    """Draw the plots of a RUN: curves, Pareto, heat map, one cell's timeline; with variants their comparison."""
    from benchbench.analysis.runs import open_run
    from benchbench.comparison.figures import draw_comparisons
    from benchbench.comparison.pairs import pairs_of
    from benchbench.figures.plots import draw_plots
    from benchbench.figures.timeline import timeline_of

    with refusing(OSError):
        opened = open_run(run)
        keys = [known.key for known in opened.cells]
        if cell is not None and cell not in keys:
            fail(BAD_INPUT, f"bench plot: no cell {cell} in this run (allowed: {', '.join(keys)})")
        to: tuple[Path, str, Sequence[str]] = (out or run / "plots", opened.title, formats or ("png", "svg"))
        files = draw_plots(opened.rows, timeline_of(opened, opened.rows, cell), *to)
        if opened.has_records and (pairs := pairs_of(opened)):
            files += draw_comparisons(pairs, *to)
    for path in files:
        show(path)


@click.command()
@click.argument("run", type=FOLDER)
@click.argument("cells", nargs=-1, metavar="[CELL]...")
def explain(run: Path, cells: tuple[str, ...]) -> None:
    """Say for each cell of a RUN what was checked, what was found, and why it is (in)valid.

    CELL is a key or a selection such as 'batch>=8,input=128'.
    """
    from benchbench.analysis.runs import open_run
    from benchbench.explain.explanation import explain as explain_cell

    with refusing():
        for summary in chosen(open_run(run).summaries, cells):
            show_prose(explain_cell(summary) + "\n")


def chosen(summaries: Sequence[CellSummary], words: Sequence[str]) -> list[CellSummary]:
    """The summaries that any of `words` names, by key (or its beginning) or selection; all without words.

    Raises ValueError.
    """
    return [summaries[k] for k in _matching([summary.cell.to_entry() for summary in summaries], words)]


def chosen_rows(rows: Sequence[Row], words: Sequence[str]) -> list[Row]:
    """`chosen` of summary rows."""
    return [rows[k] for k in _matching(rows, words)]


def _matching(cells: Sequence[Mapping[str, Any]], words: Sequence[str]) -> list[int]:
    """Indices, in the order of `words` and each once."""
    from benchbench.spec import SelectionError, parse_selection

    if not words:
        return list(range(len(cells)))
    indices: list[int] = []
    for word in words:
        by_key = [k for k, cell in enumerate(cells) if len(word) >= 4 and str(cell["key"]).startswith(word)]
        if by_key:
            indices += by_key
            continue
        try:
            selection = parse_selection(word)
        except SelectionError as error:
            raise ValueError(f"{word}: {error.message} (allowed: a cell's key, or {error.allowed})") from None
        matching = [k for k, cell in enumerate(cells) if selection.matches(cell)]
        if not matching:
            raise ValueError(f"{word}: selects none of the {len(cells)} cells")
        indices += matching
    return list(dict.fromkeys(indices))
