"""What is known of the speed of a sweep's engine: of its last run or check here, or of the simulator's profile."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchbench.errors import BenchError
from benchbench.forecast.durations import Point, Speed, by_one_stream, by_points
from benchbench.host.local_results import store, stored
from benchbench.secrets import masked
from benchbench.spec import Cell, Plan, SimulatorEngine, SweepSpec
from benchbench.store.run_directory import RunDirectory

SPEEDS = "speeds.json"  # what `bench check` measured of the servers of sweeps


def known_speed(plan: Plan, out: Path | None, assumed: Sequence[float] = ()) -> Speed | None:
    """As assumed (tok/s of one stream, and of prefill); else of the later of the last run and the last check.

    Else of the simulator's profile. A run or check counts if it was of a sweep of this name, model and engine. `out`: a
    run directory that is looked at besides runs/NAME-TIME.
    """
    if assumed:
        what = f"{assumed[0]:g} tok/s of each stream at every batch"
        prefill = f" and {assumed[1]:g} tok/s of prefill" if assumed[1:] else ", prefill left out"
        return Speed(f"as assumed: {what}{prefill}", by_one_stream(*assumed))
    measured = [dated for dated in (_last_run(plan.spec, out), _last_check(plan.spec)) if dated]
    if measured:
        return max(measured, key=lambda dated: dated[0])[1]
    if all(isinstance(cell.engine, SimulatorEngine) for cell in plan.cells):
        return Speed("by the simulator's profile", _by_profile())
    return None


def keep_check(spec: SweepSpec, points: Sequence[Point]) -> None:
    """Keep what a check measured."""
    store({"sweep": spec.name, "engine": _digest(spec), "points": [list(point) for point in points]}, SPEEDS)


def _last_check(spec: SweepSpec) -> tuple[int, Speed] | None:
    entry = stored(SPEEDS, sweep=spec.name, engine=_digest(spec))
    if not entry or not entry["points"]:
        return None
    points = [Point(*point) for point in entry["points"]]
    return entry["time_ns"], Speed(f"by bench check of {_day(entry['time_ns'])}", by_points(points))


def _last_run(spec: SweepSpec, out: Path | None) -> tuple[int, Speed] | None:
    """Of the latest run that has points."""
    folders = {path.parent for path in Path("runs").glob(f"{spec.name}-[0-9]*/summary.parquet")} | {out}
    runs: list[tuple[int, Speed]] = []
    for path in folders:
        try:
            run = RunDirectory(path) if path else None
            manifest = run.earlier() if run else {}
            if not run or not manifest or not _is_alike(manifest["spec"], spec):
                continue
            points = run_points(run.read_summary())
        except (BenchError, OSError):
            continue
        starts = [start["ready_s"] for start in manifest.get("starts", []) if start.get("ready_s")]
        if points:
            created = manifest.get("created_ns", 0)
            start_s = sum(starts) / len(starts) if starts else None
            runs.append((created, Speed(f"by the run {path}, of {_day(created)}", by_points(points), start_s)))
    return max(runs, key=lambda dated: dated[0], default=None)


def run_points(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    """What summary rows say of requests' times: TPOT from the whole of a request, so that its rounds come out right."""
    return [
        Point(row.get("variant") or "", row["input"], row.get("batch") or 1, row["ttft_ms"] / 1e3, _tpot_s(row))
        for row in rows
        if row.get("rounds") and row.get("ttft_ms") is not None and row.get("e2el_ms") is not None
    ]


def _tpot_s(row: Mapping[str, Any]) -> float:
    """Time of a request after its first token, an output token. Never below 0."""
    return float(max(0.0, row["e2el_ms"] - row["ttft_ms"]) / 1e3 / max(1, row["output"] - 1))


def _by_profile() -> Callable[[Cell, int], float | None]:
    """`Speed.round_s` of the simulator; a profile's file is read once."""
    from benchbench.engines.simulator import SimProfile, load_profile, scaled
    from benchbench.engines.simulator.model import static_rate

    profiles: dict[tuple[str, str, float], SimProfile] = {}

    def round_s(cell: Cell, output: int) -> float | None:
        engine = cell.engine
        if not isinstance(engine, SimulatorEngine):
            return None
        if cell.rate is not None:
            return cell.requests / cell.rate
        if cell.input is None:
            return None
        key = (engine.profile, repr(engine.options), engine.scale)
        if key not in profiles:
            profiles[key] = scaled(load_profile(engine.profile, engine.options), engine.scale)
        return cell.requests * output / static_rate(profiles[key], cell.input, output, cell.batch or 1)

    return round_s


def _is_alike(of_run: Mapping[str, Any], spec: SweepSpec) -> bool:
    ours = masked(spec.model_dump(mode="json"))
    return all(of_run.get(key) == ours[key] for key in ("name", "model", "engine"))


def _digest(spec: SweepSpec) -> str:
    ours = masked(spec.model_dump(mode="json"))
    text = json.dumps([ours["model"], ours["engine"], ours["variants"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _day(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(time_ns / 1e9))
