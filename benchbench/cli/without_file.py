"""A sweep that stands in no file: the options of `bench sweep --url ...`, and where such a text is kept."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from benchbench.cli.console import BAD_INPUT, fail, source_of, spec_of, write_new
from benchbench.safe_text import printable, printable_lines

if TYPE_CHECKING:
    from benchbench.cli.console import Source
    from benchbench.measure.observer import Observer
    from benchbench.starter.one_line import Wanted
    from benchbench.yamlfile.yaml_document import YamlText

KEPT = "sweep.yaml"  # in the run's folder
INPUT, OUTPUT, BATCH = "128,1024", "128", "1,8,32"
_OPTIONS = (
    click.option(
        "--url",
        metavar="URL",
        multiple=True,
        help="The server's address, as http://127.0.0.1:8000; of several replicas, that of each.",
    ),
    click.option("--model", metavar="NAME", help="The model, as the server lists it."),
    click.option("--input", metavar="N,...", help=f"Prompt lengths in tokens (default: {INPUT})."),
    click.option("--output", metavar="N,...", help=f"Answer lengths in tokens (default: {OUTPUT})."),
    click.option("--batch", metavar="N,...", help=f"Requests sent at once and awaited (default: {BATCH})."),
    click.option("--rate", metavar="X,...", help="Requests a second instead, whatever is in flight."),
    click.option("--api", type=click.Choice(["completions", "chat"]), help="Default: completions."),
    click.option(
        "--prompts", type=click.Choice(["text", "token_ids"]), help="Default: text, which every server takes."
    ),
    click.option("--key-env", metavar="VAR", help="The environment variable that holds the API key."),
    click.option("--as-served", is_flag=True, default=None, help="Answers end when they do: for hosted APIs."),
    click.option("--save", type=click.Path(path_type=Path), metavar="FILE", help="Write the sweep to a new file, too."),
)
_NAMES = ("url", "model", "input", "output", "batch", "rate", "api", "prompts", "key_env", "as_served", "save")


class SweepCommand(click.Command):
    """A command that takes a sweep's file or options that stand for one: these have a heading of their own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        lines: dict[str, list[tuple[str, str]]] = {"Instead of FILE": [], "Options": []}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (line := parameter.get_help_record(ctx)):
                lines["Instead of FILE" if parameter.name in _NAMES else "Options"].append(line)
        for heading, of_it in lines.items():
            with formatter.section(heading):
                formatter.write_dl(of_it)


def file_or_options(command: Callable[..., None]) -> Callable[..., None]:
    """The argument FILE of a command, and the options that may stand for one; `chosen` makes one of them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return click.argument("file", required=False, type=click.Path(), callback=source_of)(command)


def chosen(file: Source | None, options: dict[str, Any], sets: tuple[str, ...], out: Path | None) -> Source:
    """The file, or the sweep that the options stand for, which are taken out of `options`; bad input ends it."""
    given = {name: value for name in _NAMES if (value := options.pop(name)) not in (None, ())}
    if file is None:
        return _from_options(given, options, sets, out)
    if given:
        option = next(iter(given)).replace("_", "-")
        fail(BAD_INPUT, f"bench sweep: FILE or --{option}, one of them (--set KEY=VALUE changes a sweep's file)")
    return file


def _from_options(given: dict[str, Any], options: dict[str, Any], sets: tuple[str, ...], out: Path | None) -> Source:
    """The sweep that the options stand for, checked and shown, or saved."""
    from benchbench.secrets import mask_text, masked
    from benchbench.starter.one_line import Wanted, sweep_text, text_without_secrets

    if not given:
        fail(BAD_INPUT, "bench sweep: needs a sweep FILE (bench init writes one), or --url and --model")
    if lacking := [f"--{name}" for name in ("url", "model") if name not in given]:
        fail(BAD_INPUT, f"bench sweep: without a FILE it needs {' and '.join(lacking)}")
    if "rate" in given and "batch" in given:
        fail(BAD_INPUT, "bench sweep: --batch or --rate, one of them")
    save: Path | None = given.pop("save", None)
    wanted = Wanted(**({"input": INPUT, "output": OUTPUT, "batch": BATCH} | given))
    source = sweep_text(wanted, _seed(wanted, sets, out) if options["resume"] else int(time.time()))
    spec_of(source, sets)
    text = text_without_secrets(source)
    if save is None:
        if not options.get("quiet"):
            shown = mask_text(source.raw.decode())
            print(f"# --save FILE keeps this sweep:\n{printable_lines(shown)}", file=sys.stderr)
        return source
    if text is None:
        fail(BAD_INPUT, "bench sweep: --save: the url holds a secret, which no file may: use --key-env")
    write_new(save, text, f"bench sweep: --save {save}")
    again = shlex.join(["bench", "sweep", str(save), *(word for change in masked(sets) for word in ("--set", change))])
    print(printable(f"{save}: written; it is measured by: {again}"), file=sys.stderr)
    return str(save)


def _seed(wanted: Wanted, sets: tuple[str, ...], out: Path | None) -> int:
    """That of the run which is resumed; without one as of a new run: its own, so that no prefix cache knows it."""
    from benchbench.measure.run import default_out
    from benchbench.starter.one_line import sweep_text
    from benchbench.store.run_directory import RunDirectory

    folder = out or default_out(spec_of(sweep_text(wanted, 0), sets), resume=True)
    earlier = RunDirectory(folder).earlier()
    return int(earlier["spec"]["seed"] if earlier else time.time())


class _Keeping:
    """Passes all on to an observer, and keeps a sweep's text in the folder of its run."""

    def __init__(self, observer: Observer, source: YamlText) -> None:
        self._observer, self._source = observer, source

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any of an observer's methods
        return getattr(self._observer, name)

    def begin(self, plan: Any, out: Path, left: int) -> None:  # noqa: ANN401 - passed on
        from benchbench.starter.one_line import text_without_secrets
        from benchbench.store.run_directory import replace_file

        if text := text_without_secrets(self._source):
            replace_file(out / KEPT, text.encode())
        self._observer.begin(plan, out, left)


def keeping(observer: Observer, source: Source) -> Observer:
    """The observer; of a sweep that stands in no file it also keeps the text, as `sweep.yaml` in the run's folder."""
    return observer if isinstance(source, str) else cast("Observer", _Keeping(observer, source))
