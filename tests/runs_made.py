"""Whole runs made by hand for tests: a sweep's plan, and rounds whose times a function tells."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

from rounds_made import MS, Made, table_of

from benchbench.spec import Cell, Session, make_plan, spec_from_mapping
from benchbench.store.run_directory import RunDirectory

BRANCHES: dict[str, Any] = {
    "name": "branches",
    "model": "m",
    "engine": {"kind": "simulator"},
    "variants": {"main": {}, "int8-moe": {}},
    "blocks": 6,
    "grid": {"input": [128, 1024], "output": 8, "batch": [1, 4]},
    "rounds": {"warmup": 0, "min": 2},
    "prompts": {"vocab": [1000, 30000]},
    "order": "as_written",
}
FAILED = "failed"
Tell = Callable[[Cell, Session, int], tuple[float, ...] | str | None]


def made_run(path: Path, data: dict[str, Any], tell: Tell, **manifest: Any) -> Path:
    """A run in which each round's (TTFT, ITL) in ms are `tell(cell, start, number in the start)`'s; a third is
    the tokens of each answer.

    FAILED is a round whose last request failed, an error code a fault of all requests, None a round that is not there.
    `manifest` replaces keys of the manifest. Starts without any round are no starts.
    """
    spec = spec_from_mapping(data)
    plan, run = make_plan(spec), RunDirectory(path)
    run.open_for_writing(resume=False)
    starts = write_starts(run, plan.sessions, tell)
    facts = {"starts": starts, "devices": [], "host": {"name": "here"}, "caption": [], "instrument": None}
    entries = [cell.info.to_entry() for cell in plan.cells]
    run.write_manifest({"spec": spec.model_dump(mode="json"), "plan": entries, **facts, **manifest})
    run.close()
    return path


@mock.patch("os.fsync", int)  # which does nothing: of a hundred rounds the disk is waited for half a second
def write_starts(run: RunDirectory, sessions: Iterable[Session], tell: Tell) -> list[dict[str, Any]]:
    """The rounds of these sessions, as above; the manifest's entries of those that have any."""
    starts = []
    for start in sessions:
        stored = 0
        for cell in start.cells:
            for k in range(cell.rounds.min):
                told = tell(cell, start, k)
                if told is None:
                    continue
                number = (start.block or 0) * cell.rounds.min + k
                labels = {"cell": cell.key, "variant": cell.variant, "phase": "measured", "round": number}
                table = table_of(_requests(cell, told), None, **labels, block=start.block)
                run.write_round(table, cell.key, "measured", number)
                stored += 1
        starts += [{"block": start.block, "variant": start.variant}] * bool(stored)
    return starts


def _requests(cell: Cell, told: tuple[float, ...] | str) -> list[Made]:
    ttft, itl, *tokens = told if isinstance(told, tuple) else (50.0, 10.0)
    events = [(round((ttft + k * itl) * MS), 1) for k in range(int(tokens[0]) if tokens else cell.output)]
    good = Made(events, told=len(events), told_input=cell.input, asked_input=cell.input)
    requests = [good] * cell.requests
    if told == FAILED:
        requests[-1] = Made(status="failed", told_input=cell.input, asked_input=cell.input)
    if told == "cached_prefix":
        requests = [Made(events, told=cell.output, told_input=cell.input, asked_input=cell.input, cached=64)] * len(
            requests
        )
    return requests
