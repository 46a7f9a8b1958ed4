"""Parameters and bytes of a model whose files are not at hand, from the shape that its config.json states."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from benchbench.model.layers import Config, Kind, family, whole
from benchbench.model.quantization import BITS, Quantization
from benchbench.model.weights import Weights

Shape = Mapping[str, int | None]
Part = tuple[str, str, int]  # part (experts, embedding, rest), name of the module, parameters

_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
_SHARED_WIDTH = ("shared_expert_intermediate_size", "shared_intermediate_size")
_UNKNOWN_FORM = re.compile(r"share|zero_expert|layers_enum|use_residual|moe_every")


def weights_of_shape(
    config: Config, shape: Shape, kinds: Sequence[Kind] | None, scheme: Quantization | None, dtype: str | None
) -> Weights | None:
    """Weights of a decoder with gated MLPs (3 x hidden x width); None for other forms. `dtype`: None for unknown bytes.

    Attention: Q and O hidden x heads x head_dim each, K and V hidden x KV heads x head_dim each; MLA its low-rank
    products. Lightning attention (MiniMax-M1) 5 x hidden x heads x head_dim; gated delta nets (Qwen3-Next) and Mamba
    (Jamba) their projections and convolution. Each expert an MLP of its own width, and a router of hidden x experts.
    Embedding vocab x hidden, twice unless tied. Norms and biases (about 0.01 %) are left out. Bytes: modules that the
    scheme excludes in `dtype`, the others as quantized.
    """
    gated = {"silu", "swish", "swiglu", *(("gelu_pytorch_tanh", "gelu") if "gemma" in family(config) else ())}
    activation = str(config.get("hidden_act") or config.get("hidden_activation"))
    known = [shape[name] for name in ("hidden", "layers", "vocab", "heads", "kv_heads", "head_dim")]
    if activation not in gated or None in known or kinds is None or not is_known_mixture(config, shape):
        return None
    weights = Weights()
    for part, name, count in _modules(config, shape, kinds):
        if not count:
            return None
        weights.parts[part] = weights.parts.get(part, 0) + count
        if word := _dtype_of(name, scheme, dtype):
            weights.bytes[part] = weights.bytes.get(part, 0) + count * min(BITS[word], 16) // 8
            weights.dtypes[word] = weights.dtypes.get(word, 0) + count
    weights.head = "embedding" in weights.parts
    return weights


def is_known_mixture(config: Config, shape: Shape) -> bool:
    """Whether the keys about experts are those that are understood here."""
    named = {key: value for key, value in config.items() if isinstance(value, int) and value > 1}
    if "is_moe" in config or (config.get("moe_intermediate_size") and not whole(config, "moe_intermediate_size")):
        return False
    if shape["experts"] is None:
        return not any(re.search(r"num\w*_experts?$|n_\w*experts?$|experts?_num|expert_count", key) for key in named)
    read = {*_SHARED, *_SHARED_WIDTH}
    return not any(_UNKNOWN_FORM.search(key) and key not in read for key, value in config.items() if value)


def _dtype_of(name: str, scheme: Quantization | None, dtype: str | None) -> str | None:
    if scheme is None or any(_names(pattern, name) for pattern in scheme.excluded):
        return dtype
    other = next((part for pattern, part in scheme.others if _names(pattern, name)), scheme)
    return other.weight_dtype if other.weight_dtype in BITS else None


def _names(pattern: str, module: str) -> bool:
    """Whether a scheme's pattern (a name or part of one, a glob, `re:...`) means this module."""
    for other, here in (("block_sparse_moe", "mlp"), ("feed_forward", "mlp"), (".router", ".gate")):
        pattern = pattern.replace(other, here)
    if pattern.startswith("re:"):
        try:
            return re.match(pattern.removeprefix("re:"), module) is not None
        except re.error:
            return False
    if "*" in pattern:
        return fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*")
    return f".{pattern}." in f".{module}."


def _modules(config: Config, shape: Shape, kinds: Sequence[Kind]) -> Iterator[Part]:
    """The modules of all layers; one without parameters where a layer is of an unknown form."""
    hidden, vocab = shape["hidden"] or 0, shape["vocab"] or 0
    tied = config.get("tie_word_embeddings", bool(re.search("gemma|cohere", family(config)))) is True
    yield "rest" if tied else "embedding", "model.embed_tokens", vocab * hidden
    if not tied:
        yield "rest", "lm_head", vocab * hidden
    for layer, kind in enumerate(kinds):
        for name, count in _state(config, shape) if kind == "state" else _attention(config, shape):
            yield "rest", f"model.layers.{layer}.{name}", count
        experts = (shape["experts"] or 0) if _is_sparse(config, layer) else 0
        width = whole(config, "intermediate_size_mlp", "intermediate_size") or 0
        if experts:
            each = whole(config, "moe_intermediate_size", "intermediate_size") or 0
            width = whole(config, *_SHARED_WIDTH) or (whole(config, *_SHARED) or 0) * each
            yield "rest", f"model.layers.{layer}.mlp.gate", hidden * experts
            for matrix in ("gate_proj", "up_proj", "down_proj"):
                yield "experts", f"model.layers.{layer}.mlp.experts.0.{matrix}", experts * hidden * each
        inside = "mlp.shared_expert" if experts else "mlp"
        for matrix in ("gate_proj", "up_proj", "down_proj") if width or not experts else ():
            yield "rest", f"model.layers.{layer}.{inside}.{matrix}", hidden * width


def _attention(config: Config, shape: Shape) -> Iterator[tuple[str, int]]:
    hidden, heads, head_dim = (shape[name] or 0 for name in ("hidden", "heads", "head_dim"))
    if rank := whole(config, "kv_lora_rank"):
        rope, values = whole(config, "qk_rope_head_dim") or 0, whole(config, "v_head_dim") or 0
        queries = whole(config, "q_lora_rank")
        if not values:  # stated by no key of its own
            yield "self_attn", 0
            return
        count = queries * (hidden + heads * head_dim) if queries else hidden * heads * head_dim
        count += hidden * (rank + rope) + rank * heads * (head_dim - rope + values) + heads * values * hidden
        if indexers := whole(config, "index_n_heads"):  # DeepSeek-V3.2
            size = whole(config, "index_head_dim") or 0
            count += (queries or hidden) * indexers * size + hidden * (size + indexers)
        yield "self_attn", count
        return
    gate = 2 if "linear_num_value_heads" in config else 1  # Qwen3-Next and 3.5 have a gate as wide as Q
    yield "self_attn.q_proj", gate * hidden * heads * head_dim
    for name, number in (("k_proj", shape["kv_heads"]), ("v_proj", shape["kv_heads"]), ("o_proj", heads)):
        yield f"self_attn.{name}", hidden * (number or 0) * head_dim


def _state(config: Config, shape: Shape) -> Iterator[tuple[str, int]]:
    """A layer that keeps a state instead of K and V."""
    hidden, heads, head_dim = (shape[name] or 0 for name in ("hidden", "heads", "head_dim"))
    if "attn_type_list" in config:
        yield "self_attn", 5 * hidden * heads * head_dim
    elif "qwen3" in family(config) and (number := whole(config, "linear_num_value_heads")):
        keys = (whole(config, "linear_num_key_heads") or 0) * (whole(config, "linear_key_head_dim") or 0)
        values = number * (whole(config, "linear_value_head_dim") or 0)
        kernel = whole(config, "linear_conv_kernel_dim") or 0
        yield "linear_attn", hidden * (2 * keys + 3 * values + 2 * number) + kernel * (2 * keys + values)
    elif (rank := whole(config, "mamba_dt_rank")) and not whole(config, "mamba_n_heads", "mamba_num_heads"):
        inner, state = hidden * (whole(config, "mamba_expand") or 2), whole(config, "mamba_d_state") or 0
        yield "mamba", inner * (3 * hidden + (whole(config, "mamba_d_conv") or 0) + 2 * rank + 3 * state)
    else:
        yield "unknown", 0


def _is_sparse(config: Config, layer: int) -> bool:
    """Whether this layer has routed experts: the first may be dense, or every n-th only have them."""
    if isinstance(kinds := config.get("mlp_layer_types"), list):
        return layer < len(kinds) and kinds[layer] == "sparse"
    if isinstance(only := config.get("moe_layers"), list):
        return layer in only
    if isinstance(frequency := config.get("moe_layer_freq"), list):
        return layer < len(frequency) and bool(frequency[layer])
    if period := whole(config, "expert_layer_period"):
        return layer % period == (config.get("expert_layer_offset") or 0)
    step = whole(config, "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval") or 1
    dense = config.get("mlp_only_layers")
    first = whole(config, "first_k_dense_replace", "moe_layer_start_index", "num_dense_layers") or 0
    return (
        layer >= first
        and layer % (frequency if isinstance(frequency, int) and frequency > 0 else 1) == 0
        and (layer + 1) % step == 0
        and layer not in (dense if isinstance(dense, list) else ())
    )
