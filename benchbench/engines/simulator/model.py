"""What the simulated engine would do when: pure, in virtual time (int ns), without clock or socket.

`BatchModel` is continuous batching as vLLM does it: steps follow one another, each step gives every
running request its next token or a chunk of its prompt, and takes as long as a step-time law says.
`FixedModel` gives every request a clock of its own.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from benchbench.engines.simulator.step_laws import step_s

if TYPE_CHECKING:
    from benchbench.engines.simulator.profiles import SimProfile

BLOCK_TOKENS = 16  # tokens of one prefix-cache block
SEND_GAP_NS = 100_000  # between two requests of a batch sent at once
DRAFTS = tuple(f"spec_decode_num_{what}_total" for what in ("drafts", "draft_tokens", "accepted_tokens"))
PER_POSITION = "spec_decode_num_accepted_tokens_per_pos_total"  # of each place of a draft, named PER_POSITION/PLACE
COUNTERS = (  # as vLLM names them
    *("num_preemptions_total", "prefix_cache_queries_total", "prefix_cache_hits_total"),
    *("prompt_tokens_total", "generation_tokens_total"),
    *("time_to_first_token_seconds_sum", "time_to_first_token_seconds_count"),
    *("request_queue_time_seconds_sum", "request_queue_time_seconds_count"),
)


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


@dataclass(slots=True, eq=False)
class _Sequence:
    id: int
    arrival: int
    prompt: int
    output: int
    blocks: Sequence[int]
    start: int = -1  # when it was first scheduled
    computed: int = 0  # tokens in the KV cache
    cached: int = 0  # of them, found in the prefix cache at first
    generated: int = 0  # output tokens generated
    emitted: int = 0  # of them, told in events
    dead: bool = False


class _Engine:
    """What both models have: who is known, and how the engine strays from its law by the profile's faults.

    A round begins when a request meets an engine without any; a static or closed round of a client is one. Times are
    ns on the caller's clock. `counters`: totals (COUNTERS), of which the model counts those that are its own.
    """

    def __init__(self, profile: SimProfile) -> None:
        self.profile = profile
        self.counters: dict[str, float] = dict.fromkeys(COUNTERS, 0)
        self._known: dict[int, _Sequence] = {}
        self._waiting: deque[_Sequence] = deque()
        self._per_event, self._stall = profile.tokens_per_event, profile.faults.stall
        start = profile.faults.start
        self._random = random.Random(f"{profile.seed}/noise" + (f"/{start}" if start else ""))
        self._luck = 1.0 + profile.faults.start_noise * self._random.gauss(0.0, 1.0) if start else 1.0
        self._drafts = profile.speculation
        self._draft_luck = random.Random(f"{profile.seed}/drafts")
        if self._drafts:
            places = [f"{PER_POSITION}/{k}" for k in range(self._drafts.tokens)]
            self.counters |= dict.fromkeys((*DRAFTS, *places), 0)
        self._rounds = 0
        self._slowness = 1.0  # of this round

    @property
    def running(self) -> int:
        return len(self._known) - len(self._waiting)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(
        self, request_id: int, now_ns: int, prompt_tokens: int, output_tokens: int, prefix: Sequence[int] = ()
    ) -> None:
        """Queue a request received at `now_ns`; `prefix` holds one chained hash per full prompt block.

        Raises ValueError for a request that no budget could ever serve.
        """
        if prompt_tokens + output_tokens > self.profile.kv_tokens:
            raise ValueError(f"{prompt_tokens} + {output_tokens} tokens do not fit {self.profile.kv_tokens} KV tokens")
        if not self._known:
            self._begin_round()
        self._known[request_id] = _Sequence(request_id, now_ns, prompt_tokens, output_tokens, prefix)
        self._queue(self._known[request_id])

    def _queue(self, sequence: _Sequence) -> None:
        raise NotImplementedError

    def reset_prefix_cache(self) -> None:
        """Empty the prefix cache, where there is one."""

    def _begin_round(self) -> None:
        faults, slow = self.profile.faults, self.profile.faults.slow_first
        slowness = slow.factor if slow and self._rounds < slow.count else 1.0
        luck = self._luck * (1.0 + faults.noise * self._random.gauss(0.0, 1.0))
        self._slowness = (1.0 + faults.drift * self._rounds) * slowness * luck
        self._rounds += 1

    def _step_ns(self, lawful_s: float, number: int) -> int:
        """The duration of step `number` (from 1); at least 1 ns, so that time always moves."""
        lasts = max(1, round(lawful_s * 1e9 * self._slowness))
        return lasts + round(self._stall.for_s * 1e9) if self._stall and number % self._stall.every == 0 else lasts

    def _accepted(self) -> int:
        """How many of the next draft are accepted, counted as vLLM does: also those beyond the answer's end."""
        if self._drafts is None:
            return 0
        accepted = 0
        while accepted < self._drafts.tokens and self._draft_luck.random() < self._drafts.acceptance:
            self.counters[f"{PER_POSITION}/{accepted}"] += 1
            accepted += 1
        for name, count in zip(DRAFTS, (1, self._drafts.tokens, accepted), strict=True):
            self.counters[name] += count
        return accepted


class PrefixCache:
    """An LRU set of prompt blocks. A hit saves the computing of a block, not its place in the KV budget."""

    def __init__(self, blocks: int) -> None:
        self._capacity, self._blocks = blocks, OrderedDict[int, None]()

    def hit_tokens(self, blocks: Sequence[int], prompt_tokens: int) -> int:
        """Tokens of the longest known prefix; the last prompt token is always computed, as in vLLM."""
        hits = list(itertools.takewhile(self._blocks.__contains__, blocks[: (prompt_tokens - 1) // BLOCK_TOKENS]))
        self.add(hits)
        return len(hits) * BLOCK_TOKENS

    def add(self, blocks: Sequence[int]) -> None:
        """Put blocks at the young end; the oldest go when it is full."""
        for block in blocks:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)


class BatchModel(_Engine):
    """Continuous batching with chunked prefill, a KV budget and preemption by recomputation.

    A step begins where the one before it was *planned* to end, so a late caller adds no drift. It takes
    the requests that had arrived by then: who comes in mid-step joins the next one. Running requests
    come first; when the KV cache is full the youngest of them loses its place and starts over (its
    tokens told so far stay told); then waiting ones are admitted in order.
    """

    def __init__(self, profile: SimProfile) -> None:
        super().__init__(profile)
        assert profile.law.kind != "fixed"  # noqa: S101 - that one is FixedModel's
        self._law = profile.law
        self.kv_used = 0
        self._cache: PrefixCache | None = None
        self.reset_prefix_cache()
        self._running: list[_Sequence] = []
        self._step: list[tuple[_Sequence, int]] = []  # who computes how many tokens, while it is planned
        self._events: list[Emission] = []  # of the step in progress, known from its beginning
        self._end_ns: int | None = None  # of the step in progress
        self._free_ns = 0  # planned end of the last step
        self._steps = 0

    def _queue(self, sequence: _Sequence) -> None:
        self._waiting.append(sequence)

    def next_due_ns(self) -> int | None:
        """The planned time of the next step's end or event; None when there is nothing to do."""
        if self._end_ns is None and self._known:
            self._begin_step()
        return self._end_ns

    def take_due(self, now_ns: int) -> list[Emission]:
        """The events of the next step, in write order, if it is due by `now_ns`; each is given once.

        A later step that is due too comes with the next call, so that nothing stands before the writing.
        """
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
        """Forget a request; unknown and finished ones are ignored."""
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
        if self.profile.prefix_cache:
            self._cache = PrefixCache(self.profile.kv_tokens // BLOCK_TOKENS)

    def _begin_step(self) -> None:
        start = self._free_ns
        if not self._running:
            start = max(start, self._waiting[0].arrival)
        budget, preempted = self._continue_running()
        if not preempted:
            self._admit(start, budget)
        decoding = [s.prompt for s, new in self._step if new == 1 and s.computed >= s.prompt]
        prefill = sum(new for _, new in self._step) - len(decoding)
        self._steps += 1
        lawful_s = step_s(self._law, len(decoding), sum(decoding) / max(len(decoding), 1), prefill, self.kv_used)
        self._end_ns = start + self._step_ns(lawful_s, self._steps)
        self._compute(self._end_ns)

    def _continue_running(self) -> tuple[int, bool]:
        """Give each running request its next tokens, oldest first; the token budget left, and whether
        a request had to be preempted.
        """
        budget, preempted, i = self.profile.max_num_batched_tokens, False, 0
        while i < len(self._running) and budget:
            sequence = self._running[i]
            new = min(sequence.prompt + sequence.generated - sequence.computed, budget)
            while self.kv_used + new > self.profile.kv_tokens:
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
        self.counters["num_preemptions_total"] += 1
        self._waiting.appendleft(victim)

    def _admit(self, start: int, budget: int) -> None:
        while self._waiting and budget and len(self._running) < self.profile.max_num_seqs:
            sequence = self._waiting[0]
            if sequence.arrival > start:
                break
            hit = self._cache.hit_tokens(sequence.blocks, sequence.prompt) if self._cache else 0
            new = min(sequence.prompt + sequence.generated - hit, budget)
            if self.kv_used + hit + new > self.profile.kv_tokens:
                break
            self._running.append(self._waiting.popleft())
            self._step.append((sequence, new))
            sequence.computed = hit
            self.kv_used += hit + new
            budget -= new
            if sequence.start < 0:
                sequence.start, sequence.cached = start, hit
                if self._cache:
                    self.counters["prefix_cache_queries_total"] += sequence.prompt
                    self.counters["prefix_cache_hits_total"] += hit

    def _compute(self, end: int) -> None:
        """What the planned step makes of each of its requests, told at `end`."""
        for sequence, new in self._step:
            sequence.computed += new
            if sequence.computed < sequence.prompt + sequence.generated:
                continue  # its prompt is not complete yet
            if sequence.generated == 0 and self._cache:
                self._cache.add(sequence.blocks)
            extra = self._accepted() if sequence.generated else 0
            extra = min(extra, sequence.output - sequence.generated - 1, self.profile.kv_tokens - self.kv_used)
            sequence.generated += 1 + extra
            sequence.computed += extra  # in the same pass
            self.kv_used += extra
            done = sequence.generated == sequence.output
            fresh = sequence.generated - sequence.emitted
            if done or sequence.emitted == 0 or fresh >= self._per_event:
                sequence.emitted = sequence.generated
                self._events.append(Emission(end, sequence.id, fresh, done, sequence.cached, sequence.start))
        self._step.clear()


class FixedModel(_Engine):
    """Each request on its own clock, whatever the others do (`FixedLaw`); no batch, no cache."""

    def __init__(self, profile: SimProfile) -> None:
        super().__init__(profile)
        assert profile.law.kind == "fixed"  # noqa: S101 - the others are BatchModel's
        self._ttft_s, self._itl_s = profile.law.ttft_s, profile.law.itl_s
        self._heap: list[tuple[int, int, int, _Sequence]] = []  # (due, order, tokens, request)
        self._order = itertools.count()

    def next_due_ns(self) -> int | None:
        while self._heap and self._heap[0][3].dead:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take_due(self, now_ns: int) -> list[Emission]:
        events: list[Emission] = []
        while (due := self.next_due_ns()) is not None and due <= now_ns:
            _, _, n, sequence = heapq.heappop(self._heap)
            sequence.emitted += n
            done = sequence.emitted == sequence.output
            events.append(Emission(due, sequence.id, n, done, 0, sequence.arrival))
            if done:
                del self._known[sequence.id]
            else:
                self._plan(sequence, due)
        return events

    def abort(self, request_id: int) -> None:
        sequence = self._known.pop(request_id, None)
        if sequence:
            sequence.dead = True

    def _queue(self, sequence: _Sequence) -> None:
        self._plan(sequence, sequence.arrival)

    def _plan(self, sequence: _Sequence, after_ns: int) -> None:
        if sequence.emitted == 0:
            tokens, due = 1, after_ns + self._step_ns(self._ttft_s, 1)
        else:
            rest, tokens, steps = sequence.output - sequence.emitted, 0, 0
            while tokens < min(self._per_event, rest):
                tokens, steps = min(tokens + 1 + self._accepted(), rest), steps + 1
            numbers = range(sequence.emitted + 1, sequence.emitted + steps + 1)
            due = after_ns + sum(self._step_ns(self._itl_s, k) for k in numbers)
        heapq.heappush(self._heap, (due, next(self._order), tokens, sequence))


Model = BatchModel | FixedModel


def make_model(profile: SimProfile) -> Model:
    """A fresh engine of this profile."""
    return FixedModel(profile) if profile.law.kind == "fixed" else BatchModel(profile)


def static_rate(profile: SimProfile, prompt: int, output: int, batch: int) -> float:
    """Sys tok/s of one static round, batch * output / (last token - first send), in virtual time.

    Fresh prompts on an idle engine; what a client or network adds is not in it. Raises ValueError for requests that
    do not fit the KV budget.
    """
    model, last_ns = make_model(profile), 0
    for i in range(batch):
        model.submit(i, i * SEND_GAP_NS, prompt, output)
    while (due := model.next_due_ns()) is not None:
        model.take_due(due)
        last_ns = due
    return batch * output * 1e9 / last_ns
