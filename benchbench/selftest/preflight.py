"""`bench check FILE`: before a long sweep, is the server what the sweep needs, and can this client measure it?"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log2
from pathlib import Path
from typing import Any

import numpy as np

from benchbench.analysis.summary import summarise
from benchbench.analysis.validity import remedy
from benchbench.counters.server_counters import ServerView
from benchbench.datasets.laws import longest
from benchbench.engines.open import Opened
from benchbench.engines.process import Hooks
from benchbench.loadgen.worker import Worker
from benchbench.measure.sessions import start_engine
from benchbench.spec import Cell, OpenLoad, Plan, StaticLoad
from benchbench.store.requests import RoundColumns, round_table

PROBE_TOKENS = 16
MOST_STREAMS = 4096
LEAST_TPOT_S = 50e-6  # no engine is faster than this
REPORTED = (
    "cached tokens (vLLM: --enable-prompt-tokens-details)",
    "the server's own times (vLLM: --enable-per-request-metrics)",
)


@dataclass(frozen=True, slots=True)
class Probe:
    """One small static batch of the sweep's own shape: lengths as the server counted them, times in s."""

    variant: str
    label: str
    input: int | None
    batch: int
    ttft_s: float
    tpot_s: float
    problems: tuple[str, ...]
    reported: tuple[str, ...] = ()  # of REPORTED


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found. `problems` are reasons not to start; `lines` say all that was checked."""

    lines: tuple[str, ...]
    problems: tuple[str, ...]
    streams: int  # of the largest batch,
    rate: float  # and the highest token rate of any cell, per second and stream of these
    probes: tuple[Probe, ...] = ()  # the good ones


_UNBUILT = Preflight(("is built from git when the sweep begins: not checked",), (), 0, 0.0)


def check_sweep(plan: Plan, progress: Callable[[str, float, str], None] = lambda *_: None) -> Preflight:
    """Reach (or launch) the server, and send small batches of the sweep's shapes.

    Of several variants each is tried once, but for those from git: only a sweep builds them. `progress` as in `Hooks`.
    Raises EngineError and WorkerDiedError.
    """
    firsts = {start.variant: start for start in reversed(plan.sessions)}
    checks = {
        variant: _UNBUILT
        if variant and plan.spec.variants[variant].git
        else _check_one(plan.of_session(start), progress)
        for variant, start in sorted(firsts.items())
    }
    if "" in checks:
        return checks[""]
    busiest = max(checks.values(), key=lambda check: check.streams * check.rate)
    return Preflight(
        tuple(f"{variant}: {line}" for variant, check in checks.items() for line in check.lines),
        tuple(f"{variant}: {problem}" for variant, check in checks.items() for problem in check.problems),
        busiest.streams,
        busiest.rate,
        tuple(probe for check in checks.values() for probe in check.probes),
    )


def _check_one(plan: Plan, progress: Callable[[str, float, str], None]) -> Preflight:
    logs = Path(tempfile.mkdtemp(prefix="bench-check-"))  # stays when the start fails: its message names the log
    with start_engine(plan, Hooks(logs, progress)) as (opened, worker):
        probes = [_probe(worker, opened, cell) for cell in _extremes(plan.cells)]
        counts = _view(opened).before()
    shutil.rmtree(logs)
    capabilities = opened.capabilities
    lines = [f"server: {capabilities.kind or 'unknown'}, version {capabilities.version or 'unknown'}", *opened.notes]
    problems = [f"{probe.label}: {problem}" for probe in probes for problem in probe.problems]
    good = [probe for probe in probes if not probe.problems]
    reported = {name for probe in good for name in probe.reported}
    if good:
        lines += [f"its answers {'report' if name in reported else 'do not report'} {name}" for name in REPORTED]
    lines += [f"{_exact(probe)}; TTFT {probe.ttft_s * 1e3:.1f} ms, TPOT {probe.tpot_s * 1e3:.2f} ms" for probe in good]
    # Where lengths differ within a round, the batch has about their mean.
    need = max(((cell.input or 0) + cell.output) * _in_flight(cell) for cell in plan.cells)
    capacity = sum(each.get("kv_tokens", 0) for each in counts) if counts else opened.start.get("kv_tokens")
    bound = "at most" if all(cell.input and not cell.lengths for cell in plan.cells) else "on average, or more"
    untold = any(cell.input is None for cell in plan.cells)
    holds = "unknown: prompts are of a file" if untold else f"{need:,} tokens {bound}"
    lines.append(f"KV cache: {holds}; the server holds {f'{capacity:,}' if capacity else 'unknown'}")
    if capacity and need > capacity:
        problems.append(f"the largest cell needs {need:,} tokens of KV cache, the server holds {capacity:,}")
    if capabilities.max_model_len:
        most = max(longest(cell) or 0 for cell in plan.cells)
        if most > capabilities.max_model_len:
            problems.append(
                f"the longest request has {most:,} tokens, the server allows {capabilities.max_model_len:,}"
            )
    if not good:
        return Preflight(tuple(lines), tuple(problems), 0, 0.0)
    batches = {_in_flight(cell) for cell in plan.cells}
    streams = min(max(batches), MOST_STREAMS)
    rate = max(batch / _tpot(good, batch) for batch in batches) / streams
    return Preflight(tuple(lines), tuple(problems), streams, rate, tuple(good))


def _view(opened: Opened) -> ServerView:
    return ServerView(opened.urls, opened.access, opened.capabilities.metrics and bool(opened.url))


def _exact(probe: Probe) -> str:
    """Prompts of a file, as they are, have no length that was asked for."""
    return f"{probe.label}: {'input and output' if probe.input is not None else 'output'} lengths exact"


def _in_flight(cell: Cell) -> int:
    if cell.batch is not None:
        return cell.batch
    load = cell.load
    limit = load.max_concurrency if isinstance(load, OpenLoad) else None
    return min(limit or cell.requests, cell.requests)


def _extremes(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with the smallest and the largest batch, of the shortest and the longest input each."""
    picked: dict[str, Cell] = {}
    for batch in (min, max):
        edge = batch(_in_flight(cell) for cell in cells)
        level = [cell for cell in cells if _in_flight(cell) == edge]
        for pick in (min, max):
            cell = pick(level, key=lambda cell: cell.input or 0)
            picked.setdefault(cell.key, cell)
    return list(picked.values())


def _probe(worker: Worker, opened: Opened, cell: Cell) -> Probe:
    """One warm-up and one batch of PROBE_TOKENS output tokens, sent at once."""
    output = max(2, min(cell.output, PROBE_TOKENS))
    batch = min(_in_flight(cell), MOST_STREAMS)
    small = replace(cell, load=StaticLoad(kind="static"), batch=batch, rate=None, output=output)
    small = replace(small, lengths=replace(cell.lengths, output=None))
    view = _view(opened) if opened.url else None
    for number in range(2):
        counters = view.before() if view else None
        columns, facts = worker.run(opened.job(small, "check", number, 0))
        facts["server"] = view.after(counters, columns) if view else None
    facts["common_tokens"] = opened.common_tokens(small) * len(columns["index"])
    label = small.label.removeprefix(f"{cell.variant} ")
    place = (cell.variant, label, cell.input, batch)
    problems = _problems(columns)
    ends = columns["event_offsets"]
    if problems or not np.diff(ends).all():
        return Probe(*place, 0.0, 0.0, tuple(problems or ["requests without a token"]))
    first, last = columns["event_ns"][ends[:-1]], columns["event_ns"][ends[1:] - 1]
    following = np.maximum(output - columns["event_tokens"][ends[:-1]], 1)
    ttft, tpot = float((first - columns["sent_ns"]).mean()) / 1e9, float(((last - first) / following).mean()) / 1e9
    if tpot < LEAST_TPOT_S:
        return Probe(*place, 0.0, 0.0, ("its tokens came all at once: a buffered stream, or a starved client",))
    if invalid := _invalid(small, columns, facts):
        return Probe(*place, ttft, tpot, invalid)
    seen = ((columns["cached_tokens"] >= 0).all(), all(columns["server_metrics"]))
    reported = tuple(name for name, tells in zip(REPORTED, seen, strict=True) if tells)
    return Probe(*place, ttft, tpot, (), reported)


def _invalid(cell: Cell, columns: RoundColumns, facts: dict[str, Any]) -> tuple[str, ...]:
    """Why a sweep would call a cell of this one round invalid: by the rules by which it judges its own rounds."""
    info = cell.info.model_copy(update={"rounds_min": 1, "rounds_max": 1, "warmup": 0})
    summary = summarise(info, [round_table(columns, {"cell": cell.key}, facts)])
    reasons = [reason for reason in summary.reasons if reason.status == "invalid"]
    return tuple(
        f"its cells would be invalid: {reason.code}: {reason.meaning}; "
        f"{remedy(reason, summary.evidence, info.validity)}"
        for reason in reasons
    )


def _problems(columns: Any) -> list[str]:  # noqa: ANN401 - RoundColumns
    failed = [detail for detail in columns["error_detail"] if detail]
    if failed:
        return [f"{len(failed)} of {len(columns['status'])} requests failed: {failed[0]}"]
    reported, requested = columns["input_tokens"], columns["asked_input_tokens"]
    if (reported < 0).any():
        return ["the server does not report input tokens (usage), so lengths can't be verified"]
    wrong = np.flatnonzero((reported != requested) & (requested >= 0))
    at = wrong[:1]
    return [f"asked for {requested[k]} input tokens, the server counted {reported[k]}" for k in at]


def _tpot(probes: Sequence[Probe], batch: int) -> float:
    """TPOT at a batch, s: interpolated in log2 of the batch between the smallest and the largest probed."""
    known = sorted({probe.batch: probe.tpot_s for probe in probes}.items())
    return float(np.interp(log2(batch), [log2(b) for b, _ in known], [tpot for _, tpot in known]))
