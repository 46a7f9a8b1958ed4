"""What the server knows to be true: per request when it came and when its tokens were written, and the totals
that `/metrics` gives in vLLM's names. A fault may make an answer lie; this never does.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from benchbench.engines.simulator.model import BLOCK_TOKENS, Model
from benchbench.engines.simulator.profiles import SimProfile

MAX_EVENTS = 4_000_000  # kept for /truth, at 20 bytes each; the oldest requests go first
FINISH_REASONS = ("stop", "length", "abort", "error")
# vLLM's buckets, in seconds.
_TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
                 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
_QUEUE_BUCKETS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
                  480.0, 960.0, 1920.0, 7680.0)  # fmt: skip


@dataclass(slots=True)
class Truth:
    """One request: stamps in ns of CLOCK_REALTIME, one entry per token event in the arrays."""

    id: str
    prompt_tokens: int
    received_ns: int
    cached_tokens: int = 0
    finish_reason: str | None = None
    writes_ns: array[int] = field(default_factory=lambda: array("q"))
    planned_ns: array[int] = field(default_factory=lambda: array("q"))
    tokens: array[int] = field(default_factory=lambda: array("i"))

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "prompt_tokens": self.prompt_tokens,
            "received_ns": self.received_ns,
            "writes_ns": self.writes_ns.tolist(),
            "planned_ns": self.planned_ns.tolist(),
            "tokens": self.tokens.tolist(),
            "cached_tokens": self.cached_tokens,
            "finish_reason": self.finish_reason,
        }


class Histogram:
    def __init__(self, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self.name, self.text, self.bounds = name, text, bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, labels: str) -> list[str]:
        out, total = [f"# HELP {self.name} {self.text}", f"# TYPE {self.name} histogram"], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            out.append(f'{self.name}_bucket{{{labels},le="{bound}"}} {float(total)}')
        return [*out, f"{self.name}_count{{{labels}}} {float(total)}", f"{self.name}_sum{{{labels}}} {self.sum}"]


class Ledger:
    def __init__(self, model_name: str, profile: SimProfile) -> None:
        self.model_name, self.profile = model_name, profile
        self.finished: deque[Truth] = deque()
        self.dropped = 0  # requests that /truth no longer knows
        self._started_s = time.time()
        self._events = 0
        self._prompt_tokens = 0
        self.generation_tokens = 0
        self._ends = dict.fromkeys(FINISH_REASONS, 0)
        self._ttft = Histogram(
            "vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", _TTFT_BUCKETS
        )
        self._queue = Histogram(
            "vllm:request_queue_time_seconds",
            "Histogram of time spent in WAITING phase for request.",
            _QUEUE_BUCKETS,
        )

    def first_token(self, truth: Truth, planned_ns: int, scheduled_ns: int) -> None:
        self._prompt_tokens += truth.prompt_tokens
        self._ttft.observe((planned_ns - truth.received_ns) / 1e9)
        self._queue.observe(max(0, scheduled_ns - truth.received_ns) / 1e9)

    def end(self, truth: Truth, reason: str) -> None:
        truth.finish_reason = reason
        self._ends[reason] += 1
        self.finished.append(truth)
        self._events += _weight(truth)
        while self._events > MAX_EVENTS and len(self.finished) > 1:
            self._events -= _weight(self.finished.popleft())
            self.dropped += 1

    def clear(self) -> None:
        self.finished.clear()
        self._events = self.dropped = 0

    def metrics(self, model: Model) -> bytes:
        """Prometheus text, in vLLM's names."""
        labels = f'engine="0",model_name="{self.model_name}"'
        counters = model.counters
        series = [
            ("gauge", "num_requests_running", "Number of requests in model execution batches.", model.running),
            ("gauge", "num_requests_waiting", "Number of requests waiting to be processed.", model.waiting),
            ("counter", "prefix_cache_queries_total", "Queried tokens of the prefix cache.", counters.cache_queries),
            ("counter", "prefix_cache_hits_total", "Cached tokens of the prefix cache.", counters.cache_hits),
            ("counter", "num_preemptions_total", "Preemptions by the engine.", counters.preemptions),
            ("counter", "prompt_tokens_total", "Number of prefill tokens processed.", self._prompt_tokens),
            ("counter", "generation_tokens_total", "Number of generation tokens processed.", self.generation_tokens),
        ]
        lines = []
        for kind, name, text, value in series:
            lines += [f"# HELP vllm:{name} {text}", f"# TYPE vllm:{name} {kind}"]
            lines.append(f"vllm:{name}{{{labels}}} {float(value)}")
        lines += ["# HELP vllm:request_success_total Finished requests.", "# TYPE vllm:request_success_total counter"]
        for reason, count in self._ends.items():
            named = f'engine="0",finished_reason="{reason}",model_name="{self.model_name}"'
            lines.append(f"vllm:request_success_total{{{named}}} {float(count)}")
        lines += self._ttft.lines(labels) + self._queue.lines(labels)
        config = (
            f'block_size="{BLOCK_TOKENS}",enable_prefix_caching="{self.profile.prefix_cache}",engine="0",'
            f'kv_cache_size_tokens="{self.profile.kv_tokens}"'
        )
        lines += ["# HELP vllm:cache_config_info The KV cache.", "# TYPE vllm:cache_config_info gauge"]
        lines.append(f"vllm:cache_config_info{{{config}}} 1.0")
        started = "process_start_time_seconds"
        lines += [f"# HELP {started} Start of the process, Unix time.", f"# TYPE {started} gauge"]
        return "\n".join([*lines, f"{started} {self._started_s:.3f}", ""]).encode()


def _weight(truth: Truth) -> int:
    """Events of a request; the request itself weighs some 25 of them."""
    return 25 + len(truth.writes_ns)
