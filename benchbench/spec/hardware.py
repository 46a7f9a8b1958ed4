"""What accelerators can do at most: peak rates, bandwidth, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One device. `flop_s`: dtype (bf16, fp16, fp8, int8, fp4) -> dense peak, FLOP/s or OP/s, without sparsity."""

    name: str
    flop_s: Mapping[str, float]
    bandwidth_bytes_s: float
    memory_bytes: int
    source: str  # where the figures are from
