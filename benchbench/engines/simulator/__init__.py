"""The embedded simulator: an OpenAI-compatible server driven by a model of continuous batching.

The default target, and the oracle that the load generator is measured against: `GET /truth` says when each
request was received and each token written. `SimulatorProcess` runs it; `load_profile` and `model.static_rate` say
beforehand what a round will take.
"""

from benchbench.engines.simulator.launch import SimulatorProcess
from benchbench.engines.simulator.profiles import ProfileError, SimProfile, load_profile, scaled
from benchbench.errors import SimulatorError

__all__ = ["ProfileError", "SimProfile", "SimulatorError", "SimulatorProcess", "load_profile", "scaled"]
