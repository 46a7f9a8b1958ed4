"""What every command shares: lines on a terminal, and errors as one line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click
from click.core import ParameterSource

from benchbench.cli.guide import write_commands
from benchbench.errors import BenchError, CheckFailedError, EngineError, SimulatorError, WorkerDiedError
from benchbench.safe_text import printable, printable_lines

if TYPE_CHECKING:
    from benchbench.spec import Plan, SweepSpec
    from benchbench.yamlfile.yaml_document import YamlText

    Source = str | YamlText  # a sweep's file, or its text

STOPPED, BAD_INPUT, INVALID, NOT_MET = 1, 2, 3, 4
INTERRUPTED = 130
FORMS = ("md", "csv", "json", "github")  # of a table
PLAIN_TERMINALS = {"dumb", "unknown", ""}  # values of TERM: no escapes
GITHUB = "GITHUB_ACTIONS"  # "true" in a job of GitHub Actions
FOLDER = click.Path(path_type=Path)


def source_of(_ctx: click.Context, _parameter: click.Parameter, value: Any) -> Any:  # noqa: ANN401 - click's
    """An argument FILE, or several: `-` is the text on standard input, read here, once."""
    if isinstance(value, tuple):
        return tuple(source_of(_ctx, _parameter, file) for file in value)
    if value != "-":
        return value
    from benchbench.yamlfile.yaml_document import MAX_BYTES, YamlText

    return YamlText("<stdin>", sys.stdin.buffer.read(MAX_BYTES + 1))


# Options of several commands.
SETS = click.option("--set", "sets", multiple=True, metavar="KEY.PATH=VALUE", help="Change one value of the sweep.")
COLUMNS = click.option("--columns", metavar="A,B,...", help="Columns of summary.csv to show.")
VERBOSE = click.option("--verbose", "-v", is_flag=True, help="On a terminal too: what the columns mean.")
PIVOT = click.option("--pivot", metavar="AXIS:COLUMN", help="One column for each value of an axis, as batch:sys_tok_s.")


def refuse_of_runs(run: str, *allowed: str) -> None:
    """What is for a sweep's file ends a command that got a run, which can only be shown again."""
    ctx = click.get_current_context()
    for option in ctx.command.params:
        name = max(option.opts, key=len)
        given = option.name and ctx.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
        if given and isinstance(option, click.Option) and name not in allowed:
            fail(BAD_INPUT, f"{ctx.command_path}: {name} is for a sweep's file, and {run} is a folder")


def names_of(columns: str | None) -> list[str] | None:
    """The names of --columns."""
    return [name.strip() for name in columns.split(",")] if columns else None


def show(text: object) -> None:
    """Lines to stdout. All that a command prints goes through here: names and labels may hold anything."""
    click.echo(printable_lines(str(text)))


def show_markdown(text: str, *, definitions: bool = True) -> None:
    """Markdown to stdout: drawn where that is a terminal, as it stands elsewhere.

    Without `definitions` a terminal does not get the lines that say what columns mean.
    """
    if (width := terminal_width()) is None:
        show(text)
        return
    from benchbench.cli.rendering import rendered

    click.echo(rendered(printable_lines(text), width, colour=has_colours(), definitions=definitions))


def show_prose(text: object) -> None:
    """Lines to stdout, on a terminal wrapped at words."""
    if (width := terminal_width()) is None:
        show(text)
        return
    from benchbench.cli.rendering import wrapped

    click.echo(wrapped(printable_lines(str(text)), width))


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; None where it is none."""
    return width_of(sys.stdout) if sys.stdout.isatty() else None


def has_colours() -> bool:
    """Whether a terminal may be sent colours: https://no-color.org, and a TERM that knows escapes."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") not in PLAIN_TERMINALS


def width_of(stream: TextIO) -> int:
    """Columns of a terminal: $COLUMNS, else what it says itself, else 80."""
    named = os.environ.get("COLUMNS", "")
    if named.isascii() and named.isdigit() and int(named):
        return int(named)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def announce(kind: str, text: object) -> None:
    """A line on stderr; in a job of GitHub Actions as an annotation of this kind: error, warning."""
    line = printable(text)
    if os.environ.get(GITHUB) == "true":
        line = f"::{kind} title=bench::{line.replace('%', '%25')}"
    print(line, file=sys.stderr)


def fail(code: int, *lines: object) -> NoReturn:
    """Each of `lines` to stderr on one line, then exit."""
    for line in lines:
        announce("error", line)
    sys.exit(code)


class Group(click.Group):
    """The one place where errors become exit codes: whatever a command raises on purpose ends in one line on stderr."""

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_commands(formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, words = super().resolve_command(ctx, args)
        if command is not None and not ctx.resilient_parsing:
            _refuse_repeated(click.Context(command, ctx, info_name=name), words)
        return name, command, words

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - click's signature
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "bench"
            fail(BAD_INPUT, f"{where}: {' '.join(error.format_message().split())} (see {where} --help)")
        except click.ClickException as error:
            fail(BAD_INPUT, f"bench: {error.format_message()}")
        except CheckFailedError as error:
            fail(error.code, *error.lines)
        except BenchError as error:
            words = kwargs.get("args") or (args[0] if args else None) or sys.argv[1:]
            command = next((word for word in words if not word.startswith("-")), "")
            code = STOPPED if isinstance(error, (SimulatorError, WorkerDiedError)) else BAD_INPUT
            fail(code, *(getattr(error, "problems", ()) or [f"bench {command}: {error}"]))
        except (click.Abort, KeyboardInterrupt):
            fail(INTERRUPTED, "bench: interrupted")
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(1)


def _refuse_repeated(ctx: click.Context, words: list[str]) -> None:
    """Of an option that is given twice click takes the last, in silence: --batch 1 --batch 8 is no --batch 1,8."""
    try:
        order = ctx.command.make_parser(ctx).parse_args(list(words))[2]
    except click.UsageError:
        return  # the command itself says it
    earlier: dict[str | None, str] = {}
    for option in order:
        if isinstance(option, click.Option) and not (option.multiple or option.is_bool_flag):
            name = max(option.opts, key=len)
            if (other := earlier.setdefault(option.name, "")) == name:
                raise click.UsageError(f"{name} is given twice: once is allowed.", ctx)
            if other:
                raise click.UsageError(f"{other} or {name}, one of them.", ctx)
            earlier[option.name] = name


@contextlib.contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """A ValueError, or an error of these kinds, is bad input: it ends the command with its message."""
    kinds = kinds or (ValueError,)
    try:
        yield
    except kinds as error:
        if isinstance(error, BenchError):
            raise
        raise BenchError(str(error)) from None


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """Numpy that is imported in the block starts no threads of its BLAS, one a core, and pydantic looks through no
    packages for plugins: we have no use for either.

    Processes that are started later, engines above all, find the environment as it was.
    """
    lean = {"OPENBLAS_NUM_THREADS": "1", "PYDANTIC_DISABLE_PLUGINS": "__all__"}
    added = {name: value for name, value in lean.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def write_new(file: Path, text: str, named: str, hint: str = "") -> None:
    """Write a file that must not exist yet; else the command ends. `named`: the command and the file, for messages."""
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        fail(BAD_INPUT, f"{named}: exists already, and stays as it is{hint}")
    except OSError as error:
        fail(BAD_INPUT, f"{named}: cannot write: {error.strerror}")


@contextlib.contextmanager
def located(file: Source | None, sets: tuple[str, ...]) -> Iterator[None]:
    """An engine's error names the line of the sweep file that is at fault, and what the engine's log says last."""
    try:
        yield
    except EngineError as error:
        from benchbench.spec import locate

        known = file and error.key
        problem = locate(file, sets, error.key, error.message, error.allowed) if file and known else error.message
        fail(STOPPED if error.gone else BAD_INPUT, problem, *error.lines)


def spec_of(file: Source, sets: tuple[str, ...]) -> SweepSpec:
    """The sweep of a file. Raises SpecError, also for a simulator's profile that cannot be used."""
    with lean_imports():
        from benchbench.spec import SimulatorEngine, SpecError, load_spec, locate
        from benchbench.spec.plan import variant_spec

        spec = load_spec(file, sets)
    for variant in spec.variants or ("",):
        engine = variant_spec(spec, variant).engine
        if isinstance(engine, SimulatorEngine):
            from benchbench.engines.simulator import ProfileError, load_profile

            try:
                load_profile(engine.profile, engine.options)
            except ProfileError as error:
                where = f"variants.{variant}.engine.profile" if variant else "engine.profile"
                raise SpecError([locate(file, sets, where, str(error))]) from None
    return spec


def plan_of(spec: SweepSpec, only: str | None) -> Plan:
    from benchbench.spec import make_plan

    return make_plan(spec, only)
