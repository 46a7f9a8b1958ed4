"""`bench capacity`, carried out: a search a shape, each probe a cell of the run; with blocks, in each start anew."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchbench.boundary.boundary_search import Ask
from benchbench.boundary.start_estimate import Estimate
from benchbench.capacity.answer_texts import run_json, run_table, sentence_of
from benchbench.capacity.observations import pooling
from benchbench.capacity.probes import (
    ASKED,
    BEGUN,
    COUNTED,
    DIED,
    ENDED,
    UNSEEN,
    VOID,
    Made,
    SearchState,
    observed_in,
    searches_of,
    spoiled_rounds,
)
from benchbench.capacity.targets import Target, cell_at, place_of, targets_of
from benchbench.errors import EngineDiedError, RunError, StoppedError
from benchbench.figures.caption import PROBES
from benchbench.measure.cells import Driver, measure_cell
from benchbench.measure.observer import Observer
from benchbench.measure.run import Outcome, Search, default_out, sweep
from benchbench.measure.sessions import Sessions, Todo
from benchbench.model.served import caption_of
from benchbench.spec import Cell, Plan, SweepSpec, make_plan
from benchbench.spec.cell import CellInfo
from benchbench.store.run_directory import RunDirectory, replace_file

WIDTH, BUDGET_S = 0.05, 1800.0
TRIES = 3  # of a probe whose rounds something beside the server spoils
Tell = Callable[[SearchState, Made], None]


class SearchEnd(NamedTuple):
    """`width`: (fails at - holds at) / fails at. `budget_s`: seconds of probes for each search."""

    width: float
    budget_s: float


def find_capacity(  # noqa: PLR0913 - the options of the command
    spec: SweepSpec,
    out: str | Path | None = None,
    *,
    width: float = WIDTH,
    budget_s: float = BUDGET_S,
    only: str | None = None,
    sets: Sequence[str] = (),
    resume: bool = False,
    observer: Observer | None = None,
    stop: int | None = None,
    tell: Tell = lambda _state, _made: None,
) -> Outcome:
    """Search each shape of a sweep for the largest load that meets its `slo`, and leave a run directory.

    The answers are in its `capacity.json` and `capacity.md`. `width`: how near the two loads of an answer shall be, as
    a share; `budget_s`: seconds of each search; `tell` is called after each probe. Arguments and errors else as of
    `measure.run.sweep`; EngineError also for what cannot be searched, RunError for a run to resume that is none of a
    capacity.
    """
    path = Path(out) if out is not None else default_out(spec, resume=resume)
    searching = _Searching(spec, make_plan(spec, only), SearchEnd(width, budget_s), tell)
    if resume and (path / "manifest.json").exists():
        searching.recall(RunDirectory(path))
    search = Search(searching.plan(), searching.todo(), searching.work)
    outcome = sweep(spec, path, only=only, sets=sets, resume=resume, observer=observer, stop=stop, search=search)
    if (path / "manifest.json").exists():
        run = RunDirectory(path)
        replace_file(path / "capacity.md", run_table(run).encode())
        replace_file(path / "capacity.json", run_json(run).encode())
    return outcome


class _Searching:
    """All searches of a run, and the cells of their probes."""

    def __init__(self, spec: SweepSpec, grid: Plan, end: SearchEnd, tell: Tell) -> None:
        self.spec, self.grid, self.end, self.tell = spec, grid, end, tell
        self.targets = targets_of(grid)
        self.states: dict[tuple[Target, int | None], SearchState] = {}
        self.cells: dict[str, Cell] = {}
        self.begun = False
        self.last = ""  # the cell of the last probe of this process: it is warm

    def recall(self, run: RunDirectory) -> None:
        """The searches of a run that goes on. Raises RunError, also where the limits are not the same any more."""
        before = {entry["key"]: CellInfo.model_validate(entry) for entry in run.manifest()["plan"]}
        for state in searches_of(run):
            state.width, state.budget_s = self.end
            self.states[state.target, state.block] = state
            for made in state.made:
                now, then = self.cell(state.target, made.load, made.first + made.rounds).info, before[made.cell]
                if (now.slo, now.validity) != (then.slo, then.validity):
                    raise RunError(f"{run.path}: slo or validity were others when it was begun: use another --out")

    def state(self, target: Target, block: int | None) -> SearchState:
        """That of a target in a start."""
        return self.states.setdefault((target, block), SearchState(target, block, *self.end))

    def step(self, state: SearchState) -> object:
        """Its next step, of several starts from where the last one ended."""
        before = [of for (target, _), of in self.states.items() if target == state.target and of is not state]
        known = [step.capacity for of in before if isinstance(step := of.step(), Estimate)]
        return state.step(next((capacity for capacity in reversed(known) if capacity), None))

    def cell(self, target: Target, load: float, rounds: int) -> Cell:
        """The cell of a load, with `rounds` rounds in all (with blocks: in each start)."""
        cell = cell_at(self.spec, target, load, rounds)
        if self.spec.block_count is not None:
            most = max(self.spec.rounds.min, pooling(cell.slo, cell.requests))
            cell = cell_at(self.spec, target, load, most)
        place = self.targets.index(target) * 1_000_000 if target in self.targets else 0
        cell = replace(cell, index=place + (int(load) if target.axis == "batch" else int(1000 * load) % 1_000_000))
        self.cells[cell.key] = cell
        return cell

    def plan(self) -> Plan:
        """The cells that are known, in the session in which their variant is first served."""
        of = {session.variant: session for session in reversed(self.grid.sessions)}
        mine = {name: tuple(cell for cell in self.cells.values() if cell.variant == name) for name in of}
        return Plan(self.spec, tuple(replace(session, cells=mine[name]) for name, session in of.items()))

    def todo(self) -> deque[Todo]:
        """The sessions with searches that are not over; for each a cell of its target."""
        todo = deque[Todo]()
        for session in self.grid.sessions:
            targets = [target for target in self.targets if target.variant == session.variant]
            left = [target for target in targets if not _is_over(self.state(target, session.block))]
            cells = [(cell_at(self.spec, target, target.low, 1), 0) for target in left]
            if cells:
                todo.append(Todo(session, cells))
        return todo

    def work(self, sessions: Sessions, driver: Driver, cells: list[tuple[Cell, int]]) -> None:
        """One probe of the search whose cell is the first; it is taken out where that is over."""
        if not self.begun:
            driver.run.journal(BEGUN, **self.end._asdict(), targets=[target.to_entry() for target in self.targets])
            self.begun = True
            self._write_caption(driver)
        cell = cells[0][0]
        target = next(t for t in self.targets if (t.variant, t.shape) == place_of(cell))
        state = self.state(target, driver.block)
        if not (state.made and not state.made[-1].ended):
            step = self.step(state)
            if not isinstance(step, Ask):
                cells.pop(0)
                self._write_caption(driver)
                return
            self._ask(sessions, driver, state, step)
        self._carry_out(driver, state, state.made[-1])

    def _write_caption(self, driver: Driver) -> None:
        """The lines below the run's tables: what they are tables of, and what is known."""
        lines = [sentence_of(state) for state in self.states.values() if state.block is None and state.made]
        lines = [*caption_of(self.spec), PROBES, *lines]
        driver.run.write_manifest({**driver.run.manifest(), "caption": lines})

    def _ask(self, sessions: Sessions, driver: Driver, state: SearchState, step: Ask) -> None:
        """Write down what is asked, before its first round."""
        fresh = self.cell(state.target, step.load, 1)
        have = len(driver.run.finished_rounds(fresh.key)) if driver.block is None else 0
        rounds = step.rounds * pooling(fresh.slo, fresh.requests)
        cell = self.cell(state.target, step.load, have + rounds)
        first = have
        if driver.block is not None:
            rounds, first = cell.rounds.min, driver.block * cell.rounds.min
        state.made.append(Made(step.load, step.test, cell.key, first, rounds))
        sessions.plan = self.plan()
        entries = [known.info.to_entry() for known in sessions.plan.cells]
        driver.run.write_manifest({**driver.run.manifest(), "plan": entries})
        place = {"target": state.target.to_entry(), "block": state.block, "cell": cell.key}
        numbers = {"first": first, "rounds": rounds}
        driver.run.journal(ASKED, **place, load=step.load, test=step.test, **numbers)

    def _carry_out(self, driver: Driver, state: SearchState, made: Made) -> None:
        """Measure the probe's rounds; those that something beside the server spoiled are set aside, and measured again.

        Raises StoppedError where they stay invalid for a reason that is not the load's.
        """
        cell, run, begun = self.cells[made.cell], driver.run, time.monotonic()
        try:
            for attempt in range(TRIES):
                self._measure(driver, cell, made)
                made.observed = observed_in(run, cell.info, made)
                spoiled = made.observed.limited + made.observed.invalid
                if not spoiled or attempt == TRIES - 1:
                    break
                for number in (numbers := spoiled_rounds(run, cell.info, made)):
                    run.set_aside(cell.key, number)
                again = f"{len(numbers)} round{'s'[: len(numbers) != 1]} measured again"
                driver.observer.note(f"{cell.label}: {', '.join(spoiled)}: {again}")
        except EngineDiedError:
            made.ended = DIED
            self._end(driver, state, made, begun)
            raise
        if made.observed.invalid:
            made.observed = UNSEEN
            raise StoppedError(f"{cell.label}: {', '.join(spoiled)}, so that nothing can be said of this load")
        made.ended = VOID if spoiled else COUNTED
        self._end(driver, state, made, begun)

    def _measure(self, driver: Driver, cell: Cell, made: Made) -> None:
        lacking = {*range(made.first, made.first + made.rounds)} - {*driver.run.finished_rounds(cell.key)}
        if not lacking:
            return
        warm = cell.key == self.last
        rounds = cell.rounds.model_copy(update={"warmup": 0}) if warm else cell.rounds
        self.last = ""
        measure_cell(driver, replace(cell, rounds=rounds), len(lacking))
        self.last = cell.key

    def _end(self, driver: Driver, state: SearchState, made: Made, begun: float) -> None:
        made.seconds = time.monotonic() - begun
        driver.run.journal(ENDED, cell=made.cell, how=made.ended, seconds=made.seconds)
        if made.ended == DIED:
            made.observed = observed_in(driver.run, self.cells[made.cell].info, made)
        self.tell(state, made)


def _is_over(state: SearchState) -> bool:
    return all(made.ended for made in state.made) and not isinstance(state.step(), Ask)
