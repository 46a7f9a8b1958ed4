"""The servers of a run by their addresses, and what `bench explain` says of each. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchbench.replicas.server_figures import ByServer, ServerFigures
from benchbench.spec.plan import merge


def addresses(spec: Mapping[str, Any], variant: str) -> list[str]:
    """The addresses in engine.url of a sweep as a manifest keeps it (secrets masked), of one of its variants or ""."""
    own = spec.get("variants", {}).get(variant, {}).get("engine") or {}
    url = merge({"engine": spec["engine"]}, {"engine": own})["engine"].get("url") or []
    return [url] if isinstance(url, str) else list(url)


def name_of(server: int, urls: Sequence[str]) -> str:
    """Its address without the scheme, or its place where that is not known."""
    return urls[server].partition("://")[2] if server < len(urls) else f"server {server}"


def server_lines(split: ByServer, urls: Sequence[str]) -> list[str]:
    """One line a server: `10.0.0.1:8000: 40 requests, 0 failed, TTFT 20.1 ms, TPOT 3.00 ms, 50.0 % of tok/s`."""
    return [f"{name_of(each.server, urls)}: {_line(each)}" for each in split.figures]


def apart_lines(split: ByServer, urls: Sequence[str]) -> tuple[str, ...]:
    """Which servers are slower than the others, and by how much."""
    return tuple(f"{name_of(server, urls)}: {words}" for server, words in split.apart)


def _line(each: ServerFigures) -> str:
    parts = [f"{each.requests} requests, {each.failed} failed"]
    parts += [f"TTFT {each.ttft_s * 1e3:.2f} ms"] if each.ttft_s is not None else []
    parts += [f"TPOT {each.tpot_s * 1e3:.3f} ms"] if each.tpot_s is not None else []
    parts += [f"{each.share * 100:.1f} % of the tokens per second"] if each.share is not None else []
    return ", ".join(parts)
