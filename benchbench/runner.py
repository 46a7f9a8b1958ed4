"""One sweep, start to end: engine and worker started, cells driven, rounds stored, summary and plots made.

Between rounds this process encodes and writes; while a round runs it sleeps on the worker's pipe.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from benchbench.engines.endpoint import Access, AttachError, Capabilities, attach
from benchbench.loadgen.target import Target, base_url, make_target
from benchbench.loadgen.worker import Worker, WorkerDiedError
from benchbench.record.store import RunDirectory
from benchbench.spec import Cell, EndpointEngine, Plan, SimulatorEngine, SweepSpec, make_plan

if TYPE_CHECKING:
    import pyarrow as pa

REFUSALS = {401: "engine.api_key_env", 403: "engine.api_key_env", 404: "model", 405: "engine.url"}


class BadSweepError(Exception):
    """The sweep asks for what can't be done. `key` is the key path at fault."""

    def __init__(self, key: str, message: str, allowed: str = "") -> None:
        super().__init__(f"{key}: {message}" + (f" (allowed: {allowed})" if allowed else ""))
        self.key, self.message, self.allowed = key, message, allowed


class StoppedError(Exception):
    """The sweep can't go on now, and can be resumed."""


class Interrupted(Exception):  # noqa: N818 - no error: somebody asked
    """The sweep was asked to stop."""


class Observer(Protocol):
    """Who wants to see how far a sweep is. Called between rounds only."""

    def begin(self, plan: Plan, out: Path, left: int) -> None: ...
    def cell(self, cell: Cell, number: int, of: int) -> None: ...
    def round(self, cell: Cell, phase: str, number: int, of: int, left_s: float | None) -> None: ...
    def row(self, cell: Cell, row: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...


class Silent:
    """An observer that shows nothing."""

    def begin(self, plan: Plan, out: Path, left: int) -> None:
        pass

    def cell(self, cell: Cell, number: int, of: int) -> None:
        pass

    def round(self, cell: Cell, phase: str, number: int, of: int, left_s: float | None) -> None:
        pass

    def row(self, cell: Cell, row: dict[str, Any]) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a sweep ended. `message` says why it stopped; `rows` are summary.csv's."""

    path: Path
    state: Literal["complete", "stopped", "interrupted"]
    message: str
    rows: list[dict[str, Any]]
    plots: list[Path]


@dataclass(slots=True)
class _Pace:
    """What a round takes, from the rounds so far: time grows about as the output's length."""

    seconds: float = 0.0
    steps: int = 0
    left_steps: int = 0

    def left_s(self) -> float | None:
        return self.seconds / self.steps * self.left_steps if self.steps else None


@dataclass(slots=True)
class _Sweep:
    """The state of one sweep in progress."""

    plan: Plan
    run: RunDirectory
    worker: Worker
    observer: Observer
    stop: int | None
    attempts: dict[tuple[str, str, int], int]
    gave_up: set[str]
    access: Access = field(default_factory=Access)
    url: str = ""
    vocab: tuple[int, int] = (0, 0)
    answered: bool = False  # some request has succeeded
    pace: _Pace = field(default_factory=_Pace)


def plan_entry(cell: Cell) -> dict[str, Any]:
    """A cell as the manifest keeps it: all that analysis needs, so that records can be read without the spec."""
    return {
        "key": cell.key,
        "label": cell.label,
        "index": cell.index,
        "variant": cell.variant,
        "input": cell.input,
        "output": cell.output,
        "batch": cell.batch,
        "rate": cell.rate,
        "load": cell.load.kind,
        "requests": cell.requests,
        "rounds_min": cell.rounds.min,
        "prompts": cell.prompts.kind,
        "output_mode": cell.output_mode,
        "slo": cell.slo.model_dump(mode="json"),
        "validity": cell.validity.model_dump(mode="json"),
    }


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
    round is dropped and the sweep ends in state "interrupted". A KeyboardInterrupt does the same and is raised
    again. Raises SpecError (selection), BadSweepError (model, credentials ...) and RunError (directory).
    """
    plan = make_plan(spec, only)
    _check_files(spec)
    run = RunDirectory(Path(out) if out is not None else default_out(spec, resume=resume))
    run.open_for_writing(resume=resume)
    try:
        return _run(plan, only, run, observer or Silent(), stop, plots=plots)
    finally:
        run.close()


def _run(plan: Plan, only: str | None, run: RunDirectory, observer: Observer, stop: int | None, *, plots: bool) -> Outcome:
    gave_up = {str(event["cell"]) for event in run.events() if event.get("event") == "cell_given_up"}
    todo = [cell for cell in plan.cells if _missing(run, cell, gave_up)]
    state: Literal["complete", "stopped", "interrupted"] = "complete"
    message = ""
    if not todo and _is_done(run, plan):
        return Outcome(run.path, state, "nothing left to do", _rows(run), [])
    try:
        with Worker() as worker:
            job = _Sweep(plan, run, worker, observer, stop, run.attempts(), gave_up)
            observer.begin(plan, run.path, len(todo))
            with _engine(job, only):
                worker.ready()
                _cells(job, todo)
    except (StoppedError, WorkerDiedError) as error:
        state, message = "stopped", str(error)
    except Interrupted:
        state, message = "interrupted", "interrupted"
    except OSError as error:
        state, message = "stopped", f"cannot write {error.filename or run.path}: {error.strerror or error}"
    except KeyboardInterrupt:
        _conclude(run, "interrupted", "interrupted", plots=False)
        raise
    return _conclude(run, state, message, plots=plots)


def _is_done(run: RunDirectory, plan: Plan) -> bool:
    """Whether a run has been carried out and concluded for just these cells."""
    last = ""
    for event in run.events():
        last = event["event"]
    return last == "complete" and {cell.key for cell in plan.cells} <= {e["key"] for e in run.manifest()["plan"]}


def _conclude(run: RunDirectory, state: Any, message: str, *, plots: bool) -> Outcome:  # noqa: ANN401 - a Literal
    """Write what follows from the records. A full disk must not hide why the sweep stopped."""
    if not (run.path / "manifest.json").exists():
        return Outcome(run.path, state, message, [], [])
    from benchbench.analysis.summary import COLUMNS
    from benchbench.report.table import markdown_table

    rows = _rows(run)
    drawn: list[Path] = []
    try:
        run.journal(state, message=message)
        run.write_summary(rows, COLUMNS)
        (run.path / "table.md").write_text(markdown_table(rows), encoding="utf-8")
        if plots and any(row["rounds"] for row in rows):
            drawn = draw(run.path)
    except OSError as error:
        if state == "complete":
            state, message = "stopped", f"cannot write {error.filename or run.path}: {error.strerror or error}"
    return Outcome(run.path, state, message, rows, drawn)


def _rows(run: RunDirectory) -> list[dict[str, Any]]:
    from benchbench.analysis.runs import Run

    return Run(run.path).rows


def draw(path: Path) -> list[Path]:
    """Draw the plots of a run into its `plots/`; returns the files."""
    from benchbench.analysis.runs import Run
    from benchbench.report.plots import draw_plots
    from benchbench.report.timeline import timeline_of

    run = Run(path)
    return draw_plots(run.rows, timeline_of(run), path / "plots", run.name)


# -- the engine


def _check_files(spec: SweepSpec) -> None:
    engine = spec.engine
    if isinstance(engine, EndpointEngine):
        for key, name in (("api_key_env", engine.api_key_env), *engine.headers_env.items()):
            if name is not None and name not in os.environ:
                where = "engine.api_key_env" if key == "api_key_env" else f"engine.headers_env.{key}"
                if key != "api_key_env":
                    raise BadSweepError(where, f"the environment variable {name} is not set")
        if engine.ca_file is not None and not Path(engine.ca_file).is_file():
            raise BadSweepError("engine.ca_file", f"no such file: {engine.ca_file}")
        if spec.prompts.kind == "token_ids" and spec.prompts.vocab is None:
            raise BadSweepError(
                "prompts.vocab", "is required: this version does not ask an endpoint for its vocabulary", "[low, high]"
            )


def _secrets(engine: EndpointEngine) -> dict[str, str]:
    """Request headers whose values come from the environment."""
    headers = {name: os.environ[variable] for name, variable in engine.headers_env.items()}
    if engine.api_key_env and (key := os.environ.get(engine.api_key_env)):
        headers["Authorization"] = f"Bearer {key}"
    return headers


@contextlib.contextmanager
def _engine(job: _Sweep, only: str | None) -> Iterator[None]:
    """Have the server ready and known, and the manifest written, for as long as the block runs."""
    engine = job.plan.spec.engine
    if isinstance(engine, SimulatorEngine):
        from benchbench.engines.simulator import ProfileError, SimulatorError, SimulatorProcess, load_profile

        try:
            vocab_size = load_profile(engine.profile, engine.options).vocab_size
            process = SimulatorProcess(
                engine.profile,
                scale=engine.scale,
                port=engine.port,
                options=engine.options,
                models=sorted({cell.model for cell in job.plan.cells}),
            ).start()
        except ProfileError as error:
            raise BadSweepError("engine.profile", str(error)) from None
        except SimulatorError as error:
            raise StoppedError(str(error)) from None
        with process:
            job.url = process.url
            job.vocab = job.plan.spec.prompts.vocab or (min(1000, vocab_size // 2), vocab_size)
            _attach(job, only)
            yield
        return
    job.url = engine.url
    job.vocab = job.plan.spec.prompts.vocab or (0, 1)
    timeout = min(cell.timeouts.connect_s for cell in job.plan.cells)
    job.access = Access(_secrets(engine), engine.ca_file, engine.insecure, engine.proxy, timeout)
    _attach(job, only)
    yield


def _attach(job: _Sweep, only: str | None) -> None:
    _import_all()
    try:
        found = attach(base_url(job.url), job.plan.spec.model, job.access)
    except AttachError as error:
        _write_manifest(job, Capabilities(), only)
        if error.gone:
            raise StoppedError(f"{error.key}: {error.message}") from None
        raise BadSweepError(error.key, error.message, error.allowed) from None
    for note in found.notes:
        job.observer.note(note)
    if found.max_model_len is not None:
        for cell in job.plan.cells:
            if cell.input + cell.output > found.max_model_len:
                job.observer.note(
                    f"{cell.label} needs {cell.input + cell.output} tokens, the server allows {found.max_model_len}"
                )
    _write_manifest(job, found, only)


def _import_all() -> None:
    """Import now what will be needed between rounds, so that no import falls into one."""
    import scipy.special  # noqa: F401

    import benchbench.analysis.runs
    import benchbench.loadgen.prompts
    import benchbench.report.table  # noqa: F401


def _write_manifest(job: _Sweep, found: Capabilities, only: str | None) -> None:
    from benchbench.record.environment import environment, masked

    spec = job.plan.spec
    earlier = job.run.manifest() if (job.run.path / "manifest.json").exists() else {}
    entries = {entry["key"]: entry for entry in earlier.get("plan", [])} if only is not None else {}
    entries |= {cell.key: plan_entry(cell) for cell in job.plan.cells}
    job.run.write_manifest(
        {
            "created_ns": earlier.get("created_ns", time.time_ns()),
            "resumed": earlier.get("resumed", -1) + 1,
            "spec": masked(spec.model_dump(mode="json")),
            "only": only,
            "plan": list(entries.values()),
            "notes": [*spec.notes, *found.notes],
            "engine": asdict(found),
            **environment(),
        }
    )


# -- cells and rounds


def _missing(run: RunDirectory, cell: Cell, gave_up: set[str]) -> int:
    """Measured rounds that a cell still lacks."""
    return 0 if cell.key in gave_up else max(0, cell.rounds.min - len(run.finished_rounds(cell.key)))


def _warmups(cell: Cell) -> int:
    return 1 if cell.rounds.warmup == "auto" else int(cell.rounds.warmup)


def _cells(job: _Sweep, todo: list[Cell]) -> None:
    for cell in todo:
        job.pace.left_steps += cell.output * (_warmups(cell) + _missing(job.run, cell, job.gave_up))
    for number, cell in enumerate(todo, 1):
        job.observer.cell(cell, number, len(todo))
        _cell(job, cell)
    job.run.journal("plan_done")


def _cell(job: _Sweep, cell: Cell) -> None:
    """Warm up, then run the rounds that are missing; give a cell up when all requests of a measured round failed."""
    from benchbench.analysis.summary import CellInfo, summarise, summary_row

    run, tables = job.run, job.run.read_cell(cell.key)
    target = _target(job, cell)
    first = len(run.finished_rounds(cell.key, "warmup"))
    have = set(run.finished_rounds(cell.key))
    rounds = [("warmup", first + k) for k in range(_warmups(cell))]
    rounds += [("measured", number) for number in range(cell.rounds.min) if number not in have]
    for at, (phase, number) in enumerate(rounds):
        job.observer.round(cell, phase, number, cell.rounds.min, job.pace.left_s())
        table = _round(job, cell, target, phase, number)
        if phase == "measured":
            tables.append(table)
            if "ok" not in table["status"].to_pylist():
                job.gave_up.add(cell.key)
                run.journal("cell_given_up", cell=cell.key, reason=table["error_detail"][0].as_py())
                job.pace.left_steps -= cell.output * (len(rounds) - at - 1)
                break
    row = summary_row(summarise(CellInfo.from_entry(plan_entry(cell)), tables))
    run.journal("cell_done", cell=cell.key, status=row["status"], reasons=row["reasons"])
    job.observer.row(cell, row)


def _target(job: _Sweep, cell: Cell) -> Target:
    access = job.access
    return make_target(
        job.url, cell.engine.api, access.headers, ca_file=access.ca_file, insecure=access.insecure, proxy=access.proxy
    )


def _round(job: _Sweep, cell: Cell, target: Target, phase: str, number: int) -> pa.Table:
    """Drive one round and store it. Raises Interrupted, StoppedError, BadSweepError, OSError; then nothing is stored."""
    from benchbench.loadgen.prompts import make_job
    from benchbench.record.requests import round_table

    attempt = job.attempts.get((cell.key, phase, number), 0)
    job.attempts[cell.key, phase, number] = attempt + 1
    job.run.journal("round_begun", cell=cell.key, phase=phase, round=number, attempt=attempt)
    work = make_job(cell, target, job.vocab, phase, number, attempt)
    columns, facts = job.worker.run(work, job.stop)
    if facts["cancelled"]:
        raise Interrupted
    _hide(columns["error_detail"], job.access)
    failed = [k for k, status in enumerate(columns["status"]) if status == "failed"]
    job.answered |= len(failed) < len(columns["status"])
    if failed:
        _judge_failures(job, target, columns, failed)
    labels = {
        "cell": cell.key,
        "variant": cell.variant,
        "phase": phase,
        "round": number,
        "attempt": attempt,
        "input": cell.input,
        "output": cell.output,
        "load": cell.load.kind,
    }
    table = round_table(columns, labels, {**facts, "batch": cell.batch, "rate": cell.rate})
    job.run.write_round(table, cell.key, phase, number)
    job.pace.seconds += facts["wall_ns"] / 1e9
    job.pace.steps += cell.output
    job.pace.left_steps -= cell.output
    return table


def _hide(details: list[str], access: Access) -> None:
    """Servers quote what they refuse: no secret of ours goes into a record."""
    for secret in {part for value in access.headers.values() for part in (value, value.removeprefix("Bearer "))}:
        if len(secret) >= 4:
            details[:] = [detail.replace(secret, "***") for detail in details]


def _judge_failures(job: _Sweep, target: Target, columns: Any, failed: list[int]) -> None:  # noqa: ANN401 - RoundColumns
    """Stop when going on makes no sense: the server is gone, or it refuses everything."""
    kinds = {columns["error_kind"][k] for k in failed}
    detail = next(columns["error_detail"][k] for k in failed)
    everything = len(failed) == len(columns["status"])
    if everything and all(columns["error_phase"][k] == "connect" for k in failed):
        raise StoppedError(f"the server is gone: {detail}")
    if kinds & {"connect", "send", "stream"} and not _listens(target):
        raise StoppedError(f"the server at {target.host}:{target.port} is gone: {detail}")
    statuses = {int(columns["http_status"][k]) for k in failed}
    if everything and not job.answered and len(statuses) == 1 and (status := statuses.pop()) in REFUSALS:
        raise BadSweepError(REFUSALS[status], f"every request was refused: {detail}")
    if everything and not job.answered and 300 <= int(columns["http_status"][failed[0]]) < 400:
        raise BadSweepError("engine.url", f"the server redirects; give the final address: {detail}")


def _listens(target: Target) -> bool:
    """Whether anybody accepts connections where the target (or its proxy) is."""
    for _ in range(3):
        try:
            with socket.create_connection(target.proxy or (target.host, target.port), timeout=5):
                return True
        except OSError:
            time.sleep(0.2)
    return False
