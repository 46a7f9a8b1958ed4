"""What a sweep serves and on what: the facts that the roofline needs, resolved from the sweep, files and telemetry."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchbench.errors import ModelError
from benchbench.model.accelerators import accelerator, given_accelerator, known_names
from benchbench.model.config import ModelFacts, read_model
from benchbench.spec import EndpointEngine, Hardware, SimulatorEngine, SweepSpec, VllmInprocessEngine
from benchbench.spec.plan import variant_spec
from benchbench.spec.schema import Validity

_NO_PARTS: dict[str, Any] = {"expert_bytes": None, "dense_bytes": None}
_NO_KV: dict[str, Any] = dict.fromkeys(("kv_bytes_per_token", "window_kv_bytes_per_token", "window"))
_OF_WEIGHTS = {"parameters", "active_parameters", "expert_parameters", "experts", "weight_bytes", "weight_dtype"}
_KEPT = {"auto", "bfloat16", "float16"}  # of kv-cache-dtype: K and V as config.json says
# Flags of vLLM, SGLang, TensorRT-LLM, TGI and llama.cpp that switch speculative decoding on, and how much it proposes.
_SPECULATIVE = re.compile(
    r"specul|^spec-|(^|-)(eagle\d?|mtp|medusa|drafts?|drafter|n-?gram|lookahead|nextn|redrafter|prompt-lookup)($|[-.])|^md$"
)
_PROPOSED = ("num-speculative-tokens", "speculative-num-draft-tokens")
_OFF = {"none", "null", "false", "0", "off", ""}
_RANKS = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size")


def served_model(spec: SweepSpec) -> ModelFacts | None:
    """The model's facts: those given in `model_facts`, over those of its config.json; None where there are none.

    Flags that change them count, if only in one variant: what they make unknown is None. Raises ModelError when
    `model_facts.config` cannot be read; a folder found by ourselves that cannot be read is no fault.
    """
    given = spec.model_facts.model_dump(exclude_none=True, exclude={"config"})
    flags, facts = _flags(spec), ModelFacts()
    kept = {str(variant.get("kv-cache-dtype", "auto")) for variant in flags} - _KEPT
    kv = "fp8" if any(name.startswith("fp8") for name in kept) else None
    if spec.model_facts.config:
        facts = read_model(spec.model_facts.config, kv)
    elif "args" in type(spec.engine).model_fields and not any("hf-overrides" in variant for variant in flags):
        folder = Path(flags[0].get("cwd") or ".") / str(flags[0].get("model") or spec.model)
        with contextlib.suppress(ModelError):
            facts = read_model(folder, kv) if folder.is_dir() else facts
    if not facts.quantization and any("quantization" in variant for variant in flags):
        facts = replace(facts, weight_dtype=None, compute_dtype=None, weight_bytes=None, **_NO_PARTS)
    if "kv_bytes_per_token" in given or not all(name.startswith("fp8") for name in kept):
        facts = replace(facts, **_NO_KV)
    if given.keys() & _OF_WEIGHTS:
        facts = replace(facts, **_NO_PARTS)
    if given.get("weight_dtype", facts.weight_dtype) != facts.weight_dtype:
        facts = replace(facts, compute_dtype=None)
    facts = replace(facts, **given)
    return None if facts == ModelFacts() else replace(facts, name=facts.name or spec.model)


def served_models(spec: SweepSpec) -> dict[str, ModelFacts | None]:
    """`served_model` of the whole sweep under "", and of each variant alone under its name. Raises ModelError."""
    alone = {name: variant_spec(spec, name).model_copy(update={"variants": {}}) for name in spec.variants}
    return {name: served_model(variant) for name, variant in {"": spec, **alone}.items()}


def served_on(spec: SweepSpec, devices: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """An `Accelerator` as a dict, with `count`: of the sweep's `hardware`, else of the GPUs that telemetry names.

    Of those no more count than a launched engine's ranks. The simulator is none of the devices known by name: it has
    only figures that the sweep gives itself. None where nothing is known.
    """
    named = spec.hardware
    if isinstance(spec.engine, SimulatorEngine) and not (named and named.tflop_s and named.bandwidth_gb_s):
        return None
    if named:
        figures = given_accelerator(named)
        return {**asdict(figures), "count": named.count} if figures else None
    names = {str(device.get("name")) for device in devices}
    device = accelerator(names.pop()) if len(names) == 1 else None
    if device is None:
        return None
    ranks = max(ranks_of(variant_spec(spec, name)) for name in spec.variants or [""])
    launched = "args" in type(spec.engine).model_fields
    return {**asdict(device), "count": min(len(devices), ranks) if launched else len(devices)}


def ranks_of(spec: SweepSpec) -> int:
    """How many GPUs a launched engine takes, by its flags; `spec` is that of one variant (`variant_spec`)."""
    flags = _flags(spec.model_copy(update={"variants": {}}))[0]
    return math.prod(_number(flags.get(name)) for name in _RANKS)


def hardware_notes(hardware: Hardware | None) -> list[str]:
    """A sentence that says what a sweep's hardware lacks for a roofline, where it lacks something."""
    if hardware is None or given_accelerator(hardware):
        return []
    needed = "hardware.tflop_s and hardware.bandwidth_gb_s"
    return [f"no roofline: hardware.name is none of {', '.join(known_names())}, so it needs {needed}"]


def caption_of(spec: SweepSpec, model: Mapping[str, Any] | None = None) -> list[str]:
    """What a table made from this sweep must say of its engine, and of a `model` (`ModelFacts`) with experts."""
    engine, lines, speculative = spec.engine, [], spec.speculative
    if isinstance(engine, VllmInprocessEngine):
        lines = ["Measured in-process, without HTTP: from the call of vLLM's AsyncLLM to its outputs."]
    elif isinstance(engine, SimulatorEngine):
        speed = "" if engine.scale == 1 else f", every duration x {engine.scale:g}"
        lines = [f"Served by the embedded simulator (profile {engine.profile}{speed}): no measurement of hardware."]
    elif isinstance(engine, EndpointEngine) and len(engine.urls) > 1:
        how = "each place in flight with its own" if engine.routing == "pinned" else "asked in turn"
        lines = [f"Served by {len(engine.urls)} servers together, {how}: numbers are of all of them."]
    if speculative:
        facts = [speculative.method, f"{speculative.tokens} proposed tokens a pass" if speculative.tokens else None]
        text = ", ".join(fact for fact in facts if fact)
        lines += [f"Speculative decoding{f' ({text})' if text else ''}: the speed depends on the texts."]
    random = spec.prompts.kind in {"token_ids", "text"}
    if random and (model or {}).get("experts") and not isinstance(engine, SimulatorEngine):
        lines.append("Prompts are random tokens, which a mixture of experts routes otherwise than text.")
    usual = {name: field.default for name, field in Validity.model_fields.items()}
    if loose := [f"{name} {value:g} (default {usual[name]:g})" for name, value in spec.validity if value > usual[name]]:
        lines.append(f"Checks were loosened: {', '.join(loose)}.")
    return lines


def speculative_decoding(spec: SweepSpec) -> dict[str, Any] | None:
    """`method` and `tokens` of speculative decoding (each None if unknown), as declared, else by the engine's flags.

    Of variants that differ the one with the most tokens. None where nothing names it.
    """
    if spec.speculative is not None:
        return spec.speculative.model_dump()
    named = [facts for flags in _flags(spec) if (facts := _speculation(flags)) is not None]
    return max(named, key=lambda facts: math.inf if facts["tokens"] is None else facts["tokens"], default=None)


def _speculation(flags: Mapping[str, Any]) -> dict[str, Any] | None:
    named = {key: value for key, value in flags.items() if _SPECULATIVE.search(key) and str(value).lower() not in _OFF}
    if not named:
        return None
    settings = dict(named)
    for value in named.values():
        with contextlib.suppress(ValueError):
            inner = json.loads(value) if isinstance(value, str) else value
            settings |= (
                {str(key).replace("_", "-"): item for key, item in inner.items()} if isinstance(inner, dict) else {}
            )
    ends = {key.rpartition(".")[2]: value for key, value in settings.items()}
    tokens = [_number(ends[key]) for key in _PROPOSED if key in ends]
    method = next(
        (str(ends[key]) for key in ("method", "speculative-algorithm", "speculative-method") if key in ends), None
    )
    return {"method": method, "tokens": max(tokens, default=0) or None}


def _flags(spec: SweepSpec) -> list[dict[str, Any]]:
    """The flags of each variant's engine by their long names, those of its command too, and its folder as `cwd`."""
    short = {"tp": _RANKS[0], "pp": _RANKS[1], "dp": _RANKS[2], "q": "quantization", "sc": "speculative-config"}
    variants = []
    for engine in (variant_spec(spec, name).engine for name in spec.variants or [""]):
        words = [*(getattr(engine, "command", None) or ()), ""]
        pairs = [(word.lstrip("-").partition("="), after) for word, after in pairwise(words) if word.startswith("-")]
        flags: dict[str, Any] = {key: value or after for (key, _, value), after in pairs}
        flags |= {key: value for key, value in getattr(engine, "args", {}).items() if value is not None}
        flags = {key.replace("_", "-"): value for key, value in flags.items()}
        named = {short.get(key, key): value for key, value in flags.items()}
        variants.append(named | {"cwd": getattr(engine, "cwd", None)})
    return variants


def _number(value: object) -> int:
    return int(str(value)) if str(value).isdigit() else 1
