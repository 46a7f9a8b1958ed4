"""What `bench env` prints: this tool, this host and, of a sweep, its engine as far as it can be known beforehand."""

from __future__ import annotations

import os
import shlex
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from benchbench.engines.open import access_of
from benchbench.engines.vllm import python_of
from benchbench.errors import EngineError
from benchbench.host.engine_provenance import engine_environment, side_of
from benchbench.host.environment import environment, spec_hash
from benchbench.host.gpus import device_facts
from benchbench.openai.client import attach
from benchbench.safe_text import printable
from benchbench.secrets import mask_text, masked
from benchbench.spec import EndpointEngine, Engine, SweepSpec, VllmInprocessEngine, VllmServeEngine
from benchbench.spec.plan import variant_spec

WIDTH = 118


def facts_of(spec: SweepSpec | None) -> dict[str, Any]:
    """The facts of a run's manifest that are known without running; nothing is launched."""
    devices, notes = device_facts()
    facts = {**environment(), "devices": devices, **({"notes": notes} if notes else {})}
    if spec is None:
        return facts
    facts["spec_sha256"] = spec_hash(masked(spec.model_dump(mode="json")))
    if spec.variants:
        return {**facts, "variants": {name: _engine(variant_spec(spec, name)) for name in spec.variants}}
    return {**facts, **_engine(spec)}


def _engine(spec: SweepSpec) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if isinstance(spec.engine, EndpointEngine):
        try:
            access = access_of(spec.engine, spec.timeouts.connect_s)
            named = {mask_text(url): asdict(attach(url, spec.model, access)) for url in spec.engine.urls}
            facts["engine"] = named if len(named) > 1 else named.popitem()[1]
        except EngineError as error:
            facts["engine"] = {"notes": [str(error)]}
    facts["engine_environment"] = _side(spec.engine)
    return facts


def _side(engine: Engine) -> dict[str, Any]:
    if not isinstance(engine, VllmServeEngine | VllmInprocessEngine):
        return side_of(engine)
    env = {**os.environ, **{name: str(value) for name, value in engine.env.items()}}
    own = isinstance(engine, VllmServeEngine) and engine.command is not None and engine.command[0] != "python"
    configured = engine.python or engine.venv or not own
    return engine_environment(env, shutil.which(python_of(engine), path=env.get("PATH")) if configured else None)


def text(facts: Mapping[str, Any], width: int = WIDTH) -> str:
    """Facts as indented lines; what is long and for machines is named only. `width`: of the list of packages."""
    return "\n".join(_lines(facts, "", width))


def _lines(facts: Mapping[str, Any], indent: str, width: int) -> Iterator[str]:
    for key, value in facts.items():
        words = key if key.isupper() else key.replace("_", " ")  # variables of the environment stay as they are
        name = f"{indent}{printable(words)}:"
        if value is None or value in ("", [], (), {}):
            continue
        if key == "packages":
            listed = ", ".join(f"{package}=={version}" for package, version in value.items())
            yield name
            deeper = indent + "  "
            filler = textwrap.TextWrapper(
                width, initial_indent=deeper, subsequent_indent=deeper, break_on_hyphens=False
            )
            yield filler.fill(printable(listed))
        elif key == "server_info":
            yield f"{name} {', '.join(value)} (with --format json)"
        elif isinstance(value, Mapping):
            yield name
            yield from _lines(value, indent + "  ", width)
        elif key == "command":
            yield f"{name} {printable(shlex.join(value))}"
        elif key == "notes":
            yield from (f"{indent}note: {printable(note)}" for note in value)
        elif key == "devices":
            yield from _lines({str(device["device"]): {**device, "device": None} for device in value}, indent, width)
        elif key.endswith("_bytes"):
            size = f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
            yield f"{name.removesuffix(' bytes:')}: {size}"
        elif isinstance(value, list | tuple):
            yield f"{name} {printable(', '.join(map(str, value)))}"
        else:
            yield f"{name} {printable({True: 'yes', False: 'no'}[value] if isinstance(value, bool) else value)}"
