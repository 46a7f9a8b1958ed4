"""A checkpoint's quantization scheme, from the `quantization_config` of its config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
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
    """bf16, fp16, fp32, fp8, int8, int4 or fp4 for any spelling of them (`bfloat16`, `F8_E4M3`, `W8`); else None."""
    told = str(text).lower().removeprefix("torch.").strip()
    return next((word for pattern, word in _WORDS if re.fullmatch(pattern, told)), None)


def read_quantization(config: object) -> Quantization | None:
    """The scheme of a `quantization_config`: Quark, compressed-tensors, ModelOpt, fp8, mxfp4, GPTQ, AWQ.

    None without one, and for a method or a form that is not known here.
    """
    if not isinstance(config, Mapping):
        return None
    method = str(config.get("quant_method", "compressed-tensors" if "config_groups" in config else ""))
    if "global_quant_config" in config:
        return _quark(config)
    if isinstance(config.get("config_groups"), Mapping):
        return _groups(config, method)
    return _plain(config, method)


def kv_dtype(config: object) -> str | None:
    """The dtype in which a `quantization_config` wants K and V kept; None when it says nothing of them."""
    if not isinstance(config, Mapping):
        return None
    if isinstance(scheme := config.get("kv_cache_scheme"), Mapping):
        return _bits_word(scheme)
    layers = config.get("kv_cache_quant_config")
    for layer in layers.values() if isinstance(layers, Mapping) else ():
        if isinstance(layer, Mapping) and (spec := _spec(layer.get("output_tensors"))):
            return dtype_word(spec.get("dtype"))
    return None


def _names(*found: object) -> tuple[str, ...]:
    return tuple(str(one) for names in found if isinstance(names, list | tuple) for one in names)


def _spec(spec: object) -> Mapping[str, Any] | None:
    """Of several that are applied in turn (Quark's W4A8), the last: it is what is stored."""
    if isinstance(spec, list | tuple):
        spec = spec[-1] if spec else None
    return spec if isinstance(spec, Mapping) else None


# ---- Quark ----------------------------------------------------------------------------------------------


def _quark(config: Mapping[str, Any]) -> Quantization | None:
    layers = config.get("layer_quant_config")
    own = [(str(name), _quark_scheme(part)) for name, part in layers.items()] if isinstance(layers, Mapping) else []
    others = [(name, scheme) for name, scheme in own if scheme]
    main = _quark_scheme(config["global_quant_config"], _names(config.get("exclude")), tuple(others))
    return main or (others[0][1] if others else None)


def _quark_scheme(
    part: object, excluded: tuple[str, ...] = (), others: tuple[tuple[str, Quantization], ...] = ()
) -> Quantization | None:
    weight = _spec(part.get("weight")) if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or weight is None or (dtype := dtype_word(weight.get("dtype"))) is None:
        return None
    inputs = _spec(part.get("input_tensors"))
    return Quantization(
        method="quark",
        weight_dtype=dtype,
        weight_granularity=_quark_granularity(weight),
        weight_symmetric=weight.get("symmetric"),
        activation_dtype=dtype_word(inputs.get("dtype")) if inputs else None,
        activation_granularity=_quark_granularity(inputs, of_tokens=True) if inputs else None,
        activation_dynamic=inputs.get("is_dynamic") if inputs else None,
        activation_symmetric=inputs.get("symmetric") if inputs else None,
        excluded=excluded,
        others=others,
    )


def _quark_granularity(spec: Mapping[str, Any], of_tokens: bool = False) -> str:
    """Quark calls activations with a scale a token `per_channel` along axis 1."""
    scheme, axis = str(spec.get("qscheme")).replace("_", "-"), spec.get("ch_axis")
    if scheme == "per-group":
        return f"per-group of {spec.get('group_size')}"
    if scheme != "per-channel":
        return scheme
    name = "per-token" if of_tokens and axis in (1, -1) else scheme
    return name if axis is None else f"{name} (ch_axis={axis})"


# ---- compressed-tensors, ModelOpt -------------------------------------------------------------------------


def _bits_word(spec: Mapping[str, Any]) -> str | None:
    kind = "fp" if str(spec.get("type")).startswith("float") else "int"
    return dtype_word(f"{kind}{spec.get('num_bits')}")


def _groups(config: Mapping[str, Any], method: str) -> Quantization | None:
    """The scheme of the group that targets all linear layers, else the first's; the others by their targets."""
    excluded = _names(config.get("ignore"))
    found: list[tuple[str, Quantization]] = []
    for group in config["config_groups"].values():
        weights = _spec(group.get("weights")) if isinstance(group, Mapping) else None
        if weights is None or (dtype := _bits_word(weights)) is None:
            continue
        inputs = _spec(group.get("input_activations"))
        scheme = Quantization(
            method=method,
            weight_dtype=dtype,
            weight_granularity=_strategy(weights),
            weight_symmetric=weights.get("symmetric"),
            activation_dtype=_bits_word(inputs) if inputs else None,
            activation_granularity=_strategy(inputs) if inputs else None,
            activation_dynamic=bool(inputs.get("dynamic")) if inputs else None,
            activation_symmetric=inputs.get("symmetric") if inputs else None,
            excluded=excluded,
        )
        found.append((", ".join(_names(group.get("targets"))), scheme))
    found.sort(key=lambda one: "Linear" not in one[0].split(", "))
    if not found:
        return None
    values = {name: getattr(found[0][1], name) for name in Quantization.__dataclass_fields__}
    return Quantization(**values | {"others": tuple(found[1:])})


def _strategy(spec: Mapping[str, Any]) -> str:
    size, block = spec.get("group_size"), spec.get("block_structure")
    strategy = spec.get("strategy") or ("group" if size else "tensor")
    if "group" in str(strategy) and size:
        return f"per-group of {size}"
    if strategy == "block" and isinstance(block, list | tuple):
        return f"per-block of {'x'.join(map(str, block))}"
    return f"per-{str(strategy).replace('_', '-')}"


# ---- the others -------------------------------------------------------------------------------------------


def _plain(config: Mapping[str, Any], method: str) -> Quantization | None:
    keys = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules")
    excluded = _names(*(config.get(key) for key in keys))
    size, bits = config.get("group_size"), config.get("bits", 4)
    group = f"per-group of {size}" if isinstance(size, int) and size > 0 else "per-channel"
    if method in {"gptq", "awq", "gptq_marlin", "awq_marlin", "auto-round"} and (dtype := dtype_word(f"int{bits}")):
        symmetric = config.get("sym", not config["zero_point"] if "zero_point" in config else None)
        return Quantization(
            method=method, weight_dtype=dtype, weight_granularity=group, weight_symmetric=symmetric, excluded=excluded
        )
    if method == "mxfp4":
        return Quantization(method=method, weight_dtype="fp4", weight_granularity="per-group of 32", excluded=excluded)
    algorithm = str(config.get("quant_algo", "")).upper() if method == "modelopt" else "FP8" * (method == "fp8")
    if algorithm not in {"FP8", "NVFP4"}:
        return None
    block = config.get("weight_block_size")
    blocked = isinstance(block, list | tuple) and len(block) == 2
    dtype = "fp8" if algorithm == "FP8" else "fp4"
    granularity = f"per-block of {'x'.join(map(str, block))}" if blocked and block else "per-tensor"
    return Quantization(
        method=method,
        weight_dtype=dtype,
        weight_granularity=granularity if dtype == "fp8" else "per-group of 16",
        activation_dtype=dtype,
        activation_granularity=(f"per-group of {block[1]}" if blocked and block else "per-tensor")
        if dtype == "fp8"
        else "per-group of 16",
        activation_dynamic=config.get("activation_scheme", "dynamic" if dtype == "fp4" else "static") == "dynamic",
        excluded=excluded,
    )
