"""Sweeps: from a YAML file to a validated SweepSpec to a Plan, the ordered tuple of cells. Pure."""

from benchbench.products.select import SelectionError, parse_selection
from benchbench.spec.engine_sections import (
    EndpointEngine,
    Engine,
    SimulatorEngine,
    VllmInprocessEngine,
    VllmServeEngine,
)
from benchbench.spec.load import load_spec, locate, spec_from_mapping
from benchbench.spec.machine import Hardware
from benchbench.spec.plan import Cell, Plan, Session, make_plan
from benchbench.spec.schema import (
    ClosedLoad,
    Git,
    OpenLoad,
    Slo,
    StaticLoad,
    SweepSpec,
    Validity,
    Variant,
)
from benchbench.yamlfile.mistakes import SpecError

__all__ = [
    "Cell",
    "ClosedLoad",
    "EndpointEngine",
    "Engine",
    "Git",
    "Hardware",
    "OpenLoad",
    "Plan",
    "SelectionError",
    "Session",
    "SimulatorEngine",
    "Slo",
    "SpecError",
    "StaticLoad",
    "SweepSpec",
    "Validity",
    "Variant",
    "VllmInprocessEngine",
    "VllmServeEngine",
    "load_spec",
    "locate",
    "make_plan",
    "parse_selection",
    "spec_from_mapping",
]
