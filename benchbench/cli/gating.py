"""How a command with `--fail-on` ends: what did not pass on stderr, a job's summary, and exit code 4."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchbench.cli.console import GITHUB, NOT_MET, announce, fail
from benchbench.safe_text import printable_lines

if TYPE_CHECKING:
    from benchbench.gates.gate_checks import Check


def fail_on(gates: str) -> Callable[[Any], Any]:
    """The option --fail-on, with the gates that a command knows."""
    return click.option("--fail-on", "gates", multiple=True, metavar="GATE", help=f"Exit 4 on {gates}.")


def conclude(command: str, checks: Sequence[Check], warnings: Sequence[str], summary: str) -> None:
    """End the process with 4 unless all checks passed. In a job of GitHub Actions the summary gets what was judged."""
    from benchbench.gates.texts import gates_markdown, sentences

    if not checks:
        return
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path and os.environ.get(GITHUB) == "true":
        try:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(printable_lines(f"{summary.rstrip()}\n\n{gates_markdown(checks, warnings)}\n"))
        except OSError as error:
            announce("warning", f"{command}: {path}: cannot write the summary: {error.strerror}")
    for warning in warnings:
        announce("warning", f"{command}: {warning}")
    if lines := sentences(checks):
        fail(NOT_MET, *(f"{command}: {line}" for line in lines))
