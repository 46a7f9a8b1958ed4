"""`bench eval`: accuracy of each variant by lm-eval, and what of the baseline's a candidate recovers."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchbench.cli.console import (
    BAD_INPUT,
    FOLDER,
    SETS,
    STOPPED,
    fail,
    located,
    show,
    show_markdown,
    source_of,
    spec_of,
)

if TYPE_CHECKING:
    from benchbench.accuracy.evaluate import EvaluationRequest
    from benchbench.cli.console import Source

_HIDDEN = {"auth_token", "header"}  # they would be read in the list of processes and in lm-eval's results


@click.command("eval")
@click.argument("file", required=False, type=click.Path(), callback=source_of)
@click.option("--task", "tasks", multiple=True, metavar="NAME[:SHOTS]", help="lm-eval's (default: mmlu:5, gsm8k:8).")
@click.option("--limit", type=click.FloatRange(0, min_open=True), help="Only so many questions a task, or a share < 1.")
@click.option("--include-path", type=FOLDER, metavar="DIR", help="Folder with tasks of your own.")
@click.option("--results", multiple=True, metavar="NAME=PATH", help="lm-eval's results that exist: a file or a folder.")
@click.option("--published", multiple=True, metavar="TASK=SCORE[,n=N]", help="As 'MMLU (5-shot)=86.2': not run here.")
@click.option("--base", metavar="NAME", help="The baseline; with --published what to call it.")
@click.option(
    "--metric", "metrics", multiple=True, metavar="TASK=METRIC", help="As gsm8k=exact_match,flexible-extract."
)
@click.option("--concurrent", default=32, type=click.IntRange(1), help="Requests in flight.")
@click.option("--model-arg", "args", multiple=True, metavar="KEY=VALUE", help="As tokenizer=DIR, max_gen_toks=2048.")
@click.option("--lm-eval", "program", default="lm_eval", help="The program to run.")
@SETS
@click.option("--out", type=FOLDER, metavar="DIR", help="Where to, or what to continue (default: runs/NAME-eval-TIME).")
@click.option("--format", "form", type=click.Choice(["md", "json"]), default="md")
def evaluate(file: Source | None, sets: tuple[str, ...], out: Path | None, form: str, **given: Any) -> None:  # noqa: ANN401 - click's
    """Run lm-eval against the server of each variant of the sweep FILE; print the table of accuracy recovery.

    Without FILE only --results and --published are put side by side. Exit: 0, 1 something failed or stopped (the same
    command with --out continues), 2 bad input, 130 on Ctrl-C.
    """
    from benchbench.accuracy.section import evaluation_json, evaluation_of, evaluation_section, read_evaluation
    from benchbench.errors import RunError
    from benchbench.store.run_directory import replace_file

    failed: list[str] = []
    try:
        request = _request(**given)
        if file is None and not request.results:
            fail(BAD_INPUT, "bench eval: needs a sweep FILE or --results NAME=PATH")
        if file is None and out is None:
            base = request.base or ("published" if request.published else next(iter(request.results)))
            evaluation = evaluation_of("evaluation", request.results, base, request.published, request.metrics)
        else:
            out, failed = _evaluated(file, sets, request, out)
            evaluation = read_evaluation(out)
        texts = {"md": evaluation_section(evaluation), "json": evaluation_json(evaluation)}
        if out is not None:
            for suffix, text in texts.items():
                replace_file(out / f"evaluation.{suffix}", text.encode())
        (show_markdown if form == "md" else show)(texts[form].rstrip("\n"))
    except (RunError, ValueError, OSError) as error:
        fail(BAD_INPUT, *failed, f"bench eval: {error}")
    if out is not None:
        print(f"Evaluation: {out}", file=sys.stderr)
    if failed:
        fail(
            STOPPED,
            *(f"bench eval: {failure}" for failure in failed),
            f"continue with the same command and --out {out}",
        )


def _evaluated(
    file: Source | None, sets: tuple[str, ...], request: EvaluationRequest, out: Path | None
) -> tuple[Path, list[str]]:
    """The evaluation's folder, and what failed in it; bad input and Ctrl-C end the process."""
    from benchbench.accuracy.evaluate import EvaluationRun
    from benchbench.cli.live import observer_for
    from benchbench.cli.signals import Stop
    from benchbench.errors import LaunchStoppedError

    spec = spec_of(file, sets) if file is not None else None
    if out is None:
        assert spec  # noqa: S101 - without FILE there is a folder
        out = Path("runs") / f"{spec.name}-eval-{time.strftime('%Y%m%d-%H%M%S')}"
    with Stop() as stop, observer_for(sys.stderr) as observer, located(file, sets):
        try:
            return out, EvaluationRun(spec, request, out, observer, stop.fd).run_tasks()
        except LaunchStoppedError:
            fail(stop.code, f"bench: interrupted; continue with the same command and --out {out}")


def _request(**given: Any) -> EvaluationRequest:  # noqa: ANN401 - click's
    """The options, read. Raises ValueError."""
    import yaml

    from benchbench.accuracy.evaluate import TASKS, EvaluationRequest

    tasks = []
    for text in given.pop("tasks"):
        name, _, shots = text.rpartition(":")
        tasks.append((name, int(shots)) if name and shots.isdigit() else (text, None))
    args = {key: yaml.safe_load(value) for key, value in _pairs("--model-arg", given.pop("args")).items()}
    if hidden := _HIDDEN & args.keys():
        raise ValueError(f"--model-arg {hidden.pop()}: shows a secret (use the sweep's engine.api_key_env)")
    results = {name: Path(path) for name, path in _pairs("--results", given.pop("results")).items()}
    metrics = _pairs("--metric", given.pop("metrics"))
    return EvaluationRequest(tasks=tuple(tasks) or TASKS, model_args=args, results=results, metrics=metrics, **given)


def _pairs(option: str, texts: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value) or name in pairs:
            raise ValueError(f"{option} {text}: {'given twice' if name in pairs else 'must be NAME=VALUE'}")
        pairs[name] = value
    return pairs
