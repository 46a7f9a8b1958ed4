"""What accelerators can do at most: peak rates, bandwidth, memory; those of `hardware.yaml` by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from benchbench.spec import Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One device. `flop_s`: dtype (bf16, fp16, fp8, int8, fp4) -> dense peak, FLOP/s or OP/s, without sparsity.

    `cache_bytes`: of its last cache before memory. What stays in it from one token to the next is not read again.
    """

    name: str
    flop_s: Mapping[str, float]
    bandwidth_bytes_s: float
    memory_bytes: int  # 0: unknown
    source: str  # where the figures are from
    cache_bytes: int = 0

    def peak(self, dtype: str | None) -> float:
        """Peak in this dtype, FLOP/s; of one that it lacks or that is unknown the highest of all, never too low."""
        return self.flop_s.get(dtype or "") or max(self.flop_s.values())


@cache
def known() -> tuple[tuple[str, frozenset[str], Accelerator], ...]:
    """The accelerators of the data file, in its order: (model, words that tell its variants apart, figures)."""
    import yaml

    entries = yaml.safe_load(Path(__file__).with_name("hardware.yaml").read_text(encoding="utf-8"))
    return tuple((entry["model"].lower(), frozenset(entry.get("words", ())), _accelerator(entry)) for entry in entries)


def _accelerator(entry: dict[str, Any]) -> Accelerator:
    return Accelerator(
        name=entry["name"],
        flop_s={dtype: tera * 1e12 for dtype, tera in entry["tflop_s"].items()},
        bandwidth_bytes_s=entry["gb_s"] * 1e9,
        memory_bytes=int(entry["gb"] * 1e9),
        source=entry["source"],
        cache_bytes=int(entry["cache_mb"] * 2**20),
    )


def known_names() -> list[str]:
    """The names in the data file."""
    return [figures.name for _, _, figures in known()]


def accelerator(name: str) -> Accelerator | None:
    """The accelerator that a device or a caption names, as `NVIDIA H100 80GB HBM3` or `8x AMD W7900D (48 GB each)`.

    Where the name does not tell variants of one model apart, the fastest of them, so that bounds stay bounds.
    """
    text = re.sub(r"(\d+)\s*gi?b?\b", r"\1gb", name.lower())
    named = set(re.findall(r"[a-z0-9]+", text))
    fitting = [(len(words & named), figures) for model, words, figures in known() if model in named]
    return max(fitting, key=lambda fit: fit[0])[1] if fitting else None


def given_accelerator(hardware: Hardware) -> Accelerator | None:
    """One device of a sweep: as known by name, with the figures given; None where neither says peak and bandwidth."""
    known_one = accelerator(hardware.name)
    given: dict[str, float] = {dtype: tera * 1e12 for dtype, tera in hardware.tflop_s.items()}
    if not known_one and not (given and hardware.bandwidth_gb_s):
        return None
    base = known_one or Accelerator(name=hardware.name, flop_s={}, bandwidth_bytes_s=0.0, memory_bytes=0, source="")
    changed = bool(given or hardware.bandwidth_gb_s or hardware.memory_gb)
    return replace(
        base,
        flop_s={**base.flop_s, **given},
        bandwidth_bytes_s=hardware.bandwidth_gb_s * 1e9 if hardware.bandwidth_gb_s else base.bandwidth_bytes_s,
        memory_bytes=int(hardware.memory_gb * 1e9) if hardware.memory_gb else base.memory_bytes,
        source="; ".join(filter(None, (base.source, "figures of the sweep" if changed else ""))),
    )
