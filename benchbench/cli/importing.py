"""`bench import`: results of other tools into a run folder."""

from __future__ import annotations

import re
from pathlib import Path

import click

from benchbench.cli.console import BAD_INPUT, FOLDER, fail, refusing, show, show_markdown


@click.command("import")
@click.argument("files", type=FOLDER, nargs=-1, required=True, metavar="FILE...")
@click.option("--out", type=FOLDER, metavar="DIR", help="Run directory (default: runs/NAME-TIME).")
@click.option("--name", metavar="NAME", help="The run's name (default: the tool's).")
def import_results(files: tuple[Path, ...], out: Path | None, name: str | None) -> None:
    """Turn results of other tools into a run: vllm bench serve, AIPerf, GuideLLM, SGLang, llm-d, a Markdown table.

    FILE is a result (recognised by its content), or a folder of them, such as one of vllm bench sweep. Several results
    of one shape are rounds of one cell.
    """
    from benchbench.importers.run_folder import import_files

    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        fail(BAD_INPUT, f"bench import: --name {name}: letters, digits, '.', '_' and '-' are allowed")
    try:
        with refusing():
            path = import_files(files, out, name)
        show_markdown((path / "table.md").read_text(encoding="utf-8"))
    except OSError as error:
        fail(BAD_INPUT, f"bench import: {error.filename}: {error.strerror}")
    show(f"Run: {path}")
