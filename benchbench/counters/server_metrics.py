"""What the server counted, from vLLM's `/metrics`: read before and after a round, never during one.

The names are vLLM's (docs.vllm.ai, "Production Metrics"), with or without the `_total` that some exporters add to
counters. Counters are summed over engines (data parallel ranks) and models. A metric that is not there is None,
never 0: nothing was counted, rather than none.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from benchbench.openai.client import http_session
from benchbench.openai.target import Access
from benchbench.speculation.acceptance import POSITION

Counts = dict[str, float]
"""One look: what only grows while a server lives, by the names of `_COUNTERS`, in tokens, requests and (`_s_sum`)
seconds, and accepted drafted tokens by their place in the draft (`speculation.acceptance.POSITION`); and of the server
`kv_tokens` (the KV cache's capacity over all engines), `started_s` (Unix time), `engines` (distinct `engine` labels).
"""

PAGE_BYTES = 16 << 20  # a rank's page has some 70 kB
LOOK_S = 5.0  # for a page, its connection included

# Name: the metrics that it is the sum of. A tier behind a KV connector saves prefill as the GPU's own cache does;
# requests finish in every way, aborts included.
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
    "spec_drafts": ("spec_decode_num_drafts",),
    "spec_draft_tokens": ("spec_decode_num_draft_tokens",),
    "spec_accepted_tokens": ("spec_decode_num_accepted_tokens",),
}
_BY_POSITION = "spec_decode_num_accepted_tokens_per_pos"  # with a label `position`
_PREFIX, _CACHE, _STARTED = "vllm:", "cache_config_info", "process_start_time_seconds"
_NAMES = "|".join([_CACHE, _BY_POSITION, *(name for names in _COUNTERS.values() for name in names)])
_WANTED = re.compile(rf"(?:{_STARTED}|{_PREFIX}(?:{_NAMES})(?:_total)?)(?=[\s{{])")


async def look(url: str, access: Access) -> Counts | None:
    """GET `/metrics` of the server at `url`; None if it has no such page, or none of vLLM's metrics there.

    Raises EngineError when the CA file cannot be read.
    """
    try:
        async with asyncio.timeout(LOOK_S), http_session(url, access, limit=PAGE_BYTES) as request:
            status, body = await request("/metrics")
        counts = parse(body.decode(errors="replace")) if status == 200 and len(body) <= PAGE_BYTES else {}
    except (OSError, ValueError):
        return None
    return counts if counts.keys() - {"started_s"} else None


def parse(text: str) -> Counts:
    """The counts on a page in Prometheus' text format. Raises ValueError where a line that is needed is malformed."""
    from prometheus_client.parser import text_string_to_metric_families

    # Only the lines needed, without the comments that say their types: a page is mostly histogram buckets and takes
    # the parser some 20 ms, these lines less than one. Without a type, names also stay as they were sent.
    lines = filter(_WANTED.match, text.splitlines())
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            if abs(sample.value) < 2**53:  # above, and NaN: no count that could be compared
                samples[sample.name].append((sample.labels, float(sample.value)))
    counts: Counts = {}
    for field, names in _COUNTERS.items():
        parts = [samples.get(f"{_PREFIX}{name}_total") or samples.get(_PREFIX + name) for name in names]
        values = [value for part in parts for _, value in part or ()]
        if values:
            counts[field] = math.fsum(values) if field.endswith("_s_sum") else round(math.fsum(values))
    for labels, value in samples.get(f"{_PREFIX}{_BY_POSITION}_total") or samples[_PREFIX + _BY_POSITION]:
        if labels.get("position", "").isdecimal():
            name = f"{POSITION}{int(labels['position'])}"
            counts[name] = counts.get(name, 0) + round(value)
    if started := [value for _, value in samples[_STARTED]]:
        counts["started_s"] = max(started)
    if engines := {labels["engine"] for part in samples.values() for labels, _ in part if "engine" in labels}:
        counts["engines"] = len(engines)
    if capacity := _capacity([labels for labels, _ in samples[_PREFIX + _CACHE]]):
        counts["kv_tokens"] = capacity
    return counts


def _capacity(configs: Sequence[Mapping[str, str]]) -> int | None:
    """Tokens in the KV caches of all engines, if each says so.

    vLLM's own `kv_cache_size_tokens` comes first: with several groups of layers a token takes a block of each, and
    blocks x block size would be too many.
    """
    total = 0
    for labels in configs:
        numbers = [labels.get(name, "") for name in ("kv_cache_size_tokens", "num_gpu_blocks", "block_size")]
        tokens, blocks, size = (int(number) if number.isdecimal() and len(number) < 16 else 0 for number in numbers)
        if not (tokens or blocks * size):
            return None
        total += tokens or blocks * size
    return total or None


def grown(before: Counts, after: Counts) -> Counts | None:
    """What was counted between two looks, by the counters that both tell.

    None when the looks were at different processes (several behind one address, or a restart): nothing can be said.
    """
    common = [name for name in before if name in after and (name in _COUNTERS or name.startswith(POSITION))]
    changes = {name: after[name] - before[name] for name in common}
    moved = any(before.get(name) != after.get(name) for name in ("started_s", "engines"))
    return None if moved or any(change < 0 for change in changes.values()) else changes
