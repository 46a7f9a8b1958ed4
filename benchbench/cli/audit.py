"""`bench audit`: what cannot be in a published table."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from benchbench.cli.console import FOLDER, NOT_MET, refusing, show, show_markdown


@click.command()
@click.argument("source", type=FOLDER, metavar="RUN|CARD.md|TABLE.csv")
@click.option("--format", "form", type=click.Choice(["md", "json"]), default="md")
@click.option(
    "--model", type=FOLDER, metavar="PATH", help="The model's folder or config.json, instead of what the source says."
)
@click.option("--hardware", metavar="NAME", help="The accelerator, as W7900D or 'NVIDIA H200'.")
@click.option("--count", type=click.IntRange(1), help="How many of them.")
@click.option("--parameters", metavar="456B", help="Parameters of the model.")
@click.option("--active", metavar="45.9B", help="Parameters that one token passes through.")
@click.option("--weights", metavar="DTYPE", help="Dtype of the weights: bf16, fp16, fp8, int8, fp4, int4.")
@click.option("--compute", metavar="DTYPE", help="Dtype of the matrix products.")
def audit(source: Path, form: Literal["md", "json"], **options: Any) -> None:  # noqa: ANN401 - click's
    """Look for what is impossible or suspicious in a RUN, a model card, or a table.

    Compared with the hardware's bounds, with the model's size, and the rows with each other. Options replace what the
    source says. Exit: 0, 2 bad input, 4 something impossible was found.
    """
    from benchbench.api.auditing import audit_file

    with refusing():
        audited = audit_file(source, **options)
    (show_markdown if form == "md" else show)(audited.report(form).rstrip("\n"))
    if audited.impossible:
        raise SystemExit(NOT_MET)
