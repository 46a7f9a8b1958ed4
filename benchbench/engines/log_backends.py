"""Which kernels vLLM has chosen, in the words of its log. Pure."""

from __future__ import annotations

import re

from benchbench.engines.log_diagnosis import plain

# What is chosen, and the lines that say so; the first that matches counts. vLLM 0.6 to 0.32.
_CHOICES = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("MoE backend", r"Using '?(\w+)'?(?: [\w-]+)? M[oO]E (?:LoRA )?backend"),
        ("MoE backend", r"Using (\w+) for .*\bMoE\b"),
        ("GEMM kernel", r"Using (\w+) for .*(?:GEMM|\wLinear|mixed-precision linear|CompressedTensors\w+)"),
        ("GEMM kernel", r"GEMM dispatch: using (.+?)\.?$"),
        ("MLA prefill backend", r"Using (\w+) MLA prefill backend"),
        ("Mamba backend", r"Using (\w+) Mamba SSU backend"),
        ("GDN prefill kernel", r"Using (\S+) GDN prefill kernel"),
        ("FlashAttention version", r"Using FlashAttention version (\S+)"),
        ("KV cache layout", r"Using (\w+) KV cache layout"),
        ("all-reduce backends", r"Using (\[.*?\]) all-reduce backends"),
        ("ViT attention backend", r"Using (?:backend )?(.+?)(?: backend)? for (?:vit|ViT|MMEncoderAttention)\b"),
        (
            "attention backend",
            r"Using (?:AttentionBackendEnum\.)?([\w ]+?)(?: attention)? backend(?:\.?$| out of | \()",
        ),
    )
)


def chosen_backends(log: str) -> dict[str, list[str]]:
    """What is chosen -> the names that it says, each once: {"attention backend": ["FLASH_ATTN"]}."""
    backends: dict[str, list[str]] = {}
    for line in log.splitlines():
        text = plain(line)
        choice = next(((kind, match[1]) for kind, pattern in _CHOICES if (match := pattern.search(text))), None)
        if choice and choice[1] not in backends.setdefault(choice[0], []):
            backends[choice[0]].append(choice[1])
    return backends
