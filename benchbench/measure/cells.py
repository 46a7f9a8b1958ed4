"""Cells and their rounds: prompts made, the worker driven, the round stored, the cell summed up.

Between rounds this process encodes and writes; while a round runs it sleeps on the worker's pipe.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from benchbench.analysis.evidence import is_noisy, pilot_for, pilot_of, wanted_rounds, warmed_up
from benchbench.analysis.metrics import RoundMetrics
from benchbench.analysis.runs import cell_summary
from benchbench.analysis.summary import metrics_of, summary_row
from benchbench.counters.server_counters import of_server
from benchbench.counters.server_metrics import Counts
from benchbench.engines.failures import check_server, death_of, first_failure
from benchbench.engines.open import Opened
from benchbench.engines.same_server import SameServer
from benchbench.engines.shared_prefixes import prepare_cache
from benchbench.errors import EngineDiedError, InterruptedSweep, WorkerDiedError
from benchbench.host.sampler import Sampler
from benchbench.identity.answering_engines import servers_named
from benchbench.linux import stolen_ns
from benchbench.loadgen.job import Job
from benchbench.loadgen.worker import Worker
from benchbench.measure.observer import Observer, Pace
from benchbench.model.roofline import Platform
from benchbench.prompts.prefix_groups import with_asked_hits
from benchbench.spec import Cell
from benchbench.spec.schema import WARMUP_ROUNDS, WARMUP_TOKENS
from benchbench.store.requests import RequestStatus, RoundColumns, round_table
from benchbench.store.run_directory import RunDirectory


@dataclass(slots=True)
class Driver:
    """Everything that measuring a cell takes in one session, in block `block` of a sweep with variants.

    `rows`: values of the summary rows of the cells measured, by key: pickled, a sixth of their size.
    """

    run: RunDirectory
    worker: Worker
    opened: Opened
    observer: Observer
    stop: int | None
    identity: str  # by which the start is known again
    server: SameServer
    attempts: dict[tuple[str, str, int], int]
    sampler: Sampler
    platform: Platform | None  # what serves on what, as the manifest has it
    in_use: tuple[str, ...] = ()  # GPUs that others used when the engine was started
    block: int | None = None
    rows: dict[str, bytes] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    answered: bool = False  # some request has succeeded
    noisy: list[bool] = field(default_factory=list)  # of each cell measured in this session
    failing: set[str] = field(default_factory=set)  # cells whose first failure the observer knows

    def __post_init__(self) -> None:
        if self.opened.dealer:
            self.opened.dealer.attempts = self.attempts


class Step(NamedTuple):
    """A round to drive: `output` tokens a request; `pilot` of its cell, where rounds are added to it."""

    phase: str
    number: int
    output: int
    pilot: int | None = None


def missing_rounds(run: RunDirectory, cell: Cell, block: int | None = None) -> int:
    """Measured rounds that a cell still lacks (in a block), as far as its finished ones tell."""
    have = run.finished_rounds(cell.key)
    if block is not None:
        return len(block_rounds(cell, block) - {*have})
    done = len(have)
    if done < cell.rounds.min or cell.rounds.min == cell.rounds.max:
        return max(0, cell.rounds.min - done)
    return max(0, _goal(cell, metrics_of(cell.info, run.read_pieces(cell.key))) - done)


def block_rounds(cell: Cell, block: int) -> set[int]:
    """The numbers of a cell's rounds in one block: each has `rounds.min`, counted on through the blocks."""
    return set(range(block * cell.rounds.min, (block + 1) * cell.rounds.min))


def _goal(cell: Cell, rounds: Sequence[RoundMetrics]) -> int:
    """Rounds to measure in all: those that the asked interval needs, within max and the time budget."""
    if cell.rounds.budget_s is not None and sum(r.duration_s for r in rounds) >= cell.rounds.budget_s:
        return len(rounds)
    return min(cell.rounds.max, wanted_rounds(cell.info, rounds))


class _Rounds:
    """A cell's rounds, those stored before and those of this session, and which comes next.

    `noisy`: whether each cell was that was measured before; it says how many rounds the pilot has.
    """

    def __init__(self, run: RunDirectory, cell: Cell, block: int | None, noisy: Sequence[bool] = ()) -> None:
        self.cell, self.block = cell, block
        self.measured = list(metrics_of(cell.info, run.read_pieces(cell.key)))
        self.pilot = pilot_of(cell.info, self.measured) if self.measured else pilot_for(cell.info, noisy)
        self.numbers = set(run.finished_rounds(cell.key))
        self.first_warmup = len(run.finished_rounds(cell.key, "warmup"))
        self.warmups: list[RoundMetrics] = []  # of this session
        self.warm = False
        self.failure = ""  # of a measured round in which every request failed: the cell is given up

    def next(self) -> Step | None:
        """The round to drive now; None when there are enough.

        Warm-up has the cell's own input and batch: as many whole rounds as asked, or short ones until two agree.
        Kernels are tuned and graphs captured for each shape, so a fixed count of one prompt would not do.
        """
        cell, auto, warmups = self.cell, self.cell.rounds.warmup == "auto", len(self.warmups)
        if not self.warm and warmups < (WARMUP_ROUNDS if auto else int(cell.rounds.warmup)):
            output = min(cell.output, WARMUP_TOKENS) if auto else cell.output
            return Step("warmup", self.first_warmup + warmups, output)
        number = self._next_measured()
        pilot = self.pilot if self.block is None else None
        return None if number is None or self.failure else Step("measured", number, cell.output, pilot)

    def _next_measured(self) -> int | None:
        if self.block is not None:
            return min(block_rounds(self.cell, self.block) - self.numbers, default=None)
        if len(self.numbers) >= _goal(self.cell, self.measured):
            return None
        return next(number for number in range(len(self.numbers) + 1) if number not in self.numbers)

    def add(self, step: Step, table: pa.Table) -> None:
        """Count a round that is stored now."""
        cell = self.cell
        good = RequestStatus.OK in table["status"].to_pylist()
        if step.phase == "warmup":
            self.warmups += metrics_of(cell.info, [table])
            self.warm = cell.rounds.warmup == "auto" and (not good or bool(warmed_up(cell.info, self.warmups)))
            return
        self.measured += metrics_of(cell.info, [table])
        self.numbers.add(step.number)
        if not good:
            self.failure = table["error_detail"][0].as_py()


def measure_cell(driver: Driver, cell: Cell, missing: int) -> None:
    """Warm up, then measure the `missing` rounds; give a cell up when all requests of a measured round failed.

    Raises InterruptedSweep, StoppedError, EngineDiedError, EngineError, WorkerDiedError and OSError.
    """
    run, pace = driver.run, driver.pace
    later = pace.left_steps - cell.output * missing  # of other cells: rounds beyond the least take nothing from them
    rounds = _Rounds(run, cell, driver.block, driver.noisy)
    try:
        while step := rounds.next():
            job, counters = _prepare(driver, cell, step)
            before = stolen_ns()
            try:
                columns, facts = driver.worker.run(job, driver.stop)
            except WorkerDiedError as error:
                if driver.opened.url:
                    raise
                raise EngineDiedError(str(error)) from None
            facts["stolen_ns"] = max((now - then for now, then in zip(stolen_ns(), before, strict=False)), default=0)
            rounds.add(step, _store(driver, cell, step, columns, facts, counters))
            if step.phase == "measured":
                driver.observer.measured(rounds.measured)
                pace.left_steps = max(later, pace.left_steps - cell.output)
        driver.noisy.append(is_noisy(cell.info, rounds.measured))
        if rounds.failure:
            run.journal("cell_given_up", cell=cell.key, block=driver.block, reason=rounds.failure)
        _sum_up(driver, cell)
    except EngineDiedError as died:  # what there is of the cell stays, and it is not tried again
        run.journal("cell_given_up", cell=cell.key, block=driver.block, reason=died.reason)
        _sum_up(driver, cell)
        raise
    finally:
        pace.left_steps = later


def _sum_up(driver: Driver, cell: Cell) -> None:
    """Sum the cell up from its files, telemetry's too, as it can be summed up again at any time."""
    driver.sampler.flush()
    for note in driver.sampler.notes():
        driver.observer.note(note)
    row = summary_row(cell_summary(driver.run, cell.info, driver.platform))
    driver.rows[cell.key] = pickle.dumps(tuple(row.values()))
    driver.run.journal("cell_done", cell=cell.key, status=row["status"], reasons=row["reasons"])
    driver.observer.row(cell, row)


def _prepare(driver: Driver, cell: Cell, step: Step) -> tuple[Job, list[Counts] | None]:
    """The round's job, and the servers' counters before it."""
    place, view = (cell.key, step.phase, step.number), driver.server.view
    driver.observer.round(cell, step.phase, step.number, driver.pace.left_s())
    attempt = driver.attempts.get(place, 0)
    driver.attempts[place] = attempt + 1
    driver.run.journal("round_begun", cell=cell.key, phase=step.phase, round=step.number, attempt=attempt)
    job = driver.opened.job(cell, step.phase, step.number, attempt, step.output)
    if view:
        prepare_cache(driver.opened, view, cell)
    return job, view.before() if view and step.phase == "measured" else None


def _store(
    driver: Driver, cell: Cell, step: Step, columns: RoundColumns, facts: dict[str, Any], counters: list[Counts] | None
) -> pa.Table:
    """Store a round; when this raises, nothing of it is stored, but for EngineDiedError."""
    if facts["cancelled"]:
        raise InterruptedSweep
    opened, view = driver.opened, driver.server.view
    death = facts.get("engine_died") or death_of(opened, columns)
    for number, target in enumerate(() if death else opened.targets(cell)):
        check_server(of_server(columns, number), target, cell, answered=driver.answered)
    driver.answered |= RequestStatus.OK in columns["status"]
    if view:
        facts["server"] = {"replicas": False} if death else view.after(counters, columns)
    if not death and (note := driver.server.notice(facts.get("peers", {}), servers_named(columns))):
        driver.observer.note(note)
        driver.rows.clear()  # of cells whose status may be another one now
    if step.pilot is not None:
        facts["pilot"] = step.pilot
    facts["identity"], facts["targets"] = driver.identity, len(opened.urls)
    facts["in_use"] = driver.in_use
    facts["answered_by"] = [] if death else driver.server.answered_by(columns)
    facts["other_model"] = driver.server.other_model(cell.engine, columns)
    facts["approximate"] = opened.approximate and cell.prompts.kind == "text"
    facts["common_tokens"] = opened.common_tokens(cell) * len(columns["index"])
    labels = {
        "cell": cell.key,
        "variant": cell.variant,
        "phase": step.phase,
        "round": step.number,
        "block": driver.block,
        "attempt": driver.attempts[cell.key, step.phase, step.number] - 1,
        "input": cell.input,
        "output": cell.output,
        "batch": cell.batch,
        "rate": cell.rate,
        "load": cell.load.kind,
    }
    table = round_table(with_asked_hits(columns, cell, labels, facts), labels, facts)
    driver.run.write_round(table, cell.key, step.phase, step.number)
    driver.pace.seconds += facts["wall_ns"] / 1e9
    driver.pace.steps += step.output
    if cell.key not in driver.failing and (failure := first_failure(table)):
        driver.failing.add(cell.key)
        driver.observer.note(f"{cell.label}: {failure}")
    if death:
        raise EngineDiedError(death)
    return table
