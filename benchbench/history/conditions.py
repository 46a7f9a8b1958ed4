"""Under which conditions a run was measured: runs of unlike ones are not held against each other. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from benchbench.spec.cell import CellInfo

# Of an engine: where a build lies and is reached. What it is is what a history is about.
_PLACES = {"url", "urls", "port", "python", "venv", "cwd", "command", "proxy", "ca_file", "insecure"}
_PLACES |= {"api_key_env", "headers_env"}
_OF_CELL = ("load", "requests", "prompts", "output_mode", "capped", "spread")
NAMES = ("model", "hardware", "GPUs", "drivers", "host", "server", "CPU", "tool", "flags", "load", "prompts", "cell")


def conditions_of(manifest: Mapping[str, Any], variant: str) -> dict[str, str]:
    """What must be alike in two runs, by name (NAMES, without `cell`): a build's code and versions are not in it."""
    spec, host = manifest["spec"], manifest.get("host") or {}
    devices = manifest.get("devices") or []
    gpus = Counter(f"{gpu.get('name', 'unknown')} {gpu.get('power_limit_w') or ''}".strip() for gpu in devices)
    drivers = {f"{name} {version}" for name, version in (host.get("drivers") or {}).items()}
    drivers |= {str(gpu["driver"]) for gpu in devices if gpu.get("driver")}
    tool = manifest.get("tool") or {}
    git = tool.get("git") or {}
    commit = f"commit {str(git['commit'])[:12]}{' with changes' * bool(git.get('dirty'))}" if git.get("commit") else ""
    engine = {**spec["engine"], **((spec.get("variants") or {}).get(variant, {}).get("engine") or {})}
    return {
        "model": str(spec.get("model")),
        "hardware": _text(spec.get("hardware")),
        "GPUs": ", ".join(f"{count} x {name}" for name, count in sorted(gpus.items())),
        "drivers": ", ".join(sorted(drivers)),
        "host": str(host.get("name") or ""),
        "server": urlsplit(str(engine.get("url") or "")).hostname or "",
        "CPU": ", ".join(str(host[key]) for key in ("cpu", "cpus_usable") if host.get(key)),
        "tool": f"{tool.get('version') or ''} {commit}".strip() + f", format {manifest.get('format', 0)}",
        "flags": _text({name: value for name, value in engine.items() if name not in _PLACES}),
        "load": _text(spec.get("load")),
        "prompts": _text(spec.get("prompts")),
    }


def definition_of(cell: CellInfo, metric: str) -> str:
    """How a cell is measured, beside its axes: with goodput also the limits that it counts by."""
    facts = {name: getattr(cell, name) for name in _OF_CELL}
    return _text(facts | (cell.slo.model_dump(mode="json") if metric == "goodput_req_s" else {}))


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """In what two sets of conditions differ, a sentence each."""
    return [
        f"{name}: {old.get(name) or 'unknown'} against {new.get(name) or 'unknown'}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def _text(value: Any) -> str:  # noqa: ANN401 - JSON
    """As one line: what is not set says nothing, so that a key that a later version adds changes nothing."""
    if isinstance(value, Mapping):
        kept = {name: item for name, item in value.items() if item not in (None, False, "", [], {})}
        return ", ".join(
            f"{name}={item if isinstance(item, str) else json.dumps(item, sort_keys=True)}"
            for name, item in sorted(kept.items())
        )
    return "" if value is None else str(value)
