"""Several servers that share a sweep's load: each is asked what it is, and they must be one engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from benchbench.errors import EngineError
from benchbench.host.engine_provenance import endpoint_environment, is_loopback
from benchbench.openai.client import Capabilities, attach
from benchbench.openai.target import Access
from benchbench.secrets import mask_text
from benchbench.spec import EndpointEngine, OpenLoad, Plan

# Of vLLM's cache configuration, what is measured at a start or of one engine among several.
_OF_A_START = ("num_gpu_blocks", "num_cpu_blocks", "kv_cache", "engine", "_")


@dataclass(frozen=True, slots=True)
class Together:
    """What several servers are as one: only what all can do. `facts`: of each one, for the manifest."""

    capabilities: Capabilities
    notes: tuple[str, ...]
    facts: list[dict[str, Any]]


@contextlib.contextmanager
def naming(url: str, engine: EndpointEngine) -> Iterator[None]:
    """What is wrong with one of several servers names it."""
    try:
        yield
    except EngineError as error:
        if len(engine.urls) > 1:
            error.message = f"{mask_text(url)}: {error.message}"
            error.args = (error.message,)
        raise


def together(engine: EndpointEngine, plan: Plan, access: Access, first: Capabilities, stop: int | None) -> Together:
    """Ask all servers but the `first`, which has answered. Raises EngineError where one is another engine."""
    served = [first]
    for url in engine.urls[1:]:
        with naming(url, engine):
            served.append(attach(url, plan.spec.model, access, stop))
    sides = [endpoint_environment(url) if _is_near(url, engine) else {} for url in engine.urls]
    for url, capabilities, side in zip(engine.urls[1:], served[1:], sides[1:], strict=True):
        if different := _different(first, capabilities) + _built_otherwise(sides[0], side):
            pair = f"{mask_text(engine.urls[0])} and {mask_text(url)}"
            message = f"{pair} are different engines ({'; '.join(different)}): measure each in a variant of its own"
            raise EngineError(message, "engine.url")
    notes = list(_notes(engine, plan))
    for url, capabilities in zip(engine.urls, served, strict=True):
        if not capabilities.metrics and any(each.metrics for each in served):
            notes.append(f"{mask_text(url)} has no /metrics of vLLM's kind: the counters of none are used")
    both = replace(
        first,
        metrics=all(each.metrics for each in served),
        reset_prefix_cache=first.reset_prefix_cache and all(each.reset_prefix_cache for each in served),
    )
    facts = [
        {"url": mask_text(url), "pid": side.get("pid"), "engine": {**asdict(each), "server_info": None}}
        for url, each, side in zip(engine.urls, served, sides, strict=True)
    ]
    return Together(both, tuple(notes), facts)


def _is_near(url: str, engine: EndpointEngine) -> bool:
    return engine.proxy is None and is_loopback(urlsplit(url).hostname or "")


def _different(first: Capabilities, other: Capabilities) -> list[str]:
    """What two servers tell otherwise of themselves, in words; one that does not tell is no other's equal."""

    def properties(capabilities: Capabilities) -> dict[str, Any]:
        cache = capabilities.cache_config or {}
        return {
            "kind": capabilities.kind,
            "version": capabilities.version,
            "models": ", ".join(sorted(capabilities.models)),
            "max_model_len": capabilities.max_model_len,
            **{f"cache {key}": value for key, value in sorted(cache.items()) if not key.startswith(_OF_A_START)},
        }

    pair = properties(first), properties(other)
    names = dict.fromkeys([*pair[0], *pair[1]])
    values = {name: [each.get(name) or "not told" for each in pair] for name in names}
    return [f"{name}: {' and '.join(map(str, both))}" for name, both in values.items() if both[0] != both[1]]


def _built_otherwise(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The same of the builds that two processes of this host run, as far as both are known."""
    return [
        f"{name} {key}: {value} and {other[name][key]}"
        for name in ("vllm", "torch")
        for key, value in first.get(name, {}).items()
        if key in other.get(name, {}) and value != other[name][key]
    ]


def _notes(engine: EndpointEngine, plan: Plan) -> Iterator[str]:
    count, loads = len(engine.urls), [cell.load for cell in plan.cells]
    pinned = engine.routing == "pinned"
    how = "a place in flight keeps its server" if pinned else "requests go to them in turn"
    names = ", ".join(map(mask_text, engine.urls))
    yield f"{count} servers share the load, {how}: {names} (bench table RUN --by-replica shows each)"
    if pinned and any(isinstance(load, OpenLoad) for load in loads):
        yield "engine.routing: pinned: requests of an open load take nobody's place, and go to the servers in turn"
    if not pinned and any(cell.prompts.shared and cell.prompts.shared.turns for cell in plan.cells):
        yield "prompts.shared.turns: a conversation's next turn goes to another server; engine.routing: pinned keeps it"
    if uneven := sorted({cell.batch for cell in plan.cells if cell.batch and cell.batch % count}):
        batches = _listed(uneven)
        yield f"batch {batches}: no multiple of {count}: in each round some servers get one request more than others"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (" ..." if len(numbers) > 5 else "")
