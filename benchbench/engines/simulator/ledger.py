"""What the server knows to be true: per request when it came and when its tokens were written, and the totals
that `/metrics` gives in vLLM's names. A fault may make an answer lie; this never does.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import orjson

from benchbench.engines.simulator.model import BLOCK_TOKENS, Model

MAX_REQUESTS = 20_000  # kept for /truth, at 20 bytes a token event; the oldest go first


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


class Ledger:
    def __init__(self, model_name: str, model: Model) -> None:
        self.model_name, self.model = model_name, model
        self.finished: deque[Truth] = deque(maxlen=MAX_REQUESTS)
        self.counters = model.counters
        self._started_s = time.time()
        self._ends = Counter({"stop": 0, "length": 0, "abort": 0, "error": 0})

    def first_token(self, truth: Truth, planned_ns: int, scheduled_ns: int) -> None:
        self.counters["prompt_tokens_total"] += truth.prompt_tokens
        for name, at_ns in (("time_to_first_token", planned_ns), ("request_queue_time", scheduled_ns)):
            self.counters[f"{name}_seconds_sum"] += max(0, at_ns - truth.received_ns) / 1e9
            self.counters[f"{name}_seconds_count"] += 1

    def end(self, truth: Truth, reason: str) -> None:
        truth.finish_reason = reason
        self._ends[reason] += 1
        self.finished.append(truth)

    def tell(self, unfinished: Iterable[Truth]) -> bytes:
        """All requests since the last clearing that are still kept, those in the engine last, as JSON."""
        return orjson.dumps({"requests": [*self.finished, *unfinished]}, default=array.tolist)

    def metrics(self) -> bytes:
        """Prometheus text, in vLLM's names; of its histograms the sums and counts."""
        model, profile = self.model, self.model.profile
        values = {"num_requests_running": model.running, "num_requests_waiting": model.waiting, **self.counters}
        labels = f'engine="0",model_name="{self.model_name}"'
        lines = []
        for name, value in values.items():
            metric, _, place = name.partition("/")  # of a draft
            position = f',position="{place}"' if place else ""
            lines.append(f"vllm:{metric}{{{labels}{position}}} {float(value)}")
        for reason, count in self._ends.items():
            lines.append(f'vllm:request_success_total{{{labels},finished_reason="{reason}"}} {float(count)}')
        sizes = f'block_size="{BLOCK_TOKENS}",kv_cache_size_tokens="{profile.kv_tokens}"'
        caching = f'enable_prefix_caching="{profile.prefix_cache}"'
        lines.append(f'vllm:cache_config_info{{engine="0",{sizes},{caching}}} 1.0')
        lines.append(f"process_start_time_seconds {self._started_s:.3f}\n")
        return "\n".join(lines).encode()
