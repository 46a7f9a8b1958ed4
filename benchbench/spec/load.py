"""Reading a sweep: from a file with `--set` options, or from a mapping, to a checked SweepSpec."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchbench.bodies.extra_fields import unmeasurable
from benchbench.datasets.laws import ambiguous
from benchbench.datasets.resolve import with_files
from benchbench.prefixes.feasible import unreachable
from benchbench.products.product import expanded
from benchbench.products.select import FIELDS, SelectionError, parse_selection
from benchbench.spec import schema
from benchbench.spec.engine_sections import ENGINE_KEYS
from benchbench.spec.plan import make_plan, matching, merge, shapes
from benchbench.yamlfile.mistakes import Fault, Loc, Problem, SpecError, faults_of, known_keys, show, unknown_key
from benchbench.yamlfile.yaml_document import Document, YamlText, read_yaml

NOT_OVERRIDABLE = (
    *("name", "grid", "order", "overrides", "hardware", "model_facts", "speculative", "telemetry", "loadgen"),
    *("variants", "baseline", "blocks", "cool_to", "profile", "fidelity", "axis"),
)
# Overrides change what is asked of a server, never the server.
OVERRIDABLE_ENGINE = ("api", "extra_body")
OVERRIDABLE = tuple(key for key in schema.SweepSpec.model_fields if key not in NOT_OVERRIDABLE)
_KEYS = known_keys(schema.SweepSpec)


def load_spec(path: str | Path | YamlText, sets: Sequence[str] = ()) -> schema.SweepSpec:
    """Read a sweep file (or text), apply `sets` (`key.path=value`, as `--set`; later ones win) and check it.

    Raises SpecError with all that is wrong, the file's problems by line, then those of `sets`.
    """
    return _checked(_document(path, sets))


def _document(path: str | Path | YamlText, sets: Sequence[str]) -> Document:
    document = read_yaml(path if isinstance(path, YamlText) else Path(path), str(path))
    for text in sets:
        document.put(text)
    return document


def spec_from_mapping(data: dict[str, Any], source: str = "<spec>") -> schema.SweepSpec:
    """Check a sweep given as plain data (as from JSON); `source` names it in errors. Raises SpecError."""
    if not isinstance(data, dict):
        raise SpecError([Problem(source, None, "", f"must be a mapping (key: value), is {show(data)}")])
    return _checked(Document(source, data))


def _checked(document: Document) -> schema.SweepSpec:
    made = expanded(document.data, FIELDS)
    data, unread = with_files(_lent_url(made.data))
    spec, faults = _check(data)
    faults += unread
    faults += _variant_faults(data, faults)
    faults += _override_faults(spec if not faults else None, data, faults)
    if spec is not None and not faults and ("closed" in _load_kinds(spec) or spec.prompts.shared or spec.overrides):
        faults += _starved(spec)
    if spec is not None and not faults:
        faults += ambiguous(shapes(spec))
    faults = made.faults + [made.written(fault) for fault in faults]
    known = {(problem.file, problem.line, problem.path) for problem in document.problems}
    located = [document.locate(fault) for fault in dict.fromkeys(faults)]
    problems = document.problems + [p for p in located if (p.file, p.line, p.path) not in known]
    if spec is None or problems:
        raise SpecError(sorted(problems, key=lambda problem: (problem.file != document.file, problem.line or 0)))
    return spec


def _load_kinds(spec: schema.SweepSpec) -> set[str]:
    return {spec.load.kind, *(o.changes["load"].get("kind") for o in spec.overrides if "load" in o.changes)}


def _check(data: dict[str, Any]) -> tuple[schema.SweepSpec | None, list[Fault]]:
    """The spec, where its sections alone are right; and what is wrong within or between them."""
    try:
        spec, faults = schema.SweepSpec.model_validate(data), list[Fault]()
    except ValidationError as error:
        spec, faults = None, faults_of(error, _KEYS)
    return spec, faults + list(_cross_faults(data))


def _cross_faults(data: dict[str, Any]) -> Iterator[Fault]:
    """What one section must know of another, as far as the data can be read at all."""
    engine, grid = data.get("engine"), data.get("grid")
    load, prompts = data.get("load", {"kind": "static"}), data.get("prompts", {})
    yield from unmeasurable(engine) if isinstance(engine, dict) else ()
    products = grid if isinstance(grid, (list, tuple)) else [grid]
    if isinstance(load, dict) and load.get("kind") == "open":
        yield from _open_faults(load, products)
    elif isinstance(load, dict) and load.get("kind") in ("static", "closed"):
        yield from _batch_faults(load["kind"], products)
    kind = engine.get("kind") if isinstance(engine, dict) else None
    if kind == "vllm_inprocess" and isinstance(prompts, dict) and prompts.get("kind") in ("text", "corpus"):
        yield Fault(("prompts", "kind"), "the in-process engine takes token ids", "token_ids")
    workers = loadgen.get("workers") if isinstance(loadgen := data.get("loadgen"), dict) else None
    if kind == "vllm_inprocess" and workers not in (None, "auto", 1):
        yield Fault(("loadgen", "workers"), "the in-process engine is one process, which sends by itself", "auto, 1")
    if isinstance(loadgen, dict) and loadgen.get("ray"):
        if kind == "vllm_inprocess":
            yield Fault(("loadgen", "ray"), "the in-process engine is one process, which sends by itself", "empty")
        if loadgen.get("cpus"):
            yield Fault(("loadgen", "cpus"), "names CPUs of this host, and with loadgen.ray others may send", "empty")
    chat = isinstance(engine, dict) and engine.get("api") == "chat" and "api" in ENGINE_KEYS.get(kind or "", ())
    if chat and isinstance(prompts, dict) and prompts.get("kind", "token_ids") == "token_ids":
        where: Loc = ("prompts", "kind") if "kind" in prompts else ("engine", "api")
        yield Fault(where, "the chat API takes no token ids: set prompts.kind to text")


def _open_faults(load: dict[str, Any], products: Sequence[Any]) -> Iterator[Fault]:
    given = load.get("rate") is not None
    rated = [isinstance(product, dict) and product.get("rate") is not None for product in products]
    for index, product in enumerate(products):
        if not isinstance(product, dict):
            continue
        if product.get("batch") is not None:
            yield Fault(("grid", index, "batch"), "an open load has no batch: its third axis is rate")
        elif not rated[index] and not given:
            yield Fault(("grid", index, "rate"), "is missing: an open load needs a rate here or in load.rate")
    if given and rated and all(rated):
        yield Fault(("load", "rate"), "is never used: the grid has its own rates")


def _batch_faults(kind: str, products: Sequence[Any]) -> Iterator[Fault]:
    for index, product in enumerate(products):
        if not isinstance(product, dict):
            continue
        if product.get("rate") is not None:
            yield Fault(("grid", index, "rate"), f"a {kind} load has no rate: its third axis is batch")
        elif product.get("batch") is None:
            yield Fault(("grid", index, "batch"), f"is missing: a {kind} load needs a batch")


def _starved(spec: schema.SweepSpec) -> Iterator[Fault]:
    """Closed loads with fewer requests than they promise to keep in flight, and hit rates that no round can have."""
    where: Loc = ("load", "requests") if isinstance(spec.load, schema.ClosedLoad) else ("overrides",)
    for cell in sorted(make_plan(spec).cells, key=lambda cell: cell.index):
        if isinstance(cell.load, schema.ClosedLoad) and cell.requests < (cell.batch or 0):
            yield Fault(where, f"{cell.requests} requests cannot keep a batch of {cell.batch} in flight")
        yield from unreachable(cell)


def _variant_faults(data: dict[str, Any], known: list[Fault]) -> Iterator[Fault]:
    """What is wrong among the variants, and in the sweep that each of them makes."""
    variants, blocks = data.get("variants"), data.get("blocks")
    engine = data.get("engine")
    single = not variants or (isinstance(variants, dict) and len(variants) < 2)
    if blocks is not None and single and isinstance(engine, dict) and engine.get("kind") == "endpoint":
        message = "needs an engine that the sweep starts: a server that is attached to is not started again"
        yield Fault(("blocks",), message, "simulator, vllm_serve, vllm_inprocess; or two variants")
    if not variants or not isinstance(variants, dict):
        if data.get("baseline") is not None:
            yield Fault(("baseline",), "needs variants")
        return
    if data.get("baseline") is not None and data["baseline"] not in list(variants):
        yield Fault(("baseline",), f"unknown variant {show(data['baseline'])}", ", ".join(map(str, variants)))
    if single and blocks is None:
        message = "needs at least two variants to compare, or blocks: how often to start the one"
        yield Fault(("variants",), message)
    base = {key: value for key, value in data.items() if key not in {"overrides", "variants", "baseline", "blocks"}}
    for name, variant in variants.items():
        engine = variant.get("engine", {}) if isinstance(variant, dict) else None
        if not isinstance(engine, dict):
            continue  # the schema has said so
        kind = merge(base, {"engine": engine})["engine"].get("kind")
        if variant.get("git") is not None and kind in ("endpoint", "simulator"):
            message = f"needs an engine that is launched from it, is {kind}"
            yield Fault(("variants", name, "git"), message, "vllm_serve, vllm_inprocess")
        for fault in _check(merge(base, {"engine": engine}))[1]:
            inner = fault.loc if len(fault.loc) > 1 and fault.loc[1] in engine else ("engine", *fault.loc[1:])
            if fault not in known:
                yield fault._replace(loc=("variants", name, *inner))


def _lent_url(data: dict[str, Any]) -> dict[str, Any]:
    """`data`, its endpoint given the address of a variant where each variant has its own."""
    engine, variants = data.get("engine"), data.get("variants")
    if not isinstance(engine, dict) or engine.get("kind") != "endpoint" or not isinstance(variants, dict):
        return data
    engines = [variant.get("engine") if isinstance(variant, dict) else None for variant in variants.values()]
    urls = [engine.get("url") for engine in engines if isinstance(engine, dict) and engine.get("url")]
    return data if "url" in engine or len(urls) < len(engines) else {**data, "engine": {**engine, "url": urls[0]}}


def _override_faults(spec: schema.SweepSpec | None, data: dict[str, Any], known: list[Fault]) -> list[Fault]:
    """What is wrong in the overrides themselves, then in the sweep that each set of them makes."""
    overrides = data.get("overrides")
    if not isinstance(overrides, (list, tuple)):
        return []
    names = data["variants"] if isinstance(data.get("variants"), dict) else ()
    own = [list(_own_faults(index, override, names)) for index, override in enumerate(overrides)]
    faults = [fault for of_override in own for fault in of_override]
    # Each alone, unless the grid is known and says which of them meet in a cell.
    sound = [index for index, of_override in enumerate(own) if not of_override and isinstance(overrides[index], dict)]
    groups: set[tuple[int, ...]] = {(index,) for index in sound}
    base = data
    if spec is not None and not faults:
        met = {applied for _, applied in matching(spec)}
        groups = met | {group for group in groups if not any(group[0] in applied for applied in met)}
        base = spec.model_dump(mode="json")
    for group in sorted(groups):
        merged = {key: value for key, value in base.items() if key != "overrides"}
        for index in group:
            merged = merge(merged, {key: value for key, value in overrides[index].items() if key != "when"})
        fresh = [fault for fault in _check(merged)[1] if fault not in known]
        faults += [fault._replace(loc=_blame(fault.loc, group, overrides)) for fault in fresh]
    return faults


def _blame(loc: Loc, group: tuple[int, ...], overrides: Sequence[dict[str, Any]]) -> Loc:
    """The last override of the group that wrote the place, else the last one."""
    for index in reversed(group):
        if loc and loc[0] in overrides[index]:
            return ("overrides", index, *loc)
    return ("overrides", group[-1])


def _own_faults(index: int, override: Any, variants: Collection[str]) -> Iterator[Fault]:  # noqa: ANN401 # anything
    if not isinstance(override, dict):
        return  # the schema has said so
    when = override.get("when")
    if isinstance(when, str):
        try:
            parse_selection(when, variants)
        except SelectionError as error:
            yield Fault(("overrides", index, "when"), error.message, error.allowed)
    for key in override:
        if key in NOT_OVERRIDABLE:
            yield Fault(("overrides", index, key), "cannot differ between cells", ", ".join(OVERRIDABLE))
        elif key not in OVERRIDABLE and key != "when":
            yield Fault(("overrides", index, key), *unknown_key(key, OVERRIDABLE))
    engine = override.get("engine")
    for key in engine if isinstance(engine, dict) else ():
        if key not in OVERRIDABLE_ENGINE and any(key in keys for keys in (("kind",), *ENGINE_KEYS.values())):
            yield Fault(
                ("overrides", index, "engine", key), "cannot differ between cells", ", ".join(OVERRIDABLE_ENGINE)
            )


def locate(path: str | Path | YamlText, sets: Sequence[str], key: str, message: str, allowed: str = "") -> Problem:
    """A problem that was found later than in loading (a refused key, an unknown model), with its place in the file."""
    return _document(path, sets).locate(Fault(tuple(key.split(".")), message, allowed))
