"""A checkpoint's quantization scheme, from the `quantization_config` of its config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

_WORDS = (
    (r"bf(loat)?16", "bf16"),
    (r"f(p|loat)?16|half", "fp16"),
    (r"f(p|loat)?32", "fp32"),
    (r"f(p|loat)?8.*", "fp8"),
    (r"u?i(nt)?8|u8", "int8"),
    (r"u?i(nt)?4", "int4"),
    (r"(mx|nv)?f(p|loat)?4.*", "fp4"),
)
BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "int4": 4, "fp4": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """A quantization scheme, as `quantization_config` states it. Words as printed: int8, per-channel, static."""

    method: str  # quark, compressed-tensors, fp8 ...
    weight_dtype: str
    weight_granularity: str
    weight_symmetric: bool | None = None
    activation_dtype: str | None = None  # None: activations are not quantized
    activation_granularity: str | None = None
    activation_dynamic: bool | None = None
    activation_symmetric: bool | None = None
    excluded: tuple[str, ...] = ()  # layers, as names or patterns
    others: tuple[tuple[str, Quantization], ...] = ()  # layers with a scheme of their own: pattern, scheme


def dtype_word(text: object) -> str | None:
    """bf16, fp16, fp32, fp8, int8, int4 or fp4 for any spelling of them (`bfloat16`, `F8_E4M3`); else None."""
    name = str(text).lower().removeprefix("torch.").strip()
    return next((word for pattern, word in _WORDS if re.fullmatch(pattern, name)), None)


def read_quantization(config: object) -> Quantization | None:
    """The scheme of a `quantization_config`: Quark, compressed-tensors, ModelOpt, fp8, mxfp4, GPTQ, AWQ.

    The scheme of most layers: Quark's global one, the group that targets `Linear`; `others` has the rest. None without
    a scheme, and for an unknown method or form.
    """
    if not isinstance(config, Mapping):
        return None
    method = str(config.get("quant_method") or "compressed-tensors")
    keys = ("exclude", "ignore", "modules_to_not_convert", "ignored_layers", "exclude_modules")
    excluded = tuple(str(module) for key in keys for module in _listed(config.get(key)))
    if "global_quant_config" in config:
        layers = config.get("layer_quant_config")
        parts = [("", config["global_quant_config"]), *(layers.items() if isinstance(layers, Mapping) else ())]
        named = [(str(name), _of(part, "weight", "input_tensors", "quark")) for name, part in parts]
    elif isinstance(groups := config.get("config_groups"), Mapping):
        targets = [(_listed(part.get("targets")), part) for part in groups.values() if isinstance(part, Mapping)]
        targets.sort(key=lambda target: "Linear" not in target[0])
        named = [(", ".join(map(str, to)), _of(part, "weights", "input_activations", method)) for to, part in targets]
    else:
        named = [("", _plain(config, method))]
    schemes = [(name, scheme) for name, scheme in named if scheme]
    return replace(schemes[0][1], excluded=excluded, others=tuple(schemes[1:])) if schemes else None


def scheme_of(config: Mapping[str, Any], beside: Mapping[str, Any]) -> object:
    """The scheme that a config.json states, or `beside` it ModelOpt's hf_quant_config.json, which nests its own."""
    scheme = config.get("quantization_config") or config.get("compression_config") or beside
    inner = scheme.get("quantization") if isinstance(scheme, Mapping) else None
    if not isinstance(inner, Mapping):
        return scheme or None
    return {"quant_method": "modelopt", **{k: v for k, v in scheme.items() if k != "quantization"}, **inner}


def kv_dtype(config: object) -> str | None:
    """The dtype in which a `quantization_config` wants K and V kept; None when it says nothing of them."""
    if not isinstance(config, Mapping):
        return None
    if word := dtype_word(config.get("kv_cache_quant_algo")):  # ModelOpt
        return word
    layers = config.get("kv_cache_quant_config")
    specs = [layer.get("output_tensors") for layer in layers.values()] if isinstance(layers, Mapping) else []
    return next((facts[0] for spec in (config.get("kv_cache_scheme"), *specs) if (facts := _spec(spec))), None)


def _listed(names: object) -> Sequence[object]:
    return names if isinstance(names, list | tuple) else ()


def _of(part: object, weights: str, inputs: str, method: str) -> Quantization | None:
    """A layer's scheme from the keys under which the two libraries state weights and activations."""
    if not isinstance(part, Mapping) or not (weight := _spec(part.get(weights))):
        return None
    activation = _spec(part.get(inputs), of_tokens=True) or ()
    facts: dict[str, Any] = dict(zip(("weight_dtype", "weight_granularity", "weight_symmetric"), weight, strict=False))
    names = ("activation_dtype", "activation_granularity", "activation_symmetric", "activation_dynamic")
    facts |= zip(names, activation, strict=False)
    return Quantization(method=method, **facts)


def _spec(spec: object, of_tokens: bool = False) -> tuple[str, str, bool | None, bool | None] | None:
    """Dtype, granularity, symmetric, dynamic, of Quark's spec or of compressed-tensors'; None for none.

    Of several that are applied in turn (Quark's W4A8) the last counts: it is what is stored. Quark calls activations
    with a scale a token `per_channel` along axis 1.
    """
    spec = spec[-1] if isinstance(spec, list | tuple) and spec else spec
    if not isinstance(spec, Mapping):
        return None
    kind = "fp" if str(spec.get("type")).startswith("float") else "int"
    dtype = dtype_word(spec["dtype"] if "dtype" in spec else f"{kind}{spec.get('num_bits')}")
    size, block, axis = spec.get("group_size"), spec.get("block_structure"), spec.get("ch_axis")
    word = str(spec.get("qscheme") or spec.get("strategy") or ("group" if size else "tensor"))
    name = f"per-{word.removeprefix('per_').replace('_', '-')}"
    if "group" in name and size:
        name = f"per-group of {size}"
    elif name == "per-block" and block:
        name = f"per-block of {_times(block)}"
    elif name == "per-channel" and axis is not None:
        name = f"{'per-token' if of_tokens and axis in (1, -1) else name} (ch_axis={axis})"
    dynamic = spec.get("is_dynamic", spec.get("dynamic"))
    return (dtype, name, spec.get("symmetric"), None if dynamic is None else bool(dynamic)) if dtype else None


def _times(block: object) -> str:
    return "x".join(map(str, _listed(block)))


def _plain(config: Mapping[str, Any], method: str) -> Quantization | None:
    size, block = config.get("group_size"), _listed(config.get("weight_block_size"))
    if re.match(r"gptq|awq|auto-round", method):
        dtype = f"int{config.get('bits', 4)}"
        group = f"per-group of {size}" if isinstance(size, int) and size > 0 else "per-channel"
        even = config.get("sym", not config["zero_point"] if "zero_point" in config else None)
        return Quantization(method=method, weight_dtype=dtype, weight_granularity=group, weight_symmetric=even)
    algorithm = "FP8" if method == "fp8" else str(config.get("quant_algo", method)).upper()
    if algorithm == "MXFP4":
        return Quantization(method=method, weight_dtype="fp4", weight_granularity="per-group of 32")
    if algorithm not in {"FP8", "NVFP4"}:
        return None
    four = algorithm == "NVFP4"
    groups = "per-group of 16" if four else "per-tensor"
    return Quantization(
        method=method,
        weight_dtype="fp4" if four else "fp8",
        weight_granularity=f"per-block of {_times(block)}" if block else groups,
        activation_dtype="fp4" if four else "fp8",
        activation_granularity=f"per-group of {block[-1]}" if block else groups,
        activation_dynamic=four or config.get("activation_scheme") == "dynamic",
    )
