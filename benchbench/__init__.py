"""Benchmarks of LLM inference servers that can be trusted.

    from benchbench import load_spec, open_run, sweep

    run = open_run(sweep(load_spec("my-sweep.yaml"), out="runs/first").path)
    run.summary()             # DataFrame, one row a cell, columns as in summary.csv
    run.requests()            # DataFrame, one row a request: ttft_ms, tpot_ms, e2el_ms ...
    run.tokens()              # one row a token event, as a stream of Arrow batches
    print(run.table())        # as bench table prints it
    run.draw("plots")         # as bench plot draws it
    run.compare("runs/other") # as bench compare does

All names below are imported when they are first used. docs/python.md has examples. What is raised on purpose is a
BenchError or a ValueError, and its message says what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchbench.version import __version__

if TYPE_CHECKING:
    from benchbench.api.artifacts import write_page
    from benchbench.api.auditing import Audit, audit_file
    from benchbench.api.best_settings import BestSettings, best
    from benchbench.api.bisecting import FoundCommit, find_commit
    from benchbench.api.capacities import compare_capacities, find_capacity
    from benchbench.api.compared import RunComparison, compare_runs
    from benchbench.api.crossing import Crosswise, cross
    from benchbench.api.historical import History, history_of
    from benchbench.api.measuring import sweep
    from benchbench.api.run_tables import runs_table
    from benchbench.api.stored_run import Run, open_run
    from benchbench.errors import BenchError, CardError, EngineError, RunError
    from benchbench.measure.run import Outcome
    from benchbench.spec import SpecError, SweepSpec, load_spec, spec_from_mapping

__all__ = [
    "Audit",
    "BenchError",
    "BestSettings",
    "CardError",
    "Crosswise",
    "EngineError",
    "FoundCommit",
    "History",
    "Outcome",
    "Run",
    "RunComparison",
    "RunError",
    "SpecError",
    "SweepSpec",
    "__version__",
    "audit_file",
    "best",
    "compare_capacities",
    "compare_runs",
    "cross",
    "find_capacity",
    "find_commit",
    "history_of",
    "load_spec",
    "open_run",
    "runs_table",
    "spec_from_mapping",
    "sweep",
    "write_page",
]

_HOMES = {
    "api.artifacts": ("write_page",),
    "api.auditing": ("Audit", "audit_file"),
    "api.best_settings": ("BestSettings", "best"),
    "api.capacities": ("compare_capacities", "find_capacity"),
    "api.bisecting": ("FoundCommit", "find_commit"),
    "api.compared": ("RunComparison", "compare_runs"),
    "api.crossing": ("Crosswise", "cross"),
    "api.historical": ("History", "history_of"),
    "api.measuring": ("sweep",),
    "api.run_tables": ("runs_table",),
    "api.stored_run": ("Run", "open_run"),
    "errors": ("BenchError", "CardError", "EngineError", "RunError"),
    "measure.run": ("Outcome",),
    "spec": ("SpecError", "SweepSpec", "load_spec", "spec_from_mapping"),
}

if not TYPE_CHECKING:  # with it, a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        """Imported when asked for, so that `import benchbench` and `bench --help` are quick."""
        for home, names in _HOMES.items():
            if name in names:
                from importlib import import_module

                globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
