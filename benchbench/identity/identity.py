"""What a run measures. A run holds one engine a variant, so that no table shows two servers as one. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from benchbench.spec.engine_sections import ENGINE_KEYS
from benchbench.spec.plan import NOT_IN_KEY, merge
from benchbench.store.facts import Manifest

Identity = dict[str, Any]
"""Values by path, as `engine.args.max-num-seqs`, secrets masked. What is not known is absent."""

# How an engine is reached, asked and kept alive, not what it is: what is asked is part of a cell's key.
_FREE = NOT_IN_KEY | {"proxy", "api", "extra_body"}
# Of vLLM's cache configuration: measured at each start, or of one engine among several.
_MEASURED = ("num_gpu_blocks", "num_cpu_blocks", "kv_cache_size", "kv_cache_max", "kv_cache_memory", "engine", "_")


def requested(spec: Mapping[str, Any], variant: str) -> Identity:
    """What a sweep, as a manifest keeps it, asks of a variant's engine."""
    given = spec.get("variants", {}).get(variant, {})
    engine = merge({"engine": spec["engine"]}, {"engine": given.get("engine") or {}})["engine"]
    keys = [key for key in ("kind", *ENGINE_KEYS[engine["kind"]]) if key in engine and key not in _FREE]
    built = {"git.build": given["git"]["build"]} if given.get("git") else {}
    paths = {path: value for key in keys for path, value in _paths(f"engine.{key}", engine[key])}
    return {"model": spec["model"], **built, **paths}


def served(
    capabilities: Mapping[str, Any], environment: Mapping[str, Any], devices: Sequence[Mapping[str, Any]], weights: str
) -> Identity:
    """What a started engine tells of itself, and its host of it.

    `capabilities` as `Capabilities`, `environment` as `engine_environment`, `devices` as the sampler's facts, `weights`
    by `fingerprint`. The command line says nothing of an engine that we launch: it has another port each time.
    """
    builds = {name: environment.get(name, {}) for name in ("vllm", "torch")}
    cache = capabilities.get("cache_config") or {}
    facts = {
        "server": capabilities.get("kind"),
        "server version": capabilities.get("version"),
        "max_model_len": capabilities.get("max_model_len"),
        "weights": weights,
        "command": " ".join(environment.get("command", ())),
        "GPUs": sorted({str(device.get("name")) for device in devices if device.get("index") is not None}),
        "driver": sorted({str(device["driver"]) for device in devices if device.get("driver")}),
        **{f"{name} {key}": value for name, build in builds.items() for key, value in build.items()},
        **{f"commit of {name}": source.get("commit") for name, source in environment.get("sources", {}).items()},
        **{f"cache {key}": value for key, value in cache.items() if not key.startswith(_MEASURED)},
    }
    return {name: value for name, value in facts.items() if value not in (None, "", [])}


def known(starts: Sequence[Mapping[str, Any]], variant: str) -> tuple[Identity, str]:
    """All that a variant's engine told over its starts (a manifest's), and the name that its rounds carry.

    Both are empty where no start has an identity, as in runs of an earlier version.
    """
    of_variant = [start for start in starts if start["variant"] == variant and "identity" in start]
    digest = str(of_variant[-1]["identity_digest"]) if of_variant else ""
    identity: Identity = {}
    for start in of_variant:
        identity |= start["identity"] if start["identity_digest"] == digest else {}
    return identity, digest


def code_before(manifest: Manifest, variant: str, before_ns: int) -> Mapping[str, Any]:
    """What the last start of a variant before this time had loaded, as `loaded_code`; empty if that is not known."""
    starts = [s for s in manifest.get("starts", []) if s["variant"] == variant and s["time_ns"] < before_ns]
    return manifest.get("loaded", {}).get(starts[-1].get("loaded", ""), {}) if starts else {}


def rebuilt(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The libraries (by path) and Python packages that both have loaded and that have another content now, in words.

    Left out are caches, which are written anew, and a script with the files beside it, which may be results.
    """
    parts = [
        {
            **{path: digest for path, digest in loaded.get("libraries", {}).items() if "cache" not in path},
            **{f"Python of {k}": v for k, v in loaded.get("python", {}).items() if not k.endswith(".py")},
        }
        for loaded in (before, now)
    ]
    return [f"{name}: changed" for name, digest in parts[0].items() if parts[1].get(name, digest) != digest]


def not_compared(before: Identity) -> str:
    """What a resumed run cannot compare, in words; "" when that is nothing of weight. `before`: by `known`."""
    if not before:
        return "earlier rounds do not say what server, weights and driver they are of: only the sweep is compared"
    if before["engine.kind"] == "endpoint" and "command" not in before:
        return "the server does not tell its flags: that it was started again with others is seen only where they show"
    return ""


def changes(before: Identity, now: Identity) -> list[str]:
    """What differs, in words; only of what both tell, since an earlier version told less.

    A part of a section (a flag, a variable) that only one has does differ.
    """
    return [
        f"{path}: {_words(before.get(path))} -> {_words(now.get(path))}"
        for path in {**before, **now}
        if before.get(path) != now.get(path) and all(path in side or _section(path) in side for side in (before, now))
    ]


def digest_of(identity: Identity) -> str:
    """A name for an identity, which each round carries."""
    return hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _paths(path: str, value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - JSON
    if not isinstance(value, Mapping):
        yield path, value
        return
    yield f"{path}.", None  # the section itself, so that one without parts is known too
    for key, part in value.items():
        yield f"{path}.{key}", part


def _section(path: str) -> str:
    return f"{path.rpartition('.')[0]}."


def _words(value: Any) -> str:  # noqa: ANN401 - JSON
    return "not set" if value is None else str(value)
