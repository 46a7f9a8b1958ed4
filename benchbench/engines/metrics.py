"""What the server counted, from vLLM's `/metrics`: read before and after a round, never during one.

The names are vLLM's (docs.vllm.ai, "Production Metrics"), with or without the `_total` that some exporters add to
counters. Counters are summed over engines (data parallel ranks) and models. A metric that is not there is None,
never 0: nothing was counted, rather than none.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from benchbench.engines.endpoint import Access, asking

PAGE_BYTES = 16 << 20  # a rank's page has some 70 kB

# Field: the metrics that it is the sum of. A tier behind a KV connector saves prefill as the GPU's own cache does.
_COUNTERS = {
    "prompt_tokens": ("prompt_tokens",),
    "generation_tokens": ("generation_tokens",),
    "prefix_queries": ("prefix_cache_queries",),
    "prefix_hits": ("prefix_cache_hits", "external_prefix_cache_hits"),
    "preemptions": ("num_preemptions",),
    "requests_finished": ("request_success",),
    "queue_s_sum": ("request_queue_time_seconds_sum",),
    "queue_count": ("request_queue_time_seconds_count",),
    "ttft_s_sum": ("time_to_first_token_seconds_sum",),
    "ttft_count": ("time_to_first_token_seconds_count",),
}
_GAUGES = {"running": ("num_requests_running",), "waiting": ("num_requests_waiting",)}
_PREFIX, _CACHE, _STARTED = "vllm:", "cache_config_info", "process_start_time_seconds"
_WANTED = {
    _STARTED,
    _PREFIX + _CACHE,
    *(
        _PREFIX + name + end
        for names in (*_COUNTERS.values(), *_GAUGES.values())
        for name in names
        for end in ("", "_total")
    ),
}
_NAME = re.compile(r"[^\s{]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What only grows while a server lives, in tokens, requests and (`_s_sum`) seconds.

    `prefix_queries` are the prompt tokens looked up in the prefix cache and `prefix_hits` those found there or in a
    cache behind a KV connector. `requests_finished` counts every way to end, aborts included. `queue_*` and `ttft_*`
    are the sums and counts of the histograms of queue time and of the server's own TTFT.
    """

    prompt_tokens: int | None = None
    generation_tokens: int | None = None
    prefix_queries: int | None = None
    prefix_hits: int | None = None
    preemptions: int | None = None
    requests_finished: int | None = None
    queue_s_sum: float | None = None
    queue_count: int | None = None
    ttft_s_sum: float | None = None
    ttft_count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCounts(Counters):
    """One look at `/metrics`: the counters since the server started, and its state now.

    `running` and `waiting` are requests, `kv_tokens` is the KV cache's capacity in tokens over all engines,
    `started_s` the server's start in seconds of Unix time (None with several API processes) and `engines` the
    number of distinct `engine` labels.
    """

    running: int | None = None
    waiting: int | None = None
    kv_tokens: int | None = None
    started_s: float | None = None
    engines: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerDelta(Counters):
    """What was counted between two looks.

    `replicas`: the looks were at different processes (several behind one address, or a restart), so that nothing
    can be said and every count is None.
    """

    replicas: bool = False


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The server's tokens against ours; None where the server does not say.

    `foreign_*` are tokens that the server counted and we did not, `missing` those (prompt and generation) that we
    counted and the server did not.
    """

    foreign_prompt: int | None
    foreign_generation: int | None
    missing: int | None


def scrape(url: str, access: Access) -> ServerCounts | None:
    """GET `/metrics` of the server at `url` (a root); None if it has no such page, or none of vLLM's metrics there.

    Raises EngineError when the CA file cannot be read.
    """
    page = asyncio.run(_page(url, access))
    if page is None:
        return None
    try:
        counts = parse(page)
    except ValueError:
        return None
    seen = (value for name, value in asdict(counts).items() if name != "started_s")
    return counts if any(value is not None for value in seen) else None


async def _page(url: str, access: Access) -> str | None:
    import aiohttp

    try:
        async with asking(url, access, limit=PAGE_BYTES) as ask:
            status, body = await ask("/metrics")
    except (aiohttp.ClientError, OSError):
        return None
    return body.decode(errors="replace") if status == 200 and len(body) <= PAGE_BYTES else None


def parse(text: str) -> ServerCounts:
    """The counts on a page in Prometheus' text format. Raises ValueError where a line that is needed is malformed."""
    from prometheus_client.parser import text_string_to_metric_families

    # Only the lines needed, without the comments that say their types: a page is mostly histogram buckets and takes
    # the parser some 20 ms, these lines less than one. Without a type, names also stay as they were sent.
    lines = [line for line in text.splitlines() if (name := _NAME.match(line)) and name[0] in _WANTED]
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
    engines = set()
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            if not math.isfinite(sample.value):
                continue
            samples[sample.name].append((sample.labels, float(sample.value)))
            engines |= {sample.labels["engine"]} if "engine" in sample.labels else set()
    found: dict[str, Any] = {}
    for field, names in (_COUNTERS | _GAUGES).items():
        parts = [samples.get(f"{_PREFIX}{name}_total") or samples.get(_PREFIX + name) for name in names]
        values = [value for part in parts for _, value in part or ()]
        if values:
            found[field] = math.fsum(values) if field.endswith("_s_sum") else round(math.fsum(values))
    started = [value for _, value in samples[_STARTED]]
    return ServerCounts(
        **found,
        kv_tokens=_capacity([labels for labels, _ in samples[_PREFIX + _CACHE]]),
        started_s=max(started, default=None),
        engines=len(engines) or None,
    )


def _capacity(configs: Sequence[Mapping[str, str]]) -> int | None:
    """Tokens in the KV caches of all engines, if each says so.

    vLLM's own `kv_cache_size_tokens` comes first: with several groups of layers a token takes a block of each, and
    blocks x block size would be too many.
    """
    total = 0
    for labels in configs:
        numbers = [labels.get(name, "") for name in ("kv_cache_size_tokens", "num_gpu_blocks", "block_size")]
        tokens, blocks, size = (int(number) if number.isdecimal() else 0 for number in numbers)
        if not (tokens or blocks * size):
            return None
        total += tokens or blocks * size
    return total or None


def delta(before: ServerCounts, after: ServerCounts) -> ServerDelta:
    """What the server counted between two looks: after - before, None where either does not say."""
    names = [field.name for field in fields(Counters)]
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in names}
    grown = {name: new - old for name, (old, new) in pairs.items() if old is not None and new is not None}
    moved = before.started_s != after.started_s or before.engines != after.engines
    if moved or any(change < 0 for change in grown.values()):
        return ServerDelta(replicas=True)
    return ServerDelta(**grown)


def reconcile(delta: ServerDelta, prompt_tokens: int, generation_tokens: int) -> Reconciled:
    """The server's tokens between two looks against those of our requests, warm-up and failures included."""
    prompt = None if delta.prompt_tokens is None else delta.prompt_tokens - prompt_tokens
    generation = None if delta.generation_tokens is None else delta.generation_tokens - generation_tokens
    known = [surplus for surplus in (prompt, generation) if surplus is not None]
    return Reconciled(
        foreign_prompt=None if prompt is None else max(0, prompt),
        foreign_generation=None if generation is None else max(0, generation),
        missing=sum(max(0, -surplus) for surplus in known) if known else None,
    )


def settled(
    scrape_again: Callable[[], ServerCounts | None], expected_generation: int, tries: int = 5, pause_s: float = 0.05
) -> ServerCounts | None:
    """The counts once `generation_tokens` (since the server's start) has reached `expected_generation`.

    vLLM counts a step just after it has streamed it, so the first look after a round may lack the last tokens.
    Looks up to `tries` times, `pause_s` seconds apart; the last counts if it stays short, None if none came.
    """
    last = None
    for attempt in range(tries):
        if attempt:
            time.sleep(pause_s)
        last = scrape_again() or last
        if last and (last.generation_tokens is None or last.generation_tokens >= expected_generation):
            break
    return last
