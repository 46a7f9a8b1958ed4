"""The embedded simulator: an OpenAI-compatible server driven by a model of continuous batching.

The default target, and the oracle that the load generator is measured against: `GET /truth` says when each
request was received and each token written. `SimulatorProcess` runs it; `load_profile` and `model.static_rate` say
beforehand what a round will take. All names below are imported when they are first used: the simulator's own process
needs none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchbench.engines.simulator.launch import SimulatorProcess
    from benchbench.engines.simulator.profiles import ProfileError, SimProfile, load_profile, scaled
    from benchbench.errors import SimulatorError

__all__ = ["ProfileError", "SimProfile", "SimulatorError", "SimulatorProcess", "load_profile", "scaled"]
_HOMES = {"SimulatorProcess": "benchbench.engines.simulator.launch", "SimulatorError": "benchbench.errors"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES.get(name, "benchbench.engines.simulator.profiles")), name)
