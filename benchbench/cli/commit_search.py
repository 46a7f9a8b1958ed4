"""`bench bisect`: which commit made the difference of two builds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchbench.cli.console import FOLDER, NOT_MET, SETS, fail, refusing, show, show_markdown, source_of
from benchbench.cli.signals import Stop
from benchbench.cli.sweep import end_unless_complete, same_command, spec_and_sets, watching

if TYPE_CHECKING:
    from benchbench.cli.console import Source
    from benchbench.spec import SweepSpec


@click.command()
@click.argument("file", metavar="SWEEP", type=click.Path(), callback=source_of)
@click.option("--good", required=True, metavar="REF", help="Branch, tag or commit before the change.")
@click.option("--bad", required=True, metavar="REF", help="Branch, tag or commit after it.")
@click.option("--only", metavar="SELECTION", help="Only the cells that match, e.g. 'batch=16'.")
@click.option("--metric", default="sys_tok_s", help="What changed: sys_tok_s, ttft, tpot.")
@click.option("--path", "paths", multiple=True, metavar="PATH", help="Only commits that touch this file or folder.")
@click.option("--variant", metavar="NAME", help="Whose git and engine the builds have (default: the baseline's).")
@click.option("--confidence", default="95%", help="End when one commit has this.")
@click.option("--starts", default=40, type=click.IntRange(4), help="Starts at most.")
@click.option("--budget-s", type=click.FloatRange(0), metavar="SECONDS", help="No block that would end after this.")
@click.option("--paired", is_flag=True, help="The good build in every block, also where blocks differ little.")
@click.option(
    "--axis",
    metavar="NAME=A,B",
    help="No search: good and bad crosswise with two values of a variable (default: the sweep's axis).",
)
@SETS
@click.option("--out", type=FOLDER, metavar="DIR", help="Run directory (default: runs/NAME-bisect-TIME).")
@click.option("--resume", is_flag=True, help="Continue the run in --out (or the latest of this name).")
@click.option("--format", "form", type=click.Choice(["md", "json"]), default="md")
@click.option("--json", "form", flag_value="json", help="As --format json.")
@click.option("--quiet", "-q", is_flag=True, help="Print errors alone, and on stdout the run's directory.")
def bisect(
    file: Source,
    sets: tuple[str, ...],
    out: Path | None,
    form: Any,  # noqa: ANN401 - click's
    confidence: str,
    axis: str | None,
    *,
    resume: bool,
    quiet: bool,
    **options: Any,  # noqa: ANN401 - click's
) -> None:
    """Which commit between two made the server slower (or faster)?

    SWEEP has a variant with `git`: its build commands and engine are every build's. First good and bad must differ;
    then the commits are measured that decide most, until one has the confidence asked for.

    Exit: 0 a commit is named, 1 stopped and can be resumed, 2 bad input, 4 none is named (no difference, more than one
    step, or the budget is spent: a larger one with --resume goes on), 130 on Ctrl-C.
    """
    from benchbench.api.bisecting import find_commit
    from benchbench.gates.rules import percent_of

    with Stop() as stop, refusing():
        share = percent_of(confidence, "--confidence")
        if not 0.5 <= share < 1:
            raise ValueError(f"--confidence {confidence}: must be at least 50% and below 100%")
        spec, sets = spec_and_sets(file, sets, out, resume=resume and out is not None, quiet=quiet)
        if axis is not None or spec.axis:
            options |= {"confidence": share, "axis": axis, "form": form}
            _crosswise((file, sets), spec, out, options, stop, resume=resume, quiet=quiet)
            return
        with watching(file, sets, quiet=quiet) as observer:
            given: dict[str, Any] = {**options, "confidence": share, "sets": sets, "resume": resume}
            answer = find_commit(spec, out=out, **given, observer=observer, stop=stop.fd)
    if (outcome := answer.outcome).state != "complete":
        if quiet and outcome.path.exists():
            show(outcome.path)
        again = [*same_command("bisect", file, sets, options["only"]), *_words(options, confidence)]
        end_unless_complete(outcome, stop, (file, sets), again + ["--format", form] * (form != "md"))
    if quiet:
        show(outcome.path)
    else:
        (show_markdown if form == "md" else show)(answer.table(form).rstrip("\n"))
    if form == "md" and not quiet:
        show(f"Run: {outcome.path}, for bench table and bench compare too")
    if not answer.named:
        fail(NOT_MET, f"bench bisect: {answer.sentences[0].splitlines()[0]}")


def _crosswise(
    source: tuple[Source, tuple[str, ...]],
    spec: SweepSpec,
    out: Path | None,
    options: dict[str, Any],
    stop: Stop,
    *,
    resume: bool,
    quiet: bool,
) -> None:
    """Measure good and bad crosswise with two versions of a component; show which makes the difference."""
    from benchbench.api.crossing import cross

    if options["paths"] or options["paired"] or options["budget_s"] is not None or options["confidence"] != 0.95:
        raise ValueError("an axis searches no commit: --path, --paired, --budget-s and --confidence do not go with it")
    chosen = {name: options[name] for name in ("only", "metric", "variant", "starts")}
    form, (file, sets) = options["form"], source
    with watching(file, sets, quiet=quiet) as observer:
        given: dict[str, Any] = {**chosen, "sets": sets, "resume": resume, "observer": observer, "stop": stop.fd}
        crossed = cross(spec, options["good"], options["bad"], options["axis"], out, **given)
    if (outcome := crossed.outcome).state != "complete":
        if quiet and outcome.path.exists():
            show(outcome.path)
        again = [*same_command("bisect", file, sets, options["only"]), *_words(options, "95%")]
        again += ["--axis", options["axis"]] * (options["axis"] is not None)
        end_unless_complete(outcome, stop, source, again + ["--format", form] * (form != "md"))
    if quiet:
        show(outcome.path)
    else:
        (show_markdown if form == "md" else show)(crossed.table(form))
    if form == "md" and not quiet:
        show(f"Run: {outcome.path}, for bench table and bench compare too")
    if not any(contrast.shown for contrast in crossed.families[0].values()):
        fail(NOT_MET, f"bench bisect: {crossed.sentences()[0]}")


def _words(options: dict[str, Any], confidence: str) -> list[str]:
    """The options of a command that goes on with the same question."""
    words = ["--good", options["good"], "--bad", options["bad"], "--metric", options["metric"]]
    words += ["--confidence", confidence, "--starts", str(options["starts"])]
    for path in options["paths"]:
        words += ["--path", path]
    for name in ("variant", "budget_s"):
        words += [f"--{name.replace('_', '-')}", str(options[name])] if options[name] is not None else []
    return words + (["--paired"] if options["paired"] else [])
