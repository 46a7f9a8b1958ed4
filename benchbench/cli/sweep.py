"""`bench sweep` and `bench noise`: a sweep carried out at a terminal, with progress, signals, and how it ended."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchbench.cli.ahead import look_ahead, sender_ahead
from benchbench.cli.console import (
    BAD_INPUT,
    FOLDER,
    INVALID,
    SETS,
    STOPPED,
    VERBOSE,
    fail,
    lean_imports,
    located,
    plan_of,
    refusing,
    show,
    show_markdown,
    show_prose,
    source_of,
    spec_of,
)
from benchbench.cli.signals import Stop
from benchbench.cli.without_file import KEPT, SweepCommand, chosen, file_or_options, keeping
from benchbench.safe_text import printable

if TYPE_CHECKING:
    from benchbench.cli.console import Source
    from benchbench.measure.observer import Observer
    from benchbench.measure.run import Outcome
    from benchbench.spec import SweepSpec

_OWN = (  # what a run has in its folder; the manifest last: as long as it is there, so is the run
    *("records", "spoiled", "fidelity", "telemetry", "logs", "git", "plots", "profiles", "profile.md", "journal.jsonl"),
    *("summary.csv", "summary.parquet", "sweep.yaml", "table.md", "compare.md", "compare.json", "noise.json"),
    *("capacity.md", "capacity.json", "bisect.md", "bisect.json", "manifest.json"),
)


def tok_s_of(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[float, ...]:
    """One or two positive numbers."""
    try:
        numbers = tuple(map(float, text.split(","))) if text else ()
    except ValueError:
        numbers = (0.0,)
    if len(numbers) > 2 or any(not 0 < number < math.inf for number in numbers):
        raise click.BadParameter("expects one or two positive numbers, as 20 or 20,4000")
    return numbers


@click.command(cls=SweepCommand)
@file_or_options
@SETS
@click.option("--only", metavar="SELECTION", help="Only the cells that match, e.g. 'batch>=8,input=128'.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Run directory (default: runs/NAME-TIME).")
@click.option("--resume", is_flag=True, help="Continue the run in --out (or the latest of this name).")
@click.option("--retry", metavar="invalid|REASON", help="With --resume: measure again the rounds that it spoiled.")
@click.option("--overwrite", is_flag=True, help="Delete a run that is in --out.")
@click.option("--dry-run", is_flag=True, help="Print the plan and its time without running it.")
@click.option(
    "--assume-tok-s",
    metavar="DECODE[,PREFILL]",
    callback=tok_s_of,
    help="For --dry-run: output tok/s of each single stream, and prompt tok/s of the whole server.",
)
@click.option("--plots/--no-plots", default=True, help="Draw the plots at the end.")
@click.option("--strict", is_flag=True, help="Exit with 3 if any cell is invalid.")
@VERBOSE
@click.option("--quiet", "-q", is_flag=True, help="Print errors alone, and on stdout the run's directory.")
@click.option("--json", "as_json", is_flag=True, help="On stdout one JSON object alone: path, state, message, rows.")
def sweep(file: Source | None, sets: tuple[str, ...], only: str | None, out: Path | None, **flags: Any) -> None:  # noqa: ANN401 - click's
    """Measure every cell of the sweep FILE (- is standard input), or of the server at --url; print the table.

    --json holds all rows with their status and reasons, also of a sweep that was stopped; it says how far it is on
    stderr, unless --quiet is there too.

    Exit: 0 complete, 1 stopped and can be resumed, 2 bad input, 3 all cells (of a variant) are invalid, with --strict
    any cell, 130 on Ctrl-C.
    """
    # From here on no signal is lost: an interrupt may come amid an import that ignores it.
    with Stop() as stop, contextlib.ExitStack() as ahead:
        file = chosen(file, flags, sets, out)
        ahead.enter_context(sender_ahead(wanted=not flags["dry_run"]))
        spec, sets = spec_and_sets(file, sets, out, resume=flags["resume"], quiet=flags["quiet"])
        if flags["dry_run"]:
            if flags["quiet"] or flags["as_json"]:
                fail(BAD_INPUT, "bench sweep: --dry-run goes with neither --quiet nor --json")
            from benchbench.cli.dry_run import plan_text
            from benchbench.forecast.speeds import known_speed

            plan = plan_of(spec, only)
            with located(file, sets):
                text = plan_text(plan, known_speed(plan, out, flags["assume_tok_s"]))
            show_prose(text)
            return
        if flags["overwrite"]:
            if flags["resume"] or out is None:
                fail(BAD_INPUT, "bench sweep: --overwrite needs --out, and does not go with --resume")
            plan_of(spec, only)  # bad input deletes nothing
            _clear(out, Path(str(file)))
        if flags["retry"] and not flags["resume"]:
            fail(BAD_INPUT, "bench sweep: --retry needs --resume")
        with look_ahead(spec), watching(file, sets, quiet=flags["quiet"]) as observer:
            with lean_imports():
                from benchbench.measure.run import sweep as run_sweep
                from benchbench.model.served import hardware_notes

            for note in (*spec.notes, *hardware_notes(spec.hardware)):
                observer.note(note)
            stop.check()
            wanted: dict[str, Any] = {name: flags[name] for name in ("resume", "retry")}
            outcome = run_sweep(spec, out, only=only, sets=sets, **wanted, observer=observer, stop=stop.fd)
    shown = {name: flags[name] for name in ("verbose", "quiet", "as_json", "plots")}
    show_end(spec, outcome, stop, (file, sets), same_command("sweep", file, sets, only), **shown)
    if lines := _useless(outcome):
        fail(INVALID, *lines)
    if spec.profile and spec.variants:
        from benchbench.cli.profile import profiled_text

        with Stop() as stop:
            text = profiled_text(spec, outcome.path, 1, stop, (file, sets))
        if not (flags["quiet"] or flags["as_json"]):
            show_markdown(text.rstrip("\n"))
    if flags["strict"] and any(row["status"] == "invalid" for row in outcome.rows):
        fail(INVALID, "bench: some cells are invalid")


@click.command()
@click.argument("file", type=click.Path(), callback=source_of)
@click.option("--blocks", type=click.IntRange(2), help="Starts of each of the two (default: the sweep's, else 6).")
@SETS
@click.option("--only", metavar="SELECTION", help="Only the cells that match.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Run directory (default: runs/NAME-noise-TIME).")
@click.option("--resume", is_flag=True, help="Continue the run in --out (or the latest of this name).")
@VERBOSE
@click.option("--quiet", "-q", is_flag=True, help="Print errors alone, and on stdout the run's directory.")
@click.option("--json", "as_json", is_flag=True, help="On stdout one JSON object alone: as bench sweep's, with noise.")
def noise(
    file: Source,
    blocks: int | None,
    sets: tuple[str, ...],
    only: str | None,
    out: Path | None,
    *,
    resume: bool,
    **shown: bool,
) -> None:
    """Measure the sweep's baseline against itself (A/A): the variance between starts, and the smallest effect found.

    For bench compare --noise RUN, and for the power that bench sweep --dry-run prints. With --json, `noise` is what the
    run's noise.json holds; null where the sweep was stopped.
    """
    with lean_imports():
        from benchbench.cli import comparing
        from benchbench.measure.run import sweep as run_sweep

    with refusing():
        sweep_spec, sets = spec_and_sets(file, sets, out, resume=resume and out is not None, quiet=shown["quiet"])
        spec = comparing.against_itself(sweep_spec, blocks)
    with Stop() as stop, watching(file, sets, quiet=shown["quiet"]) as observer:
        outcome = run_sweep(spec, out, only=only, sets=sets, resume=resume, observer=observer, stop=stop.fd)
    with refusing():
        text, data = comparing.keep_noise(outcome.path) if outcome.state == "complete" else ("", {"noise": None})
    again = [*same_command("noise", file, sets, only), *([] if blocks is None else ["--blocks", str(blocks)])]
    show_end(spec, outcome, stop, (file, sets), again, **shown, more={"noise": data["noise"]})
    if not (shown["quiet"] or shown["as_json"]):
        show_markdown(text)


def _clear(out: Path, file: Path) -> None:
    """Delete the run that is in `out`, if there is one; what is not a run's own stays, and the sweep's `file`.

    Raises RunError: in use.
    """
    from benchbench.store.run_directory import RunDirectory

    if not (out / "manifest.json").exists():
        return
    run = RunDirectory(out)
    run.open_for_writing(resume=True)
    try:
        for path in (out / name for name in _OWN if (out / name).resolve() != file.resolve()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        fail(BAD_INPUT, f"bench sweep: {error.filename}: cannot be deleted: {error.strerror}")
    finally:
        run.close()


@contextlib.contextmanager
def watching(file: Source, sets: tuple[str, ...], *, quiet: bool = False) -> Iterator[Observer]:
    """Progress on stderr while a sweep runs, and errors at the line of its file."""
    from benchbench.cli.live import observer_for

    with observer_for(None if quiet else sys.stderr) as observer, located(file, sets):
        yield keeping(observer, file)


def spec_and_sets(
    file: Source, sets: tuple[str, ...], out: Path | None, *, resume: bool, quiet: bool = False
) -> tuple[SweepSpec, tuple[str, ...]]:
    """The sweep and what is --set in it: on --resume what the run was begun with, too."""
    spec = spec_of(file, sets)
    if resume:
        from benchbench.measure.run import default_out, stored_sets

        stored = stored_sets(out or default_out(spec, resume=True))
        kept = [given for given in stored if given not in sets]
        for given in () if quiet else kept:
            print(printable(f"note: as the run was begun: --set {given}"), file=sys.stderr)
        sets = (*kept, *sets)
        spec = spec_of(file, sets)
    return spec, sets


def same_command(command: str, file: Source, sets: tuple[str, ...], only: str | None) -> list[str]:
    """The words of a command that does the same again; a secret that was --set is to be given anew."""
    from benchbench.secrets import masked

    words = ["bench", command, file if isinstance(file, str) else "-"]
    for given in masked(sets):
        words += ["--set", given]
    return words if only is None else [*words, "--only", only]


def show_end(
    spec: SweepSpec,
    outcome: Outcome,
    stop: Stop,
    source: tuple[Source, tuple[str, ...]],
    command: list[str],
    *,
    verbose: bool = False,
    quiet: bool = False,
    as_json: bool = False,
    plots: bool = True,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Show the outcome, then draw it; one that is not complete ends the process.

    `source`: the sweep's file, with what was --set. `more`: what JSON has besides.
    """
    if as_json:
        show(_json(outcome, more or {}))
    elif not quiet:
        _show(spec, outcome, verbose=verbose, plots=plots)
    elif outcome.path.exists():
        show(outcome.path)
    end_unless_complete(outcome, stop, source, command)
    if quiet or as_json:
        _draw(outcome, wanted=plots)


def end_unless_complete(
    outcome: Outcome, stop: Stop, source: tuple[Source, tuple[str, ...]], command: list[str]
) -> None:
    """End the process where a sweep is not complete, with the command that goes on with it."""
    from benchbench.spec import locate

    if (kept := outcome.path / KEPT).exists():
        command = [*command[:2], str(kept), *command[3:]]
    again = f"continue with: {shlex.join([*command, '--resume', '--out', str(outcome.path)])}"
    if outcome.state == "interrupted":
        fail(stop.code, f"bench: interrupted; {again}")
    if outcome.state == "stopped":
        lost = command[2] == "-"  # what came without a file and is not kept cannot be read again
        message = outcome.message if lost else f"{outcome.message}; {again}"
        fail(STOPPED, locate(*source, outcome.key, message) if outcome.key else f"bench: {message}")


def _draw(outcome: Outcome, *, wanted: bool) -> str:
    """Draw the plots of a complete run whose table is shown; `plots_text` of them."""
    from benchbench.api.measuring import final_pictures
    from benchbench.cli.drawing import plots_text

    return plots_text(pictures) if wanted and (pictures := final_pictures(outcome)) else ""


def _useless(outcome: Outcome) -> list[str]:
    """A line for the run, or each variant, of which every cell is invalid: such a sweep has measured nothing."""
    statuses: dict[str, set[str]] = {}
    for row in outcome.rows:
        statuses.setdefault(row["variant"] or "", set()).add(row["status"])
    of = {name: f" of variant {name}" if name else "" for name, have in statuses.items() if have == {"invalid"}}
    return [f"bench: no cell{whose} is valid (see bench explain {outcome.path})" for whose in of.values()]


def _json(outcome: Outcome, more: Mapping[str, Any]) -> str:
    """How the sweep ended and all its rows, as `bench table --format json` has them."""
    from benchbench.report.summary_table import json_table

    path = str(outcome.path) if outcome.path.exists() else None
    rows = json.loads(json_table(outcome.rows, include_invalid=True))
    ended = {"path": path, "state": outcome.state, "message": outcome.message, "rows": rows, **more}
    return json.dumps(ended, indent=1)


def _show(spec: SweepSpec, outcome: Outcome, *, verbose: bool, plots: bool) -> None:
    """The table, what its reasons mean, and where the files are."""
    if any(row["rounds"] for row in outcome.rows):
        show_markdown(outcome.table, definitions=verbose)
        for remedy in _remedies(outcome.rows):
            show_prose(remedy)
        answered = any(row["requests"] > row["failed"] for row in outcome.rows if row["rounds"])
        if verbose and answered and spec.rounds.max > spec.rounds.min and spec.block_count is None:
            show_prose(_cost(outcome.rows))
    if lines := _draw(outcome, wanted=plots):
        show(lines)
    if outcome.verdicts:
        show_prose("\n".join(outcome.verdicts))
        show(f"Comparison: {outcome.path / 'compare.md'}, or: bench compare {outcome.path}")
    if outcome.state == "complete":
        show(f"Run: {outcome.path}" + (f" ({outcome.message})" if outcome.message else ""))


def _cost(rows: Sequence[Mapping[str, Any]], fixed: int = 10) -> str:
    """Requests of as many rounds as the interval needs, beside those of a fixed number of rounds for every cell."""
    measured = [row for row in rows if row["rounds"]]
    spent = sum(row["requests"] for row in measured)
    even = sum(row["requests"] // row["rounds"] * fixed for row in measured)
    return f"Rounds: as many as the asked interval needs took {spent:,} requests; a fixed {fixed} would take {even:,}."


def _remedies(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each reason that a cell is not valid: what it means and what to do about it.

    No rounds are advised where every request failed.
    """
    from benchbench.analysis.reasons import Reason

    codes = {code for row in rows if row["requests"] > row["failed"] for code in (row["reasons"] or "").split(";")}
    rounds = {Reason.TOO_FEW_ROUNDS.code, Reason.UNSTABLE_WARMUP.code}
    codes |= {code for row in rows for code in (row["reasons"] or "").split(";")} - rounds
    remedies: dict[str, str] = {}
    for reason in Reason:
        if reason.code in codes:  # of two with one code the milder comes first
            remedies.setdefault(reason.code, f"{reason.code}: {reason.meaning}; {reason.remedy}")
    return list(remedies.values())
