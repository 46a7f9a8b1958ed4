"""A sweep carried out for somebody at a terminal: progress, signals, the outcome, and how the process ends."""

from __future__ import annotations

import sys
from pathlib import Path

from benchbench.cli.asked import BAD_INPUT, STOPPED, fail
from benchbench.cli.outcome import show
from benchbench.cli.progress import observer_for
from benchbench.cli.signals import Stop
from benchbench.errors import EngineError, RunError
from benchbench.measure.run import Outcome
from benchbench.measure.run import sweep as run_sweep
from benchbench.spec import SpecError, SweepSpec, locate


def carry_out(
    spec: SweepSpec,
    file: tuple[str, tuple[str, ...]],
    *,
    only: str | None,
    out: Path | None,
    resume: bool,
    plots: bool = True,
    command: str = "sweep",
) -> Outcome:
    """The complete outcome, shown; any other ends the process. `file` is the sweep's, with what was --set."""
    with Stop() as stop, observer_for(sys.stderr) as observer:
        try:
            outcome = run_sweep(spec, out, only=only, resume=resume, plots=plots, observer=observer, stop=stop.fd)
        except SpecError as error:
            fail(BAD_INPUT, *error.problems)
        except EngineError as error:
            fail(BAD_INPUT, locate(*file, error.key, error.message, error.allowed), *error.lines)
        except RunError as error:
            fail(BAD_INPUT, error)
    show(spec, outcome)
    again = f"continue with: bench {command} {file[0]} --resume --out {outcome.path}"
    if outcome.state == "interrupted":
        fail(stop.code, f"bench: interrupted; {again}")
    if outcome.state == "stopped":
        message = f"{outcome.message}; {again}"
        fail(STOPPED, locate(*file, outcome.key, message) if outcome.key else f"bench: {message}")
    return outcome
