"""What is said of shared prefixes: under a table, and why a hit rate is not the asked one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchbench.prefixes.hits import Hits

BLOCK = 128  # tokens of a large block


def mixture_lines(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The line of a table's caption that says what its TTFT is, where prompts share prefixes; else none."""
    known = [row for row in rows if row.get("hit_rate") is not None]
    rates = sorted({round(100 * row["hit_rate"], 1) for row in known})
    if not rates:
        return []
    share = f"{rates[0]:g} %" if len(rates) == 1 else f"{rates[0]:g} % to {rates[-1]:g} %"
    if all((row.get("lengths") or "").startswith("input turns") for row in known):
        text = f"Conversations: {share} of the tokens of turns before came from the server's cache, as asked"
    else:
        text = f"Hit rate {share}: that share of the requests began with a prefix in the server's cache, as asked"
    return [f"{text}; TTFT is of the mixture, TTFT of hits and TTFT of misses are its parts."]


def diagnosis(hits: Hits) -> str:
    """Why the cached tokens are not those asked for, and what to set."""
    parts = []
    if hits.rate is not None:
        parts.append(f"measured {_percent(hits.rate)}, asked {_percent(hits.asked_rate)}")
    if hits.shortest and hits.wrong_tokens < BLOCK * hits.short:
        each = f"hits lack {hits.wrong_tokens / hits.short:.0f} tokens on average"
        if hits.shortest == hits.longest:
            each = f"each hit is of {hits.longest} tokens of {hits.prefix_tokens}"
        parts.append(
            f"{each}, as a cache keeps whole blocks: let prompts.shared.prefix_tokens (of conversations input and "
            "output) be multiples of its block size"
        )
    elif hits.short:
        parts.append(
            f"{hits.short} of {hits.wanted} requests that were to hit found fewer tokens than their prefix has: "
            "a prefix was evicted (a larger KV cache, fewer groups), another replica computed it (attach to one), or "
            "the cache is off"
        )
    if hits.over:
        parts.append(
            f"{hits.over} requests found more than was asked, so the server knew their prompts: change seed, or set "
            "rounds.reset_prefix_cache"
        )
    return "; ".join(parts)


def shared_words(hits: Hits, hit_s: str, miss_s: str) -> str:
    """What a cell's prefixes did: the rates, and TTFT of hits and of misses (`hit_s`, `miss_s`, in words)."""
    if hits.unknown:
        rate = f"hit rate unknown: cached tokens of {hits.unknown} of {hits.requests} requests were not told"
    else:
        rate = f"{_percent(hits.rate or 0.0)} of the prefixes' tokens came from the cache"
    each = "each" if hits.asked_tokens == hits.wanted * hits.prefix_tokens else "at most"
    return (
        f"{rate}, asked {_percent(hits.asked_rate)} ({hits.wanted} of {hits.requests} requests, {hits.prefix_tokens} "
        f"tokens {each}); TTFT of hits {hit_s}, of misses {miss_s}: TTFT is of their mixture"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
