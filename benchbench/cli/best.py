"""`bench best`: which setting is best, of a stored run, or of a sweep whose starts are made where they decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from benchbench.cli.console import FOLDER, refusing, show, show_markdown


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--metric", default="sys_tok_s", help="What is to be best: sys_tok_s, ttft, tpot, goodput.")
@click.option("--valid-only", is_flag=True, help="Suspect cells do not count.")
@click.option("--format", "form", type=click.Choice(["md", "json", "csv"]), default="md")
def best(run: Path, form: Any, **options: Any) -> None:  # noqa: ANN401 - click's
    """Which setting (variant) is best, per shape and load and for all, and which cannot be told from it?

    Of those that meet the sweep's `slo`, if it has one. With 95 % all sets named together hold the truly best.
    """
    from benchbench.api.best_settings import best_of_run

    with refusing():
        text = best_of_run(run, **options).table(form)
    (show_markdown if form == "md" else show)(text.rstrip("\n"))
