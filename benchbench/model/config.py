"""What a model is, as far as its files or its publisher say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchbench.errors import ModelError
from benchbench.model.from_shape import is_known_mixture, weights_of_shape
from benchbench.model.layers import kv_cache, layer_kinds, whole
from benchbench.model.quantization import BITS, Quantization, dtype_word, kv_dtype, read_quantization, scheme_of
from benchbench.model.weights import Weights, count_weights, read_json

__all__ = ["ModelError", "ModelFacts", "Quantization", "billions", "read_model"]

_KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num", "kv_n_heads"),
    "head_dim": ("head_dim", "attention_head_dim", "kv_channels"),
    "vocab": ("vocab_size", "padded_vocab_size"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "num_routed_experts", "moe_num_experts"),
    "top_k": ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k", "moe_k"),
}
_KV_HEADS = re.compile(r"kv_?heads?$|key_value_heads|query_group|attention_groups|kv_groups|kv_n_")
_LAYERS_MOST = 10_000  # more than any model has
_NESTED = ("text_config", "language_config", "llm_config", "thinker_config")
_PARTS = ("attn_config", "ffn_config")  # DBRX, MPT


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Shape, parameters and bytes of a model. None: unknown. Dtypes: bf16, fp16, fp8, int8, fp4, int4.

    `parameters` counts all, `active_parameters` those that one token passes through (top_k of the routed experts, all
    shared ones), `expert_parameters` those in the routed experts of all layers, `embedding_parameters` those that are
    only looked up. `expert_bytes` are those of the routed experts, `dense_bytes` those of what every token passes
    through. `compute_dtype` is what most matrix products run in; None if only the weights are quantized, since
    kernels may quantize activations too.

    `kv_bytes_per_token`: K and V of a token in the layers that keep all of them. Layers with a window keep
    `window_kv_bytes_per_token` of each of the last `window` tokens; if all layers have that window, it is None and
    `window` limits `kv_bytes_per_token`.
    """

    name: str = ""
    architecture: str | None = None
    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    vocab: int | None = None
    experts: int | None = None  # routed, of one layer
    top_k: int | None = None
    parameters: int | None = None
    active_parameters: int | None = None
    expert_parameters: int | None = None
    embedding_parameters: int | None = None
    weight_bytes: int | None = None
    expert_bytes: int | None = None
    dense_bytes: int | None = None
    shards: int | None = None
    weight_dtype: str | None = None  # of most weights
    compute_dtype: str | None = None
    kv_bytes_per_token: int | None = None
    window_kv_bytes_per_token: int | None = None
    window: int | None = None
    quantization: Quantization | None = None

    def kv_bytes(self, first: int, last: int) -> float | None:
        """Bytes of K and V that a pass reads of a request, mean over contexts of `first` to `last` tokens.

        None: unknown.
        """
        if self.kv_bytes_per_token is None:
            return None
        whole_context = (first + last) / 2
        if self.window is None:
            return self.kv_bytes_per_token * whole_context
        below = min(max(self.window - first, 0), last - first + 1)  # contexts shorter than the window
        short, long = below * (2 * first + below - 1) / 2, (last - first + 1 - below) * self.window
        windowed = (short + long) / (last - first + 1)
        if self.window_kv_bytes_per_token is None:
            return self.kv_bytes_per_token * windowed
        return self.kv_bytes_per_token * whole_context + self.window_kv_bytes_per_token * windowed


def read_model(path: str | Path, kv: str | None = None) -> ModelFacts:
    """The facts of a model's folder, or of a config.json (and of the weights beside it). No tensor is read.

    `kv`: the dtype in which the engine keeps K and V, where it is not that of the files.

    Parameters are counted from the headers of the safetensors files, scales and zero points left out and packed
    weights unpacked; without all of them they are computed from the shape (`from_shape`), where it is of a known form.
    Layers after the last (MTP modules) count as bytes only. Active: all but routed experts, the looked-up embedding
    (the output head counts) and towers for images or sound, plus experts x top_k / experts of a layer. K and V: see
    `layers`. Weights stored in 32 bits count as 16, since engines serve them so.

    Raises ModelError, which names the file.
    """
    path = Path(path)
    file = path / "config.json" if path.is_dir() else path
    raw = read_json(file)
    config = _text_config(raw)
    shape = _shape(config)
    kinds = layer_kinds(config, shape["layers"]) if shape["layers"] and shape["layers"] < _LAYERS_MOST else None
    beside = file.with_name("hf_quant_config.json")
    scheme = scheme_of(config, read_json(beside) if beside.is_file() else {})
    quantization = read_quantization(scheme)
    dtype = dtype_word(config.get("dtype") or config.get("torch_dtype"))
    counted, size, shards = count_weights(file.parent, shape["layers"], quantization)
    stored = None if scheme and not quantization else dtype
    by_scheme = quantization.weight_dtype if quantization else stored
    weights = counted or weights_of_shape(config, shape, kinds, quantization, stored)
    cache = kv_cache(config, shape, kinds, min(BITS[kv or kv_dtype(scheme) or dtype or "bf16"], 16) // 8)
    names = raw.get("architectures")
    return ModelFacts(
        name=str(config.get("_name_or_path") or file.resolve().parent.name),
        architecture=str(names[0] if isinstance(names, list) and names else raw.get("model_type") or "") or None,
        **shape,
        **(_parameters(weights, shape, is_known_mixture(config, shape)) if weights else {}),
        weight_bytes=size,
        shards=shards,
        weight_dtype=max(counted.dtypes, key=counted.dtypes.__getitem__) if counted else by_scheme,
        compute_dtype=_compute_dtype(quantization) if scheme else dtype,
        kv_bytes_per_token=cache.per_token,
        window_kv_bytes_per_token=cache.window_per_token,
        window=cache.window,
        quantization=quantization,
    )


def billions(count: float) -> str:
    """A number of parameters as `228.7 B`; in millions below one billion."""
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part about text, over what stands around it: models for images and sound nest it."""
    flat = dict(config)
    while inner := next((flat[key] for key in _NESTED if isinstance(flat.get(key), dict)), None):
        flat = {key: value for key, value in flat.items() if key not in _NESTED} | inner
    for part in (flat.get(key) for key in _PARTS):
        flat |= part if isinstance(part, dict) else {}
    return flat


def _shape(config: Mapping[str, Any]) -> dict[str, int | None]:
    shape = {name: whole(config, *keys) for name, keys in _KEYS.items()}
    if shape["experts"] is None or shape["experts"] == 1:
        shape |= {"experts": None, "top_k": None}
    heads = shape["heads"]
    if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
        shape["kv_heads"] = 1
    elif heads and not any(_KV_HEADS.search(key) and value is not None for key, value in config.items()):
        shape["kv_heads"] = heads
    if "kv_lora_rank" in config:
        shape["head_dim"] = (whole(config, "qk_nope_head_dim") or 0) + (whole(config, "qk_rope_head_dim") or 0)
    elif heads and shape["hidden"] and not shape["head_dim"]:
        shape["head_dim"] = shape["hidden"] // heads
    return shape


def _parameters(weights: Weights, shape: Mapping[str, int | None], known: bool) -> dict[str, int | None]:
    """Parameters and bytes by part; what is active is unknown where the routed experts are not recognized."""
    count, top, parts = shape["experts"], shape["top_k"], dict.fromkeys(("experts", "rest"), 0) | weights.parts
    looked_up = parts.get("embedding", 0) if weights.head else 0
    dense = parts["rest"] + parts.get("embedding", 0) - looked_up
    facts: dict[str, int | None] = {"parameters": weights.total, "embedding_parameters": looked_up}
    if bool(count) != bool(parts["experts"]) or not known:
        return facts if count else {}
    # Engines serve weights that are stored in 32 bits in 16
    size = {part: min(stored, 2 * parts[part]) for part, stored in weights.bytes.items() if part in parts}
    complete = all(size.get(part) for part, number in parts.items() if number)
    if complete:
        facts["dense_bytes"] = size.get("rest", 0) + (0 if weights.head else size.get("embedding", 0))
    if not count:
        return facts | {"active_parameters": dense}
    facts |= {"expert_parameters": parts["experts"], "expert_bytes": size["experts"] if complete else None}
    return facts | {"active_parameters": dense + parts["experts"] * top // count if top else None}


def _compute_dtype(scheme: Quantization | None) -> str | None:
    """None where a part of the layers has quantized weights only, or the scheme is unknown."""
    parts = [scheme, *(other for _, other in scheme.others)] if scheme else []
    words = [part.activation_dtype for part in parts]
    return words[0] if words and None not in words else None
