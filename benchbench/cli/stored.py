"""`bench table`, `bench plot` and `bench explain`: what is made of a stored run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
    names_of,
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


@click.command()
@click.argument("runs", type=FOLDER, nargs=-1, required=True, metavar="RUN...")
@click.option("--format", "form", type=click.Choice([*FORMS, "junit"]), default="md")
@COLUMNS
@PIVOT
@click.option("--by-replica", is_flag=True, help="Of one RUN: what each of several servers did in each cell.")
@click.option("--include-invalid", is_flag=True, help="Show invalid cells too, struck through.")
@VERBOSE
@fail_on("a column of summary.csv and its limit, as 'ttft_ms_p99>500', of any cell")
def table(
    runs: tuple[Path, ...],
    form: Any,  # noqa: ANN401 - click's
    gates: tuple[str, ...],
    *,
    by_replica: bool,
    verbose: bool,
    **chosen: Any,  # noqa: ANN401 - click's
) -> None:
    """Print the table of a RUN, or of several side by side, recomputed from their records.

    github is Markdown for a job's summary. Markdown rounds by the 95 % intervals, CSV and JSON do not.

    Exit: 0, 2 bad input, 4 a gate did not pass, or could not be judged.
    """
    from benchbench.analysis.summary import COLUMNS as KNOWN
    from benchbench.api.run_tables import rows_of, runs_table
    from benchbench.gates.gate_checks import judge_rows
    from benchbench.gates.rules import threshold_of
    from benchbench.gates.texts import junit

    with refusing():
        opened = _opened(runs, skip=not gates)
        if by_replica:
            _by_replica(opened, form, gates, **chosen)
            return
        checks = judge_rows(rows_of(opened), [threshold_of(gate, KNOWN) for gate in gates])
        columns = names_of(chosen.pop("columns"))
        text = junit(checks, "bench table") if form == "junit" else runs_table(opened, form, columns=columns, **chosen)
        (partial(show_markdown, definitions=verbose) if form == "md" else show)(text.rstrip("\n"))
        conclude("bench table", checks, [], runs_table(opened, "github", include_invalid=True) if checks else "")


def _by_replica(runs: Sequence[Run], form: Any, gates: tuple[str, ...], **chosen: Any) -> None:  # noqa: ANN401 - click's
    """`bench table RUN --by-replica`."""
    from benchbench.api.by_replica import replica_table

    include_invalid = chosen.pop("include_invalid")
    if len(runs) > 1 or gates or form in {"github", "junit"} or any(chosen.values()):
        raise ValueError("--by-replica: of one RUN, as md, csv or json, without --columns, --pivot and --fail-on")
    text = replica_table(runs[0], form, include_invalid=include_invalid)
    (show_markdown if form == "md" else show)(text.rstrip("\n"))


def _opened(paths: Sequence[Path], *, skip: bool) -> list[Run]:
    """The runs; of several paths, as `runs/NAME-*` gives them, those that are no run are skipped with a note.

    Unless `skip`: a gate must not pass without the run that it was to judge. Raises RunError.
    """
    from benchbench.analysis.runs import Run

    runs: list[Run] = []
    faults: list[RunError] = []
    for path in paths:
        try:
            runs.append(Run(path))
        except RunError as error:
            faults.append(error)
    if faults and not (runs and skip):
        raise faults[0]
    for fault in faults:
        print(printable(f"note: skipped: {fault}"), file=sys.stderr)
    return runs


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--out", type=FOLDER, metavar="DIR", help="Where to (default: RUN/plots).")
@click.option("--cell", metavar="KEY", help="The cell of the timeline, by its key.")
@click.option("--format", "formats", multiple=True, type=click.Choice(["png", "svg"]), help="Default: both.")
def plot(run: Path, out: Path | None, cell: str | None, formats: tuple[str, ...]) -> None:
    """Draw the plots of a RUN: curves, Pareto, heat map, one cell's timeline; with variants their comparison."""
    from benchbench.analysis.runs import Run
    from benchbench.api.artifacts import pictures_of
    from benchbench.api.pictures import FORMATS
    from benchbench.cli.drawing import drawn

    try:
        pictures = pictures_of(Run(run), out, cell)
    except ValueError as error:
        fail(BAD_INPUT, f"bench plot: {error}")
    files, problems = drawn(pictures, formats or FORMATS)
    for path in files:
        show(path)
    if problems:
        fail(BAD_INPUT, *(f"bench plot: {problem}" for problem in problems))


@click.command()
@click.argument("run", type=FOLDER)
@click.argument("cells", nargs=-1, metavar="[CELL]...")
def explain(run: Path, cells: tuple[str, ...]) -> None:
    """Say for each cell of a RUN what was checked, what was found, and why it is (in)valid.

    CELL is a key or a selection such as 'batch>=8,input=128'.
    """
    from benchbench.analysis.runs import Run
    from benchbench.api.selecting import chosen
    from benchbench.explain.of_run import explain_cells

    with refusing():
        opened = Run(run)
        opened.need_records()
        for text in explain_cells(opened, chosen(opened.cells, cells)):
            show_prose(text + "\n")
