"""The starts of a sweep, one by one: the engine started, its cells measured, and the machine at rest again."""

from __future__ import annotations

import select
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchbench.engines.git_checkout import Checkout, checkout, moved_into
from benchbench.engines.open import Hooks, Opened
from benchbench.errors import EngineDiedError, EngineError, MovedRefError, StoppedError, WorkerDiedError
from benchbench.fidelity.ask import answer, owed
from benchbench.host.sampler import Sampler, scope_of
from benchbench.measure.cells import Driver, measure
from benchbench.measure.manifest import write_manifest
from benchbench.measure.observer import Observer, Pace
from benchbench.measure.start_engine import start_engine
from benchbench.model.config import ModelFacts
from benchbench.openai.client import Capabilities
from benchbench.spec import Cell, Plan, Session, VllmInprocessEngine, VllmServeEngine
from benchbench.store.run_directory import RunDirectory, replace_file

Todo = list[tuple[Cell, int]]

LAUNCHED = (VllmServeEngine, VllmInprocessEngine)
SLACK_BYTES = 512 << 20  # of a GPU's memory: drivers keep some
FREE_S, COOL_S = 60.0, 900.0  # how long memory and heat are waited for


@dataclass(slots=True)
class Starts:
    """What all starts of a sweep share. `idle_c`: each GPU's temperature before the first of them."""

    plan: Plan
    only: str | None
    run: RunDirectory
    observer: Observer
    stop: int | None
    models: Mapping[str, ModelFacts | None] | None = None  # what is served, by variant; see `served_models`
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    idle_c: dict[str, float] = field(default_factory=dict)
    unable: dict[str, EngineError] = field(default_factory=dict)  # variants that have never started
    able: set[str] = field(default_factory=set)
    checkouts: dict[str, Checkout] = field(default_factory=dict)

    def carry_out(self, todo: list[tuple[Session, Todo]]) -> None:
        """Measure what is lacking, start by start.

        Of several variants, one that cannot start or dies once too often is recorded, and the others go on. Raises
        InterruptedSweep, LaunchStoppedError, StoppedError, WorkerDiedError, OSError and EngineError (when no variant
        at all can start, or a variant's git.ref has moved since it was measured).
        """
        self._build(todo)
        self.pace.left_steps = sum(cell.output * missing for _, cells in todo for cell, missing in cells)
        for start, cells in todo:
            if start.variant in self.unable:
                continue
            try:
                self._start(start, cells)
            except (EngineError, StoppedError, WorkerDiedError) as error:
                if start.block is None:
                    raise
                self._failed(start, error)
        if self.unable and not self.able:
            raise next(iter(self.unable.values()))

    def _build(self, todo: list[tuple[Session, Todo]]) -> None:
        """Fetch and build what variants are made from, before the first start: no build may warm up the machine later.

        Raises MovedRefError, LaunchStoppedError and OSError.
        """
        earlier = self.run.manifest() if (self.run.path / "manifest.json").exists() else {}
        measured = {one["variant"] for one in earlier.get("starts", [])}
        commits = {name: facts["commit"] for name, facts in earlier.get("variants", {}).items() if name in measured}
        hooks = Hooks(self.run.path / "logs", self.observer.starting, self.stop)
        for name, start in {start.variant: start for start, _ in reversed(todo)}.items():
            if not name or (git := self.plan.spec.variants[name].git) is None:
                continue
            try:
                self.checkouts[name] = found = checkout(git, name, hooks, commits.get(name))
            except MovedRefError:
                raise
            except EngineError as error:
                self._failed(start, error)
                continue
            if found.dirty:
                path = self.run.path / "git" / f"{name}.diff"
                path.parent.mkdir(exist_ok=True)
                replace_file(path, found.diff.encode())
                changes = f"uncommitted changes in {found.repo}, {found.dirty[0].strip()} first"
                self.observer.note(f"variant {name}: {changes}, are not part of what is measured: see {path}")

    def _failed(self, start: Session, error: Exception) -> None:
        self.run.journal("start_failed", block=start.block, variant=start.variant, reason=str(error))
        what, lines = f"failed in block {start.block}", list[str]()
        if isinstance(error, EngineError):
            lines = [*([f"allowed: {error.allowed}"] if error.allowed else []), *error.lines]
            if start.variant not in self.able:
                self.unable[start.variant], what = error, "cannot start, and is left out"
        for line in (f"variant {start.variant} {what}: {error}", *(f"  {line}" for line in lines)):
            self.observer.note(line)

    def _start(self, start: Session, left: Todo) -> None:
        """One start, and another for each time that the engine died and may be started again."""
        plan = self.plan.of_session(start)
        engine = plan.spec.engine
        if isinstance(engine, LAUNCHED) and (made := self.checkouts.get(start.variant)):
            engine = moved_into(engine, made.path)
            plan = replace(plan, spec=plan.spec.model_copy(update={"engine": engine}))
        restarts = engine.restarts if isinstance(engine, LAUNCHED) else 0
        while True:
            try:
                self._life(plan, start, left)
            except EngineDiedError as died:
                left = list(died.left)
                self.run.journal("engine_died", reason=died.reason, left=len(left), block=start.block)
                if left and not restarts:
                    raise StoppedError(f"{died.reason}; engine.restarts allows no other start") from None
                restarts -= 1
                self.observer.note(died.reason + (f"; starting it again for {len(left)} cells" if left else ""))
                if left:
                    continue
            return

    def _life(self, plan: Plan, start: Session, todo: Todo) -> None:
        """One life of the engine."""
        spec, observer = plan.spec, self.observer
        hooks = Hooks(self.run.path / "logs", observer.starting, self.stop, _import_all)
        with Sampler(self.run.path, spec.telemetry, scope_of(spec.engine, spec.telemetry)) as sampler:
            before: Mapping[str, float] = {}
            if isinstance(spec.engine, LAUNCHED):
                sampler.ready()
                before = sampler.read("memory_used_bytes")
                self.idle_c = self.idle_c or _heat(sampler)
            try:
                with start_engine(plan, hooks) as (found, worker):
                    sampler.ready()
                    self.able.add(start.variant)
                    opened = replace(found, notes=(*found.notes, *sampler.notes()))
                    for note in [*opened.notes, *_too_long(plan, opened.capabilities)]:
                        observer.note(note)
                    self.manifest(start, opened, sampler.facts())
                    driver = Driver(
                        run=self.run,
                        worker=worker,
                        opened=opened,
                        observer=observer,
                        stop=self.stop,
                        attempts=self.run.attempts(),
                        sampler=sampler,
                        block=start.block,
                        rows=self.rows,
                        pace=self.pace,
                    )
                    measure(driver, todo)
                    if owed(self.run, self.plan.spec, start):
                        observer.starting("asking the fixed questions", 0.0, start.variant)
                        if note := answer(self.run, worker, opened, plan.spec, start, self.stop):
                            observer.note(note)
            finally:
                if before:
                    self._rest(sampler, before)

    def manifest(
        self, start: Session | None = None, opened: Opened | None = None, devices: list[dict[str, Any]] | None = None
    ) -> None:
        """Write the manifest, with this start in it."""
        variants = {name: found.facts for name, found in self.checkouts.items()}
        write_manifest(self.run, self.plan, self.only, start, opened, devices, variants, self.models)

    def _rest(self, sampler: Sampler, before: Mapping[str, float]) -> None:
        """Wait until the GPUs' memory is free again and they are cool, so that no start is handicapped by another."""
        begun, limit_c = time.monotonic(), self.plan.spec.cool_to
        while True:
            waited = time.monotonic() - begun
            busy = holding(sampler.read("memory_used_bytes"), before) if waited < FREE_S else []
            if limit_c is not None and waited < COOL_S:
                busy += hotter(_heat(sampler), self.idle_c, limit_c)
            if not busy:
                break
            self.observer.starting("waiting for the GPUs", waited, ", ".join(busy))
            if select.select([] if self.stop is None else [self.stop], [], [], 1.0)[0]:
                return
        if waited >= FREE_S:
            self.observer.note(f"the GPUs took {waited:.0f} s to come to rest, or did not: see the telemetry")


def _heat(sampler: Sampler) -> dict[str, float]:
    """Degrees C of each GPU: of its edge, or of its hottest place where that is all it tells."""
    return sampler.read("hotspot_c") | sampler.read("temperature_c")


def holding(used: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """The GPUs with more bytes in use than before an engine was started, drivers' slack aside, in words."""
    held = {gpu: used[gpu] - before[gpu] for gpu in before if gpu in used and used[gpu] - before[gpu] > SLACK_BYTES}
    return [f"{gpu} still holds {extra / 2**30:.1f} GiB" for gpu, extra in held.items()]


def hotter(now_c: Mapping[str, float], idle_c: Mapping[str, float], margin_c: float) -> list[str]:
    """The GPUs that are more than `margin_c` degrees above their idle temperature, in words."""
    return [f"{gpu} has {c:g} C" for gpu, c in now_c.items() if gpu in idle_c and c > idle_c[gpu] + margin_c]


def _too_long(plan: Plan, found: Capabilities) -> list[str]:
    if found.max_model_len is None:
        return []
    return [
        f"{cell.label} needs {cell.input + cell.output} tokens, the server allows {found.max_model_len}"
        for cell in plan.cells
        if cell.input + cell.output > found.max_model_len
    ]


def _import_all() -> None:
    """Import now what will be needed between rounds, so that no import falls into one."""
    import scipy.special  # noqa: F401

    import benchbench.analysis.runs
    import benchbench.loadgen.prompts
    import benchbench.report.summary_table  # noqa: F401
