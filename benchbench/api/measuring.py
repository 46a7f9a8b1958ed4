"""A sweep carried out from Python: measured, then drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchbench.analysis.runs import Run
from benchbench.api.pictures import Pictures
from benchbench.measure import run as measuring
from benchbench.measure.observer import Observer
from benchbench.measure.run import Outcome
from benchbench.spec import SweepSpec


def sweep(  # noqa: PLR0913 - the options of the command
    spec: SweepSpec,
    out: str | Path | None = None,
    *,
    only: str | None = None,
    sets: Sequence[str] = (),
    resume: bool = False,
    retry: str | None = None,
    plots: bool = True,
    observer: Observer | None = None,
    stop: int | None = None,
) -> Outcome:
    """Carry a sweep out and leave a run directory (default: runs/NAME-TIME), with `plots` its figures in it.

    `only`: a selection such as "batch>=8,input=128". `resume`: continue the run in `out`, or the latest of this name.
    `retry`: of a resumed run, "invalid" or a reason's code: what it spoiled is measured again. `sets`: what was --set
    in the spec, for the manifest. `observer` is told what happens. `stop`: a descriptor; when it becomes readable, the
    running round is dropped and the sweep ends in state "interrupted". A KeyboardInterrupt ends it the same way and is
    raised again. Figures that cannot be written are told in the outcome's message.

    Raises SpecError (selection), EngineError (model, credentials ...) and RunError (directory).
    """
    outcome = measuring.sweep(spec, out, only=only, sets=sets, resume=resume, retry=retry, observer=observer, stop=stop)
    return drawn_of(outcome, final_pictures(outcome)) if plots else outcome


def drawn_of(outcome: Outcome, pictures: Pictures | None) -> Outcome:
    """The outcome, once its pictures are drawn; its message says where they cannot be written."""
    try:
        if pictures:
            pictures.draw()
    except OSError as error:
        return replace(outcome, message=f"the plots are not all drawn: {error}")
    return outcome


def final_pictures(outcome: Outcome) -> Pictures | None:
    """Those of a sweep that is complete and has measured something; rows and pairs are those it ended with."""
    if outcome.state != "complete" or outcome.message or not any(row["rounds"] for row in outcome.rows):
        return None
    from benchbench.api.artifacts import choice_of
    from benchbench.figures.caption import run_title
    from benchbench.figures.timeline import timeline_of

    run = Run(outcome.path)
    times = timeline_of(run, outcome.rows)
    return Pictures(outcome.rows, times, outcome.pairs, outcome.path / "plots", run_title(run), choice_of(run))
