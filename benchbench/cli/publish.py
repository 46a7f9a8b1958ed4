"""`bench publish`: a run's table, and other sections made of facts, into a model card."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchbench.cli.console import BAD_INPUT, COLUMNS, FOLDER, NOT_MET, PIVOT, fail, show
from benchbench.cli.stored import chosen_rows, parts_of
from benchbench.safe_text import printable

if TYPE_CHECKING:
    from benchbench.analysis.runs import Run

SECTIONS = ("performance", "model", "evaluation", "comparison")


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--card", type=FOLDER, required=True, metavar="README.md", help="The model card; it must exist.")
@click.option("--after", metavar="HEADING", help="Where to put a section without markers: '## Performance'.")
@click.option("--section", "names", multiple=True, type=click.Choice(SECTIONS), help="Default: performance.")
@click.option("--model", type=FOLDER, metavar="FOLDER", help="Of --section model: config.json and safetensors.")
@click.option("--evaluation", type=FOLDER, metavar="FOLDER", help="Of --section evaluation: lm-eval's results.")
@click.option("--only", "words", multiple=True, metavar="SELECTION", help="Only these cells: 'batch>=8,input=128'.")
@COLUMNS
@PIVOT
@click.option("--allow-empty", is_flag=True, help="Write the section even if no cell is valid or suspect.")
@click.option("--dry-run", is_flag=True, help="Print the difference and write nothing.")
@click.option("--check", is_flag=True, help="Write nothing; exit 4 where the card differs from the run.")
def publish(run: Path, card: Path, after: str | None, **options: Any) -> None:  # noqa: ANN401 - click's
    """Write a RUN's table into a model card, between <!-- bench:performance --> and <!-- /bench:performance -->.

    Nothing else in the card changes, and the same run gives the same bytes. The card is pushed by `hf upload`.
    Exit: 0, 2 bad input, 4 the card differs (--check).
    """
    from benchbench.analysis.runs import open_run
    from benchbench.errors import CardError, RunError
    from benchbench.publish.card import difference, tables_below, with_sections

    try:
        before = _read(card)
        opened = open_run(run)
        texts = {name: _section(name, opened, options) for name in dict.fromkeys(options["names"] or ("performance",))}
    except (RunError, ValueError, OSError) as error:
        fail(BAD_INPUT, f"bench publish: {error}")
    try:
        changed = with_sections(before, texts, after)
        for lines in tables_below(before, texts, after) if after else ():
            note = f"note: {card}: below {after!r} stands a table already, lines {lines}: it stays, below the new one"
            print(printable(note), file=sys.stderr)
    except CardError as error:
        fail(BAD_INPUT, f"bench publish: {card}: {error}")
    if options["dry_run"] or options["check"]:
        for line in difference(before, changed, str(card)):
            show(line.removesuffix("\n"))
        if options["check"] and changed != before:
            what = " and ".join(texts)
            fail(NOT_MET, f"bench publish: {card}: {what} differ{'s'[: len(texts) == 1]} from what {run} gives")
        return
    if changed == before:
        show(f"{card}: nothing to change")
        return
    try:
        _write(card, changed)
    except OSError as error:
        fail(BAD_INPUT, f"bench publish: {card}: cannot write: {error.strerror}")
    show(f"{card}: {', '.join(texts)} written")


def _read(card: Path) -> str:
    if card.exists() and not card.is_file() and not card.is_dir():
        raise ValueError(f"{card}: not a regular file")  # a FIFO would never end
    try:
        return card.read_bytes().decode()
    except FileNotFoundError:
        raise ValueError(f"{card}: no such card (make one with a heading, and name it in --after)") from None
    except IsADirectoryError:
        raise ValueError(f"{card}: a folder, not a card") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{card}: not UTF-8 (byte {error.start})") from None


def _write(card: Path, text: str) -> None:
    """Replace the card in one step; its mode and owner stay, and a link to it stays a link."""
    from benchbench.store.run_directory import replace_file

    path = card.resolve()
    replace_file(path, text.encode(), like=path.stat())


def _section(name: str, run: Run, options: dict[str, Any]) -> str:
    """A section's text. Raises ValueError and RunError."""
    if name in {"performance", "comparison"} and not options["allow_empty"]:
        rows = chosen_rows(run.rows, options["words"]) if name == "performance" else run.rows
        if all(row["status"] == "invalid" for row in rows):
            reasons = "; ".join(sorted({row["reasons"] for row in rows}))
            raise ValueError(f"{run.path}: has no valid cell ({reasons}): nothing to publish (or use --allow-empty)")
    if name == "performance":
        from benchbench.publish.card import performance_section

        rows = chosen_rows(run.rows, options["words"])
        parts = parts_of(rows, columns=options["columns"], pivot=options["pivot"])
        return performance_section(run, parts)
    if name == "comparison":
        from benchbench.comparison.pairs import pairs_of
        from benchbench.comparison.tables import comparison_table

        if pairs := pairs_of(run):
            return comparison_table(pairs)
        raise ValueError(f"{run.path}: has no variants to compare")
    folder = options[name]
    if folder is None:
        raise ValueError(f"--section {name}: needs --{name} FOLDER")
    return _model(folder) if name == "model" else _evaluation(folder)


def _model(folder: Path) -> str:
    from benchbench.model.config import read_model
    from benchbench.publish.model_section import model_section

    return model_section(read_model(folder))


def _evaluation(folder: Path) -> str:
    from benchbench.accuracy.section import evaluation_section, read_evaluation

    return evaluation_section(read_evaluation(folder))
