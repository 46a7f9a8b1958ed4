"""The help: every command under a heading, examples that are commands, and completion."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from driving import BENCH, bench

from benchbench.cli.guide import COMMANDS, FIRST, GUIDE
from benchbench.cli.main import main

ROOT = Path(__file__).parents[1]
EXAMPLES = [example for _, *examples in COMMANDS.values() for example in examples]


def test_help_has_every_command_under_its_heading() -> None:
    shown = bench("--help").stdout
    assert set(COMMANDS) == set(main.commands)
    places = [shown.index(f"\n{heading}:\n") for heading in GUIDE]
    assert places == sorted(places)
    places = [shown.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)
    assert all(f"    {example}\n" in shown for example in FIRST)
    assert max(map(len, shown.partition("Examples:")[0].splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_examples_and_defaults(name: str) -> None:
    shown = bench(name, "--help").stdout
    assert f"    {COMMANDS[name][1]}\n" in shown
    for parameter in main.commands[name].params:
        is_switch = isinstance(parameter, click.Option) and parameter.is_flag
        if isinstance(parameter, click.Option) and isinstance(parameter.default, str | int | float) and not is_switch:
            assert f"[default: {parameter.default}" in " ".join(shown.split()), parameter.name


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_commands(example: str) -> None:
    """Their words are read without a complaint; nothing is run."""
    program, name, *words = shlex.split(example.partition(" > ")[0])
    assert program == "bench"
    main.commands[name].make_context(name, words)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_shells_script(shell: str) -> None:
    script = bench("completion", shell).stdout
    assert f"_BENCH_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "offered"),
    [("bench swe", "plain,sweep"), ("bench init w", "plain,w7900d"), ("bench sweep ./", "file,./")],
)
def test_commands_names_and_files_are_completed(words: str, offered: str) -> None:
    env = {**os.environ, "_BENCH_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = "from benchbench.cli.main import main; main(prog_name='bench')"
    done = subprocess.run([BENCH[0], "-c", code], env=env, text=True, capture_output=True, check=False)
    assert done.stdout == f"{offered}\n"


def _documented() -> list[str]:
    """Each line of a document's code that is one of our commands, with the lines that it goes on in."""
    found = []
    for pattern in ("*.md", "docs/*.md", "plots/**/*.md", "sweeps/**/*.md"):
        for document in sorted(ROOT.glob(pattern)):
            text = document.read_text(encoding="utf-8").replace("\\\n", " ")
            fenced = "".join(re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL))
            found += re.findall(r"^    bench (?!\w+:)(.+)", text, re.MULTILINE)
            found += re.findall(r"^\s*(?:run: )?bench (.+)", fenced, re.MULTILINE)
    return list(dict.fromkeys(found))


def test_commands_of_the_documents_are_commands() -> None:
    commands = _documented()
    assert len(commands) > 100
    for command in commands:
        quoted = command + "'" * (command.count("'") % 2)  # one argument goes on over lines
        words = shlex.split(quoted, comments=True)
        name, *words = words[: next((place for place, word in enumerate(words) if word in {"|", ">", "&&"}), None)]
        try:
            if not name.startswith("-"):
                main.commands[name].make_context(name, words)
        except click.exceptions.Exit:  # --help
            pass
        except (KeyError, click.ClickException) as error:
            pytest.fail(f"bench {command}: {error}")
