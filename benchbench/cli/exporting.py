"""`bench export`: a stored run as files that other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from benchbench.cli.console import BAD_INPUT, FOLDER, announce, fail, refusing, show


@click.command("export")
@click.argument("run", type=FOLDER)
@click.option("--format", "form", type=click.Choice(["vllm", "llm-d", "csv"]), required=True, help="Whose files.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Where to: empty, or new (default: export/FORMAT in RUN).")
@click.option("--include-invalid", is_flag=True, help="Write invalid cells too: the files say their status.")
def export(run: Path, form: Any, out: Path | None, *, include_invalid: bool) -> None:  # noqa: ANN401 - click's
    """Write the cells of RUN as files that other tools read.

    vllm: a folder a cell, with a round a file as vllm bench serve --save-result --save-detailed writes it, and the
    summary.json that vllm bench sweep plot reads. llm-d: a Benchmark Report 0.2 a cell. csv: rows.csv and
    requests.csv. bench import reads the first two again. Cells that are not valid are named on stderr.
    """
    from benchbench.analysis.runs import Run
    from benchbench.exporters.write_files import export_run

    try:
        with refusing():
            exported = export_run(Run(run), form, out, include_invalid=include_invalid)
    except OSError as error:
        fail(BAD_INPUT, f"bench export: {error.filename}: {error.strerror}")
    for note in exported.notes:
        announce("warning", f"bench export: {note}")
    for file in exported.files:
        show(file)
