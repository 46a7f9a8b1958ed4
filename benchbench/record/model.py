"""What a model is, as far as its files or its publisher say."""

from __future__ import annotations

from dataclasses import dataclass


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
