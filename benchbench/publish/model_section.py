"""A model card's section on the model: what its files say of shape, parameters, size and quantization."""

from __future__ import annotations

import re
from collections.abc import Iterator

from benchbench.model.config import ModelFacts, billions
from benchbench.model.quantization import Quantization
from benchbench.report.markdown import escape_markdown, write_table

_NONE = "\N{EN DASH}"


def model_section(facts: ModelFacts) -> str:
    """Markdown: the table of details, and with a quantization scheme its table. What is unknown has no row.

    Sizes are in GB (1e9 bytes) and GiB (2^30 bytes), both stated: cards that write one and mean the other are common.
    """
    details = [(name, escape_markdown(value)) for name, value in _details(facts)]
    blocks = [write_table(["Model", ""], details)] if details else []
    if facts.quantization:
        blocks.append(write_table(["Component", "Dtype", "Granularity", "Mode"], _scheme(facts.quantization)))
    return "\n\n".join("\n".join(block) for block in blocks) + "\n" * bool(blocks)


def gigabytes(size: float) -> str:
    """Bytes as `230.9 GB (215.0 GiB)`."""
    return f"{size / 1e9:.1f} GB ({size / 2**30:.1f} GiB)"


def _details(facts: ModelFacts) -> Iterator[tuple[str, str]]:
    shape = [f"{facts.layers} layers"] if facts.layers else []
    shape += [f"{facts.experts} experts"] if facts.experts else []
    shape += [f"top-{facts.top_k} routing"] if facts.top_k else []
    kind = ["mixture of experts"] if facts.experts else []
    if facts.architecture or shape:
        yield "Architecture", ", ".join([*([facts.architecture] if facts.architecture else []), *kind, *shape])
    if facts.parameters:
        active = facts.active_parameters
        text = f"{billions(facts.parameters)} total"
        text += f", {billions(active)} active (without the looked-up embedding)" if active and facts.experts else ""
        yield "Parameters", f"{text}, computed"
    if scheme := facts.quantization:
        activations = scheme.activation_dtype
        yield (
            "Quantization",
            f"{scheme.weight_dtype.upper()} weights, "
            + (f"{activations.upper()} activations" if activations else "activations not quantized")
            + f" ({scheme.method})",
        )
    if facts.weight_dtype:
        yield "Dtype of most weights", facts.weight_dtype.upper()
    if facts.weight_bytes:
        shards = f" in {facts.shards} safetensors shard{'s'[: facts.shards > 1]}" if facts.shards else ""
        yield "Size", gigabytes(facts.weight_bytes) + shards
        if facts.parameters and facts.quantization:
            plain = 2 * facts.parameters
            yield "Size in BF16", f"{gigabytes(plain)}, computed: {plain / facts.weight_bytes:.1f}x"
    if facts.kv_bytes_per_token or facts.window_kv_bytes_per_token:
        alone = facts.window and facts.window_kv_bytes_per_token is None
        text = f"{(facts.kv_bytes_per_token or 0) / 1024:.1f} KiB per token"
        text += f", of the last {facts.window:,} tokens" if alone else ""
        if windowed := facts.window_kv_bytes_per_token:
            text += f", and {windowed / 1024:.1f} KiB of each of the last {facts.window:,}"
        yield "KV cache", text


def _scheme(scheme: Quantization) -> Iterator[tuple[str, ...]]:
    for name, part in (("", scheme), *scheme.others):
        of = f" of {_code(name)}" if name else ""
        mode = _mode(part.weight_symmetric, dynamic=False)
        yield f"Weight{of}", part.weight_dtype.upper(), escape_markdown(part.weight_granularity), mode
        if part.activation_dtype is None:
            yield f"Activation{of}", _NONE, _NONE, "not quantized"
        else:
            mode = _mode(part.activation_symmetric, dynamic=bool(part.activation_dynamic))
            granularity = escape_markdown(part.activation_granularity or _NONE)
            yield f"Activation{of}", part.activation_dtype.upper(), granularity, mode
    counts: dict[str, int] = {}
    for name in scheme.excluded:  # one row for the same module of all layers
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        counts[pattern] = counts.get(pattern, 0) + 1
    for name, count in counts.items():
        yield _code(name) + (f" ({count} modules)" if count > 1 else ""), _NONE, _NONE, "not quantized"


def _mode(symmetric: bool | None, *, dynamic: bool) -> str:
    words = [] if symmetric is None else ["symmetric" if symmetric else "asymmetric"]
    return ", ".join([*words, "dynamic" if dynamic else "static"])


def _code(name: str) -> str:
    return f"`{' '.join(name.replace('`', '').split())}`".replace("|", "\\|")
