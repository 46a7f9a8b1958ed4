"""One sweep, start to end: run directory locked, engine and worker started, cells measured, results written."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchbench.engines.endpoint import Capabilities, EngineError
from benchbench.engines.opening import Hooks, Opened
from benchbench.engines.vllm_serve import LaunchStoppedError
from benchbench.loadgen.worker import WorkerDiedError
from benchbench.record.store import RunDirectory, replace_file
from benchbench.record.telemetry import Sampler, scope_of
from benchbench.rounds import (
    Driver,
    EngineDiedError,
    InterruptedSweep,
    Observer,
    StoppedError,
    measure,
    missing_rounds,
    plan_entry,
)
from benchbench.spec import Cell, Plan, SweepSpec, VllmInprocessEngine, VllmServeEngine, make_plan
from benchbench.start import start_engine

State = Literal["complete", "stopped", "interrupted"]
Rows = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a sweep ended. `message` says why it stopped, `key` which key of the sweep is concerned, if one is.

    `rows` are summary.csv's, one a cell.
    """

    path: Path
    state: State
    message: str
    rows: list[dict[str, Any]]
    plots: list[Path]
    key: str = ""


class Silent:
    """An observer that shows nothing."""

    def begin(self, plan: Plan, out: Path, left: int) -> None:
        pass

    def round(self, cell: Cell, phase: str, number: int, left_s: float | None) -> None:
        pass

    def row(self, cell: Cell, row: dict[str, Any]) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def starting(self, what: str, seconds: float, line: str) -> None:
        pass


def default_out(spec: SweepSpec, *, resume: bool) -> Path:
    """`runs/NAME-TIME`; with `resume` the latest run of that name, if there is one."""
    if resume:
        earlier = sorted(Path("runs").glob(f"{spec.name}-[0-9]*"))
        if earlier:
            return earlier[-1]
    return Path("runs") / f"{spec.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def sweep(
    spec: SweepSpec,
    out: str | Path | None = None,
    *,
    only: str | None = None,
    resume: bool = False,
    plots: bool = True,
    observer: Observer | None = None,
    stop: int | None = None,
) -> Outcome:
    """Carry a sweep out and leave a run directory.

    `only`: a selection such as "batch>=8,input=128". `stop`: a descriptor; when it becomes readable, the running
    round is dropped and the sweep ends in state "interrupted". A KeyboardInterrupt ends it the same way and is
    raised again. Raises SpecError (selection), EngineError (model, credentials ...) and RunError (directory).
    """
    plan = make_plan(spec, only)
    run = RunDirectory(Path(out) if out is not None else default_out(spec, resume=resume))
    run.open_for_writing(resume=resume)
    try:
        given_up = {event["cell"] for event in run.events() if event["event"] == "cell_given_up"}
        lacking = [(cell, missing_rounds(run, cell)) for cell in plan.cells if cell.key not in given_up]
        todo = [(cell, missing) for cell, missing in lacking if missing]
        if not todo and _is_concluded(run, plan):
            return Outcome(run.path, "complete", "nothing left to do", _rows(run, {}), [])
        rows: Rows = {}
        try:
            state, message = _carry_out(plan, todo, only, run, observer or Silent(), stop, rows)
        except KeyboardInterrupt:
            _conclude(run, "interrupted", "interrupted", rows, plots=False)
            raise
        except EngineError as error:
            if not error.gone:
                raise
            _write_manifest(run, plan, only, None)
            return replace(_conclude(run, "stopped", error.message, rows, plots=plots), key=error.key)
        return _conclude(run, state, message, rows, plots=plots)
    finally:
        run.close()


def _carry_out(
    plan: Plan,
    todo: list[tuple[Cell, int]],
    only: str | None,
    run: RunDirectory,
    observer: Observer,
    stop: int | None,
    rows: Rows,
) -> tuple[State, str]:
    observer.begin(plan, run.path, len(todo))
    if not todo:
        _write_manifest(run, plan, only, None)
        return "complete", ""
    engine, left = plan.spec.engine, todo
    restarts = engine.restarts if isinstance(engine, VllmServeEngine | VllmInprocessEngine) else 0
    hooks = Hooks(run.path / "logs", observer.starting, stop, _import_all)
    wanted = plan.spec.telemetry
    scope = scope_of(engine, wanted)
    try:
        while left:
            try:
                with Sampler(run.path, wanted, scope) as sampler, start_engine(plan, hooks) as (found, worker):
                    sampler.ready()
                    opened = replace(found, notes=(*found.notes, *sampler.notes()))
                    for note in [*opened.notes, *_too_long(plan, opened.capabilities)]:
                        observer.note(note)
                    _write_manifest(run, plan, only, opened, sampler.facts())
                    measure(Driver(run, worker, opened, observer, stop, run.attempts(), sampler, rows), left)
                    left = []
            except EngineDiedError as died:
                left = list(died.left)
                run.journal("engine_died", reason=died.reason, left=len(left))
                if left and not restarts:
                    raise StoppedError(f"{died.reason}; engine.restarts allows no other start") from None
                restarts -= 1
                observer.note(died.reason + (f"; starting it again for {len(left)} cells" if left else ""))
    except (StoppedError, WorkerDiedError) as error:
        return "stopped", str(error)
    except (InterruptedSweep, LaunchStoppedError):
        return "interrupted", "interrupted"
    except OSError as error:
        return "stopped", _unwritable(run, error)
    return "complete", ""


def _unwritable(run: RunDirectory, error: OSError) -> str:
    return f"cannot write {error.filename or run.path}: {error.strerror or error}"


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
    import benchbench.report.table  # noqa: F401


def _is_concluded(run: RunDirectory, plan: Plan) -> bool:
    """Whether a run has been carried out and concluded for just these cells."""
    last = ""
    for event in run.events():
        last = event["event"]
    return last == "complete" and {cell.key for cell in plan.cells} <= {e["key"] for e in run.manifest()["plan"]}


def _write_manifest(
    run: RunDirectory,
    plan: Plan,
    only: str | None,
    opened: Opened | None,
    devices: list[dict[str, Any]] | None = None,
) -> None:
    """What was asked and with what. With `only`, cells of an earlier, wider plan stay in it."""
    from benchbench.record.engine_side import side_of
    from benchbench.record.environment import environment, spec_hash
    from benchbench.record.instrument import stored
    from benchbench.record.secrets import masked

    spec = masked(plan.spec.model_dump(mode="json"))
    earlier = run.manifest() if (run.path / "manifest.json").exists() else {}
    side = side_of(plan.spec.engine, opened.start.get("pid")) if opened else earlier.get("engine_environment")
    entries = {entry["key"]: entry for entry in earlier.get("plan", [])} if only is not None else {}
    entries |= {cell.key: plan_entry(cell) for cell in plan.cells}
    run.write_manifest(
        {
            "created_ns": earlier.get("created_ns", time.time_ns()),
            "resumed": earlier.get("resumed", -1) + 1,
            "spec": spec,
            "spec_sha256": spec_hash(spec),
            "only": only,
            "plan": list(entries.values()),
            "notes": [*plan.spec.notes, *(opened.notes if opened else ())],
            "engine": asdict(opened.capabilities) if opened else earlier.get("engine"),
            "starts": [*earlier.get("starts", []), *([masked(opened.start)] if opened and opened.start else [])],
            "engine_environment": side,
            "devices": earlier.get("devices", []) if devices is None else devices,
            "caption": plan.spec.caption,
            "instrument": stored(),
            **environment(),
        }
    )


def _conclude(run: RunDirectory, state: State, message: str, now: Rows, *, plots: bool) -> Outcome:
    """Write what follows from the records. A full disk must not hide why the sweep stopped."""
    if not (run.path / "manifest.json").exists():
        return Outcome(run.path, state, message, [], [])
    from benchbench.analysis.summary import COLUMNS
    from benchbench.record.instrument import sentence
    from benchbench.report.table import markdown_table

    rows = _rows(run, now)
    drawn: list[Path] = []
    try:
        run.write_summary(rows, COLUMNS)
        manifest = run.manifest()
        table = markdown_table(rows, closing=[*manifest["caption"], sentence(manifest["instrument"])])
        replace_file(run.path / "table.md", table.encode())
        if plots and state == "complete" and any(row["rounds"] for row in rows):
            drawn = _draw(run, rows)
        run.journal(state, message=message)
    except OSError as error:
        if state == "complete":
            state, message = "stopped", _unwritable(run, error)
    return Outcome(run.path, state, message, rows, drawn)


def _rows(run: RunDirectory, now: Rows) -> list[dict[str, Any]]:
    """Rows of the whole plan, as written: those just made, and the others from their records."""
    from benchbench.analysis.runs import Run, cell_summary
    from benchbench.analysis.summary import summary_row

    return [now.get(cell.key) or summary_row(cell_summary(run, cell)) for cell in Run(run.path).cells]


def _draw(run: RunDirectory, rows: list[dict[str, Any]]) -> list[Path]:
    from benchbench.analysis.runs import Run
    from benchbench.report.plots import draw_plots
    from benchbench.report.timeline import timeline_of

    opened = Run(run.path)
    return draw_plots(rows, timeline_of(opened, rows), run.path / "plots", opened.name)
