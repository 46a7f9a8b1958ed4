"""`bench init`, `bench demo`, `bench completion`: for somebody who has nothing yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from benchbench.cli.console import FOLDER, SETS, show, write_new
from benchbench.cli.sweep import sweep

NAMES = ("endpoint", "quickstart", "w7900d", "branches", "branches-demo")


class _Shipped(click.Choice[str]):
    """A name of what is shipped. Whoever gives a file's name instead is told how to have it written."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401 - click's
        if str(value).endswith((".yaml", ".yml")):
            self.fail(f"'{value}' is a file: bench init --out {value} writes it.", param, ctx)
        return super().convert(value, param, ctx)


@click.command()
@click.argument("name", type=_Shipped(NAMES), default="endpoint", metavar="[NAME]")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Where to; - prints (default: NAME.yaml).")
def init(name: str, out: Path | None) -> None:
    """Write a sweep file with comments, to change and to run. It never replaces a file.

    \b
    endpoint       a server that runs already: every key, with its default (this one without NAME)
    quickstart     the embedded simulator: needs no GPU and no model
    w7900d         vLLM, launched and stopped: MiniMax-M2.1 on 8 x AMD Radeon PRO W7900D
    branches       two branches of vLLM, built from git and compared
    branches-demo  two builds of the simulator, compared
    """  # noqa: D301 - click's mark of lines to be left as they are
    from benchbench.starter.shipped_sweeps import own_copy

    file = Path(f"{name}.yaml") if out is None else out
    if str(file) == "-":
        show(own_copy(name, f"{name}.yaml").rstrip("\n"))
        return
    text = own_copy(name, str(file))
    write_new(file, text, f"bench init: {file}", " (--out FILE names another)")
    show(f"{file}: written. Change it, then: bench sweep {file} --dry-run")


@click.command()
@SETS
@click.option("--out", type=FOLDER, metavar="DIR", help="Run directory (default: runs/quickstart-TIME).")
@click.option("--plots/--no-plots", default=True, help="Draw the plots at the end.")
@click.pass_context
def demo(context: click.Context, sets: tuple[str, ...], out: Path | None, *, plots: bool) -> None:
    """Sweep the embedded simulator: half a minute, without a GPU, a model or a network.

    A real HTTP server on 127.0.0.1 that answers at the published speeds of 8 x AMD Radeon PRO W7900D, ten times as
    fast. The sweep is that of bench init quickstart.
    """
    from benchbench.starter.shipped_sweeps import sample_file
    from benchbench.yamlfile.yaml_document import YamlText

    source = YamlText("quickstart.yaml", sample_file("quickstart").read_bytes())
    context.invoke(sweep, file=source, sets=sets, out=out, plots=plots)
    show("Your own server: bench sweep --url http://127.0.0.1:8000 --model NAME, or a file by bench init")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands, options and files.

    \b
    bash  bench completion bash > ~/.local/share/bash-completion/completions/bench
    zsh   bench completion zsh > ~/.zfunc/_bench     (~/.zshrc: fpath+=~/.zfunc; autoload -Uz compinit; compinit)
    fish  bench completion fish > ~/.config/fish/completions/bench.fish
    """  # noqa: D301 - click's mark of lines to be left as they are
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    root = click.get_current_context().find_root()
    assert script  # noqa: S101 - click has all three
    show(script(root.command, {}, "bench", "_BENCH_COMPLETE").source().rstrip("\n"))
