"""`--retry`: rounds that something spoiled are set aside, so that they are measured again."""

from __future__ import annotations

from benchbench.analysis.evidence import measured
from benchbench.analysis.reasons import Reason
from benchbench.analysis.runs import cell_summary, samples_of
from benchbench.analysis.summary import CellSummary, metrics_of, summary_of
from benchbench.errors import RunError
from benchbench.measure.cells import block_rounds
from benchbench.model.roofline import Platform, platform_of
from benchbench.spec import Cell, Plan
from benchbench.store.run_directory import RunDirectory


def set_aside(run: RunDirectory, plan: Plan, what: str) -> list[str]:
    """Set the rounds aside that `what` spoiled ("invalid", or a reason's code); notes on what is measured again.

    A round is spoiled when it has the reason by itself. Where no round has it, as a drift is one of all together, all
    are; with variants a start is one observation, so all rounds of the cell in it are. Cells that were given up are
    tried again. Raises RunError for an unknown word.
    """
    allowed = list(dict.fromkeys(["invalid", *(reason.code for reason in Reason)]))
    if what not in allowed:
        raise RunError(f"--retry {what}: unknown (allowed: {', '.join(allowed)})")
    notes, manifest = [], run.manifest()
    for cell in plan.cells:
        platform = platform_of(manifest, cell.variant)
        summary = cell_summary(run, cell.info, platform)
        if what not in _words(summary):
            continue
        numbers = _spoiled(run, plan, cell, what, platform)
        run.journal("cell_retried", cell=cell.key, rounds=numbers, reasons=[r.code for r in summary.reasons])
        for number in numbers:
            run.set_aside(cell.key, number)
        count = f"{len(numbers)} of {len(summary.rounds)} rounds set aside, to be measured again"
        notes.append(f"{cell.label}: {count if numbers else 'tried again'}")
    return notes or [f"--retry {what}: no cell has it"]


def _spoiled(run: RunDirectory, plan: Plan, cell: Cell, what: str, platform: Platform | None) -> list[int]:
    """The numbers of the rounds that are spoiled; none where rounds are only too few."""
    if what == Reason.TOO_FEW_ROUNDS.code:
        return []
    before = metrics_of(cell.info, run.read_pieces(cell.key, "warmup"))
    numbers, spoiled = run.finished_rounds(cell.key), set[int]()
    for number in numbers:
        taken = [measured(cell.info, run.pieces(cell.key, "measured", number))]
        if what in _words(summary_of(cell.info, taken, before, samples_of(run, taken), platform, 0)):
            spoiled.add(number)
    for session in plan.sessions if spoiled else ():
        if session.block is not None and not spoiled.isdisjoint(of_start := block_rounds(cell, session.block)):
            spoiled |= of_start
    return [number for number in numbers if number in spoiled or not spoiled]


def _words(summary: CellSummary) -> set[str]:
    return {summary.status, *(reason.code for reason in summary.reasons)}
