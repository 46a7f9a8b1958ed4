"""`bench publish`: a run's table, and other sections made of facts, into a model card."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from benchbench.cli.console import BAD_INPUT, COLUMNS, FOLDER, NOT_MET, PIVOT, fail, names_of, refusing, show
from benchbench.safe_text import printable

SECTIONS = ("performance", "model", "evaluation", "comparison")


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--card", type=FOLDER, required=True, metavar="README.md", help="The model card; it must exist.")
@click.option("--after", metavar="HEADING", help="Where to put a section without markers: '## Performance'.")
@click.option("--section", "names", multiple=True, type=click.Choice(SECTIONS), help="Default: performance.")
@click.option("--model", type=FOLDER, metavar="FOLDER", help="Of --section model: config.json and safetensors.")
@click.option("--evaluation", type=FOLDER, metavar="FOLDER", help="Of --section evaluation: lm-eval's results.")
@click.option("--only", multiple=True, metavar="SELECTION", help="Only these cells: 'batch>=8,input=128'.")
@COLUMNS
@PIVOT
@click.option("--allow-empty", is_flag=True, help="Write the section even if no cell is valid or suspect.")
@click.option("--dry-run", is_flag=True, help="Print the difference and write nothing.")
@click.option("--check", is_flag=True, help="Write nothing; exit 4 where the card differs from the run.")
def publish(run: Path, card: Path, names: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401 - click's
    """Write a RUN's table into a model card, between <!-- bench:performance --> and <!-- /bench:performance -->.

    Nothing else in the card changes, and the same run gives the same bytes. The card is pushed by `hf upload`.
    Exit: 0, 2 bad input, 4 the card differs (--check).
    """
    from benchbench.analysis.runs import Run
    from benchbench.api.cards import Wanted, card_change

    check, dry_run = options.pop("check"), options.pop("dry_run")
    columns = names_of(options.pop("columns"))
    with refusing(ValueError, OSError):
        wanted = Wanted(sections=names or ("performance",), columns=columns, **options)
        change = card_change(Run(run), card, wanted)
    for note in change.notes:
        print(printable(f"note: {note}"), file=sys.stderr)
    if dry_run or check:
        for line in change.difference():
            show(line.removesuffix("\n"))
        if check and change.after != change.before:
            what, verb = " and ".join(change.sections), "differs" if len(change.sections) == 1 else "differ"
            fail(NOT_MET, f"bench publish: {card}: {what} {verb} from what {run} gives")
        return
    try:
        change.write()
    except OSError as error:
        fail(BAD_INPUT, f"bench publish: {card}: cannot write: {error.strerror}")
    written = f"{', '.join(change.sections)} written"
    show(f"{card}: {written if change.after != change.before else 'nothing to change'}")
