"""A model's facts: counted from checkpoints that the tests write, computed from shapes that are published."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchbench.errors import ModelError
from benchbench.model.config import ModelFacts, read_model
from benchbench.model.quantization import Quantization, read_quantization
from benchbench.publish.model_section import model_section

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = Path(__file__).parent / "data" / "configs"
Tensors = dict[str, tuple[str, list[int]]]
BYTES = {"BF16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1, "F32": 4, "I32": 4}
M2: dict[str, Any] = {
    "architectures": ["MiniMaxM2ForCausalLM"], "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 1536,
    "num_hidden_layers": 62, "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128,
    "num_local_experts": 256, "num_experts_per_tok": 8, "vocab_size": 200064, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False, "attn_type_list": [1] * 62,
}  # fmt: skip
QUARK = {
    "quant_method": "quark",
    "exclude": ["lm_head", *(f"model.layers.{k}.block_sparse_moe.gate" for k in range(62))],
    "global_quant_config": {
        "weight": {"dtype": "int8", "qscheme": "per_channel", "ch_axis": 0, "is_dynamic": False, "symmetric": True},
        "input_tensors": {"dtype": "int8", "qscheme": "per_channel", "ch_axis": 1, "is_dynamic": True,
                          "symmetric": True},
    },
}  # fmt: skip


def write(folder: Path, config: dict[str, Any], *shards: Tensors, index: bool = False) -> Path:
    """A checkpoint with true headers and no data: the files' ends are holes."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = [f"model-{number}-of-{len(shards)}.safetensors" for number in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        at, header = 0, {"__metadata__": {"format": "pt"}}
        for tensor, (dtype, shape) in shard.items():
            size = BYTES[dtype]
            for length in shape:
                size *= length
            header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}  # type: ignore[dict-item]
            at += size
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
    if index:
        weights = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        data = {"metadata": {"total_size": 12345}, "weight_map": weights}
        (folder / "model.safetensors.index.json").write_text(json.dumps(data))
    return folder


@given(
    shape=st.fixed_dictionaries(
        {
            "hidden_size": st.sampled_from([64, 128]),
            "intermediate_size": st.integers(8, 300),
            "num_hidden_layers": st.integers(1, 4),
            "num_attention_heads": st.sampled_from([4, 8]),
            "num_key_value_heads": st.sampled_from([1, 2, 4]),
            "head_dim": st.sampled_from([16, 32]),
            "vocab_size": st.integers(10, 500),
            "tie_word_embeddings": st.booleans(),
        }
    ),
    routing=st.none() | st.integers(2, 6).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    quantized=st.booleans(),
    split=st.integers(1, 3),
    nested=st.booleans(),
)
def test_counted_as_written_and_as_computed(
    tmp_path_factory: pytest.TempPathFactory,
    shape: dict[str, Any],
    routing: tuple[int, int] | None,
    quantized: bool,
    split: int,
    nested: bool,
) -> None:
    """Headers and shape give the same count; scales are none; the looked-up embedding is not active."""
    config = {"hidden_act": "silu", "dtype": "bfloat16", **shape}
    config |= {"num_experts": routing[0], "num_experts_per_tok": routing[1]} if routing else {}
    hidden, width, vocab = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    heads, kv_heads = (shape[name] * shape["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    tensors: Tensors = {"model.embed_tokens.weight": ("BF16", [vocab, hidden])}
    if not shape["tie_word_embeddings"]:
        tensors["lm_head.weight"] = "BF16", [vocab, hidden]
    experts = routed = 0
    for layer in range(shape["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        linear = {f"{at}self_attn.{name}_proj": [size, hidden] for name, size in
                  (("q", heads), ("k", kv_heads), ("v", kv_heads), ("o", heads))}  # fmt: skip
        mlps = [f"{at}mlp.experts.{number}." for number in range(routing[0])] if routing else [f"{at}mlp."]
        linear |= {f"{mlp}{name}_proj": [width, hidden] for mlp in mlps for name in ("gate", "up", "down")}
        if routing:
            tensors[f"{at}mlp.gate.weight"] = "BF16", [routing[0], hidden]
            experts += routing[0] * 3 * width * hidden
            routed += routing[1] * 3 * width * hidden
        for name, size in linear.items():
            tensors[f"{name}.weight"] = "I8" if quantized else "BF16", size
            if quantized:
                tensors[f"{name}.weight_scale"] = "F32", [size[0]]
    tensors[f"model.layers.{shape['num_hidden_layers']}.mtp.weight"] = "BF16", [hidden, hidden]  # predicts further ones
    items = list(tensors.items())
    shards = [dict(items[start::split]) for start in range(split) if items[start::split]]
    if quantized:
        config["quantization_config"] = QUARK
    folder = tmp_path_factory.mktemp("model")
    written = {"text_config": config, "model_type": "x"} if nested else config
    facts = read_model(write(folder, written, *shards, index=split > 1))

    scales = [name for name in tensors if name.endswith("_scale")]
    parameters = sum(size[0] * size[1] for name, (_, size) in items if name not in scales and ".mtp." not in name)
    looked_up = 0 if shape["tie_word_embeddings"] else vocab * hidden
    assert facts.parameters == parameters
    assert facts.expert_parameters == (experts if routing else None)
    assert facts.embedding_parameters == looked_up
    assert facts.active_parameters == parameters - looked_up - experts + routed
    sizes = (BYTES[dtype] * size[0] * (size[1] if len(size) > 1 else 1) for dtype, size in tensors.values())
    assert facts.weight_bytes == sum(sizes)
    assert facts.shards == len(shards)
    assert facts.compute_dtype == ("int8" if quantized else "bf16")
    assert facts.kv_bytes_per_token == shape["num_hidden_layers"] * 2 * kv_heads * 2

    for file in folder.glob("*.safetensors"):
        file.unlink()
    computed = read_model(folder)
    assert (computed.parameters, computed.active_parameters) == (facts.parameters, facts.active_parameters)
    assert computed.weight_bytes == (12345 if split > 1 else None)
    assert computed.weight_dtype == ("int8" if quantized else "bf16")


def published(**changes: Any) -> dict[str, Any]:
    return {"hidden_act": "silu", "torch_dtype": "bfloat16", "tie_word_embeddings": False, **changes}


MIXTRAL = published(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                    num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2, vocab_size=32000)  # fmt: skip
M1 = published(hidden_size=6144, intermediate_size=9216, num_hidden_layers=80, num_attention_heads=64,
               vocab_size=200064, num_key_value_heads=8, head_dim=128, num_local_experts=32, num_experts_per_tok=2,
               attn_type_list=([0] * 7 + [1]) * 10)  # fmt: skip
V3 = published(hidden_size=7168, intermediate_size=18432, moe_intermediate_size=2048, num_hidden_layers=61,
               num_attention_heads=128, num_key_value_heads=128, n_shared_experts=1, n_routed_experts=256,
               kv_lora_rank=512, q_lora_rank=1536, qk_rope_head_dim=64, v_head_dim=128, qk_nope_head_dim=128,
               num_experts_per_tok=8, first_k_dense_replace=3, vocab_size=129280)  # fmt: skip
OSS = published(hidden_size=2880, intermediate_size=2880, num_hidden_layers=36, num_attention_heads=64, head_dim=64,
                num_key_value_heads=8, num_local_experts=128, num_experts_per_tok=4, vocab_size=201088,
                layer_types=["sliding_attention", "full_attention"] * 18, sliding_window=128,
                quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})  # fmt: skip
QWEN = published(hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768, num_hidden_layers=48,
                 num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8,
                 vocab_size=151936, mlp_only_layers=[], decoder_sparse_step=1)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "total", "active", "kv"),
    [
        (M2, 228.7, 10.4, 62 * 2 * 8 * 128 * 2),
        (M1, 456.1, 47.2, 10 * 2 * 8 * 128 * 2),  # 45.9 without the output head
        (MIXTRAL, 46.7, 12.7, 32 * 2 * 8 * 128 * 2),
        (V3, 671.0, 36.6, 61 * 576 * 2),
        (OSS, 116.8, 5.1, 18 * 2 * 8 * 64 * 2),
        (QWEN, 30.5, 3.0, 48 * 2 * 4 * 128 * 2),
    ],
)
def test_published_shapes(tmp_path: Path, config: dict[str, Any], total: float, active: float, kv: int) -> None:
    facts = read_model(write(tmp_path, config))
    assert round((facts.parameters or 0) / 1e9, 1) == total
    assert round((facts.active_parameters or 0) / 1e9, 1) == active
    assert facts.kv_bytes_per_token == kv


# (file of tests/data/configs, billions of parameters and of active ones as published, K and V bytes of a token in
# layers that keep all, of a token in layers with a window if others keep all, the window). 0: not computed.
PUBLISHED: list[tuple[str, float, float, int | None, int | None, int | None]] = [
    ("bamba-9b", 0, 0, 3 * 2 * 8 * 128 * 2, None, None),
    ("command-r7b", 8.0, 8.0, 8 * 4096, 24 * 4096, 4096),
    ("dbrx", 0, 0, 40 * 4096, None, None),
    ("deepseek-v2-lite", 15.7, 2.4, 27 * 576 * 2, None, None),
    ("deepseek-v3", 671, 37, 61 * 576 * 2, None, None),
    ("deepseek-v3.2", 671, 37, 61 * 576 * 2, None, 2048),
    ("ernie-4.5-21b-a3b", 21.8, 3, 28 * 2048, None, None),
    ("exaone-4-32b", 32.0, 31.5, 16 * 4096, 48 * 4096, 4096),
    ("falcon-40b", 0, 0, 60 * 2048, None, None),
    ("gemma-2-27b", 27.2, 27.2, 23 * 8192, 23 * 8192, 4096),
    ("gemma-3-27b", 0, 0, 10 * 8192, 52 * 8192, 1024),
    ("glm-4-9b", 0, 0, 40 * 1024, None, None),
    ("glm-4.5-air", 106, 12, 46 * 4096, None, None),
    ("gpt-oss-120b", 116.8, 5.1, 18 * 2048, 18 * 2048, 128),
    ("gpt-oss-20b", 20.9, 3.6, 12 * 2048, 12 * 2048, 128),
    ("granite-4.0-h-small", 0, 0, 4 * 4096, None, None),
    ("jamba-v0.1", 52, 12, 4 * 4096, None, None),
    ("kimi-k2", 1030, 32, 61 * 576 * 2, None, None),
    ("kimi-linear-48b-a3b", 0, 0, 7 * 576 * 2, None, None),
    ("lfm2-1.2b", 0, 0, 6 * 2048, None, None),
    ("llama-3.1-70b", 70.6, 69.5, 80 * 4096, None, None),
    ("llama-3.1-8b", 8.03, 7.5, 32 * 4096, None, None),
    ("llama-3.2-1b", 1.24, 1.24, 16 * 2048, None, None),
    ("minimax-m1", 456, 45.9, 10 * 4096, None, None),
    ("minimax-m2", 229, 10, 62 * 4096, None, None),
    ("mistral-7b-v0.1", 7.24, 7.1, 32 * 4096, None, 4096),
    ("mixtral-8x7b", 46.7, 12.9, 32 * 4096, None, None),
    ("nemotron-3-nano-30b-a3b", 0, 0, 6 * 1024, None, None),
    ("nemotron-h-8b", 0, 0, 4 * 4096, None, None),
    ("phi-3-mini-4k", 3.82, 3.7, 32 * 12288, None, 2047),
    ("qwen2.5-7b", 7.61, 7.07, 28 * 2048, None, None),
    ("qwen3-235b-a22b", 235, 22, 94 * 2048, None, None),
    ("qwen3-30b-a3b", 30.5, 3.3, 48 * 2048, None, None),
    ("qwen3-next-80b", 80, 3.9, 12 * 2048, None, None),
    ("recurrentgemma-9b", 0, 0, 12 * 1024, None, 2048),
    # Layers that are not understood: nothing is claimed
    *((name, 0, 0, None, None, None) for name in ("deepseek-v4-flash", "falcon-h1-7b", "gemma-3n-e4b", "llama-4-scout",
                                                  "mimo-v2-flash", "rwkv-4-3b", "zamba2-7b")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "total", "active", "kv", "window_kv", "window"), PUBLISHED)
def test_published_models(
    name: str, total: float, active: float, kv: int | None, window_kv: int | None, window: int | None
) -> None:
    facts = read_model(CONFIGS / f"{name}.json")
    assert (facts.kv_bytes_per_token, facts.window_kv_bytes_per_token, facts.window) == (kv, window_kv, window)
    assert (facts.parameters or 0) / 1e9 == pytest.approx(total, rel=0.01)
    assert (facts.active_parameters or 0) / 1e9 == pytest.approx(active, rel=0.12)  # makers count embeddings or not


def test_every_published_config_is_tested() -> None:
    assert sorted(path.stem for path in CONFIGS.iterdir()) == sorted(name for name, *_ in PUBLISHED)


@pytest.mark.parametrize(
    "key",
    ["mamba_d_state", "ssm_cfg", "linear_attention_dim", "index_topk", "conv_kernel", "rwkv_size", "recurrent_width",
     "gated_delta_heads", "compress_ratio", "swa_head_dim", "num_kv_shared_layers", "per_layer_config", "H_cycles",
     "zero_expert_num"],
)  # fmt: skip
def test_a_sign_of_another_kind_of_layer_makes_k_and_v_unknown(tmp_path: Path, key: str) -> None:
    config = json.loads((CONFIGS / "llama-3.1-8b.json").read_text())
    assert read_model(write(tmp_path, {**config, key: None})).kv_bytes_per_token == 32 * 4096
    facts = read_model(write(tmp_path, {**config, key: 64}))
    assert (facts.kv_bytes_per_token, facts.parameters) == (None, None)


@pytest.mark.parametrize(
    ("types", "kv", "window_kv"),
    [
        (["attention", "full_attention"], 2 * 4096, None),
        (["sliding_attention", "linear_attention"], 4096, None),
        (["sliding_attention", "full_attention"], 4096, 4096),
        (["full_attention", "mamba"], 4096, None),
        (["full_attention", "of tomorrow"], None, None),
        (["full_attention"], None, None),  # of two layers
        (["full_attention", 1], None, None),
    ],
)
def test_layer_types(tmp_path: Path, types: list[object], kv: int | None, window_kv: int | None) -> None:
    config = json.loads((CONFIGS / "mistral-7b-v0.1.json").read_text())
    facts = read_model(write(tmp_path, {**config, "num_hidden_layers": 2, "layer_types": types}))
    assert (facts.kv_bytes_per_token, facts.window_kv_bytes_per_token) == (kv, window_kv)


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 80), st.sampled_from([None, 0, 7]))
def test_k_and_v_of_a_window_are_the_mean_over_contexts(first: int, more: int, window: int, other: int | None) -> None:
    facts = ModelFacts(kv_bytes_per_token=3, window_kv_bytes_per_token=other, window=window)
    contexts = range(first, first + more + 1)
    kept = [3 * min(n, window) if other is None else 3 * n + other * min(n, window) for n in contexts]
    assert facts.kv_bytes(contexts[0], contexts[-1]) == pytest.approx(sum(kept) / len(kept))
    assert replace(facts, kv_bytes_per_token=None).kv_bytes(1, 2) is None


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 99)
    | st.floats()
    | st.sampled_from(["full_attention", "M*-", "LLLG", "", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["full_attn_layers", "a"]), inner, max_size=2)
    ),
    max_leaves=5,
)
READ = {path.stem: json.loads(path.read_text()) for path in sorted(CONFIGS.iterdir())}


@given(st.data())
def test_any_value_of_a_key_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    config = READ[data.draw(st.sampled_from(sorted(READ)))]
    key = data.draw(st.sampled_from(sorted(config)))
    folder = write(tmp_path_factory.mktemp("m"), config | {key: data.draw(VALUES)})
    facts = read_model(folder)
    for number in (facts.kv_bytes_per_token, facts.parameters, facts.active_parameters, facts.dense_bytes):
        assert number is None or number >= 0
    if facts.kv_bytes_per_token is not None:
        assert (facts.kv_bytes(1, 9) or 0) > 0


@pytest.mark.parametrize(
    ("keys", "kv_heads"),
    [
        ({}, 32),
        ({"num_key_value_heads": None}, 32),
        ({"num_key_value_heads": 8}, 8),
        ({"num_attention_groups": 8}, None),
        ({"num_key_value_heads": [8] * 32}, 8),
        ({"num_key_value_heads": [8, 4] * 16}, None),
        ({"multi_query": True}, 1),
    ],
)
def test_kv_heads_are_not_guessed(tmp_path: Path, keys: dict[str, Any], kv_heads: int | None) -> None:
    config = json.loads((CONFIGS / "llama-3.1-8b.json").read_text())
    del config["num_key_value_heads"]
    facts = read_model(write(tmp_path, config | keys))
    assert (facts.kv_heads, facts.kv_bytes_per_token) == (kv_heads, kv_heads and 32 * 2 * kv_heads * 128 * 2)


@pytest.mark.parametrize(
    "changes", [{"is_moe": False}, {"moe_intermediate_size": [768, 256]}, {"num_shared_expert_blocks": 2}]
)
def test_an_unknown_form_of_experts_makes_parameters_unknown(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = json.loads((CONFIGS / "qwen3-30b-a3b.json").read_text())
    facts = read_model(write(tmp_path, config | changes))
    assert (facts.parameters, facts.active_parameters, facts.expert_bytes) == (None, None, None)
    assert facts.kv_bytes_per_token == 48 * 2048


def test_bytes_are_those_of_each_part(tmp_path: Path) -> None:
    """Of gpt-oss only the experts are quantized; embeddings are looked up, and 32 bits are served in 16."""
    facts = read_model(CONFIGS / "gpt-oss-120b.json")
    assert facts.active_parameters is not None
    assert facts.expert_parameters is not None
    assert facts.expert_bytes == facts.expert_parameters // 2
    assert facts.dense_bytes == 2 * (facts.active_parameters - facts.expert_parameters * 4 // 128)
    part = "model.layers.0.mlp.experts.0."
    tensors: Tensors = {
        f"{part}up_proj.weight": ("I8", [8, 16]), f"{part}up_proj.weight_scale": ("F32", [8]),
        "model.layers.0.self_attn.q_proj.weight": ("F32", [8, 8]), "model.embed_tokens.weight": ("BF16", [10, 8]),
        "lm_head.weight": ("BF16", [10, 8]), "model.layers.1.mtp.weight": ("BF16", [8, 8]),
        "visual.blocks.0.weight": ("BF16", [8, 8]),
    }  # fmt: skip
    config = published(num_hidden_layers=1, num_local_experts=2, num_experts_per_tok=1, quantization_config=QUARK)
    facts = read_model(write(tmp_path, config, tensors))
    assert (facts.expert_bytes, facts.dense_bytes) == (8 * 16 + 8 * 4, 2 * (8 * 8 + 10 * 8))
    assert facts.weight_bytes == 160 + 256 + 160 + 160 + 128 + 128


def test_experts_under_an_unknown_name_make_what_is_active_unknown(tmp_path: Path) -> None:
    tensors: Tensors = {"model.layers.0.moe.input_linear.weight": ("BF16", [8, 8, 16])}
    config = published(num_hidden_layers=1, num_local_experts=8, num_experts_per_tok=2)
    facts = read_model(write(tmp_path / "a", config, tensors))
    assert (facts.parameters, facts.active_parameters, facts.dense_bytes) == (1024, None, None)
    tensors = {"model.layers.0.mlp.experts.0.weight": ("BF16", [8, 8])}
    facts = read_model(write(tmp_path / "b", published(num_hidden_layers=1, num_moe_experts=8), tensors))
    assert (facts.parameters, facts.active_parameters) == (None, None)


def test_packed_weights_count_as_weights(tmp_path: Path) -> None:
    config = published(num_hidden_layers=1, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128,
                                                                 "sym": True})  # fmt: skip
    part = "model.layers.0.mlp.up_proj."
    gptq: Tensors = {f"{part}qweight": ("I32", [128, 64]), f"{part}scales": ("BF16", [8, 64]),
                     f"{part}qzeros": ("I32", [8, 8]), f"{part}g_idx": ("I32", [1024])}  # fmt: skip
    facts = read_model(write(tmp_path / "gptq", config, gptq))
    assert (facts.parameters, facts.weight_dtype, facts.compute_dtype) == (128 * 8 * 64, "int4", None)
    blocks: Tensors = {"model.layers.0.mlp.experts.gate_up_proj_blocks": ("U8", [4, 8, 2, 16]),
                       "model.layers.0.mlp.experts.gate_up_proj_scales": ("U8", [4, 8, 2])}  # fmt: skip
    facts = read_model(write(tmp_path / "oss", OSS, blocks))
    assert (facts.parameters, facts.expert_parameters, facts.weight_dtype) == (2 * 4 * 8 * 2 * 16,) * 2 + ("fp4",)


def test_schemes() -> None:
    group = {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False}}
    wide = {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
        "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True},
    }
    scheme = read_quantization(
        {"quant_method": "compressed-tensors", "ignore": ["lm_head"],
         "config_groups": {"group_0": {"targets": ["re:.*experts.*"], **group}, "group_1": wide}}
    )  # fmt: skip
    assert scheme is not None
    assert (scheme.weight_dtype, scheme.weight_granularity, scheme.excluded) == ("fp8", "per-channel", ("lm_head",))
    assert (scheme.activation_granularity, scheme.activation_dynamic) == ("per-token", True)
    [(pattern, other)] = scheme.others
    assert pattern == "re:.*experts.*"
    assert (other.weight_dtype, other.weight_granularity, other.activation_dtype) == ("int4", "per-group of 32", None)

    spec = {"dtype": "int4", "qscheme": "per_group", "group_size": 64, "symmetric": False}
    quark = read_quantization(
        {**QUARK, "layer_quant_config": {"*down_proj": {"weight": [{"dtype": "fp8_e4m3"}, spec]}}}
    )
    assert quark is not None
    assert [(name, scheme.weight_dtype, scheme.weight_granularity) for name, scheme in quark.others] == [
        ("*down_proj", "int4", "per-group of 64")
    ]
    fp8 = read_quantization({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"})
    assert fp8 == Quantization(
        method="fp8", weight_dtype="fp8", weight_granularity="per-block of 128x128", activation_dtype="fp8",
        activation_granularity="per-group of 128", activation_dynamic=True,
    )  # fmt: skip
    awq = read_quantization({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True})
    assert awq is not None
    assert (awq.weight_dtype, awq.weight_symmetric, awq.activation_dtype) == ("int4", False, None)
    assert read_quantization({"quant_method": "of tomorrow"}) is None


KV_ALGO = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}


@pytest.mark.parametrize(
    ("scheme", "beside", "kv"),
    [
        ({"quant_method": "modelopt", **KV_ALGO}, None, 65_536),
        ({"quant_method": "modelopt", "quantization": KV_ALGO}, None, 65_536),
        (None, {"producer": {"name": "modelopt"}, "quantization": KV_ALGO}, 65_536),
        (None, {"quantization": {**KV_ALGO, "kv_cache_quant_algo": None}}, 131_072),
        (None, {"quantization": {**KV_ALGO, "kv_cache_quant_algo": "NVFP4"}}, None),  # no whole bytes
    ],
    ids=["flat", "nested", "beside", "beside, K and V as they are", "K and V of 4 bits"],
)
def test_a_scheme_of_modelopts(tmp_path: Path, scheme: object, beside: object, kv: int | None) -> None:
    """K and V of 8 bits are half of what config.json's dtype says; its products run in FP8."""
    config = json.loads((CONFIGS / "llama-3.1-8b.json").read_text())
    write(tmp_path, config | ({"quantization_config": scheme} if scheme else {}))
    if beside:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    facts = read_model(tmp_path)
    assert (facts.kv_bytes_per_token, facts.weight_dtype, facts.compute_dtype) == (kv, "fp8", "fp8")
    assert facts.quantization
    assert facts.quantization.method == "modelopt"


@pytest.mark.parametrize("key", ["sliding_window", "interleaved_sliding_window"])
def test_a_window_for_each_layer_makes_k_and_v_unknown(tmp_path: Path, key: str) -> None:
    config = json.loads((CONFIGS / "llama-3.1-8b.json").read_text())
    facts = read_model(write(tmp_path, config | {key: [32_768, None, None, None]}))
    assert (facts.kv_bytes_per_token, facts.window) == (None, None)
    assert facts.parameters == pytest.approx(8.03e9, rel=0.01)


def test_latent_attention_that_does_not_state_its_values_has_no_parameters(tmp_path: Path) -> None:
    config = json.loads((CONFIGS / "deepseek-v2-lite.json").read_text())
    del config["v_head_dim"]
    assert read_model(write(tmp_path, config)).parameters is None


def test_a_scheme_that_is_not_known_claims_no_dtype(tmp_path: Path) -> None:
    facts = read_model(write(tmp_path, {**M2, "quantization_config": {"quant_method": "of tomorrow"}}))
    assert (facts.compute_dtype, facts.weight_dtype, facts.quantization) == (None, None, None)


def test_the_cards_section(tmp_path: Path) -> None:
    facts = read_model(write(tmp_path / "m", {**M2, "quantization_config": QUARK}))
    known = {name: getattr(facts, name) for name in ModelFacts.__dataclass_fields__}
    section = model_section(ModelFacts(**known | {"weight_bytes": 230_900_000_000, "shards": 47}))
    assert section == (GOLDEN / "model_section.md").read_text(encoding="utf-8")
    assert model_section(ModelFacts()) == ""
    hostile = model_section(ModelFacts(architecture="<script>|x", layers=2))
    assert "<script>" not in hostile
    assert len(hostile.splitlines()) == 3


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", None, "cannot be read"),
        ("config.json", b"{", "no JSON"),
        ("config.json", b"[1]", "must be a JSON object"),
        ("model.safetensors.index.json", b"{}", "has no weight_map"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        ("model.safetensors", b"", "safetensors"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"[]", "safetensors"),
        ("model.safetensors", (11).to_bytes(8, "little") + b'{"a": null}', "safetensors"),
    ],
)
def test_errors_name_the_file(tmp_path: Path, file: str, content: bytes | None, words: str) -> None:
    write(tmp_path, M2)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelError, match=words) as raised:
        read_model(tmp_path)
    assert str(tmp_path / file) in str(raised.value)
