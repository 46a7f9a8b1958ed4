"""Tiny models for vLLM's `--load-format dummy`: a config and a tokenizer each, and no weights.

`python tests/vllm_cpu/make_models.py FOLDER` makes them by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchbench.engines.token_lengths import WORDS

SPECIAL = ("<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_letters() -> list[str]:
    """The letter that stands for each byte, 0 to 255, in byte-level tokenizers (those of GPT-2 and its heirs)."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def tokenizer() -> dict[str, Any]:
    """A tokenizer.json of 6 special tokens, 256 bytes, and our WORDS with all their beginnings, each after a space.

    Each merge adds one letter to a beginning, so that every word is one token and all other text is bytes.
    """
    space = byte_letters()[ord(" ")]
    pieces = list(dict.fromkeys(space + word[:end] for word in WORDS for end in range(1, len(word) + 1)))
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *byte_letters(), *pieces])}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **added} for number, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [[piece[:-1], piece[-1]] for piece in pieces],
        },
    }


VOCABULARY = len(tokenizer()["model"]["vocab"])

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_LLAMA = {
    **_SIZES,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "intermediate_size": 512,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "tie_word_embeddings": True,
}
# MiniMax-M2's architecture, less its size: two layers, eight experts of which each token takes two.
_M2 = {
    **_SIZES,
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "intermediate_size": 128,
    "rms_norm_eps": 1e-6,
    "rotary_dim": 32,
    "rope_theta": 5_000_000,
    "tie_word_embeddings": False,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "scoring_func": "sigmoid",
    "use_routing_bias": True,
    "use_qk_norm": True,
    "qk_norm_type": "per_layer",
    "attn_type_list": [1, 1],
    "num_mtp_modules": 0,
}
# W8A8 INT8 in both formats: a scale for each output channel of the weights, and one for each token's activations.
_COMPRESSED_TENSORS = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}
_QUARK_TENSOR = {"dtype": "int8", "qscheme": "per_channel", "symmetric": True, "group_size": None}
_QUARK = {
    "quant_method": "quark",
    "quant_mode": "eager_mode",
    "export": {"kv_cache_group": [], "pack_method": "reorder", "weight_format": "real_quantized"},
    "exclude": ["lm_head"],
    "layer_type_quant_config": {},
    "layer_quant_config": {},
    "global_quant_config": {
        "weight": {**_QUARK_TENSOR, "ch_axis": 0, "is_dynamic": False},
        "input_tensors": {**_QUARK_TENSOR, "ch_axis": 1, "is_dynamic": True},
        "output_tensors": None,
        "bias": None,
    },
}

MODELS = {
    "tiny-llama": _LLAMA,
    "tiny-m2": _M2,
    "tiny-llama-compressed-tensors": {**_LLAMA, "quantization_config": _COMPRESSED_TENSORS},
    "tiny-llama-quark": {**_LLAMA, "quantization_config": _QUARK},
}


def make_models(folder: Path) -> Path:
    """Each of MODELS in a folder of its own under `folder`, which is returned."""
    tokenizing = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "model_max_length": 1 << 20,
        "chat_template": TEMPLATE,
    }
    for name, config in MODELS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        files = {"config.json": config, "tokenizer.json": tokenizer(), "tokenizer_config.json": tokenizing}
        for file, content in files.items():
            (folder / name / file).write_text(json.dumps(content, indent=1))
    return folder


if __name__ == "__main__":
    make_models(Path(sys.argv[1]))
