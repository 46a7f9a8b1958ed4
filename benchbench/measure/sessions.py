"""The sessions of a sweep, one by one: the engine started, its cells measured, and the machine at rest again."""

from __future__ import annotations

import contextlib
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from benchbench.datasets.laws import longest
from benchbench.engines.git_checkout import Checkout, built_alike, checkout, moved_into
from benchbench.engines.open import Opened, open_engine
from benchbench.engines.process import Hooks
from benchbench.engines.same_server import SameServer
from benchbench.errors import EngineDiedError, EngineError, MovedRefError, StoppedError, WorkerDiedError
from benchbench.fidelity.ask import answer, owed
from benchbench.host.rest import FREE_S, heat, in_use, wait_for_rest
from benchbench.host.sampler import Sampler, scope_of
from benchbench.inprocess.launcher import open_inprocess
from benchbench.loadgen.worker import Worker
from benchbench.measure.cells import Driver, measure_cell
from benchbench.measure.manifest import write_manifest
from benchbench.measure.observer import Observer, Pace
from benchbench.model.config import ModelFacts
from benchbench.model.roofline import platform_of
from benchbench.openai.client import Capabilities
from benchbench.prompts.prompt_dealer import Dealer
from benchbench.senders.group import WorkerGroup
from benchbench.senders.http_worker import HttpWorker
from benchbench.senders.sizing import open_workers
from benchbench.spec import Cell, EndpointEngine, Plan, Session, VllmInprocessEngine, VllmServeEngine
from benchbench.spec.plan import variant_spec
from benchbench.store.run_directory import RunDirectory, replace_file

# What measures some of a session's cells, takes those that are done out, and may put others into the sessions' plan.
Work = Callable[["Sessions", Driver, list[tuple[Cell, int]]], None]
LAUNCHED = (VllmServeEngine, VllmInprocessEngine)


@dataclass(slots=True)
class Todo:
    """A session, the cells that are still to be measured in it, each with how many rounds it lacks, and its restarts.

    Without cells it lacks only the answers to the fixed questions.
    """

    session: Session
    cells: list[tuple[Cell, int]]
    restarts: int | None = None  # that are left to a dead engine; None before its first start


@dataclass(slots=True)
class Sessions:
    """What all sessions of a sweep share. `idle_c`: each GPU's temperature before the first of them."""

    plan: Plan
    given: Mapping[str, Any]  # beside the file: `only` and `sets`, for the manifest
    run: RunDirectory
    observer: Observer
    stop: int | None
    todo: deque[Todo]
    models: Mapping[str, ModelFacts | None] | None = None  # what is served, by variant; see `served_models`
    choose: Callable[[RunDirectory, Session], bool] | None = None  # whether a start is still wanted; None: all are
    work: Work | None = None  # what measures cells; None: each as it is planned
    dealer: Dealer | None = None  # of the sweep's files of prompts
    rows: dict[str, bytes] = field(default_factory=dict)  # see `Driver`
    pace: Pace = field(default_factory=Pace)
    idle_c: dict[str, float] = field(default_factory=dict)
    unable: dict[str, EngineError] = field(default_factory=dict)  # variants that have never started
    able: set[str] = field(default_factory=set)
    checkouts: dict[str, Checkout] = field(default_factory=dict)
    noted: set[str] = field(default_factory=set)

    def prepare(self) -> None:
        """Fetch and build what variants are made from, before the first start: no build may warm up the machine later.

        Raises MovedRefError, LaunchStoppedError and OSError.
        """
        cells = [pair for todo in self.todo for pair in todo.cells]
        self.observer.begin(self.plan, self.run.path, len(cells))
        self.pace.left_steps = sum(cell.output * missing for cell, missing in cells)
        if not self.todo:
            self.manifest()
            return
        earlier = self.run.earlier()
        measured = {start["variant"] for start in earlier.get("starts", [])}
        commits = {name: facts["commit"] for name, facts in earlier.get("variants", {}).items() if name in measured}
        hooks = Hooks(self.run.path / "logs", self.observer.starting, self.stop)
        for warning in built_alike(self.plan.spec.variants):
            self._note_once(warning)
        for name, session in {todo.session.variant: todo.session for todo in reversed(self.todo)}.items():
            if not name or (git := self.plan.spec.variants[name].git) is None:
                continue
            try:
                self.checkouts[name] = source = checkout(git, name, hooks, commits.get(name))
            except MovedRefError:
                raise
            except EngineError as error:
                self._failed(session, error)
                continue
            if source.dirty:
                path = self.run.path / "git" / f"{name}.diff"
                path.parent.mkdir(exist_ok=True)
                replace_file(path, source.diff.encode())
                changes = f"uncommitted changes in {source.repo}, {source.dirty[0].strip()} first"
                self._note_once(f"variant {name}: {changes}, are not part of what is measured: see {path}")

    def serve_next(self) -> None:
        """The next session, if it is wanted: its engine started, what it lacks measured, the machine at rest again.

        An engine that died and may be started again makes another one. Of several variants, one that cannot start or
        dies once too often is recorded, and the others go on. Raises InterruptedSweep, LaunchStoppedError,
        StoppedError, WorkerDiedError, OSError and EngineError (when no variant at all can start).
        """
        todo = self.todo.popleft()
        session, plan = todo.session, self._plan_of(todo.session)
        if session.variant not in self.unable and (self.choose is None or self.choose(self.run, session)):
            with self._failures(todo, plan), self._driver(session, plan) as driver:
                while todo.cells:
                    self.work(self, driver, todo.cells) if self.work else measure_cell(driver, *todo.cells.pop(0))
                if owed(self.run, self.plan.spec, session):
                    self.observer.starting("asking the fixed questions", 0.0, session.variant)
                    if note := answer(self.run, driver.worker, driver.opened, plan.spec, session, self.stop):
                        self.observer.note(note)
        if not self.todo and self.unable and not self.able:
            raise next(iter(self.unable.values()))

    def _plan_of(self, session: Session) -> Plan:
        """The session's own plan; an engine from git starts in its checkout."""
        plan = self.plan.of_session(session)
        engine = plan.spec.engine
        if isinstance(engine, LAUNCHED) and (source := self.checkouts.get(session.variant)):
            engine = moved_into(engine, source.path)
            plan = replace(plan, spec=plan.spec.model_copy(update={"engine": engine}))
        return plan

    @contextlib.contextmanager
    def _failures(self, todo: Todo, plan: Plan) -> Iterator[None]:
        """What a dead or failing engine is to the sweep: another session, a variant left out, or the end."""
        try:
            try:
                yield
            except EngineDiedError as died:
                self._start_again(todo, plan, died.reason)
        except (EngineError, StoppedError, WorkerDiedError) as error:
            if todo.session.block is None:
                raise
            self._failed(todo.session, error)

    def _start_again(self, todo: Todo, plan: Plan, reason: str) -> None:
        engine, left = plan.spec.engine, len(todo.cells)
        allowed = engine.restarts if isinstance(engine, LAUNCHED) else 0
        restarts = allowed if todo.restarts is None else todo.restarts
        self.run.journal("engine_died", reason=reason, left=left, block=todo.session.block)
        if left and not restarts:
            raise StoppedError(f"{reason}; engine.restarts allows no other start")
        self.observer.note(reason + (f"; starting it again for {left} cells" if left else ""))
        if left:
            self.todo.appendleft(replace(todo, restarts=restarts - 1))

    def _failed(self, session: Session, error: Exception) -> None:
        self.run.journal("start_failed", block=session.block, variant=session.variant, reason=str(error))
        what, lines = f"failed in block {session.block}", list[str]()
        name = f"variant {session.variant}" if session.variant else "the engine"
        if isinstance(error, EngineError):
            lines = [*([f"allowed: {error.allowed}"] if error.allowed else []), *error.lines]
            if session.variant not in self.able:
                self.unable[session.variant], what = error, "cannot start, and is left out"
        for line in (f"{name} {what}: {error}", *(f"  {line}" for line in lines)):
            self.observer.note(line)

    def _note_once(self, text: str) -> None:
        """What is true of every start."""
        if text not in self.noted:
            self.noted.add(text)
            self.observer.note(text)

    @contextlib.contextmanager
    def _driver(self, session: Session, plan: Plan) -> Iterator[Driver]:
        """A started engine with all that measuring its cells takes; afterwards the machine is at rest again."""
        spec, observer = plan.spec, self.observer
        hooks = Hooks(self.run.path / "logs", observer.starting, self.stop)
        with Sampler(self.run.path, spec.telemetry, scope_of(spec.engine, spec.telemetry)) as sampler:
            before: Mapping[str, float] = {}
            busy = tuple[str, ...]()
            if isinstance(spec.engine, LAUNCHED):
                sampler.ready()
                before = sampler.read("memory_used_bytes")
                self.idle_c = self.idle_c or heat(sampler)
                busy = tuple(f"{gpu}: {share:.0%}" for gpu, share in in_use(sampler, self.stop).items())
                if busy:
                    observer.note(
                        f"in use before the engine was started ({', '.join(busy)}): all cells will be suspect"
                    )
            try:
                with start_engine(plan, hooks) as (engine, worker):
                    sampler.ready()
                    self.able.add(session.variant)
                    opened = replace(engine, notes=(*engine.notes, *sampler.notes()), dealer=self.dealer)
                    for note in [*opened.notes, *_too_long(plan, opened.capabilities)]:
                        self._note_once(note)
                    identify = partial(self.manifest, session, devices=sampler.facts())
                    identity = identify(opened)
                    opened = replace(opened, salt=self._salt(session.variant, opened))
                    yield Driver(
                        identity=identity,
                        server=SameServer(self.run, spec, opened, session.variant, self.stop, identify),
                        platform=platform_of(self.run.manifest(), session.variant),
                        run=self.run,
                        worker=worker,
                        opened=opened,
                        observer=observer,
                        stop=self.stop,
                        attempts=self.run.attempts(),
                        sampler=sampler,
                        in_use=busy,
                        block=session.block,
                        rows=self.rows,
                        pace=self.pace,
                    )
            finally:
                if before:
                    self._rest(sampler, before)

    def _salt(self, variant: str, opened: Opened) -> int:
        """`Opened.salt`: the run's own, and of each variant its own where others are asked at the same address."""
        spec = self.plan.spec
        if not isinstance(spec.engine, EndpointEngine) or opened.capabilities.prefix_hits:
            return 0
        others = [variant_spec(spec, name).engine for name in spec.variants if name != variant]
        is_shared = any(isinstance(engine, EndpointEngine) and {*engine.urls} & {*opened.urls} for engine in others)
        return self.run.manifest()["created_ns"] + (zlib.crc32(variant.encode()) if is_shared else 0)

    def manifest(
        self, session: Session | None = None, opened: Opened | None = None, devices: list[dict[str, Any]] | None = None
    ) -> str:
        """Write the manifest, with the start of this session in it; return the name of its identity."""
        variants = {name: source.facts for name, source in self.checkouts.items()}
        return write_manifest(self.run, self.plan, self.given, session, opened, devices, variants, self.models)

    def _rest(self, sampler: Sampler, before: Mapping[str, float]) -> None:
        """Wait until the GPUs are at rest, so that no start is handicapped by another."""
        waiting = partial(self.observer.starting, "waiting for the GPUs")
        waited = wait_for_rest(sampler, before, self.idle_c, self.plan.spec.cool_to, self.stop, waiting)
        if waited >= FREE_S:
            self.observer.note(f"the GPUs took {waited:.0f} s to come to rest, or did not: see the telemetry")


@contextlib.contextmanager
def start_engine(plan: Plan, hooks: Hooks) -> Iterator[tuple[Opened, Worker]]:
    """The plan's engine, a server or a process of ours, and ready workers as one, for as long as the block runs.

    Raises EngineError, LaunchStoppedError, WorkerDiedError and, when no log can be written, OSError.
    """
    if isinstance(plan.spec.engine, VllmInprocessEngine):
        with open_inprocess(plan.spec.engine, plan, hooks) as (opened, inprocess):
            yield opened, inprocess
        return
    with _workers(plan) as (worker, notes), open_engine(plan, hooks) as opened:
        worker.watch = opened.watch
        worker.ready()
        yield replace(opened, notes=(*opened.notes, *notes)), worker


def _workers(plan: Plan) -> contextlib.AbstractContextManager[tuple[HttpWorker | WorkerGroup, tuple[str, ...]]]:
    if plan.spec.loadgen.ray:
        from benchbench.hosts.cluster import open_hosts  # what few sweeps need

        return open_hosts(plan)
    return open_workers(plan)


def _too_long(plan: Plan, capabilities: Capabilities) -> list[str]:
    limit = capabilities.max_model_len
    return [
        f"{cell.label} needs {longest(cell)} tokens, the server allows {limit}"
        for cell in plan.cells
        if limit is not None and (longest(cell) or 0) > limit
    ]
