"""From a sweep to the ordered tuple of cells that will be measured."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter

from benchbench.datasets.conversations import batches, grown
from benchbench.datasets.laws import Law, Lengths, mean_of
from benchbench.products.select import SelectionError, parse_selection
from benchbench.spec.cell import CellInfo
from benchbench.spec.engine_sections import Engine
from benchbench.spec.schema import (
    STEADY_BATCHES,
    WINDOW_BATCHES,
    ClosedLoad,
    Load,
    OpenLoad,
    Prompts,
    Rounds,
    Slo,
    StaticLoad,
    SweepSpec,
    Timeouts,
    Validity,
)
from benchbench.yamlfile.mistakes import Problem, SpecError

# Engine fields that reach the server or its speed in no way: everything else is part of a cell's key.
NOT_IN_KEY = {"answers_as", "api_key_env", "headers_env", "ca_file", "insecure", "host", "port", "ready", "restarts"}
LATER_KEYS = {"fresh_caches": False, "path": None, "max_tokens_field": "max_tokens", "routing": "round_robin"}
FROM_SPEC = ("model", "engine", "rounds", "prompts", "timeouts", "slo", "validity", "seed")  # a cell's, as they are


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the sweep with everything that measuring it takes, overrides applied.

    `input` and `output` are tokens per request, means where `lengths` has a law for them (`input` None where only the
    server can tell); `batch` is requests in flight (None in an open load),
    `rate` requests per second (None otherwise); `load` has its `requests` and `rate` filled in; `index` is
    the place in written order, counted over the whole grid from 0.

    `key` is the first 16 hex digits of the SHA-256 of what can change the cell's numbers: variant, model,
    engine, shape, load, prompts, seed, output mode and speculative decoding. It does not depend on
    rounds, timeouts, SLO, validity, order, credentials or keys of other engine kinds.
    """

    key: str
    variant: str
    model: str
    engine: Engine
    input: int | None
    output: int
    batch: int | None
    rate: float | None
    lengths: Lengths
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
    def info(self) -> CellInfo:
        """The cell as a run stores it."""
        alike = ("key", "index", "variant", *Shape._fields, "requests", "output_mode", "slo", "validity")
        return CellInfo(
            **{name: getattr(self, name) for name in alike} | {"lengths": str(self.lengths)},
            load=self.load.kind,
            spread=self.spread,
            rounds_min=self.rounds.min,
            rounds_max=self.rounds.max,
            rel_ci=self.rounds.rel_ci,
            warmup=self.rounds.warmup,
            capped=isinstance(self.load, OpenLoad) and self.load.max_concurrency is not None,
            prompts=self.prompts.label,
        )

    @property
    def label(self) -> str:
        """As `in=128 out=128 batch=8` or `in=128 out=128 rate=2.5`, the variant in front if there is one."""
        return self.info.label

    @property
    def requests(self) -> int:
        """Requests of one round: the batch (static), else the load's `requests` (closed: 5 x batch if unset)."""
        return (None if isinstance(self.load, StaticLoad) else self.load.requests) or self.batch or 1

    @property
    def spread(self) -> bool:
        """Whether a closed load is long enough for a window; then the lengths of its first wave are spread."""
        return isinstance(self.load, ClosedLoad) and self.requests >= WINDOW_BATCHES * (self.batch or 1)

    @property
    def tokens(self) -> int:
        """Output tokens of one round, on average."""
        return self.requests * self.output


@dataclass(frozen=True, slots=True)
class Session:
    """One life of an engine, from its start to its end, and the cells measured in it, in order.

    `block` counts from 0; every block has one session of each variant. None in a sweep without variants and blocks.
    """

    block: int | None
    variant: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep, and the sessions in which they are measured."""

    spec: SweepSpec
    sessions: tuple[Session, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Each cell once, in the order in which they are first measured."""
        return tuple({cell.key: cell for session in self.sessions for cell in session.cells}.values())

    def of_session(self, session: Session) -> Plan:
        """The plan of one session alone: its engine is the sweep's."""
        return Plan(variant_spec(self.spec, session.variant), (session,))


class Shape(NamedTuple):
    """A point of the grid: tokens in and out, requests in flight or a second, and the laws of its lengths."""

    input: int | None
    output: int
    batch: int | None
    rate: float | None
    lengths: Lengths = Lengths()


def shapes(spec: SweepSpec) -> list[Shape]:
    """The points of the grid in written order (the last axis runs fastest), each once."""
    open_rate = spec.load.rate if isinstance(spec.load, OpenLoad) else None
    points: dict[Shape, None] = {}
    for product in spec.grid:
        rates = product.rate or ((open_rate,) if product.batch is None else (None,))
        for point in itertools.product(product.input, product.output, product.batch or (None,), rates):
            laws = Lengths(*(length if isinstance(length, Law) else None for length in point[:2]))
            points.setdefault(Shape(mean_of(point[0]), mean_of(point[1]) or 0, *point[2:], laws))
    return list(points)


@cache
def _any_engine() -> TypeAdapter[Engine]:
    return TypeAdapter(Annotated[Engine, Field(discriminator="kind")])


def variant_spec(spec: SweepSpec, variant: str) -> SweepSpec:
    """The sweep of one variant, its engine laid over the sweep's; `spec` itself for ""."""
    if not variant:
        return spec
    engine = {"engine": spec.engine.model_dump(mode="json")}
    merged = merge(engine, {"engine": spec.variants[variant].engine})["engine"]
    return spec.model_copy(update={"engine": _any_engine().validate_python(merged)})


def matching(spec: SweepSpec, variant: str = "") -> Iterator[tuple[Shape, tuple[int, ...]]]:
    """Each point of the grid with the places of the overrides whose `when` selects it in this variant.

    Raises SelectionError for a `when` that is no selection.
    """
    selections = [parse_selection(override.when, spec.variants) for override in spec.overrides]
    for shape in shapes(spec):
        cell = {**shape._asdict(), "variant": variant}
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
    """Expand the grid, apply the overrides, and order the sessions and their cells.

    `order: random` shuffles with the sweep's seed, each block in its own way; `only` (a selection) then keeps some
    cells in that order. Raises SpecError where `only` is malformed or selects nothing.
    """
    variants = tuple(spec.variants) or ("",)
    by_variant = {variant: _cells(spec, variant, place) for place, variant in enumerate(variants)}
    every = [cell for cells in by_variant.values() for cell in cells]
    kept = {cell.key for cell in (_selected(every, only) if only is not None else every)}
    sessions = []
    for block, variant in _order(spec, variants):
        cells = [cell for cell in by_variant[variant] if cell.key in kept]
        if spec.order == "random":
            random.Random(spec.seed if block is None else f"{spec.seed} {block}").shuffle(cells)
        if cells:
            sessions.append(Session(block, variant, tuple(cells)))
    return Plan(spec, tuple(sessions))


def _order(spec: SweepSpec, variants: Sequence[str]) -> list[tuple[int | None, str]]:
    """Which variant's engine is started when: two alternate as AB BA AB ...

    More of them follow a Williams design, in which each variant stands as often in each place and as often after each
    other one (E. J. Williams, Austral. J. Sci. Res. A 2 (1949) 149-168); the seed says which variant is which letter.
    """
    if spec.block_count is None:
        return [(None, "")]
    named, count = list(variants), len(variants)
    if count > 2:
        random.Random(spec.seed).shuffle(named)
    first = [0, *(place for pair in zip(range(1, count), range(count - 1, 0, -1), strict=True) for place in pair)]
    rows = [[(place + row) % count for place in first[:count]] for row in range(count)]
    rows = rows if count % 2 == 0 else [order for row in rows for order in (row, row[::-1])]
    return [(block, named[place]) for block in range(spec.block_count) for place in rows[block % len(rows)]]


def _cells(spec: SweepSpec, variant: str, place: int) -> list[Cell]:
    whole = variant_spec(spec, variant)
    resolved: dict[tuple[int, ...], SweepSpec] = {}
    cells = []
    points = list(matching(spec, variant))
    for index, (shape, applied) in enumerate(points):
        if applied not in resolved:
            data = whole.model_dump(mode="json", exclude={"overrides"}) if applied else {}
            for at in applied:
                data = merge(data, spec.overrides[at].changes)
            resolved[applied] = SweepSpec.model_validate(data) if applied else whole
        cells.append(_cell(resolved[applied], shape, place * len(points) + index, variant))
    return cells


def _selected(cells: list[Cell], only: str) -> list[Cell]:
    source = f"--only {only}"
    try:
        selection = parse_selection(only, {cell.variant: None for cell in cells})
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


def _cell(spec: SweepSpec, shape: Shape, index: int, variant: str) -> Cell:
    load = spec.load
    if isinstance(load, OpenLoad):
        load = load.model_copy(update={"rate": shape.rate})
    elif isinstance(load, ClosedLoad) and load.requests is None:
        load = load.model_copy(update={"requests": batches(spec.prompts.shared, STEADY_BATCHES) * (shape.batch or 1)})
    shape = grown(shape, spec.prompts.shared)
    return Cell(
        key=_key(spec, shape, load, variant),
        variant=variant,
        **shape._asdict(),
        load=load,
        output_mode=spec.output,
        index=index,
        **{name: getattr(spec, name) for name in FROM_SPEC},
    )


def _key(spec: SweepSpec, shape: Shape, load: Load, variant: str) -> str:
    left_out = NOT_IN_KEY | spec.engine.other.keys()
    engine = {key: value for key, value in spec.engine.model_dump(mode="json").items() if key not in left_out}
    for key, default in LATER_KEYS.items():  # keys of runs from before them stay what they were
        if engine.get(key) == default:
            engine.pop(key, None)
    prompts = spec.prompts.model_dump(mode="json", exclude={"path"})  # its bytes count, not where they lie
    content = {
        "variant": variant,
        "model": spec.model,
        "engine": engine,
        "shape": {name: value for name, value in shape._asdict().items() if name != "lengths"},
        "load": load.model_dump(mode="json"),
        "prompts": {k: v for k, v in prompts.items() if v is not None or k in {"vocab", "tokenizer"}},
        "seed": spec.seed,
        "output_mode": spec.output,
    }
    if shape.lengths:
        content["lengths"] = str(shape.lengths)
    if load.kind == "closed":
        content["first_wave"] = "spread"  # before version 0.2 all were of one length
    if variant and (git := spec.variants[variant].git):
        content["git"] = git.model_dump(mode="json")
    if spec.speculative:
        content["speculative"] = spec.speculative.model_dump(mode="json")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
