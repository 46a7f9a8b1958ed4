"""What a sweep is searched for: one search a shape and variant, and the cell of any load. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from benchbench.errors import EngineError
from benchbench.spec import Cell, Plan, SweepSpec, make_plan
from benchbench.spec.cell import cell_name
from benchbench.spec.schema import ClosedLoad


@dataclass(frozen=True, slots=True)
class Target:
    """One search: a shape in a variant, and the loads, batches or requests per second, from `low` to `high`.

    `shape` names it, as `in=128 out=64`; `input` and `output` as of a cell.
    """

    variant: str
    shape: str
    input: int | None
    output: int
    axis: str  # batch, rate
    low: float
    high: float

    @property
    def label(self) -> str:
        """The shape, the variant in front if there is one."""
        return " ".join(filter(None, (self.variant, self.shape)))

    def number(self, load: float) -> float:
        """A load as the sweep has it: batches are whole."""
        return int(load) if self.axis == "batch" else load

    def at(self, load: float) -> str:
        """As `batch 8` or `rate 2.5`."""
        return f"{self.axis} {load:.4g}" if self.axis == "rate" else f"{self.axis} {load:g}"

    def to_entry(self) -> dict[str, Any]:
        """As JSON, for the journal."""
        return asdict(self) | {"low": self.number(self.low), "high": self.number(self.high)}


def targets_of(plan: Plan) -> list[Target]:
    """One a variant and shape of the plan, in its order: from the smallest to the largest of its batches or rates.

    Raises EngineError, with the key at fault: no `slo`, a single load, or one that its requests cannot keep in flight.
    """
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in sorted(plan.cells, key=lambda cell: cell.index):
        groups.setdefault(place_of(cell), []).append(cell)
    return [_target(*place, cells) for place, cells in groups.items()]


def place_of(cell: Cell) -> tuple[str, str]:
    """Which search a cell belongs to: its variant, and its shape without the load."""
    return cell.variant, cell_name({**cell.info.__dict__, "variant": "", "batch": None, "rate": None}, " ")


def _target(variant: str, shape: str, cells: list[Cell]) -> Target:
    axis = "rate" if cells[0].batch is None else "batch"
    loads = sorted({float(getattr(cell, axis)) for cell in cells})
    target = Target(variant, shape, cells[0].input, cells[0].output, axis, loads[0], loads[-1])
    if not all(cell.slo.is_set for cell in cells):
        raise EngineError("is what is searched for: name a limit", "slo", allowed="ttft_ms, tpot_ms, e2el_ms")
    if target.low == target.high:
        message = f"{target.label} has one {axis}: a search needs the smallest and the largest, as [1, 256]"
        raise EngineError(message, "grid")
    for cell in cells:
        if isinstance(cell.load, ClosedLoad) and cell.requests < (cell.batch or 0):
            raise EngineError(f"{cell.requests} cannot keep a batch of {cell.batch} in flight", "load.requests")
    return target


def cell_at(spec: SweepSpec, target: Target, load: float, rounds: int) -> Cell:
    """The sweep's cell of this load, overrides applied, with so many rounds."""
    grid = tuple(product.model_copy(update={target.axis: (target.number(load),)}) for product in spec.grid)
    plan = make_plan(spec.model_copy(update={"grid": grid}))
    cell = next(cell for cell in plan.cells if place_of(cell) == (target.variant, target.shape))
    return replace(cell, rounds=cell.rounds.model_copy(update={"min": rounds, "max": rounds, "budget_s": None}))
