"""`bench best`: which setting is best, of a stored run, or of a sweep whose starts are made where they decide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchbench.cli.console import FOLDER, SETS, refuse_of_runs, refusing, show, show_markdown, source_of
from benchbench.cli.signals import Stop
from benchbench.cli.sweep import end_unless_complete, same_command, spec_and_sets, watching

if TYPE_CHECKING:
    from benchbench.cli.console import Source


@click.command()
@click.argument("source", metavar="RUN|SWEEP", callback=source_of)
@click.option("--metric", default="sys_tok_s", help="What is to be best: sys_tok_s, ttft, tpot, goodput_req_s.")
@click.option("--valid-only", is_flag=True, help="Suspect cells do not count.")
@click.option("--format", "form", type=click.Choice(["md", "json", "csv"]), default="md")
@click.option("--json", "form", flag_value="json", help="As --format json.")
@click.option("--plots", type=FOLDER, metavar="DIR", help="Draw figures here (SWEEP: by itself, in the run's plots/).")
@click.option("--margin", metavar="1%", help="SWEEP: differences within this need not be decided (default: 1%).")
@SETS
@click.option("--only", metavar="SELECTION", help="SWEEP: only the cells that match.")
@click.option("--out", type=FOLDER, metavar="DIR", help="SWEEP: run directory (default: runs/NAME-TIME).")
@click.option("--resume", is_flag=True, help="SWEEP: continue the run in --out (or the latest of this name).")
@click.option("--quiet", "-q", is_flag=True, help="SWEEP: print errors alone, and on stdout the run's directory.")
def best(source: Source, form: Any, plots: Path | None, *, metric: str, valid_only: bool, **options: Any) -> None:  # noqa: ANN401 - click's
    """Which setting (variant) is best, per shape and load and for all, and which cannot be told from it?

    Of those that meet the sweep's `slo`, if it has one. With 95 % all sets named together hold the truly best. A SWEEP
    is carried out: two blocks of all settings, then of those that are not beaten yet, never more than its `blocks`.

    Exit: 0, 1 stopped and can be resumed, 2 bad input, 130 on Ctrl-C.
    """
    from benchbench.api.best_settings import best_of_run

    if isinstance(source, str) and Path(source).is_dir():
        refuse_of_runs(source, "--metric", "--valid-only", "--format", "--json", "--plots")
        run, closing = Path(source), ""
    else:
        words = [*(["--valid-only"] if valid_only else []), *(["--format", form] if form != "md" else [])]
        words += ["--plots", str(plots)] if plots else []
        run = _carried_out(source, metric, words, **options)
        closing = f"Run: {run}, for bench table and bench compare too"
    with refusing():
        best_settings = best_of_run(run, metric=metric, valid_only=valid_only)
        text = best_settings.table(form)
    if options["quiet"]:
        show(run)
    else:
        (show_markdown if form == "md" else show)(text.rstrip("\n"))
    if plots is None and not closing:
        return
    from benchbench.cli.drawing import plots_text

    lines = plots_text(best_settings.pictures(plots or run / "plots"))
    if form == "md" and not options["quiet"]:
        show(f"{lines}\n{closing}".strip())


def _carried_out(
    file: Source,
    metric: str,
    words: list[str],
    sets: tuple[str, ...],
    only: str | None,
    out: Path | None,
    *,
    resume: bool,
    margin: str | None,
    quiet: bool,
) -> Path:
    """The run directory of a sweep that is complete; any other end ends the command. `words`: more options of it."""
    from benchbench.api.best_settings import best as carry_out
    from benchbench.gates.rules import percent_of

    with Stop() as stop, refusing():
        share = percent_of(margin or "1%", "--margin")
        spec, sets = spec_and_sets(file, sets, out, resume=resume, quiet=quiet)
        with watching(file, sets, quiet=quiet) as observer:
            chosen: dict[str, Any] = {"metric": metric, "margin": share, "only": only, "sets": sets, "plots": False}
            outcome = carry_out(spec, out, **chosen, resume=resume, observer=observer, stop=stop.fd)
    if outcome.state != "complete":
        words = ["--metric", metric, *(["--margin", margin] if margin else []), *words]
        if quiet and outcome.path.exists():
            show(outcome.path)
        end_unless_complete(outcome, stop, (file, sets), [*same_command("best", file, sets, only), *words])
    return outcome.path
