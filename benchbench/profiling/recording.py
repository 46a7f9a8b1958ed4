"""Cells of a comparison run once more under the server's profiler, after all that is timed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from benchbench.comparison.pairs import Pair
from benchbench.engines.git_checkout import checkout, moved_into
from benchbench.engines.open import Opened
from benchbench.engines.process import Hooks
from benchbench.errors import EngineError, InterruptedSweep, RunError
from benchbench.loadgen.job import Job
from benchbench.loadgen.worker import Worker
from benchbench.measure.sessions import start_engine
from benchbench.openai.client import post
from benchbench.profiling.traces import Profile, read_profile
from benchbench.spec import Cell, Plan, Session, SweepSpec, VllmServeEngine, make_plan
from benchbench.spec.plan import variant_spec
from benchbench.stopping import unless_stopped

OUTPUT = 16  # tokens of a traced round at most: a trace of few steps is large enough
WRITE_S = 600.0  # vLLM answers /stop_profile once the traces are written
FLAGS_SINCE = (0, 13)  # the version of vLLM from which --profiler-config says where to; before, a variable did
CALLED = {"faster", "slower"}


def cells_of(pair: Pair) -> list[str]:
    """Labels of the cells to look into: those that were called faster or slower in Sys tok/s or TPOT, and the one that
    was called least; the first of all where none was called.
    """
    effects = [e for e in pair.compared.cells if e.metric in {"sys_tok_s", "tpot"}]
    called = dict.fromkeys(e.cell for e in effects if e.verdict in CALLED)
    others = sorted((abs(e.ratio.point - 1), e.cell) for e in effects if e.cell not in called)
    return [*called, *(cell for _, cell in others[:1])] or list(pair.cells)[:1]


def profiled(engine: VllmServeEngine, folder: Path, version: str | None) -> VllmServeEngine:
    """The engine with vLLM's torch profiler ready, which waits for /start_profile. `version` of vLLM, if known."""
    numbers = tuple(int(part) for part in (version or "").split(".")[:2] if part.isdecimal())
    if numbers and numbers < FLAGS_SINCE:
        return engine.model_copy(update={"env": {**engine.env, "VLLM_TORCH_PROFILER_DIR": str(folder)}})
    # Words, since a flag that is true has no value on a command line; within a section vLLM wants one.
    switches = {"ignore_frontend": "true", "torch_profiler_with_stack": "false"}
    flags = {"profiler": "torch", "torch_profiler_dir": str(folder), **switches}
    args = engine.args | {f"profiler-config.{name}": value for name, value in flags.items()}
    return engine.model_copy(update={"args": args})


def record(
    spec: SweepSpec, run: Path, manifest: Mapping[str, Any], variants: Sequence[str], labels: Sequence[str],
    starts: int, hooks: Hooks,
) -> None:  # fmt: skip
    """Trace a round of each cell in `starts` starts of each variant, into `profiles/VARIANT-START/CELL/` of a run.

    Starts that are there already are kept. Raises EngineError, RunError, LaunchStoppedError,
    InterruptedSweep, WorkerDiedError.
    """
    plan, versions = make_plan(spec), _versions(manifest)
    for number in range(starts):
        for variant in variants:
            cells = [cell for cell in plan.cells if cell.variant == variant and cell.info.shape in labels]
            folder = run.resolve() / "profiles" / f"{variant}-{number}"
            missing = [cell for cell in cells if not any((folder / cell.key).glob("*.json*"))]
            if missing:
                _record_start(spec, manifest, Session(number, variant, tuple(missing)), folder, versions, hooks)


def _versions(manifest: Mapping[str, Any]) -> dict[str, str | None]:
    return {start["variant"]: (start.get("engine") or {}).get("version") for start in manifest.get("starts", [])}


def _record_start(
    spec: SweepSpec, manifest: Mapping[str, Any], session: Session, folder: Path,
    versions: Mapping[str, str | None], hooks: Hooks,
) -> None:  # fmt: skip
    own = variant_spec(spec, session.variant)
    if not isinstance(own.engine, VllmServeEngine):
        raise EngineError("must be vllm_serve: only a server that we launch has a profiler to switch on", "engine.kind")
    engine = own.engine
    if (git := spec.variants[session.variant].git) is not None:
        commit = manifest.get("variants", {}).get(session.variant, {}).get("commit")
        engine = moved_into(engine, checkout(git, session.variant, hooks, commit).path)  # type: ignore[assignment]
    folder.mkdir(parents=True, exist_ok=True)
    engine = profiled(engine, folder, versions.get(session.variant))
    plan = Plan(own.model_copy(update={"engine": engine}), (session,))
    with start_engine(plan, replace(hooks, logs=folder)) as (opened, worker):
        for cell in session.cells:
            hooks.progress(f"tracing {cell.label}", 0.0, session.variant)
            output = min(cell.output, OUTPUT)
            _run(worker, opened.job(cell, "warmup", 0, 0, output), cell, hooks.stop)
            _ask(opened, "/start_profile", hooks.stop)
            _run(worker, opened.job(cell, "measured", 0, 0, output), cell, hooks.stop)
            _ask(opened, "/stop_profile", hooks.stop)
            _keep(folder, folder / cell.key, cell)


def _run(worker: Worker, job: Job, cell: Cell, stop: int | None) -> None:
    columns, facts = worker.run(job, stop)
    if facts["cancelled"]:
        raise InterruptedSweep
    if failure := next(filter(None, columns["error_detail"]), ""):
        raise RunError(f"tracing {cell.label}: {failure}")


def _ask(opened: Opened, route: str, stop: int | None) -> None:
    try:
        status, _ = asyncio.run(unless_stopped(stop, post(opened.url, opened.access, route, {}, WRITE_S)))
    except OSError as error:
        raise EngineError(f"POST {route} failed ({str(error) or type(error).__name__})", "engine") from None
    if status != HTTPStatus.OK:
        raise EngineError(f"POST {route} was answered with status {status}: this server has no profiler", "engine.args")


def _keep(folder: Path, place: Path, cell: Cell) -> None:
    """Move the traces just written to their cell's own folder."""
    traces = [*folder.glob("*.json"), *folder.glob("*.json.gz")]
    if not traces:
        raise RunError(f"{folder}: the profiler has written no trace of {cell.label}")
    place.mkdir(exist_ok=True)
    for trace in traces:
        trace.rename(place / trace.name)


def read_profiles(run: Path, variant: str, key: str) -> list[Profile]:
    """The profiles of a variant's cell, one a start, as far as there are traces."""
    folders: Iterable[Path] = sorted((run / "profiles").glob(f"{variant}-*"))
    return [read_profile(folder / key) for folder in folders if (folder / key).is_dir()]
