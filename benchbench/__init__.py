"""benchbench: benchmarks of LLM inference servers that can be trusted.

from benchbench import load_spec, sweep, open_run

outcome = sweep(load_spec("sweeps/quickstart.yaml"), out="runs/first")
run = open_run(outcome.path)
run.summary()   # DataFrame, one row a cell, columns as in summary.csv
run.requests()  # DataFrame, one row a request, every token event's time
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchbench.analysis.runs import Run, open_run
    from benchbench.measure.run import Outcome, sweep
    from benchbench.spec import SpecError, SweepSpec, load_spec

from benchbench.version import __version__

__all__ = ["Outcome", "Run", "SpecError", "SweepSpec", "__version__", "load_spec", "open_run", "sweep"]

_HOMES = {
    "Outcome": "benchbench.measure.run",
    "Run": "benchbench.analysis.runs",
    "SpecError": "benchbench.spec",
    "SweepSpec": "benchbench.spec",
    "load_spec": "benchbench.spec",
    "open_run": "benchbench.analysis.runs",
    "sweep": "benchbench.measure.run",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - imported when asked for, so that `bench --help` is quick
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
