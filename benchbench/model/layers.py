"""Which layers keep the K and V of how many tokens, from a model's config.json. What is not understood is None."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

# A layer keeps K and V of all tokens, of the last ones, of none (a state, or a plain MLP), or of an unknown number.
Kind = Literal["full", "window", "state", "unknown"]
Config = Mapping[str, Any]

_WORDS: dict[Kind, str] = {
    "full": "full_attention attention global_attention full global",
    "window": "sliding_attention sliding_window_attention local_attention sliding local",
    "state": "linear_attention mamba mamba2 recurrent conv mlp moe gated_deltanet kda",
}
_KINDS: dict[object, Kind] = {word: kind for kind, words in _WORDS.items() for word in words.split()}
_NEMOTRON: dict[str, Kind] = {"*": "full", "M": "state", "-": "state", "E": "state"}
_WINDOWS = ("sliding_window", "attention_window_size", "sliding_window_size")
_LISTS = ("layer_types", "layers_block_type", "block_types", "layer_block_type")
# Keys of layers that keep something other than K and V of all tokens. A schedule of layers explains the first kind.
_HAS_STATE = re.compile(
    r"mamba|ssm|linear|conv|rwkv|recurrent|lru|delta|kda|lightning|state_size|hybrid_override|hyena"
)
_NOT_UNDERSTOOD = re.compile(
    r"(?<!token_)(?<!ignore_)(?<!start_)(?<!end_)index|compress(?!ion_config)|sparse_att|attn_sparse|retention|xlstm|hybrid(?!_override)|swa_|shared_kv"
    r"|kv_shar|cla_|use_cla|global_head_dim|global_key_value|k_eq_v|attention_chunk|block_configs|kv_heads_per_layer"
    r"|moba|nsa_|yoco|other_setting|per_layer|zero_expert|_cycles|cross_attention_layers"
)
_ALL_WINDOWED = re.compile(r"mistral|mixtral|phi3|phimoe|starcoder2")
_PATTERNS = {"gemma2": 2, "gemma3": 6, "cohere2": 4, "gpt_?oss": 2}  # each n-th layer has the whole context


class KvCache(NamedTuple):
    """Bytes of K and V. `per_token`: a token of context, in the layers that keep all; `window_per_token`: in those that
    keep the last `window` tokens. With `window` alone, all layers keep no more than that.
    """

    per_token: int | None = None
    window_per_token: int | None = None
    window: int | None = None


def whole(config: Config, *keys: str) -> int | None:
    """The first of these keys that holds a whole number above 0, or a list of one such number throughout."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def family(config: Config) -> str:
    """Model type and architecture, in lower case."""
    return f"{config.get('model_type', '')} {config.get('architectures', '')}".lower()


def layer_kinds(config: Config, layers: int) -> list[Kind] | None:
    """The kind of each layer; None where a key hints at something else than plain attention and is not understood."""
    keys = [key for key, value in config.items() if value not in (None, False, 0, [], {}, "")]
    keys = [key for key in keys if config.get("use_cla") is not False or not key.startswith("cla_")]
    sparse_mla = whole(config, "index_topk") and whole(config, "kv_lora_rank")  # DeepSeek-V3.2
    if any(_NOT_UNDERSTOOD.search(key) and not (sparse_mla and key.startswith("index_")) for key in keys):
        return None
    if any(isinstance(config.get(key), list) for key in (*_WINDOWS, "interleaved_sliding_window")):
        return ["unknown"] * layers  # a window for each layer
    kinds = _schedule(config, layers)
    if kinds is not None:
        known = [kind for kind in kinds if kind]
        return known if len(known) == layers else None
    return None if any(_HAS_STATE.search(key) for key in keys) else _windows(config, layers)


def _schedule(config: Config, layers: int) -> Sequence[Kind | None] | None:
    """As the config lists its layers; None where it does not."""
    words = next((config[key] for key in _LISTS if isinstance(config.get(key), list)), None)
    if words:
        repeated = words * layers if "block_types" in config else words
        kinds = [_KINDS.get(word) if isinstance(word, str) else None for word in repeated]
        windowed = "attention_window_size" in config
        kinds = ["window" if kind == "full" and windowed else kind for kind in kinds]
        return kinds[:layers] if "block_types" in config else kinds
    if isinstance(pattern := config.get("hybrid_override_pattern"), str):
        return [_NEMOTRON.get(letter) for letter in pattern]
    if isinstance(types := config.get("attn_type_list"), list):
        return ["full" if number == 1 else "state" if number == 0 else None for number in types]
    full = _full_layers(config, layers)
    return None if full is None else ["full" if layer in full else "state" for layer in range(layers)]


def _full_layers(config: Config, layers: int) -> set[int] | None:
    """The layers with attention, counted from 0, where the others have none."""
    linear = config.get("linear_attn_config")
    if isinstance(linear, dict) and (numbers := _integers(linear.get("full_attn_layers"))):
        return {number - 1 for number in numbers}
    for key in ("attn_layer_indices", "full_attn_idxs"):
        if numbers := _integers(config.get(key)):
            return set(numbers)
    if interval := whole(config, "full_attention_interval"):
        return {layer for layer in range(layers) if (layer + 1) % interval == 0}
    if period := whole(config, "attn_layer_period"):
        offset = config.get("attn_layer_offset") or 0
        return {layer for layer in range(layers) if layer % period == offset} or None
    return None


def _integers(value: object) -> list[int] | None:
    return value if isinstance(value, list) and value and all(type(item) is int for item in value) else None


def _window(config: Config) -> int | None:
    """Tokens of the window; None where there is none, or none that the model's longest context exceeds."""
    if config.get("use_sliding_window") is False:
        return None
    size = whole(config, *_WINDOWS)
    return None if size and size >= (whole(config, "max_position_embeddings") or size + 1) else size


def _windows(config: Config, layers: int) -> list[Kind] | None:
    """Kinds of a model that has attention in each layer: of all tokens, or of a window in some."""
    if not _window(config):
        return ["full"] * layers
    pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern"))
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        return ["full" if pattern[layer % len(pattern)] == "G" else "window" for layer in range(layers)]
    every = pattern or next((n for name, n in _PATTERNS.items() if re.search(name, family(config))), None)
    if type(every) is int and every > 0:
        return ["window" if (layer + 1) % every else "full" for layer in range(layers)]
    if config.get("use_sliding_window") is True and isinstance(first := config.get("max_window_layers"), int):
        return ["full" if layer < first else "window" for layer in range(layers)]
    return ["window" if _ALL_WINDOWED.search(family(config)) else "unknown"] * layers


def kv_cache(config: Config, shape: Mapping[str, int | None], kinds: Sequence[Kind] | None, size: int) -> KvCache:
    """`size`: bytes of an element, 0 for less than one. A layer keeps 2 x KV heads x head_dim of them a token, with MLA
    kv_lora_rank + qk_rope_head_dim.
    """
    heads, dim = shape["kv_heads"], shape["head_dim"]
    if (
        not size
        or kinds is None
        or "unknown" in kinds
        or config.get("is_encoder_decoder") is True
        or not heads
        or not dim
    ):
        return KvCache()
    if rank := whole(config, "kv_lora_rank"):
        each = (rank + (whole(config, "qk_rope_head_dim") or 0)) * size
    else:
        each = heads * (dim + (whole(config, "v_head_dim") or dim)) * size
        if "window" in kinds and "v_head_dim" in config:  # MiMo-V2: layers with a window have other KV heads
            return KvCache()
    full, windowed, window = kinds.count("full"), kinds.count("window"), _window(config)
    if top := whole(config, "index_topk"):
        return KvCache(full * each, None, top)
    if not windowed:
        return KvCache(full * each)
    if not window:
        return KvCache((full + windowed) * each) if whole(config, *_WINDOWS) else KvCache()
    return KvCache(full * each, windowed * each, window) if full else KvCache(windowed * each, None, window)
