"""What was asked and with what: manifest.json, written at each start."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchbench.engines.open import Opened
from benchbench.model.config import ModelFacts
from benchbench.spec import Plan, Session
from benchbench.store.run_directory import RunDirectory


def write_manifest(
    run: RunDirectory,
    plan: Plan,
    only: str | None,
    session: Session | None = None,
    opened: Opened | None = None,
    devices: list[dict[str, Any]] | None = None,
    variants: Mapping[str, dict[str, Any]] | None = None,
    models: Mapping[str, ModelFacts | None] | None = None,
) -> None:
    """Write it anew. With `only`, cells of an earlier, wider plan stay in it; starts before this one always do.

    `variants`: by name, the commits that those with `git` are built from. `models`: that of `served_models`.
    """
    from benchbench.host.environment import environment, spec_hash
    from benchbench.model.served import served_on, speculative_decoding
    from benchbench.secrets import masked
    from benchbench.store.local_results import stored

    facts = {name: asdict(model) if model else None for name, model in (models or {}).items()}
    of_all, spec = facts.pop("", None), masked(plan.spec.model_dump(mode="json"))
    earlier = run.manifest() if (run.path / "manifest.json").exists() else {}
    entries = {entry["key"]: entry for entry in earlier.get("plan", [])} if only is not None else {}
    entries |= {cell.key: cell.info.to_entry() for cell in plan.cells}
    devices = earlier.get("devices", []) if devices is None else devices
    starts, notes, loaded = earlier.get("starts", []), [*plan.spec.notes], earlier.get("loaded", {})
    engine, side = earlier.get("engine"), earlier.get("engine_environment")
    if session is not None and opened is not None:
        notes += opened.notes
        start, code = _start(plan, session, opened)
        engine, side = start["engine"], start["environment"]
        starts, loaded = [*starts, start], {**loaded, **code}
    run.write_manifest(
        {
            "created_ns": earlier.get("created_ns", time.time_ns()),
            "spec": spec,
            "spec_sha256": spec_hash(spec),
            "only": only,
            "plan": list(entries.values()),
            "notes": notes,
            "engine": engine,
            "engine_environment": side,
            "starts": starts,
            "loaded": loaded,
            "variants": {**earlier.get("variants", {}), **(variants or {})},
            "devices": devices,
            "model_facts": of_all,
            "variant_model_facts": {name: model for name, model in facts.items() if model != of_all},
            "accelerator": served_on(plan.spec, devices),
            "speculative": speculative_decoding(plan.spec),
            "caption": plan.spec.caption,
            "instrument": stored(),
            **environment(),
        }
    )


def _start(plan: Plan, session: Session, opened: Opened) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entry of a start that is ready, and by its digest what code it has loaded."""
    from benchbench.host.engine_provenance import side_of
    from benchbench.host.loaded_code import loaded_code
    from benchbench.secrets import masked

    side = side_of(plan.of_session(session).spec.engine, opened.start.get("pid"))
    start = {"time_ns": time.time_ns(), "block": session.block, "variant": session.variant, **masked(opened.start)}
    start |= {"engine": asdict(opened.capabilities), "environment": side}
    if not (code := loaded_code(side.get("pid"))):
        return start, {}
    start["loaded"] = code.pop("digest")
    return start, {start["loaded"]: code}
