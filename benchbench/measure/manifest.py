"""What was asked and with what: manifest.json, written at each start."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchbench.engines.open import Opened
from benchbench.errors import EngineError
from benchbench.identity.identity import Identity, changes, code_before, digest_of, known, rebuilt, requested, served
from benchbench.model.config import ModelFacts
from benchbench.model.weights import fingerprint
from benchbench.secrets import masked
from benchbench.spec import EndpointEngine, Plan, Session, SweepSpec
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
    from benchbench.host.environment import environment, spec_hash
    from benchbench.host.local_results import measured_errors
    from benchbench.model.served import caption_of, hardware_notes, served_on, speculative_decoding

    facts = {name: asdict(model) if model else None for name, model in (models or {}).items()}
    of_all, spec = facts.pop("", None), masked(plan.spec.model_dump(mode="json"))
    earlier = run.earlier()
    entries = {entry["key"]: entry for entry in staying(earlier, plan, given["only"])}
    entries |= {cell.key: cell.info.to_entry() for cell in plan.cells}
    devices = earlier.get("devices", []) if devices is None else devices
    starts, loaded, digest = earlier.get("starts", []), earlier.get("loaded", {}), ""
    engine, side = earlier.get("engine"), earlier.get("engine_environment")
    if session is not None and opened is not None:
        start, code = _start(plan, session, opened)
        engine, side = start["engine"], start["environment"]
        identity = requested(spec, session.variant) | _served(plan.of_session(session).spec, start, devices)
        digest = _carried_on(run, earlier, start, masked(identity), code.get(start.get("loaded", ""), {}))
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
            "caption": caption_of(plan.spec),
            "instrument": measured_errors(),
            **environment(),
        }
    )
    return digest


def staying(earlier: Manifest, plan: Plan, only: str | None) -> list[dict[str, Any]]:
    """The cells of an earlier plan that stay in the run beside this plan's: with `only`, those of variants it has."""
    variants = {*plan.spec.variants} or {""}
    return [entry for entry in earlier.get("plan", []) if only is not None and entry["variant"] in variants]


def _start(plan: Plan, session: Session, opened: Opened) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entry of a start that is ready, and by its digest what code it has loaded."""
    from benchbench.host.engine_provenance import side_of
    from benchbench.identity.loaded_code import loaded_code

    side = side_of(plan.of_session(session).spec.engine, opened.start.get("pid"))
    start = {"time_ns": time.time_ns(), "block": session.block, "variant": session.variant, **masked(opened.start)}
    start |= {"engine": asdict(opened.capabilities), "environment": side}
    if not (code := loaded_code(side.get("pid"))):
        return start, {}
    start["loaded"] = code.pop("digest")
    return start, {start["loaded"]: code}


def _served(spec: SweepSpec, start: Mapping[str, Any], devices: list[dict[str, Any]]) -> Identity:
    if isinstance(spec.engine, EndpointEngine):
        return served(start["engine"], start["environment"], devices, "")
    args, cwd = getattr(spec.engine, "args", {}), getattr(spec.engine, "cwd", None)
    weights = fingerprint(Path(cwd or ".") / str(args.get("model", spec.model)))
    # The command line has another port each time, and a length that follows from free memory may be another one.
    capabilities = {**start["engine"], "max_model_len": None}
    return served(capabilities, {**start["environment"], "command": ()}, devices, weights)


def _carried_on(
    run: RunDirectory, earlier: Manifest, start: dict[str, Any], identity: Identity, code: Mapping[str, Any]
) -> str:
    """Note the identity of a start, and its name: that of the variant's earlier starts, if it has rounds already.

    Code is held against that of before a resume only: within a sweep, what engines compile as they go may differ.
    """
    variant = start["variant"]
    before, digest = known(earlier.get("starts", []), variant)
    if not before or variant not in run.measured_variants():
        digest = digest_of(identity)
    elif different := changes(before, identity) + rebuilt(code_before(earlier, variant, run.opened_ns), code):
        raise EngineError(
            f"this run has rounds of another engine ({'; '.join(different)}): use another --out", "engine"
        )
    start |= {"identity": identity, "identity_digest": digest}
    return digest
