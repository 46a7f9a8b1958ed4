"""The `bench` command: parse, call, print, exit. What it does is elsewhere; libraries are imported when used."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from benchbench.cli import page, publish, stored
from benchbench.cli.asked import BAD_INPUT, FOLDER, INTERRUPTED, INVALID, NOT_MET, STOPPED, fail, plan_of, spec_of
from benchbench.cli.audit import audit
from benchbench.cli.evaluation import evaluate
from benchbench.cli.importing import import_results
from benchbench.cli.text import one_line
from benchbench.version import __version__


class Group(click.Group):
    """Usage errors in one line on stderr, exit 2, like every other bad input."""

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - click's signature
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "bench"
            fail(BAD_INPUT, f"{where}: {error.format_message()} (see {where} --help)")
        except click.ClickException as error:
            fail(BAD_INPUT, f"bench: {error.format_message()}")
        except (click.Abort, KeyboardInterrupt):
            fail(INTERRUPTED, "bench: interrupted")
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(1)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bench")
def main() -> None:
    """Benchmarks of LLM inference servers: sweep a grid of shapes, and get numbers that can be trusted."""


@main.command()
@click.argument("file")
@click.option("--set", "sets", multiple=True, metavar="KEY.PATH=VALUE", help="Change one value of the sweep.")
@click.option("--only", metavar="SELECTION", help="Only the cells that match, e.g. 'batch>=8,input=128'.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Run directory (default: runs/NAME-TIME).")
@click.option("--resume", is_flag=True, help="Continue the run in --out (or the latest of this name).")
@click.option("--dry-run", is_flag=True, help="Print the plan and do nothing.")
@click.option("--plots/--no-plots", default=True, help="Draw the plots at the end.")
@click.option("--strict", is_flag=True, help="Exit with 3 if any cell is invalid.")
def sweep(
    file: str,
    sets: tuple[str, ...],
    only: str | None,
    out: Path | None,
    *,
    resume: bool,
    dry_run: bool,
    plots: bool,
    strict: bool,
) -> None:
    """Measure every cell of the sweep FILE; print the table.

    Exit: 0 carried out, 1 stopped and can be resumed, 2 bad input, 3 invalid cells (--strict), 130 on Ctrl-C.
    """
    spec = spec_of(file, sets)
    if dry_run:
        from benchbench.cli.dry_run import plan_text

        click.echo(plan_text(plan_of(spec, only)))
        return
    from benchbench.cli.carry import carry_out

    for note in spec.notes:
        print(one_line(f"note: {note}"), file=sys.stderr)
    outcome = carry_out(spec, (file, sets), only=only, out=out, resume=resume, plots=plots)
    if strict and any(row["status"] == "invalid" for row in outcome.rows):
        fail(INVALID, "bench: some cells are invalid")


@main.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--set", "sets", multiple=True, metavar="KEY.PATH=VALUE", help="Change one value first.")
def validate(files: tuple[str, ...], sets: tuple[str, ...]) -> None:
    """Check sweep FILES without running them."""
    from benchbench.spec import SpecError, load_spec, make_plan

    problems: list[object] = []
    for file in files:
        try:
            plan = make_plan(load_spec(file, sets))
        except SpecError as error:
            problems += error.problems
        else:
            click.echo(f"{file}: {len(plan.cells)} cells")
    if problems:
        fail(BAD_INPUT, *problems)


@main.command()
def schema() -> None:
    """Print the JSON Schema of sweep files, for editors."""
    from benchbench.spec import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@main.command()
@click.option("--profile", default="fixed", show_default=True, help="Shipped profile or a YAML file.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: a free one.")
@click.option("--scale", default=1.0, show_default=True, type=float, help="Factor on every duration.")
@click.option("--model", "models", multiple=True, default=("sim",), show_default=True, help="Names it serves.")
@click.option("--set", "--option", "options", multiple=True, metavar="KEY=VALUE", help="Change a value of the profile.")
def sim(profile: str, port: int, scale: float, models: tuple[str, ...], options: tuple[str, ...]) -> None:
    """Serve the simulator on 127.0.0.1 until Ctrl-C."""
    from benchbench.cli.serve import serve_simulator
    from benchbench.engines.simulator import ProfileError
    from benchbench.spec import SpecError

    try:
        serve_simulator(profile, port, scale, models, options)
    except (ProfileError, SpecError) as error:
        fail(BAD_INPUT, f"bench sim: {error}")
    except OSError as error:
        fail(STOPPED, f"bench sim: cannot listen on 127.0.0.1:{port}: {error.strerror}")


@main.command()
@click.argument("run", type=FOLDER)
@click.argument("others", nargs=-1, metavar="[RUN_B | BASE CANDIDATE]")
@click.option("--base", metavar="NAME", help="The variant to compare with (default: the sweep's baseline).")
@click.option("--candidate", metavar="NAME", help="The variant to judge (default: each of the others).")
@click.option("--metric", "metrics", multiple=True, help="Show sys_tok_s, ttft, tpot or e2el only; families stay.")
@click.option("--margin", default="1%", show_default=True, help="Differences within this are equivalent.")
@click.option("--noise", type=FOLDER, metavar="RUN", help="A run of bench noise: call nothing inside its noise.")
@click.option("--allow-unlike", is_flag=True, help="Compare runs of unlike models, shapes, loads, GPUs or drivers.")
@click.option("--fail-on", "gates", multiple=True, metavar="WHAT", help="Exit 4 on 'slower>1%', slower or fidelity.")
@click.option("--format", "form", type=click.Choice(["md", "json", "csv", "github"]), default="md", show_default=True)
def compare(run: Path, others: tuple[str, ...], form: str, metrics: tuple[str, ...], **asked: Any) -> None:  # noqa: ANN401 - click's
    """Is one build faster than another? Compares the variants of RUN, or two runs, start by start.

    An argument after RUN that is a run's folder is the other run; else two names of RUN's variants.
    Exit: 0, 2 bad input, 4 what --fail-on forbids.
    """
    from benchbench.cli import comparing
    from benchbench.errors import RunError

    try:
        pairs = comparing.pairs_asked(run, others, **{name: asked[name] for name in comparing.ASKED})
        broken = comparing.broken(pairs, asked["gates"])
        click.echo(comparing.text(pairs, form, metrics).rstrip("\n"))
    except (RunError, ValueError) as error:
        fail(BAD_INPUT, f"bench compare: {error}")
    if broken:
        fail(NOT_MET, *(f"bench compare: {one}" for one in broken))


@main.command()
@click.argument("file")
@click.option("--blocks", type=click.IntRange(2), help="Starts of each of the two (default: the sweep's, else 6).")
@click.option("--set", "sets", multiple=True, metavar="KEY.PATH=VALUE", help="Change one value of the sweep.")
@click.option("--only", metavar="SELECTION", help="Only the cells that match.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Run directory (default: runs/NAME-noise-TIME).")
@click.option("--resume", is_flag=True, help="Continue the run in --out (or the latest of this name).")
def noise(
    file: str, blocks: int | None, sets: tuple[str, ...], only: str | None, out: Path | None, **more: bool
) -> None:
    """Measure the sweep's baseline against itself: the noise of a start, and what effect can be found.

    For bench compare --noise RUN, and for the power that bench sweep --dry-run prints.
    """
    from benchbench.cli import comparing
    from benchbench.cli.carry import carry_out
    from benchbench.errors import RunError

    try:
        spec = comparing.against_itself(spec_of(file, sets), blocks)
        outcome = carry_out(spec, (file, sets), only=only, out=out, resume=more["resume"], command="noise")
        click.echo(comparing.keep_noise(outcome.path))
    except (RunError, ValueError) as error:
        fail(BAD_INPUT, f"bench noise: {error}")


@main.command()
@click.argument("file", required=False)
@click.option("--set", "sets", multiple=True, metavar="KEY.PATH=VALUE", help="Change one value of the sweep.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def env(file: str | None, sets: tuple[str, ...], form: str) -> None:
    """Print what a run records of its surroundings: this tool, this host and, with FILE, its engine.

    Nothing is launched; a server that runs gets a few GETs. Secrets are masked.
    """
    from benchbench.cli import env as surroundings

    found = surroundings.facts(spec_of(file, sets) if file else None)
    click.echo(json.dumps(found, indent=2) if form == "json" else surroundings.text(found))


@main.command()
@click.argument("file", required=False)
@click.option("--set", "sets", multiple=True, metavar="KEY.PATH=VALUE", help="Change one value of the sweep.")
@click.option("--only", metavar="SELECTION", help="Only the cells that match.")
@click.option("--self", "own", is_flag=True, help="The instrument alone, beside an aiohttp client.")
@click.option("--streams", default=256, show_default=True, type=click.IntRange(1, 8192), help="With --self.")
@click.option("--rate", default=100.0, show_default=True, type=float, help="Tokens per second and stream (--self).")
@click.option("--seconds", default=4.0, show_default=True, type=float, help="Length of the streams.")
@click.option("--url", help="Another server with GET /truth instead of the simulator (--self).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (--self).")
def check(
    file: str | None,
    sets: tuple[str, ...],
    only: str | None,
    *,
    own: bool,
    streams: int,
    rate: float,
    seconds: float,
    url: str | None,
    as_json: bool,
) -> None:
    """Before a sweep: is the server of FILE what it needs, and how large is the instrument's own error?

    With FILE: sends a few small batches, estimates time and KV need, then measures the instrument at the sweep's
    highest event rate. With --self: the instrument alone. Both store its error, which tables then print.
    """
    from benchbench.cli import checks
    from benchbench.errors import CheckFailedError

    if own == (file is not None):
        fail(BAD_INPUT, "bench check: needs a sweep FILE or --self, one of them")
    try:
        if file is None:
            checks.check_instrument(streams, rate, seconds, url, as_json=as_json)
        else:
            spec = spec_of(file, sets)
            checks.check_file(file, sets, plan_of(spec, only), seconds)
    except CheckFailedError as error:
        fail(error.code, *error.lines)


main.add_command(audit)
main.add_command(import_results)
main.add_command(stored.table)
main.add_command(stored.plot)
main.add_command(stored.explain)
main.add_command(publish.publish)
main.add_command(evaluate)
main.add_command(page.report)

if __name__ == "__main__":
    main()
