"""One sweep, start to end: run directory locked, engine and worker started, cells measured, results written."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from benchbench.analysis.runs import Run, cell_summary
from benchbench.analysis.summary import COLUMNS, UNITS, summary_row
from benchbench.errors import (
    BenchError,
    EngineError,
    InterruptedSweep,
    LaunchStoppedError,
    ModelError,
    RunError,
    StoppedError,
    WorkerDiedError,
)
from benchbench.fidelity.ask import owed
from benchbench.host.local_results import closing
from benchbench.identity.starts import same_engines
from benchbench.measure.cells import missing_rounds
from benchbench.measure.manifest import staying
from benchbench.measure.observer import Observer
from benchbench.measure.retry import set_aside
from benchbench.measure.sessions import Sessions, Todo, Work
from benchbench.model.served import served_models
from benchbench.prompts.prompt_dealer import Dealer, dealt_otherwise
from benchbench.report.summary_table import markdown_table
from benchbench.secrets import MASK, masked
from benchbench.spec import Plan, Session, SweepSpec, make_plan
from benchbench.spec.cell import cell_name
from benchbench.store.facts import Manifest
from benchbench.store.run_directory import RunDirectory, replace_file

if TYPE_CHECKING:
    from benchbench.comparison.pairs import Pair

State = Literal["complete", "stopped", "interrupted"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a sweep ended. `message` says why it stopped, `key` which key of the sweep is concerned, if one is.

    `rows` are summary.csv's, one a cell; `table` is table.md; `pairs` and `verdicts` compare a sweep's variants: one a
    candidate, and its sentence.
    """

    path: Path
    state: State
    message: str
    rows: list[dict[str, Any]] = field(repr=False)
    table: str = field(default="", repr=False)
    key: str = ""
    pairs: tuple[Pair, ...] = field(default=(), repr=False)
    verdicts: tuple[str, ...] = ()


class Search(NamedTuple):
    """In place of a plan whose cells are not all known beforehand: those known, the sessions to do, what does them."""

    plan: Plan
    todo: deque[Todo]
    work: Work


def default_out(spec: SweepSpec, *, resume: bool) -> Path:
    """`runs/NAME-TIME`; with `resume` the latest run of that name that has rounds, if there is one."""
    if resume:
        earlier = sorted(Path("runs").glob(f"{spec.name}-[0-9]*/records/*-measured-*.parquet"))
        if earlier:
            return earlier[-1].parents[1]
    stem = f"{spec.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))  # of one second
    return next(path for name in names if not (path := Path("runs") / name).exists())


def stored_sets(out: Path) -> tuple[str, ...]:
    """What was --set when the run at `out` was begun, secrets left out; nothing where there is no run."""
    return tuple(given for given in RunDirectory(out).earlier().get("sets", ()) if MASK not in given)


def sweep(  # noqa: PLR0913 - the options of the command
    spec: SweepSpec,
    out: str | Path | None = None,
    *,
    only: str | None = None,
    sets: Sequence[str] = (),
    resume: bool = False,
    retry: str | None = None,
    observer: Observer | None = None,
    stop: int | None = None,
    choose: Callable[[RunDirectory, Session], bool] | None = None,
    search: Search | None = None,
) -> Outcome:
    """Carry a sweep out and leave a run directory.

    `only`: a selection such as "batch>=8,input=128". `retry`: of a resumed run, "invalid" or a reason's code: what it
    spoiled is measured again. `sets`: what was --set in the spec, for the manifest. `choose`: whether a start is still
    wanted, asked before it. `search` stands in place of the plan. `stop`: a descriptor; when it becomes readable, the
    running round is dropped and the sweep ends in state "interrupted". A KeyboardInterrupt ends it the same way and is
    raised again. Where nothing was measured and no engine has left a log, no folder stays. Raises SpecError
    (selection), EngineError (model, credentials ...) and RunError (directory).
    """
    plan = search.plan if search else make_plan(spec, only)
    try:
        models = served_models(spec)
    except ModelError as error:
        raise EngineError(str(error), "model_facts.config") from None
    dealer = Dealer(spec)
    run = RunDirectory(Path(out) if out is not None else default_out(spec, resume=resume))
    run.open_for_writing(resume=resume)
    observer = observer or Observer()
    try:
        for note in [*dealer.check(), *(_goes_on(run, plan, only, retry) if resume else ())]:
            observer.note(note)
        todo, work = (search.todo, search.work) if search else (lacking(run, plan), None)
        if not todo and _is_concluded(run, plan):
            rows = _rows(run, {})
            return Outcome(run.path, "complete", "nothing left to do", rows, _table(run, run.manifest(), rows))
        given = {"only": only, "sets": masked(sets)}
        sessions = Sessions(plan, given, run, observer, stop, todo, models, choose, work, dealer)
        with concluding(sessions) as outcomes:
            sessions.prepare()
            while sessions.todo:
                sessions.serve_next()
        return outcomes[0]
    finally:
        run.drop_if_empty()
        run.close()


@contextlib.contextmanager
def concluding(sessions: Sessions) -> Iterator[list[Outcome]]:
    """However the starts in the block end, write what follows from the run's records; the list gets the outcome.

    Raises as `sweep`.
    """
    run, outcomes = sessions.run, list[Outcome]()
    try:
        yield outcomes
        outcomes.append(_conclude(run, "complete", "", sessions.rows))
    except KeyboardInterrupt:
        _conclude(run, "interrupted", "interrupted", sessions.rows)
        raise
    except (BenchError, OSError) as error:
        state, message = _ending(run, error)
        key = ""
        if isinstance(error, EngineError):
            sessions.manifest()
            key = error.key
        outcomes.append(replace(_conclude(run, state, message, sessions.rows), key=key))


def _goes_on(run: RunDirectory, plan: Plan, only: str | None, retry: str | None) -> list[str]:
    """Notes on what a resumed run loses by its plan. Raises RunError when the plan's engines are not the run's own."""
    manifest, variants = run.earlier(), {session.variant for session in plan.sessions}
    if retry and not manifest:
        raise RunError(f"{run.path}: there is no run of which --retry could measure anything again")
    if not manifest:
        return ["nothing to resume: this is a new run"]
    if refusal := dealt_otherwise(manifest["spec"], plan.spec):
        raise RunError(f"{run.path}: {refusal}")
    notes = same_engines(run, masked(plan.spec.model_dump(mode="json")), variants)
    before, now = manifest["spec"].get("loadgen", {}).get("workers", "auto"), plan.spec.loadgen.workers
    if before != now:
        notes.append(f"loadgen.workers: {before} -> {now}; each round's facts say how many processes sent it")
    kept = {cell.key for cell in plan.cells} | {entry["key"] for entry in staying(manifest, plan, only)}
    lost = [cell_name(e) for e in manifest["plan"] if e["key"] not in kept and run.finished_rounds(e["key"])]
    if lost:
        notes.append(f"{len(lost)} measured cells are not in the sweep any more: out of the table, {lost[0]} first")
    return [*sorted(notes), *(set_aside(run, plan, retry) if retry else ())]


def lacking(run: RunDirectory, plan: Plan) -> deque[Todo]:
    """The sessions that lack any rounds or answers, without the cells that were given up."""
    given_up: dict[str, set[int | None]] = {}
    for event in run.events():
        if event["event"] == "cell_given_up":
            given_up.setdefault(event["cell"], set()).add(event.get("block"))
        elif event["event"] == "cell_retried":
            given_up.pop(event["cell"], None)
    todo = deque[Todo]()
    for session in plan.sessions:
        open_cells = [cell for cell in session.cells if session.block not in given_up.get(cell.key, ())]
        cells = [(cell, missing) for cell in open_cells if (missing := missing_rounds(run, cell, session.block))]
        if cells or (open_cells and owed(run, plan.spec, session)):
            todo.append(Todo(session, cells))
    return todo


def _ending(run: RunDirectory, error: Exception) -> tuple[State, str]:
    """How an error ends a sweep: its state and why. Raises the error where it ends the command, too."""
    if isinstance(error, OSError):
        return "stopped", _unwritable(run, error)
    if isinstance(error, (InterruptedSweep, LaunchStoppedError)):
        return "interrupted", "interrupted"
    if isinstance(error, (StoppedError, WorkerDiedError)) or (isinstance(error, EngineError) and error.gone):
        return "stopped", str(error)
    raise error


def _unwritable(run: RunDirectory, error: OSError) -> str:
    return f"cannot write {error.filename or run.path}: {error.strerror or error}"


def _is_concluded(run: RunDirectory, plan: Plan) -> bool:
    """Whether a run has been carried out and concluded for just these cells."""
    last, keys = deque(run.events(), 1), {cell.key for cell in plan.cells}
    return [event["event"] for event in last] == ["complete"] and keys <= {e["key"] for e in run.manifest()["plan"]}


def _conclude(run: RunDirectory, state: State, message: str, now: dict[str, bytes]) -> Outcome:
    """Write what follows from the records. A full disk must not hide why the sweep stopped."""
    if not (manifest := run.earlier()):
        return Outcome(run.path, state, message, [])
    manifest["plan"] = [{"slo": entry.get("slo")} for entry in manifest["plan"]]  # of a long one, rows take the place
    rows = _rows(run, now)
    table = ""
    compared: tuple[tuple[Pair, ...], tuple[str, ...]] = (), ()
    try:
        run.write_summary(rows, UNITS)
        table = _table(run, manifest, rows)
        replace_file(run.path / "table.md", table.encode())
        if len(manifest["spec"]["variants"]) > 1:
            compared = _compare(run)
        run.journal(state, message=message)
    except OSError as error:
        if state == "complete":
            state, message = "stopped", _unwritable(run, error)
    return Outcome(run.path, state, message, rows, table, "", *compared)


def _table(run: RunDirectory, manifest: Manifest, rows: list[dict[str, Any]]) -> str:
    """The run's table: what is printed is what is kept."""
    return markdown_table(rows, closing=[*closing(manifest, rows), *run.notes()])


def _compare(run: RunDirectory) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """The baseline against each other variant, written beside the table; their sentences."""
    from benchbench.comparison.candidates import pairs_of  # what a sweep of one build does without
    from benchbench.comparison.tables import comparison_json, comparison_table, sentence

    pairs = pairs_of(Run(run.path))
    replace_file(run.path / "compare.md", comparison_table(pairs).encode())
    replace_file(run.path / "compare.json", comparison_json(pairs).encode())
    return tuple(pairs), tuple(map(sentence, pairs))


def _rows(run: RunDirectory, now: dict[str, bytes]) -> list[dict[str, Any]]:
    """Rows of the whole plan, as written: those just made, and the others from their records."""
    read = Run(run.path)
    for cell in read.measured:
        if cell.key not in now:
            summary = cell_summary(run, cell, read.platform(cell.variant))
            now[cell.key] = pickle.dumps(tuple(summary_row(summary).values()))
    keys = [cell.key for cell in read.cells]
    del read
    return [dict(zip(COLUMNS, pickle.loads(now[key]), strict=True)) for key in keys]  # noqa: S301 - our own
