"""Cells and their rounds: prompts made, the worker driven, the round stored, the cell summed up.

Between rounds this process encodes and writes; while a round runs it sleeps on the worker's pipe.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchbench.engines.open import Opened
from benchbench.errors import EngineDiedError, EngineError, InterruptedSweep, StoppedError, WorkerDiedError
from benchbench.host.sampler import Sampler
from benchbench.loadgen.worker import Worker
from benchbench.measure.observer import Observer, Pace
from benchbench.openai.server_counters import ServerView
from benchbench.openai.target import Target
from benchbench.secrets import mask_text
from benchbench.spec import Cell
from benchbench.store.requests import ErrorKind, ErrorPhase, RequestStatus
from benchbench.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from benchbench.analysis.metrics import RoundMetrics
    from benchbench.spec.cell import CellInfo
    from benchbench.store.requests import RoundColumns

# Statuses with which a server refuses every request of a sweep, and the key at fault.
REFUSALS = {401: "engine.api_key_env", 403: "engine.api_key_env", 404: "model", 405: "engine.url"}

BROKEN = {ErrorKind.CONNECT, ErrorKind.SEND, ErrorKind.STREAM}  # what a server that is gone leaves behind
WARMUP_ROUNDS = 8  # of warmup: auto, at most,
WARMUP_TOKENS = 32  # and the most output tokens in them
DEATH_S = 5.0  # an engine whose connections broke ends within this time, or it lives


@dataclass(slots=True)
class Driver:
    """Everything that measuring a cell takes in one life of an engine, in block `block` of a sweep with variants.

    `rows`: summary rows of the cells measured, by key.
    """

    run: RunDirectory
    worker: Worker
    opened: Opened
    observer: Observer
    stop: int | None
    attempts: dict[tuple[str, str, int], int]
    sampler: Sampler
    block: int | None = None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    answered: bool = False  # some request has succeeded
    told: set[str] = field(default_factory=set)  # cells whose first failure the observer knows
    view: ServerView | None = field(init=False)  # an engine without a server counts for itself

    def __post_init__(self) -> None:
        opened = self.opened
        self.view = ServerView(opened.url, opened.access, opened.capabilities.metrics) if opened.url else None


def missing_rounds(run: RunDirectory, cell: Cell, block: int | None = None) -> int:
    """Measured rounds that a cell still lacks (in a block), as far as its finished ones tell."""
    have = run.finished_rounds(cell.key)
    if block is not None:
        return len(block_rounds(cell, block) - {*have})
    done = len(have)
    if done < cell.rounds.min or cell.rounds.min == cell.rounds.max:
        return max(0, cell.rounds.min - done)
    from benchbench.analysis.summary import metrics_of

    info = cell.info
    return max(0, _goal(info, cell, metrics_of(info, run.read_cell(cell.key))) - done)


def block_rounds(cell: Cell, block: int) -> set[int]:
    """The numbers of a cell's rounds in one block: each has `rounds.min`, counted on through the blocks."""
    return set(range(block * cell.rounds.min, (block + 1) * cell.rounds.min))


def _next_round(
    block: int | None, info: CellInfo, cell: Cell, have: set[int], rounds: Sequence[RoundMetrics]
) -> int | None:
    """The number of the round to measure now; None when there are enough."""
    if block is not None:
        return min(block_rounds(cell, block) - have, default=None)
    if len(have) >= _goal(info, cell, rounds):
        return None
    return next(number for number in range(len(have) + 1) if number not in have)


def _goal(info: CellInfo, cell: Cell, rounds: Sequence[RoundMetrics]) -> int:
    """Rounds to measure in all: those that the asked interval needs, within max and the time budget."""
    from benchbench.analysis.evidence import wanted_rounds

    if cell.rounds.budget_s is not None and sum(one.duration_s for one in rounds) >= cell.rounds.budget_s:
        return len(rounds)
    return min(cell.rounds.max, wanted_rounds(info, rounds))


def measure(driver: Driver, todo: Sequence[tuple[Cell, int]]) -> None:
    """Measure cells, each with the rounds that it lacks as `missing_rounds` tells, in their order.

    Raises InterruptedSweep, StoppedError, EngineDiedError, EngineError, WorkerDiedError and OSError.
    """
    for place, (cell, missing) in enumerate(todo):
        after = driver.pace.left_steps - cell.output * missing
        try:
            _cell(driver, cell, after)
        except EngineDiedError as died:
            _given_up(driver, cell, died.reason)
            raise EngineDiedError(died.reason, todo[place + 1 :]) from None
        finally:
            driver.pace.left_steps = after


def _cell(driver: Driver, cell: Cell, after: int) -> None:
    """Warm up, then measure; give a cell up when all requests of a measured round failed.

    `after`: steps that the pace counts for later cells, from which rounds beyond the least take nothing.
    """
    from benchbench.analysis.summary import metrics_of

    run, tables = driver.run, driver.run.read_cell(cell.key)
    info = cell.info
    rounds = list(metrics_of(info, tables))
    warmups = [*run.read_cell(cell.key, "warmup"), *_warm_up(driver, cell)]
    have = set(run.finished_rounds(cell.key))
    while (number := _next_round(driver.block, info, cell, have, rounds)) is not None:
        table = _round(driver, cell, "measured", number)
        tables.append(table)
        rounds += metrics_of(info, [table])
        have.add(number)
        driver.pace.left_steps = max(after, driver.pace.left_steps - cell.output)
        if RequestStatus.OK not in table["status"].to_pylist():
            run.journal("cell_given_up", cell=cell.key, block=driver.block, reason=table["error_detail"][0].as_py())
            break
    _done(driver, cell, tables, warmups)


def _done(driver: Driver, cell: Cell, tables: list[pa.Table], warmups: list[pa.Table]) -> None:
    """Sum the cell up as it will be summed up again from its files, telemetry's too."""
    from benchbench.analysis.roofline import platform_of
    from benchbench.analysis.runs import samples_of
    from benchbench.analysis.summary import summarise, summary_row

    driver.sampler.flush()
    for note in driver.sampler.notes():
        driver.observer.note(note)
    platform = platform_of(driver.run.manifest(), cell.variant)
    row = summary_row(summarise(cell.info, tables, warmups, samples_of(driver.run, tables), platform))
    driver.rows[cell.key] = row
    driver.run.journal("cell_done", cell=cell.key, status=row["status"], reasons=row["reasons"])
    driver.observer.row(cell, row)


def _given_up(driver: Driver, cell: Cell, reason: str) -> None:
    """A cell in which the engine died: what there is of it stays, and it is not tried again."""
    driver.run.journal("cell_given_up", cell=cell.key, block=driver.block, reason=reason)
    _done(driver, cell, driver.run.read_cell(cell.key), driver.run.read_cell(cell.key, "warmup"))


def _warm_up(driver: Driver, cell: Cell) -> list[pa.Table]:
    """The cell's own input and batch: as many whole rounds as asked, or short ones until two agree.

    Kernels are tuned and graphs captured for each shape, so a fixed count of one prompt would not do.
    """
    from benchbench.analysis.evidence import warmed_up
    from benchbench.analysis.summary import metrics_of

    first = len(driver.run.finished_rounds(cell.key, "warmup"))
    if cell.rounds.warmup != "auto":
        return [_round(driver, cell, "warmup", first + k) for k in range(int(cell.rounds.warmup))]
    info, tables, rounds = cell.info, list[Any](), list[Any]()
    for number in range(first, first + WARMUP_ROUNDS):
        output = min(cell.output, WARMUP_TOKENS)
        tables.append(_round(driver, cell, "warmup", number, output))
        rounds += metrics_of(info, tables[-1:])
        if warmed_up(info, rounds) or RequestStatus.OK not in tables[-1]["status"].to_pylist():
            break
    return tables


def _round(driver: Driver, cell: Cell, phase: str, number: int, output: int | None = None) -> pa.Table:
    """Drive one round and store it; when this raises, nothing of the round is stored."""
    from benchbench.store.requests import round_table

    run, place, opened = driver.run, (cell.key, phase, number), driver.opened
    driver.observer.round(cell, phase, number, driver.pace.left_s())
    attempt = driver.attempts.get(place, 0)
    driver.attempts[place] = attempt + 1
    run.journal("round_begun", cell=cell.key, phase=phase, round=number, attempt=attempt)
    job, view = opened.job(cell, phase, number, attempt, output), driver.view
    if view and cell.rounds.reset_prefix_cache:
        view.reset_prefix_cache()
    before = view.before() if view and phase == "measured" else None
    try:
        columns, facts = driver.worker.run(job, driver.stop)
    except WorkerDiedError as error:
        if opened.url:
            raise
        raise EngineDiedError(str(error)) from None
    if facts["cancelled"]:
        raise InterruptedSweep
    # Servers quote what they refuse.
    secrets = opened.access.secrets
    columns["error_detail"] = [mask_text(detail, secrets) if detail else "" for detail in columns["error_detail"]]
    death = facts.get("engine_died") or _death(opened, columns)
    if opened.url and RequestStatus.FAILED in columns["status"] and not death:
        _judge_failures(columns, opened.target(cell), answered=driver.answered)
    driver.answered |= RequestStatus.OK in columns["status"]
    if view:
        facts["server"] = None if death else view.after(before, columns)
    facts["common_tokens"] = opened.common_tokens(cell) * len(columns["index"])
    labels = {
        "cell": cell.key,
        "variant": cell.variant,
        "phase": phase,
        "round": number,
        "block": driver.block,
        "attempt": attempt,
        "input": cell.input,
        "output": cell.output,
        "batch": cell.batch,
        "rate": cell.rate,
        "load": cell.load.kind,
    }
    table = round_table(columns, labels, facts)
    run.write_round(table, *place)
    driver.pace.seconds += facts["wall_ns"] / 1e9
    driver.pace.steps += output or cell.output
    if cell.key not in driver.told and (told := _failure(table)):
        driver.told.add(cell.key)
        driver.observer.note(f"{cell.label}: {told}")
    if death:
        raise EngineDiedError(death)
    return table


def _death(opened: Opened, columns: RoundColumns) -> str | None:
    """Why the engine that we own is of no use any more, judged by a round's failures; then they say so too.

    It ends some moments after its connections broke. One that lives and left every request without a token hangs.
    """
    if opened.watch is None:
        return None
    failed = [k for k, status in enumerate(columns["status"]) if status == RequestStatus.FAILED]
    kinds = {columns["error_kind"][k] for k in failed}
    broken = bool(kinds & BROKEN) or any(columns["http_status"][k] >= 500 for k in failed)
    _, why = opened.watch
    reason, until = why(), time.monotonic() + DEATH_S
    while reason is None and broken and time.monotonic() < until:
        time.sleep(0.05)
        reason = why()
    if (
        reason is None
        and failed
        and len(failed) == len(columns["status"])
        and kinds <= {ErrorKind.STALL, ErrorKind.TIMEOUT}
    ):
        reason = f"the engine hangs: {columns['error_detail'][failed[0]]}"
    if reason is not None:
        details = columns["error_detail"]
        details[:] = [text if not text or reason in text else f"{text}; {reason}" for text in details]
    return reason


def _failure(table: pa.Table) -> str:
    """How many requests of a round failed, and how the first of them did; empty when none has."""
    statuses = table["status"].to_pylist()
    if RequestStatus.FAILED not in statuses:
        return ""
    at = statuses.index(RequestStatus.FAILED)
    kind, phase, detail = (table[f"error_{name}"][at].as_py() for name in ("kind", "phase", "detail"))
    return (
        f"{statuses.count(RequestStatus.FAILED)} of {len(statuses)} requests failed, first: {kind} ({phase}): {detail}"
    )


def _judge_failures(columns: RoundColumns, target: Target, *, answered: bool) -> None:
    """Stop when going on makes no sense: the server is gone, or it refuses everything from the start."""
    failed = [k for k, status in enumerate(columns["status"]) if status == RequestStatus.FAILED]
    everything = len(failed) == len(columns["status"])
    detail = columns["error_detail"][failed[0]]
    where = f"{target.host}:{target.port}"
    if everything and all(columns["error_phase"][k] == ErrorPhase.CONNECT for k in failed):
        raise StoppedError(f"the server at {where} is gone: {detail}")
    if {columns["error_kind"][k] for k in failed} & BROKEN and not _listens(target):
        raise StoppedError(f"the server at {where} is gone: {detail}")
    statuses = {int(columns["http_status"][k]) for k in failed}
    if not everything or answered or len(statuses) > 1:
        return
    status = statuses.pop()
    if status in REFUSALS:
        wrong_path = status == 404 and "model" not in detail.lower()  # a route that is not there, not a model
        raise EngineError(f"every request was refused: {detail}", "engine.url" if wrong_path else REFUSALS[status])
    if 300 <= status < 400:
        raise EngineError(f"the server redirects; give the final address: {detail}", "engine.url")


def _listens(target: Target) -> bool:
    """Whether anybody accepts connections where the target (or its proxy) is."""
    for _ in range(3):
        try:
            with socket.create_connection(target.proxy or (target.host, target.port), timeout=5):
                return True
        except OSError:
            time.sleep(0.2)
    return False
