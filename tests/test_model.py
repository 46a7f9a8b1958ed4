"""A model's facts: counted from checkpoints that the tests write, computed from shapes that are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchbench.errors import ModelError
from benchbench.model.config import ModelFacts, read_model
from benchbench.model.quantization import Quantization, read_quantization
from benchbench.report.model_section import model_section

GOLDEN = Path(__file__).parent / "golden"
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
    assert [(name, one.weight_dtype, one.weight_granularity) for name, one in quark.others] == [
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
