"""What a sweep serves and on what: the facts that the roofline needs, resolved from the sweep, files and telemetry."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchbench.errors import ModelError
from benchbench.model.config import ModelFacts, read_model
from benchbench.spec import SimulatorEngine, SweepSpec
from benchbench.spec.accelerators import accelerator
from benchbench.spec.plan import variant_spec

_KEPT = {"auto", "bfloat16", "float16"}  # of kv-cache-dtype: K and V as config.json says
_RANKS = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")


def served_model(spec: SweepSpec) -> ModelFacts | None:
    """The model's facts: those given in `model_facts`, over those of its config.json; None where there are none.

    Flags that change them count, if only in one variant: what they make unknown is None. Raises ModelError when
    `model_facts.config` cannot be read; a folder found by ourselves that cannot be read is no fault.
    """
    given = spec.model_facts.model_dump(exclude_none=True, exclude={"config"})
    flags, facts = _flags(spec), ModelFacts()
    if spec.model_facts.config:
        facts = read_model(spec.model_facts.config)
    elif "args" in type(spec.engine).model_fields and not any("hf-overrides" in one for one in flags):
        folder = Path(flags[0].get("cwd") or ".") / str(flags[0].get("model") or spec.model)
        with contextlib.suppress(ModelError):
            facts = read_model(folder) if folder.is_dir() else facts
    if not facts.quantization and any("quantization" in one for one in flags):
        facts = replace(facts, weight_dtype=None, compute_dtype=None, weight_bytes=None)
    for kept in {str(one.get("kv-cache-dtype", "auto")) for one in flags} - _KEPT:
        kv = facts.kv_bytes_per_token
        facts = replace(facts, kv_bytes_per_token=kv // 2 if kv and kept.startswith("fp8") else None)
    facts = replace(facts, **given)
    return None if facts == ModelFacts() else replace(facts, name=facts.name or spec.model)


def served_models(spec: SweepSpec) -> dict[str, ModelFacts | None]:
    """`served_model` of the whole sweep under "", and of each variant alone under its name. Raises ModelError."""
    alone = {name: variant_spec(spec, name).model_copy(update={"variants": {}}) for name in spec.variants}
    return {name: served_model(one) for name, one in {"": spec, **alone}.items()}


def served_on(spec: SweepSpec, devices: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """An `Accelerator` as a dict, with `count`: of the sweep's `hardware`, else of the GPUs that telemetry names.

    Of those no more count than a launched engine's ranks. The simulator is none of the devices known by name: it has
    only figures that the sweep gives itself. None where nothing is known.
    """
    named = spec.hardware
    if isinstance(spec.engine, SimulatorEngine) and not (named and named.tflop_s and named.bandwidth_gb_s):
        return None
    if named:
        return {**asdict(named.accelerator), "count": named.count} if named.accelerator else None
    names = {str(device.get("name")) for device in devices}
    found = accelerator(names.pop()) if len(names) == 1 else None
    if found is None:
        return None
    ranks = max(math.prod(_number(one.get(name)) for name in _RANKS) for one in _flags(spec))
    launched = "args" in type(spec.engine).model_fields
    return {**asdict(found), "count": min(len(devices), ranks) if launched else len(devices)}


def is_speculative(spec: SweepSpec) -> bool:
    """Whether the sweep declares speculative decoding, or flags of the engine, or of one variant, name it."""
    return spec.speculative is not None or any(
        "speculative" in key or key.startswith("spec-") for one in _flags(spec) for key in one
    )


def _flags(spec: SweepSpec) -> list[dict[str, Any]]:
    """The flags of each variant's engine by their long names, those of its command too, and its folder as `cwd`."""
    short = {"tp": _RANKS[0], "pp": _RANKS[1], "dp": _RANKS[2], "q": "quantization", "sc": "speculative-config"}
    found = []
    for engine in (variant_spec(spec, name).engine for name in spec.variants or [""]):
        words = [*(getattr(engine, "command", None) or ()), ""]
        pairs = [(word.lstrip("-").partition("="), after) for word, after in pairwise(words) if word.startswith("-")]
        said: dict[str, Any] = {key: value or after for (key, _, value), after in pairs}
        said |= {key: value for key, value in getattr(engine, "args", {}).items() if value is not None}
        said = {key.replace("_", "-"): value for key, value in said.items()}
        found.append(
            {short.get(key, key): value for key, value in said.items()} | {"cwd": getattr(engine, "cwd", None)}
        )
    return found


def _number(value: object) -> int:
    return int(str(value)) if str(value).isdigit() else 1
