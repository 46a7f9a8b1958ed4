"""The start of an engine as the manifest has it, and whether the run may go on with it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from benchbench.errors import EngineError, RunError
from benchbench.identity.identity import (
    Identity,
    changes,
    code_before,
    digest_of,
    known,
    not_compared,
    rebuilt,
    requested,
    served,
)
from benchbench.identity.running import known_once
from benchbench.model.weights import fingerprint
from benchbench.secrets import masked
from benchbench.spec import EndpointEngine, Session, SweepSpec
from benchbench.store.facts import Manifest
from benchbench.store.run_directory import RunDirectory


def same_engines(run: RunDirectory, spec: Mapping[str, Any], variants: Collection[str]) -> list[str]:
    """What cannot be compared of the engines of a run that goes on, in sentences. `spec`: as a manifest keeps it.

    Raises RunError when a variant that has rounds asks for another engine now.
    """
    manifest, notes = run.earlier(), set[str]()
    for variant in sorted(run.measured_variants() & {*variants}):
        before, _ = known(manifest.get("starts", []), variant)
        if different := changes(before or requested(manifest["spec"], variant), requested(spec, variant)):
            whose = f"variant {variant} of this run" if variant else "this run"
            raise RunError(
                f"{run.path}: {whose} was measured with another engine ({'; '.join(different)}): "
                "use another --out, or give the new engine a name of its own under variants"
            )
        notes |= {not_compared(before)} - {""}
    return sorted(notes)


def start_entry(
    spec: SweepSpec, session: Session, launched: Mapping[str, Any], engine: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entry of a start that is ready, and by its digest what code it has loaded.

    `spec`: the variant's. `launched`: facts of the start. `engine`: what the server is and can do.
    """
    side, code = known_once(spec.engine, launched.get("pid"))
    start = {"time_ns": time.time_ns(), "block": session.block, "variant": session.variant, **masked(launched)}
    start |= {"engine": engine, "environment": side}
    if not code:
        return start, {}
    start["loaded"] = code.pop("digest")
    return start, {start["loaded"]: code}


def served_by(spec: SweepSpec, start: Mapping[str, Any], devices: list[dict[str, Any]]) -> Identity:
    """What the engine of a start serves; `spec`: the variant's."""
    if isinstance(spec.engine, EndpointEngine):
        return served(start["engine"], start["environment"], devices, "")
    args, cwd = getattr(spec.engine, "args", {}), getattr(spec.engine, "cwd", None)
    weights = fingerprint(Path(cwd or ".") / str(args.get("model", spec.model)))
    # The command line has another port each time, and a length that follows from free memory may be another one.
    capabilities = {**start["engine"], "max_model_len": None}
    return served(capabilities, {**start["environment"], "command": ()}, devices, weights)


def carried_on(
    run: RunDirectory, earlier: Manifest, start: dict[str, Any], identity: Identity, code: Mapping[str, Any]
) -> str:
    """Note the identity of a start, and its name: that of the variant's earlier starts, if it has rounds already.

    Code is held against that of before a resume only: within a sweep, what engines compile as they go may differ.
    Raises EngineError when the run has rounds of another engine.
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
