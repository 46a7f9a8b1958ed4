"""What `bench check` does and prints."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from benchbench.cli.console import located, show, show_markdown, show_prose
from benchbench.cli.dry_run import time_text
from benchbench.cli.live import observer_for
from benchbench.errors import CheckFailedError
from benchbench.forecast.durations import Point, Speed, by_points
from benchbench.forecast.speeds import keep_check
from benchbench.host.local_results import error_text, store
from benchbench.selftest.instrument_check import check_self, check_text, measure_instrument, result_of
from benchbench.selftest.preflight import check_sweep
from benchbench.senders.sizing import size_of
from benchbench.spec import Plan

if TYPE_CHECKING:
    from benchbench.cli.console import Source


def check_instrument(
    streams: int, rate: float, seconds: float, url: str | None, workers: int, *, as_json: bool
) -> None:
    """The instrument beside an aiohttp client; prints both. Against the simulator it is stored for tables to print."""
    errors = check_self(streams, rate, seconds, url, workers)
    if url is None:
        store(result_of(streams, rate, workers, errors["benchbench"]))
    (show if as_json else show_markdown)(json.dumps(errors, indent=2) if as_json else check_text(errors))


def check_file(file: Source, sets: tuple[str, ...], plan: Plan, seconds: float) -> None:
    """The server of a sweep, then the instrument at the sweep's highest event rate; stores the instrument's error."""
    with located(file, sets):
        with observer_for(sys.stderr) as observer:
            result = check_sweep(plan, observer.starting)
        for line in result.lines:
            show_prose(line)
        if result.streams:
            points = [Point(p.variant, p.input, p.batch, p.ttft_s, p.tpot_s) for p in result.probes]
            keep_check(plan.spec, points)
            show_prose(f"time: {time_text(plan, Speed('by these batches', by_points(points)))}")
            measured = measure_instrument(result.streams, result.rate, seconds, size_of(plan)[0])
            store({**measured, "sweep": plan.spec.name})
            show_prose(error_text(measured))
    if result.problems:
        raise CheckFailedError(1, *(f"bench check: {problem}" for problem in result.problems))
    show("ready" if result.streams else "nothing was checked")
