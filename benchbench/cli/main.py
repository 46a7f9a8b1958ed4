"""The `bench` command: parse, call, print, exit. What it does is elsewhere; libraries are imported when used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchbench.cli import guide, page, publish, stored, sweep
from benchbench.cli.audit import audit
from benchbench.cli.best import best
from benchbench.cli.capacity import capacity
from benchbench.cli.commit_search import bisect
from benchbench.cli.console import (
    BAD_INPUT,
    FOLDER,
    FORMS,
    SETS,
    STOPPED,
    Group,
    fail,
    plan_of,
    refusing,
    show,
    show_markdown,
    show_prose,
    source_of,
    spec_of,
    terminal_width,
)
from benchbench.cli.evaluation import evaluate
from benchbench.cli.exporting import export
from benchbench.cli.gating import conclude, fail_on
from benchbench.cli.history import history
from benchbench.cli.importing import import_results
from benchbench.cli.profile import profile
from benchbench.cli.starting import completion, demo, init
from benchbench.version import __version__

if TYPE_CHECKING:
    from benchbench.cli.console import Source


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog=guide.examples_of(*guide.FIRST),
)
@click.version_option(__version__, prog_name="bench")
def main() -> None:
    """Benchmarks of LLM inference servers: sweep a grid of shapes, and get numbers that can be trusted."""


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(), callback=source_of)
@SETS
def validate(files: tuple[Source, ...], sets: tuple[str, ...]) -> None:
    """Check sweep FILES without running them."""
    from benchbench.engines.git_checkout import built_alike
    from benchbench.spec import SpecError, make_plan

    problems: list[object] = []
    for file in files:
        try:
            plan = make_plan(spec_of(file, sets))
        except SpecError as error:
            problems += error.problems
        else:
            show(f"{file}: {len(plan.cells)} cells")
            for warning in built_alike(plan.spec.variants):
                show(f"{file}: warning: {warning}")
    if problems:
        fail(BAD_INPUT, *problems)


@main.command()
def schema() -> None:
    """Print the JSON Schema of sweep files, for editors."""
    from benchbench.cli.sweep_schema import json_schema

    show(json.dumps(json_schema(), indent=2))


@main.command()
@click.option("--profile", default="fixed", help="Shipped profile or a YAML file.")
@click.option("--port", default=8000, type=click.IntRange(0, 65535), help="0: a free one.")
@click.option("--scale", default=1.0, type=float, help="Factor on every duration.")
@click.option("--model", "models", multiple=True, default=("sim",), help="Names it serves.")
@click.option("--set", "--option", "options", multiple=True, metavar="KEY=VALUE", help="Change a value of the profile.")
def sim(profile: str, port: int, scale: float, models: tuple[str, ...], options: tuple[str, ...]) -> None:
    """Serve the simulator on 127.0.0.1 until Ctrl-C."""
    from benchbench.cli.serve import serve_simulator
    from benchbench.engines.simulator import ProfileError

    try:
        with refusing(ProfileError):
            serve_simulator(profile, port, scale, models, options)
    except OSError as error:
        fail(STOPPED, f"bench sim: cannot listen on 127.0.0.1:{port}: {error.strerror}")


@main.command()
@click.argument("run", type=FOLDER)
@click.argument("others", nargs=-1, metavar="[RUN_B... | BASE CANDIDATE]")
@click.option("--base", metavar="NAME", help="The variant to compare with (default: the sweep's baseline).")
@click.option("--candidate", metavar="NAME", help="The variant to judge (default: each of the others).")
@click.option("--metric", "metrics", multiple=True, help="Show this only: sys_tok_s, ttft, tpot, e2el, goodput_req_s.")
@click.option("--margin", default="1%", help="Differences within this are equivalent.")
@click.option("--noise", type=FOLDER, metavar="RUN", help="A run of bench noise: call nothing inside its noise.")
@click.option("--allow-unlike", is_flag=True, help="Compare runs of unlike models, shapes, loads, GPUs or drivers.")
@fail_on("slower, 'slower>2%', 'ttft>5%' (tpot, e2el, sys_tok_s, goodput), 'ratio<0.9', fidelity")
@click.option("--format", "form", type=click.Choice([*FORMS, "junit"]), default="md")
def compare(run: Path, others: tuple[str, ...], form: Any, metrics: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401 - click's
    """Is one build faster than another? Compares the variants of RUN, or it with other runs, start by start.

    Arguments after RUN that are runs' folders are each compared with RUN; else they are two names of RUN's variants.

    Exit: 0, 2 bad input, 4 a gate did not pass, or could not be judged.
    """
    from benchbench.cli import comparing
    from benchbench.gates.gate_checks import blind_spots, judge_pair
    from benchbench.gates.rules import rule_of
    from benchbench.gates.texts import junit

    with refusing():
        rules = [rule_of(gate) for gate in options.pop("gates")]
        if carried := comparing.capacities_of_options(run, others, form, options):
            if rules:
                fail(BAD_INPUT, "bench compare: --fail-on: not for the runs of bench capacity")
            (show_markdown if form == "md" else show)(carried.rstrip("\n"))
            return
        compared, noises = comparing.comparison_of_options(run, others, **options)
        both = zip(compared.pairs, noises, strict=True)
        checks = [check for pair, noise in both for check in judge_pair(pair, rules, noise, len(noises))]
        text = junit(checks, "bench compare") if form == "junit" else compared.table(form, metrics=metrics)
        (show_markdown if form == "md" else show)(text.rstrip("\n"))
        warnings = [warning for pair in compared.pairs for warning in blind_spots(pair, rules)]
        conclude("bench compare", checks, warnings, compared.table("github", metrics=metrics) if rules else "")


@main.command()
@click.argument("file", required=False, type=click.Path(), callback=source_of)
@SETS
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text")
def env(file: Source | None, sets: tuple[str, ...], form: str) -> None:
    """Print what a run records of its surroundings: this tool, this host and, with FILE, its engine.

    Nothing is launched; a server that runs gets a few GETs. Secrets are masked.
    """
    from benchbench.cli import env as surroundings

    facts = surroundings.facts_of(spec_of(file, sets) if file else None)
    if form == "json":
        show(json.dumps(facts, indent=2))
    else:
        show_prose(surroundings.text(facts, terminal_width() or surroundings.WIDTH))


@main.command()
@click.argument("file", required=False, type=click.Path(), callback=source_of)
@SETS
@click.option("--only", metavar="SELECTION", help="Only the cells that match.")
@click.option("--self", "own", is_flag=True, help="The instrument alone, beside an aiohttp client.")
@click.option("--streams", default=256, type=click.IntRange(1, 8192), help="With --self.")
@click.option("--rate", default=100.0, type=float, help="Tokens per second and stream (--self).")
@click.option("--seconds", default=4.0, type=float, help="Length of the streams.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="That send (--self).")
@click.option("--url", help="Another server with GET /truth instead of the simulator (--self).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (--self).")
def check(file: Source | None, sets: tuple[str, ...], only: str | None, *, own: bool, **options: Any) -> None:  # noqa: ANN401 - click's
    """Before a sweep: is the server of FILE what it needs, and how large is the instrument's own error?

    With FILE: sends a few small batches, estimates time and KV need, then measures the instrument at the sweep's
    highest event rate. With --self: the instrument alone. Both store its error, which tables then print.
    Exit: 0 ready, 1 its cells would be invalid or the server is gone, 2 bad input.
    """
    from benchbench.cli import checks

    if own == (file is not None):
        fail(BAD_INPUT, "bench check: needs a sweep FILE or --self, one of them")
    try:
        if file is None:
            checks.check_instrument(**options)
        else:
            checks.check_file(file, sets, plan_of(spec_of(file, sets), only), options["seconds"])
    except OSError as error:
        fail(STOPPED, f"bench check: {error}")


for _command in (
    init,
    demo,
    sweep.sweep,
    sweep.noise,
    profile,
    evaluate,
    stored.table,
    stored.plot,
    stored.explain,
    history,
):
    main.add_command(_command)
for _command in (bisect, best, capacity, import_results, export, publish.publish, page.report, audit, completion):
    main.add_command(_command)
guide.explain(main)

if __name__ == "__main__":
    main()
