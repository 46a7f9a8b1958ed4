"""What a model is, as far as its files or its publisher say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchbench.errors import ModelError
from benchbench.model.quantization import BITS, Quantization, dtype_word, kv_dtype, read_quantization

__all__ = ["ModelError", "ModelFacts", "Quantization", "read_model"]

_HEADER_MOST = 100_000_000  # bytes, the format's own limit
_KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "n_head_kv"),
    "head_dim": ("head_dim",),
    "vocab": ("vocab_size",),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "num_routed_experts", "moe_num_experts"),
    "top_k": ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k"),
}
_NESTED = ("text_config", "language_config", "llm_config", "thinker_config")
# Of what a quantized checkpoint stores, this is no parameter of the model; nor are tables of rotary embeddings.
_NO_PARAMETER = re.compile(
    r"(_scales?(_inv|_\d)?|_zero_points?|_g_idx|_shape|_absmax)$"
    r"|(^|\.)(scales|qzeros|g_idx|absmax|quant_map|nested_\w+|inv_freq|scale_inv)$|quant_state\."
)
_EXPERT = re.compile(r"(^|\.)experts\.")
_LOOKED_UP = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.(weight|qweight|weight_packed)$")
_NOT_TEXT = re.compile(r"(^|\.)(visual|vision\w*|audio\w*|image\w*|multi_modal_projector|mm_projector)\.")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Shape, parameters and bytes of a model. None: not known. Dtypes: bf16, fp16, fp8, int8, fp4, int4.

    `parameters` counts all, `active_parameters` those that one token passes through (top_k of the routed experts, all
    shared ones), `expert_parameters` those in the routed experts of all layers, `embedding_parameters` those that are
    only looked up. `compute_dtype` is what most matrix products run in.
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
    shards: int | None = None
    weight_dtype: str | None = None  # of most weights
    compute_dtype: str | None = None
    kv_bytes_per_token: int | None = None  # all layers, K and V
    quantization: Quantization | None = None


def read_model(path: str | Path) -> ModelFacts:
    """The facts of a model's folder, or of a config.json (and of the weights beside it). No tensor is read.

    Parameters are counted from the headers of the safetensors files, scales and zero points left out and packed
    weights unpacked; without all of them they are computed from the shape (see `_of_shape`), where it is of a known
    form. Layers after the last (MTP modules) count as bytes only. Active: all but routed experts, the looked-up
    embedding (the output head counts) and towers for images or sound, plus experts x top_k / experts of a layer.

    KV bytes of a token: MLA layers x (kv_lora_rank + qk_rope_head_dim), else 2 x KV heads x head_dim for each layer
    whose attention is over the whole context (sliding and linear ones keep no more for a longer one), x bytes.

    Raises ModelError, which names the file.
    """
    path = Path(path)
    file = path / "config.json" if path.is_dir() else path
    raw = _json(file)
    config = _text_config(raw)
    shape = {name: _whole(config, *keys) for name, keys in _KEYS.items()}
    if shape["experts"] is None or shape["experts"] == 1:
        shape |= {"experts": None, "top_k": None}
    if (heads := shape["heads"]) and not shape["kv_heads"]:
        shape["kv_heads"] = 1 if config.get("multi_query") is True else heads
    if "kv_lora_rank" in config:
        shape["head_dim"] = (_whole(config, "qk_nope_head_dim") or 0) + (_whole(config, "qk_rope_head_dim") or 0)
    elif heads and shape["hidden"] and not shape["head_dim"]:
        shape["head_dim"] = shape["hidden"] // heads
    scheme = config.get("quantization_config") or config.get("compression_config")
    quantization = read_quantization(scheme)
    dtype = dtype_word(config.get("dtype") or config.get("torch_dtype"))
    counted, stored = _count(file.parent, shape["layers"], quantization)
    parameters, experts, embedding = _parameters(counted, shape, config)
    kept = kv_dtype(scheme) or dtype or "bf16"
    names = raw.get("architectures")
    return ModelFacts(
        name=str(config.get("_name_or_path") or file.resolve().parent.name),
        architecture=str(names[0] if isinstance(names, list) and names else raw.get("model_type") or "") or None,
        **shape,
        parameters=parameters,
        active_parameters=_active(parameters, experts, embedding, shape, counted),
        expert_parameters=experts,
        embedding_parameters=embedding,
        **stored,
        weight_dtype=max(counted.dtypes, key=lambda word: counted.dtypes[word])
        if counted
        else quantization.weight_dtype
        if quantization
        else None
        if scheme
        else dtype,
        compute_dtype=(quantization.activation_dtype or dtype) if quantization else None if scheme else dtype,
        kv_bytes_per_token=_kv_bytes(shape, config, BITS[kept] // 8),
        quantization=quantization,
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"{file}: no JSON: {error}") from None
    if not isinstance(data, dict):
        raise ModelError(f"{file}: must be a JSON object")
    return data


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part about text, over what stands around it: models for images and sound nest it."""
    flat = dict(config)
    while inner := next((flat[key] for key in _NESTED if isinstance(flat.get(key), dict)), None):
        flat = {key: value for key, value in flat.items() if key not in _NESTED} | inner
    return flat


def _whole(config: Mapping[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


# ---- the files' headers -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Counted:
    """Parameters by what they are; `dtypes`: parameters by dtype."""

    total: int = 0
    experts: int = 0
    embedding: int = 0
    not_text: int = 0
    head: bool = False
    dtypes: dict[str, int] = field(default_factory=dict)


def _count(
    folder: Path, layers: int | None, quantization: Quantization | None
) -> tuple[_Counted | None, dict[str, int | None]]:
    """What the headers of all shards hold, None when one is missing; and bytes and number of the shards."""
    index = folder / "model.safetensors.index.json"
    told: object = None
    if index.is_file():
        data = _json(index)
        weights, about = data.get("weight_map"), data.get("metadata")
        if not isinstance(weights, dict):
            raise ModelError(f"{index}: has no weight_map")
        told = about.get("total_size") if isinstance(about, dict) else None
        files = [folder / Path(str(name)).name for name in sorted({str(one) for one in weights.values()})]
    else:
        files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if not files or not all(file.is_file() for file in files):
        size = int(told) if isinstance(told, int | float) else None
        return None, {"weight_bytes": size, "shards": len(files) or None}
    counted, size = _Counted(), 0
    for file in files:
        for name, word, shape, stored in _tensors(file):
            size += stored
            layer = _LAYER.search(name)
            if _NO_PARAMETER.search(name) or name.startswith("mtp.") or (layer and int(layer[1]) >= (layers or 10**9)):
                continue
            dtype, amount = _unpacked(word, math.prod(shape), quantization)
            counted.total += amount
            counted.experts += amount * bool(_EXPERT.search(name))
            counted.embedding += amount * bool(_LOOKED_UP.search(name))
            counted.not_text += amount * bool(_NOT_TEXT.search(name))
            counted.head |= bool(_HEAD.search(name))
            counted.dtypes[dtype] = counted.dtypes.get(dtype, 0) + amount
    return counted if counted.total else None, {"weight_bytes": size, "shards": len(files)}


def _unpacked(word: str, elements: int, quantization: Quantization | None) -> tuple[str, int]:
    """A tensor's dtype and number of weights: I32 holds 32 bits of packed weights, U8 (bitsandbytes too) two of 4."""
    packed = quantization.weight_dtype if quantization else "int4"
    bits = int(re.sub(r"\D", "", packed) or 4)  # of int3 too
    if word == "I32" or (word == "U8" and bits == 4):
        return packed, elements * (32 if word == "I32" else 8) // bits
    return dtype_word(word) or word.lower(), elements


def _tensors(file: Path) -> Iterator[tuple[str, str, list[int], int]]:
    """Name, dtype, shape and bytes of each tensor: 8 bytes of length, then that much JSON (safetensors' format)."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length) if length <= _HEADER_MOST else b"")
        for name, about in header.items():
            if name != "__metadata__":
                begin, end = map(int, about["data_offsets"])
                yield name, str(about["dtype"]), [int(one) for one in about["shape"]], end - begin
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{file}: does not begin as a safetensors file (a pointer of git-lfs?)") from None


# ---- from the shape ---------------------------------------------------------------------------------------


def _parameters(
    counted: _Counted | None, shape: Mapping[str, int | None], config: Mapping[str, Any]
) -> tuple[int | None, int | None, int | None]:
    """All parameters, those in routed experts, those only looked up."""
    if counted is None:
        return _of_shape(shape, config) or (None, None, None)
    return counted.total, counted.experts if shape["experts"] else None, counted.embedding if counted.head else 0


def _active(
    parameters: int | None,
    experts: int | None,
    embedding: int | None,
    shape: Mapping[str, int | None],
    counted: _Counted | None,
) -> int | None:
    if parameters is None:
        return None
    rest = parameters - (embedding or 0) - (counted.not_text if counted else 0)
    if not (count := shape["experts"]):
        return rest
    top = shape["top_k"]
    return rest - experts + experts * top // count if experts and top else None


def _of_shape(shape: Mapping[str, int | None], config: Mapping[str, Any]) -> tuple[int, int | None, int] | None:
    """Parameters of a decoder of Llama's kind (gated MLP), all, in routed experts, and looked up.

    Attention: Q and O hidden x heads x head_dim each, K and V hidden x KV heads x head_dim each; with MLA the low-rank
    products instead; a layer of lightning attention (MiniMax-M1) 5 x hidden x heads x head_dim. MLP 3 x hidden x
    intermediate, each expert so with its own width, and a router of hidden x experts. Embedding vocab x hidden, twice
    unless tied. Norms and biases (about 0.01 %) are left out. None for other forms.
    """
    known = [shape[name] for name in ("hidden", "layers", "vocab", "heads", "kv_heads", "head_dim")]
    width = _whole(config, "intermediate_size")
    linear = "linear_attention" in (config.get("layer_types") or ())
    if config.get("hidden_act") not in {"silu", "swish", "swiglu"} or width is None or None in known or linear:
        return None
    hidden, layers, vocab, heads, kv_heads, head_dim = (one or 0 for one in known)
    attention = hidden * head_dim * 2 * (heads + kv_heads)
    if rank := _whole(config, "kv_lora_rank"):
        rope, values = _whole(config, "qk_rope_head_dim") or 0, _whole(config, "v_head_dim") or 0
        queries = _whole(config, "q_lora_rank")
        attention = queries * (hidden + heads * head_dim) if queries else hidden * heads * head_dim
        attention += hidden * (rank + rope) + rank * heads * (head_dim - rope + values) + heads * values * hidden
    kinds = config.get("attn_type_list")
    lightning = kinds.count(0) if isinstance(kinds, list) else 0
    rest = attention * (layers - lightning) + lightning * 5 * hidden * heads * head_dim
    experts = None
    dense = layers
    if count := shape["experts"]:
        dense = layers - (sparse := sum(_is_sparse(config, layer) for layer in range(layers)))
        each = _whole(config, "moe_intermediate_size") or width
        experts = sparse * count * 3 * hidden * each
        shared = (_whole(config, "n_shared_experts", "num_shared_experts") or 0) * each
        shared = shared or _whole(config, "shared_expert_intermediate_size", "shared_intermediate_size") or 0
        rest += sparse * hidden * (3 * shared + count)
    dense_width = _whole(config, "intermediate_size_mlp") or width
    rest += dense * 3 * hidden * dense_width
    tied = config.get("tie_word_embeddings") is True
    return rest + (experts or 0) + vocab * hidden * (1 if tied else 2), experts, 0 if tied else vocab * hidden


def _is_sparse(config: Mapping[str, Any], layer: int) -> bool:
    """Whether this layer has routed experts: the first may be dense, or every n-th only have them."""
    if isinstance(only := config.get("moe_layers"), list):
        return layer in only
    if isinstance(frequency := config.get("moe_layer_freq"), list):
        return layer < len(frequency) and bool(frequency[layer])
    step = _whole(config, "decoder_sparse_step", "interleave_moe_layer_step") or 1
    dense = config.get("mlp_only_layers")
    return (
        layer >= (_whole(config, "first_k_dense_replace") or 0)
        and layer % (frequency if isinstance(frequency, int) and frequency > 0 else 1) == 0
        and (layer + 1) % step == 0
        and layer not in (dense if isinstance(dense, list) else ())
    )


def _kv_bytes(shape: Mapping[str, int | None], config: Mapping[str, Any], each: int) -> int | None:
    layers, heads, dim = shape["layers"], shape["kv_heads"], shape["head_dim"]
    if not layers or not heads or not dim:
        return None
    if rank := _whole(config, "kv_lora_rank"):
        return layers * (rank + (_whole(config, "qk_rope_head_dim") or 0)) * each
    kinds, types = config.get("layer_types"), config.get("attn_type_list")
    if isinstance(kinds, list):
        layers = kinds.count("full_attention")
    elif isinstance(types, list):
        layers -= types.count(0)
    elif _whole(config, "sliding_window") and (pattern := _whole(config, "sliding_window_pattern")):
        layers //= pattern
    return layers * 2 * heads * dim * each
