"""`bench report`: stored runs as one page."""

from __future__ import annotations

from pathlib import Path

import click

from benchbench.cli.console import BAD_INPUT, FOLDER, fail, refusing, show


@click.command()
@click.argument("runs", type=FOLDER, nargs=-1, required=True, metavar="RUN...")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="report.html",
    show_default=True,
    metavar="FILE",
    help="Where to.",
)
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Write a RUN, or several side by side, as one HTML page: summary, cells, figures, validity, provenance.

    In a browser its charts tell the numbers that one points at, a click shows a cell's timeline and what was checked,
    and cells can be filtered and sorted. The page loads nothing, and is whole without scripts, so it can be mailed,
    printed or published as it is.
    """
    from benchbench.analysis.runs import Run
    from benchbench.api.artifacts import page_of
    from benchbench.store.run_directory import replace_file

    with refusing(OSError):
        text = page_of([Run(run) for run in runs])
    try:
        replace_file(out, text.encode())
    except OSError as error:
        fail(BAD_INPUT, f"bench report: {out}: cannot write here: {error.strerror}")
    show(out)
