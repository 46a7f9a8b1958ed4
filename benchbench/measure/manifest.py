"""What was asked and with what: manifest.json, written at each start."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchbench.engines.open import Opened
from benchbench.host.environment import environment, spec_hash
from benchbench.host.local_results import measured_errors
from benchbench.identity.identity import requested
from benchbench.identity.starts import carried_on, served_by, start_entry
from benchbench.model.config import ModelFacts
from benchbench.model.served import caption_of, hardware_notes, served_on, speculative_decoding
from benchbench.secrets import masked
from benchbench.spec import Plan, Session
from benchbench.store.facts import Manifest
from benchbench.store.run_directory import RunDirectory


def write_manifest(
    run: RunDirectory,
    plan: Plan,
    given: Mapping[str, Any],
    session: Session | None = None,
    opened: Opened | None = None,
    devices: list[dict[str, Any]] | None = None,
    variants: Mapping[str, dict[str, Any]] | None = None,
    models: Mapping[str, ModelFacts | None] | None = None,
) -> str:
    """Write it anew; return the name of the start's identity, which its rounds carry ("" without a start).

    `given`: `only` and `sets`, which stood beside the file. With `only`, cells of an earlier, wider plan stay in it;
    starts before this one always do. `variants`: by name, the commits that those with `git` are built from. Raises
    EngineError when the run has rounds of another engine.
    """
    facts = {name: asdict(model) if model else None for name, model in (models or {}).items()}
    of_all, spec = facts.pop("", None), masked(plan.spec.model_dump(mode="json"))
    earlier = run.earlier()
    entries = {entry["key"]: entry for entry in staying(earlier, plan, given["only"])}
    entries |= {cell.key: cell.info.to_entry() for cell in plan.cells}
    devices = earlier.get("devices", []) if devices is None else devices
    starts, loaded, digest = earlier.get("starts", []), earlier.get("loaded", {}), ""
    engine, side = earlier.get("engine"), earlier.get("engine_environment")
    if session is not None and opened is not None:
        variant_spec = plan.of_session(session).spec
        start, code = start_entry(variant_spec, session, opened.start, asdict(opened.capabilities))
        engine, side = start["engine"], start["environment"]
        identity = masked(requested(spec, session.variant) | served_by(variant_spec, start, devices))
        digest = carried_on(run, earlier, start, identity, code.get(start.get("loaded", ""), {}))
        starts, loaded = [*starts, start], {**loaded, **code}
    run.write_manifest(
        {
            "created_ns": earlier.get("created_ns", time.time_ns()),
            "spec": spec,
            "spec_sha256": spec_hash(spec),
            **given,
            "plan": list(entries.values()),
            "notes": [*plan.spec.notes, *hardware_notes(plan.spec.hardware), *(opened.notes if opened else ())],
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
            "caption": caption_of(plan.spec, of_all),
            "instrument": measured_errors(spec["name"]),
            **environment(),
        }
    )
    return digest


def staying(earlier: Manifest, plan: Plan, only: str | None) -> list[dict[str, Any]]:
    """The cells of an earlier plan that stay in the run beside this plan's: with `only`, those of variants it has."""
    variants = {*plan.spec.variants} or {""}
    return [entry for entry in earlier.get("plan", []) if only is not None and entry["variant"] in variants]
