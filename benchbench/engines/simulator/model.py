"""What the simulated engine would do when: pure, in virtual time (int ns), without clock or socket.

`BatchModel` is continuous batching as vLLM does it: steps follow one another, each step gives every
running request its next token or a chunk of its prompt, and takes as long as a step-time law says.
`FixedModel` gives every request a clock of its own.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from benchbench.engines.simulator.laws import FixedLaw, Pace, StepLaw

BLOCK_TOKENS = 16  # tokens of one prefix-cache block


class Emission(NamedTuple):
    """One token event: `n_tokens` tokens of `request_id`, to be written at `planned_ns`.

    `scheduled_ns` is the start of the first step that held the request, `cached_tokens` the prompt
    tokens it did not compute.
    """

    planned_ns: int
    request_id: int
    n_tokens: int
    finished: bool
    cached_tokens: int
    scheduled_ns: int


@dataclass(slots=True)
class Counters:
    """Totals since the start, with the meaning of vLLM's metrics of the same names (tokens, events)."""

    preemptions: int = 0
    cache_queries: int = 0
    cache_hits: int = 0


class Model(Protocol):
    """What the server and the predictions ask of an engine model. Times are ns on the caller's clock."""

    counters: Counters

    @property
    def running(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    def submit(
        self, request_id: int, now_ns: int, prompt_tokens: int, output_tokens: int, prefix: Sequence[int] = ()
    ) -> None:
        """Queue a request received at `now_ns`; `prefix` holds one chained hash per full prompt block.

        Raises ValueError for a request that no budget could ever serve.
        """

    def next_due_ns(self) -> int | None:
        """The planned time of the next step's end or event; None when there is nothing to do."""

    def take_due(self, now_ns: int) -> list[Emission]:
        """The events of the next step, in write order, if it is due by `now_ns`; each is given once.

        A later step that is due too comes with the next call, so that nothing stands before the writing.
        """

    def abort(self, request_id: int) -> None:
        """Forget a request; unknown and finished ones are ignored."""

    def reset_prefix_cache(self) -> None: ...


class _Sequence:
    __slots__ = (
        "arrival",
        "blocks",
        "cached",
        "computed",
        "dead",
        "id",
        "made",
        "output",
        "prompt",
        "start",
        "told",
    )

    def __init__(self, request_id: int, arrival: int, prompt: int, output: int, blocks: Sequence[int]) -> None:
        self.id, self.arrival, self.prompt, self.output = request_id, arrival, prompt, output
        self.blocks = blocks
        self.start = -1  # when it was first scheduled
        self.computed = 0  # tokens in the KV cache
        self.cached = 0  # of them, found in the prefix cache at first
        self.made = self.told = 0  # output tokens generated, and told in events
        self.dead = False


class PrefixCache:
    """An LRU set of prompt blocks. A hit saves the computing of a block, not its place in the KV budget."""

    def __init__(self, blocks: int) -> None:
        self._capacity = blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def hit_tokens(self, blocks: Sequence[int], prompt_tokens: int) -> int:
        """Tokens of the longest known prefix; the last prompt token is always computed, as in vLLM."""
        hits = 0
        for block in blocks[: (prompt_tokens - 1) // BLOCK_TOKENS]:
            if block not in self._blocks:
                break
            self._blocks.move_to_end(block)
            hits += 1
        return hits * BLOCK_TOKENS

    def add(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        self._blocks.clear()


class BatchModel:
    """Continuous batching with chunked prefill, a KV budget and preemption by recomputation.

    A step begins where the one before it was *planned* to end, so a late caller adds no drift. It takes
    the requests that had arrived by then: who comes in mid-step joins the next one. Running requests
    come first; when the KV cache is full the youngest of them loses its place and starts over (its
    tokens told so far stay told); then waiting ones are admitted in order.
    """

    def __init__(
        self,
        law: StepLaw,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        kv_tokens: int,
        prefix_cache: bool = False,
        tokens_per_event: int = 1,
        pace: Pace | None = None,
    ) -> None:
        self.law, self.pace = law, pace or Pace()
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.kv_tokens, self.tokens_per_event = kv_tokens, tokens_per_event
        self.counters = Counters()
        self.kv_used = 0
        self._cache = PrefixCache(kv_tokens // BLOCK_TOKENS) if prefix_cache else None
        self._known: dict[int, _Sequence] = {}
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._step: list[tuple[_Sequence, int]] = []  # who computes how many tokens, while it is planned
        self._events: list[Emission] = []  # of the step in progress, known from its beginning
        self._end_ns: int | None = None  # of the step in progress
        self._free_ns = 0  # planned end of the last step
        self._steps = 0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(
        self, request_id: int, now_ns: int, prompt_tokens: int, output_tokens: int, prefix: Sequence[int] = ()
    ) -> None:
        if min(prompt_tokens, output_tokens) < 1 or prompt_tokens + output_tokens > self.kv_tokens:
            raise ValueError(f"{prompt_tokens} + {output_tokens} tokens do not fit {self.kv_tokens} KV tokens")
        if not self._known:
            self.pace.begin_round()
        sequence = _Sequence(request_id, now_ns, prompt_tokens, output_tokens, prefix)
        self._known[request_id] = sequence
        self._waiting.append(sequence)

    def next_due_ns(self) -> int | None:
        if self._end_ns is None and self._known:
            self._begin_step()
        return self._end_ns

    def take_due(self, now_ns: int) -> list[Emission]:
        end = self.next_due_ns()
        if end is None or end > now_ns:
            return []
        events, self._events = self._events, []
        for event in events:
            if event.finished:
                sequence = self._known.pop(event.request_id)
                sequence.dead = True
                self.kv_used -= sequence.computed
        self._running = [s for s in self._running if not s.dead]
        self._free_ns, self._end_ns = end, None
        return events

    def abort(self, request_id: int) -> None:
        sequence = self._known.pop(request_id, None)
        if sequence is None:
            return
        self._events = [event for event in self._events if event.request_id != request_id]
        if sequence in self._running:
            self._running.remove(sequence)
            self.kv_used -= sequence.computed
        else:
            self._waiting.remove(sequence)

    def reset_prefix_cache(self) -> None:
        if self._cache:
            self._cache.clear()

    def _begin_step(self) -> None:
        start = self._free_ns
        if not self._running:
            start = max(start, self._waiting[0].arrival)
        budget, preempted = self._continue_running()
        if not preempted:
            self._admit(start, budget)
        decoding = decoding_prompts = prefill = 0
        for sequence, new in self._step:
            if new == 1 and sequence.computed >= sequence.prompt:
                decoding += 1
                decoding_prompts += sequence.prompt
            else:
                prefill += new
        self._steps += 1
        mean_prompt = decoding_prompts / decoding if decoding else 0.0
        lawful_s = self.law.step_s(decoding, mean_prompt, prefill, self.kv_used)
        self._end_ns = start + self.pace.step_ns(lawful_s, self._steps)
        self._compute(self._end_ns)

    def _continue_running(self) -> tuple[int, bool]:
        """Give each running request its next tokens, oldest first; the token budget left, and whether
        a request had to be preempted.
        """
        budget, preempted, i = self.max_num_batched_tokens, False, 0
        while i < len(self._running) and budget:
            sequence = self._running[i]
            new = min(sequence.prompt + sequence.made - sequence.computed, budget)
            while self.kv_used + new > self.kv_tokens:
                self._preempt()
                preempted = True
                if len(self._running) == i:
                    break
            else:
                self._step.append((sequence, new))
                self.kv_used += new
                budget -= new
            i += 1
        return budget, preempted

    def _preempt(self) -> None:
        victim = self._running.pop()
        self.kv_used -= victim.computed
        victim.computed = 0
        self.counters.preemptions += 1
        self._waiting.appendleft(victim)

    def _admit(self, start: int, budget: int) -> None:
        while self._waiting and budget and len(self._running) < self.max_num_seqs:
            sequence = self._waiting[0]
            if sequence.arrival > start:
                break
            hit = self._cache.hit_tokens(sequence.blocks, sequence.prompt) if self._cache else 0
            new = min(sequence.prompt + sequence.made - hit, budget)
            if self.kv_used + hit + new > self.kv_tokens:
                break
            self._waiting.popleft()
            self._running.append(sequence)
            self._step.append((sequence, new))
            sequence.computed = hit
            self.kv_used += hit + new
            budget -= new
            if sequence.start < 0:
                sequence.start, sequence.cached = start, hit
                if self._cache:
                    self.counters.cache_queries += sequence.prompt
                    self.counters.cache_hits += hit

    def _compute(self, end: int) -> None:
        """What the planned step makes of each of its requests, told at `end`."""
        for sequence, new in self._step:
            sequence.computed += new
            if sequence.computed < sequence.prompt + sequence.made:
                continue  # its prompt is not complete yet
            if sequence.made == 0 and self._cache:
                self._cache.add(sequence.blocks)
            sequence.made += 1
            done = sequence.made == sequence.output
            fresh = sequence.made - sequence.told
            if done or sequence.told == 0 or fresh >= self.tokens_per_event:
                sequence.told = sequence.made
                self._events.append(Emission(end, sequence.id, fresh, done, sequence.cached, sequence.start))
        self._step.clear()


class FixedModel:
    """Each request on its own clock, whatever the others do (`FixedLaw`); no KV budget, no cache."""

    def __init__(self, law: FixedLaw, *, tokens_per_event: int = 1, pace: Pace | None = None) -> None:
        self.law, self.pace, self.tokens_per_event = law, pace or Pace(), tokens_per_event
        self.counters = Counters()
        self._known: dict[int, _Sequence] = {}
        self._heap: list[tuple[int, int, int, _Sequence]] = []  # (due, order, tokens, request)
        self._order = 0

    @property
    def running(self) -> int:
        return len(self._known)

    @property
    def waiting(self) -> int:
        return 0

    def submit(
        self, request_id: int, now_ns: int, prompt_tokens: int, output_tokens: int, prefix: Sequence[int] = ()
    ) -> None:
        if min(prompt_tokens, output_tokens) < 1:
            raise ValueError("prompt and output must have at least one token")
        if not self._known:
            self.pace.begin_round()
        sequence = _Sequence(request_id, now_ns, prompt_tokens, output_tokens, prefix)
        self._known[request_id] = sequence
        self._plan_event(sequence, now_ns)

    def next_due_ns(self) -> int | None:
        while self._heap and self._heap[0][3].dead:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take_due(self, now_ns: int) -> list[Emission]:
        due: list[Emission] = []
        while self._heap and self._heap[0][0] <= now_ns:
            planned, _, n, sequence = heapq.heappop(self._heap)
            if sequence.dead:  # its request was aborted
                continue
            sequence.told += n
            done = sequence.told == sequence.output
            due.append(Emission(planned, sequence.id, n, done, 0, sequence.arrival))
            if done:
                del self._known[sequence.id]
            else:
                self._plan_event(sequence, planned)
        return due

    def abort(self, request_id: int) -> None:
        sequence = self._known.pop(request_id, None)
        if sequence:
            sequence.dead = True

    def reset_prefix_cache(self) -> None:
        """There is none."""

    def _plan_event(self, sequence: _Sequence, after_ns: int) -> None:
        if sequence.told == 0:
            tokens, due = 1, after_ns + self.pace.step_ns(self.law.ttft_s, 1)
        else:
            tokens = min(self.tokens_per_event, sequence.output - sequence.told)
            numbers = range(sequence.told + 1, sequence.told + tokens + 1)
            due = after_ns + sum(self.pace.step_ns(self.law.itl_s, k) for k in numbers)
        self._order += 1
        heapq.heappush(self._heap, (due, self._order, tokens, sequence))
