"""What `bench check` does and prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click

from benchbench.cli.progress import observer_for
from benchbench.engines.simulator import SimulatorError
from benchbench.errors import CheckFailedError, EngineError, WorkerDiedError
from benchbench.selftest.instrument_check import check_self, check_text, measure_instrument
from benchbench.selftest.preflight import check_sweep
from benchbench.spec import Plan, locate
from benchbench.store.local_results import sentence, store


def check_instrument(streams: int, rate: float, seconds: float, url: str | None, *, as_json: bool) -> None:
    """The instrument beside an aiohttp client; prints both. Against the simulator it is stored for tables to print."""
    try:
        found = check_self(streams, rate, seconds, url)
    except (SimulatorError, WorkerDiedError, OSError) as error:
        raise CheckFailedError(1, f"bench check: {error}") from None
    if url is None:
        store({"streams": streams, "rate": rate, "tok_s": streams * rate, **found["benchbench"]})
    click.echo(json.dumps(found, indent=2) if as_json else check_text(found))


def check_file(file: str, sets: Sequence[str], plan: Plan, seconds: float) -> None:
    """The server of a sweep, then the instrument at the sweep's highest event rate; stores the instrument's error."""
    try:
        with observer_for(sys.stderr) as observer:
            found = check_sweep(plan, observer.starting)
        for line in found.lines:
            click.echo(line)
        if found.streams:
            measured = measure_instrument(found.streams, found.rate, seconds)
            store(measured)
            click.echo(sentence(measured))
    except EngineError as error:
        code = 1 if error.gone else 2
        problem = locate(file, sets, error.key, error.message, error.allowed)
        raise CheckFailedError(code, problem, *error.lines) from None
    except (SimulatorError, WorkerDiedError, OSError) as error:
        raise CheckFailedError(1, f"bench check: {error}") from None
    if found.problems:
        raise CheckFailedError(1, *(f"bench check: {problem}" for problem in found.problems))
    click.echo("ready" if found.streams else "nothing was checked")
