"""`bench best`: which setting is best, of a stored run, or of a sweep whose starts are made where they decide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchbench.cli.console import BAD_INPUT, FOLDER, SETS, announce, fail, refusing, show, show_markdown, source_of
from benchbench.cli.signals import Stop
from benchbench.cli.sweep import same_command, show_end, spec_and_sets, watching

if TYPE_CHECKING:
    from benchbench.cli.console import Source

_OF_SWEEPS = {"sets": "--set", "only": "--only", "out": "--out", "resume": "--resume", "margin": "--margin"}


@click.command()
@click.argument("source", metavar="RUN|SWEEP", callback=source_of)
@click.option("--metric", default="sys_tok_s", help="What is to be best: sys_tok_s, ttft, tpot, goodput.")
@click.option("--valid-only", is_flag=True, help="Suspect cells do not count.")
@click.option("--format", "form", type=click.Choice(["md", "json", "csv"]), default="md")
@click.option("--draw", type=FOLDER, metavar="DIR", help="Draw figures here (SWEEP: by itself, in the run's plots/).")
@click.option("--margin", metavar="1%", help="SWEEP: differences within this need not be decided (default: 1%).")
@SETS
@click.option("--only", metavar="SELECTION", help="SWEEP: only the cells that match.")
@click.option("--out", type=FOLDER, metavar="DIR", help="SWEEP: run directory (default: runs/NAME-TIME).")
@click.option("--resume", is_flag=True, help="SWEEP: continue the run in --out (or the latest of this name).")
def best(source: Source, form: Any, draw: Path | None, *, metric: str, valid_only: bool, **options: Any) -> None:  # noqa: ANN401 - click's
    """Which setting (variant) is best, per shape and load and for all, and which cannot be told from it?

    Of those that meet the sweep's `slo`, if it has one. With 95 % all sets named together hold the truly best. A SWEEP
    is carried out: two blocks of all settings, then of those that are not beaten yet, never more than its `blocks`.

    Exit: 0, 1 stopped and can be resumed, 2 bad input, 130 on Ctrl-C.
    """
    from benchbench.api.best_settings import best_of_run

    if isinstance(source, str) and Path(source).is_dir():
        if given := [word for name, word in _OF_SWEEPS.items() if options[name]]:
            fail(BAD_INPUT, f"bench best: {given[0]} is for a sweep's file, and {source} is a folder")
        run, closing = Path(source), ""
    else:
        run = _carried_out(source, metric, **options)
        closing = f"Run: {run}, for bench table and bench compare too"
    with refusing():
        best_settings = best_of_run(run, metric=metric, valid_only=valid_only)
        text = best_settings.table(form)
    (show_markdown if form == "md" else show)(text.rstrip("\n"))
    if draw is None and not closing:
        return
    from benchbench.cli.drawing import drawn

    files, problems = drawn(best_settings.pictures(draw or run / "plots"))
    for problem in problems:
        announce("warning", f"the plots are not all drawn: {problem}")
    if form == "md":
        show("\n".join(["Plots:", *(f"  {path}" for path in files if path.suffix == ".png"), closing]).rstrip())


def _carried_out(
    file: Source, metric: str, sets: tuple[str, ...], only: str | None, out: Path | None, *, resume: bool, margin: str
) -> Path:
    """The run directory of a sweep that is complete; any other end ends the command."""
    from benchbench.api.best_settings import best as carry_out
    from benchbench.gates.rules import percent_of

    with Stop() as stop, refusing():
        share = percent_of(margin or "1%", "--margin")
        spec, sets = spec_and_sets(file, sets, out, resume=resume)
        with watching(file, sets) as observer:
            chosen: dict[str, Any] = {"metric": metric, "margin": share, "only": only, "sets": sets, "plots": False}
            outcome = carry_out(spec, out, **chosen, resume=resume, observer=observer, stop=stop.fd)
    if outcome.state != "complete":
        words = ["--metric", metric, *(["--margin", margin] if margin else [])]
        show_end(spec, outcome, stop, (file, sets), [*same_command("best", file, sets, only), *words], quiet=True)
    return outcome.path
