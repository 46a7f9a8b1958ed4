"""How long the simulated engine takes: step-time laws, and how it strays from them. Seconds in, ns out."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class StepLaw(Protocol):
    def step_s(self, decoding: int, mean_prompt: float, prefill_tokens: int, kv_tokens: int) -> float:
        """Seconds of one step: `decoding` requests whose mean prompt has `mean_prompt` tokens get one
        token each, `prefill_tokens` prompt tokens are computed, `kv_tokens` are held in the cache.
        """


@dataclass(frozen=True, slots=True)
class LinearLaw:
    """t = base + per_seq * decoding + per_prefill_token * prefill tokens + per_kv_token * KV tokens."""

    base_s: float
    per_seq_s: float = 0.0
    per_prefill_token_s: float = 0.0
    per_kv_token_s: float = 0.0

    def step_s(self, decoding: int, mean_prompt: float, prefill_tokens: int, kv_tokens: int) -> float:  # noqa: ARG002 - one law of several
        return (
            self.base_s
            + self.per_seq_s * decoding
            + self.per_prefill_token_s * prefill_tokens
            + self.per_kv_token_s * kv_tokens
        )


@dataclass(frozen=True, slots=True)
class TableLaw:
    """A lookup. `decode_s[i][b]` is a decode step at prompt length `inputs[i]` and batch `batches[b]`.

    Between entries it is linear in the input and in log2(batch); outside them it is clamped. A step
    that also computes prompt tokens takes max(prefill_base_s, decode) + prefill_per_token_s * tokens:
    the decodes ride in the same pass over the weights.
    """

    inputs: tuple[float, ...]
    batches: tuple[float, ...]
    decode_s: tuple[tuple[float, ...], ...]
    prefill_base_s: float
    prefill_per_token_s: float

    def __post_init__(self) -> None:
        for name, axis in (("inputs", self.inputs), ("batches", self.batches)):
            if not axis or list(axis) != sorted(set(axis)) or axis[0] < 1:
                raise ValueError(f"{name} must be ascending numbers from 1 on, is {list(axis)}")
        if [len(row) for row in self.decode_s] != [len(self.batches)] * len(self.inputs):
            raise ValueError("decode_s must have one row per input and one column per batch")

    def step_s(self, decoding: int, mean_prompt: float, prefill_tokens: int, kv_tokens: int) -> float:  # noqa: ARG002 - one law of several
        decode = self.decode_step_s(decoding, mean_prompt) if decoding else 0.0
        if not prefill_tokens:
            return decode
        return max(self.prefill_base_s, decode) + self.prefill_per_token_s * prefill_tokens

    def decode_step_s(self, batch: float, prompt_tokens: float) -> float:
        row, row_part = _place(self.inputs, prompt_tokens)
        column, column_part = _place([math.log2(b) for b in self.batches], math.log2(batch))

        def along_batch(i: int) -> float:
            times = self.decode_s[i]
            return times[column] + column_part * (times[min(column + 1, len(times) - 1)] - times[column])

        low = along_batch(row)
        return low + row_part * (along_batch(min(row + 1, len(self.inputs) - 1)) - low)


def _place(axis: Sequence[float], x: float) -> tuple[int, float]:
    """The entry of an ascending axis at or below `x`, and how far (0 to 1) `x` is towards the next."""
    i = bisect_right(axis, x) - 1
    if i < 0:
        return 0, 0.0
    if i >= len(axis) - 1:
        return len(axis) - 1, 0.0
    return i, (x - axis[i]) / (axis[i + 1] - axis[i])


@dataclass(frozen=True, slots=True)
class FixedLaw:
    """Every request alone: first token `ttft_s` after its last byte, then one every `itl_s`."""

    ttft_s: float
    itl_s: float


class Pace:
    """How the engine strays from its law: slower each round, slow first rounds, each round's luck, periodic stalls.

    A round begins when a request meets an engine without any; a static or closed round of a client is
    one. `drift` adds that share of the law's time per round; the first `slow_count` rounds take
    `slow_factor` times as long; each round takes 1 + `noise` x a standard normal number times as long (the same in
    every run with this `seed`); every `stall_every`-th step (or token of a request) takes `stall_ns` more.
    """

    def __init__(
        self,
        drift: float = 0.0,
        slow_count: int = 0,
        slow_factor: float = 1.0,
        stall_every: int = 0,
        stall_ns: int = 0,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.drift, self.slow_count, self.slow_factor = drift, slow_count, slow_factor
        self.stall_every, self.stall_ns = stall_every, stall_ns
        self.noise, self._random = noise, random.Random(f"{seed}/noise")
        self._rounds = 0
        self._factor = 1.0

    def begin_round(self) -> None:
        slow = self.slow_factor if self._rounds < self.slow_count else 1.0
        luck = 1.0 + self.noise * self._random.gauss(0.0, 1.0)
        self._factor = (1.0 + self.drift * self._rounds) * slow * luck
        self._rounds += 1

    def step_ns(self, lawful_s: float, number: int) -> int:
        """The duration of step `number` (from 1); at least 1 ns, so that time always moves."""
        stall = self.stall_ns if self.stall_every and number % self.stall_every == 0 else 0
        return max(1, round(lawful_s * 1e9 * self._factor)) + stall
