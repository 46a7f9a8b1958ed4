"""What was asked on the command line: read, or refused with one line and an exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from benchbench.cli.text import one_line

if TYPE_CHECKING:
    from benchbench.spec import Plan, SweepSpec

STOPPED, BAD_INPUT, INVALID, NOT_MET = 1, 2, 3, 4
INTERRUPTED = 130
FOLDER = click.Path(path_type=Path)


def fail(code: int, *lines: object) -> NoReturn:
    """Each of `lines` to stderr on one line, then exit."""
    for line in lines:
        print(one_line(line), file=sys.stderr)
    sys.exit(code)


def spec_of(file: str, sets: tuple[str, ...]) -> SweepSpec:
    from benchbench.spec import SpecError, load_spec

    try:
        return load_spec(file, sets)
    except SpecError as error:
        fail(BAD_INPUT, *error.problems)


def plan_of(spec: SweepSpec, only: str | None) -> Plan:
    from benchbench.spec import SpecError, make_plan

    try:
        return make_plan(spec, only)
    except SpecError as error:
        fail(BAD_INPUT, *error.problems)
