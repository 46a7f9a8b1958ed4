"""From a sweep to the ordered tuple of cells that will be measured."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchbench.spec.errors import Problem, SpecError
from benchbench.spec.schema import (
    ClosedLoad,
    Engine,
    Load,
    OpenLoad,
    Prompts,
    Rounds,
    Slo,
    SweepSpec,
    Timeouts,
    Validity,
)
from benchbench.spec.select import SelectionError, parse_selection

# Engine fields that reach the server or its speed in no way: everything else is part of a cell's key.
NOT_IN_KEY = {"api_key_env", "headers_env", "ca_file", "insecure", "host", "port", "ready", "restarts"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the sweep with everything that measuring it takes, overrides applied.

    `input` and `output` are tokens per request; `batch` is requests in flight (None in an open load),
    `rate` requests per second (None otherwise); `load` has its `requests` and `rate` filled in; `index` is
    the place in written order, counted over the whole grid from 0.

    `key` is the first 16 hex digits of the SHA-256 of what can change the cell's numbers: variant, model,
    engine, shape, load, prompts, seed and output mode. It does not depend on rounds, timeouts, SLO, validity,
    order, credentials or keys of other engine kinds.
    """

    key: str
    variant: str
    model: str
    engine: Engine
    input: int
    output: int
    batch: int | None
    rate: float | None
    load: Load
    rounds: Rounds
    prompts: Prompts
    timeouts: Timeouts
    slo: Slo
    output_mode: str
    validity: Validity
    seed: int
    index: int

    @property
    def label(self) -> str:
        """As `in=128 out=128 batch=8` or `in=128 out=128 rate=2.5`, the variant in front if there is one."""
        third = f"batch={self.batch}" if self.rate is None else f"rate={self.rate:g}"
        variant = f"{self.variant} " if self.variant else ""
        return f"{variant}in={self.input} out={self.output} {third}"

    @property
    def requests(self) -> int:
        """Requests of one round: the batch (static), else the load's `requests` (closed: 4 x batch if unset)."""
        if isinstance(self.load, (ClosedLoad, OpenLoad)) and self.load.requests is not None:
            return self.load.requests
        return (self.batch or 1) * (4 if isinstance(self.load, ClosedLoad) else 1)

    @property
    def tokens(self) -> int:
        """Output tokens of one round."""
        return self.requests * self.output


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep in the order in which they are measured."""

    spec: SweepSpec
    cells: tuple[Cell, ...]


class Shape(NamedTuple):
    """A point of the grid: tokens in, tokens out, requests in flight or requests per second."""

    input: int
    output: int
    batch: int | None
    rate: float | None


def shapes(spec: SweepSpec) -> list[Shape]:
    """The points of the grid in written order (the last axis runs fastest), each once."""
    open_rate = spec.load.rate if isinstance(spec.load, OpenLoad) else None
    found: dict[Shape, None] = {}
    for product in spec.grid:
        rates = product.rate or ((open_rate,) if product.batch is None else (None,))
        for point in itertools.product(product.input, product.output, product.batch or (None,), rates):
            found.setdefault(Shape(*point))
    return list(found)


def matching(spec: SweepSpec) -> Iterator[tuple[Shape, tuple[int, ...]]]:
    """Each point of the grid with the places of the overrides whose `when` selects it.

    Raises SelectionError for a `when` that is no selection.
    """
    selections = [parse_selection(override.when) for override in spec.overrides]
    for shape in shapes(spec):
        cell = {**shape._asdict(), "variant": ""}
        yield shape, tuple(index for index, selection in enumerate(selections) if selection.matches(cell))


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it: mappings merge key by key, anything else is replaced.

    A load of another kind replaces the whole load. Where the changes give only one of `rounds.min` and
    `rounds.max`, the other gives way to it.
    """
    merged = _merge(base, changes)
    load, new_load = base.get("load"), changes.get("load")
    if isinstance(load, dict) and isinstance(new_load, dict) and "kind" in new_load:
        merged["load"] = merged["load"] if new_load["kind"] == load.get("kind") else dict(new_load)
    rounds, new_rounds = merged.get("rounds"), changes.get("rounds")
    if isinstance(rounds, dict) and isinstance(new_rounds, dict):
        low, high = rounds.get("min"), rounds.get("max")
        given = new_rounds.keys() & {"min", "max"}
        if type(low) is int and type(high) is int and low > high and len(given) == 1:
            del rounds["max" if "min" in given else "min"]
    return merged


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def make_plan(spec: SweepSpec, only: str | None = None) -> Plan:
    """Expand the grid, apply the overrides, and order the cells.

    `order: random` shuffles with the sweep's seed; `only` (a selection) then keeps some cells in that order.
    Raises SpecError where `only` is malformed or selects nothing.
    """
    whole = spec.model_dump(mode="json", exclude={"overrides"})
    resolved: dict[tuple[int, ...], SweepSpec] = {}
    cells = []
    for index, (shape, applied) in enumerate(matching(spec)):
        if applied not in resolved:
            data = whole
            for place in applied:
                data = merge(data, spec.overrides[place].changes)
            resolved[applied] = SweepSpec.model_validate(data)
        cells.append(_cell(resolved[applied], shape, index))
    if spec.order == "random":
        random.Random(spec.seed).shuffle(cells)
    return Plan(spec, tuple(_selected(cells, only) if only is not None else cells))


def _selected(cells: list[Cell], only: str) -> list[Cell]:
    source = f"--only {only}"
    try:
        selection = parse_selection(only)
    except SelectionError as error:
        raise SpecError([Problem(source, None, "", error.message, error.allowed)]) from None
    kept = [
        cell
        for cell in cells
        if selection.matches({field: getattr(cell, field) for field in (*Shape._fields, "variant")})
    ]
    if not kept:
        raise SpecError([Problem(source, None, "", f"selects none of the {len(cells)} cells")])
    return kept


def _cell(spec: SweepSpec, shape: Shape, index: int) -> Cell:
    load = spec.load
    if isinstance(load, OpenLoad):
        load = load.model_copy(update={"rate": shape.rate})
    elif isinstance(load, ClosedLoad) and load.requests is None:
        load = load.model_copy(update={"requests": 4 * (shape.batch or 1)})
    return Cell(
        key=_key(spec, shape, load),
        variant="",
        model=spec.model,
        engine=spec.engine,
        **shape._asdict(),
        load=load,
        rounds=spec.rounds,
        prompts=spec.prompts,
        timeouts=spec.timeouts,
        slo=spec.slo,
        output_mode=spec.output,
        validity=spec.validity,
        seed=spec.seed,
        index=index,
    )


def _key(spec: SweepSpec, shape: Shape, load: Load) -> str:
    left_out = NOT_IN_KEY | spec.engine.other.keys()
    engine = {key: value for key, value in spec.engine.model_dump(mode="json").items() if key not in left_out}
    content = {
        "variant": "",
        "model": spec.model,
        "engine": engine,
        "shape": shape._asdict(),
        "load": load.model_dump(mode="json"),
        "prompts": spec.prompts.model_dump(mode="json"),
        "seed": spec.seed,
        "output_mode": spec.output,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
