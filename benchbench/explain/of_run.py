"""What a run knows of a cell beside its records: the load of a model's experts, out of the engine's log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchbench.analysis.runs import Run
from benchbench.analysis.summary import CellSummary
from benchbench.experts.expert_load import RANDOM, UNTOLD, ExpertLoad, expert_load
from benchbench.explain.explanation import explain
from benchbench.replicas.replica_words import addresses
from benchbench.spec.cell import CellInfo


def explain_cells(run: Run, cells: Sequence[CellInfo]) -> list[str]:
    """`explain_cell` of each. They are read as they were measured: each file of telemetry once, whatever the order."""
    wanted = {cell.key for cell in cells}
    texts = {cell.key: explain_cell(run, cell) for cell in run.measured if cell.key in wanted}
    return [texts[cell.key] for cell in cells]


def explain_cell(run: Run, cell: CellInfo) -> str:
    """`explain` of a cell of a run, with a line on the experts where its model is known to be a mixture of them."""
    summary = run.summary_of(cell)
    more = {"experts": words} if (words := _experts(run, summary)) else {}
    return explain(summary, more, addresses(run.manifest["spec"], cell.variant))


def _experts(run: Run, summary: CellSummary) -> str:
    variant = summary.cell.variant
    facts = {**(run.manifest.get("variant_model_facts") or {}), "": run.manifest.get("model_facts")}
    model = facts.get(variant, facts[""]) or {}
    if not model.get("experts") or not summary.rounds:
        return ""
    load = _load(run, summary)
    sent = (run.manifest["spec"].get("prompts") or {}).get("kind", "token_ids")
    return "; ".join([load.words if load else UNTOLD, *([RANDOM] if sent in {"token_ids", "text"} else [])])


def _load(run: Run, summary: CellSummary) -> ExpertLoad | None:
    """Of all measured rounds, each by the log of the start that it is of."""
    starts = [
        start
        for start in run.manifest.get("starts", [])
        if start.get("variant") == summary.cell.variant and start.get("log") and start.get("time_ns")
    ]
    rounds = defaultdict[int, list[tuple[int, int]]](list)
    for facts in summary.facts:
        begin = facts.get("started_ns") or 0
        before = [place for place, start in enumerate(starts) if start["time_ns"] <= begin]
        if before and facts.get("wall_ns"):
            rounds[before[-1]].append((begin, begin + int(facts["wall_ns"])))
    loads = [_of_start(run.path, starts[place], windows) for place, windows in rounds.items()]
    known = [load for load in loads if load]
    return ExpertLoad(sum((load.rounds for load in known), ()), sum(load.steps for load in known)) if known else None


def _of_start(path: Path, start: dict[str, Any], windows: list[tuple[int, int]]) -> ExpertLoad | None:
    try:
        log = (path / start["log"]).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return expert_load(log, start["time_ns"], windows)
