"""Which kernels vLLM has chosen, in the words of its log. Pure."""

from __future__ import annotations

import re

from benchbench.engines.log_diagnosis import plain

# What is chosen, and the lines that say so; the first that matches counts. vLLM 0.6 to 0.33.
_CHOICES = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("MoE backend", r"\[mxfp4\.py:\d+\] Using (\w+) backend$"),  # its file alone says of what
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
            r"Using (?:AttentionBackendEnum\.)?([\w ]+?)(?: attention)? backend(?: on V1 engine)?(?:\.?$| out of | \()",
        ),
        ("attention backend", r"Overriding with (\w+) out of potential backends"),  # ROCm, where others do not fit
        ("sampler", r"Using (\w+) sampler on ROCm"),
    )
)


def chosen_backends(log: str) -> dict[str, list[str]]:
    """What is chosen -> the names that it says, each once: {"attention backend": ["FLASH_ATTN"]}."""
    backends: dict[str, list[str]] = {}
    for line in log.splitlines():
        texts = (plain(line), line.rstrip())  # without the prefix first, which says in which file
        matches = ((kind, pattern.search(text)) for kind, pattern in _CHOICES for text in texts)
        choice = next(((kind, match[1]) for kind, match in matches if match), None)
        if choice and choice[1] not in backends.setdefault(choice[0], []):
            backends[choice[0]].append(choice[1])
    return backends
