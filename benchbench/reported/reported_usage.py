"""The counts that a server reports of a request, in the many forms of their makers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_NO_HITS = ("miss", "creat", "write", "cost", "price", "discount")


@dataclass(slots=True)
class ReportedUsage:
    """Tokens of a prompt, as the usages of a stream tell. A null or 0 later on does not undo what is known.

    `cached_tokens`: those from a prefix cache, the largest that was told. `computed_tokens`: those that were computed.
    `reasoning_tokens`: those of the output.
    """

    input_tokens: int | None = None
    cached_tokens: int | None = None
    computed_tokens: int | None = None
    reasoning_tokens: int = 0

    def take(self, usage: object) -> int | None:
        """Read one usage; returns its output tokens, None where unknown."""
        if type(usage) is not dict:
            return None
        prompt = _first_count(usage, "prompt_tokens", "input_tokens")
        if prompt is not None and (prompt or self.input_tokens is None):
            self.input_tokens = prompt
        for name, value in usage.items():
            if type(value) is dict and ("prompt" in name or "input" in name):
                for part, count in value.items():
                    if is_cache_hit(f"{part} tokens"):
                        self.take_cached(count)
            elif is_cache_hit(name):
                self.take_cached(value)
        output, reasoning = _first_count(usage, "completion_tokens", "output_tokens"), 0
        for part in (usage, *usage.values()):
            if type(part) is dict:
                reasoning = max(reasoning, _first_count(part, "reasoning_tokens") or 0)
        # Only the total counts them: xAI's, which tells their number, and Gemini's, which does not.
        beside = max(0, (_first_count(usage, "total_tokens") or 0) - prompt - output) if prompt and output else 0
        if beside != reasoning and (reasoning or beside == self.cached_tokens):
            beside = 0
        self.reasoning_tokens = max(self.reasoning_tokens, reasoning, beside)
        return output + beside if output else output

    def take_cached(self, value: object) -> None:
        count = _count(value)
        if count is not None:
            self.cached_tokens = max(count, self.cached_tokens or 0)

    def take_timings(self, timings: dict[str, Any]) -> None:
        """llama.cpp's; builds before `cache_n` tell only how many tokens of the prompt they computed."""
        self.take_cached(timings.get("cache_n"))
        self.computed_tokens = _count(timings.get("prompt_n"))

    def settle(self, cached: Sequence[str]) -> None:
        """Take `cached` tokens that stand elsewhere, or what follows for them where the server does not tell them."""
        for count in cached:
            self.take_cached(count)
        if self.cached_tokens is None and self.input_tokens and self.computed_tokens:
            self.take_cached(self.input_tokens - self.computed_tokens)

    def running(self, usages: Sequence[Any]) -> list[int] | None:
        """Output tokens of `usages` beside choices, -1 where unknown; None when there are none."""
        if not any(usages):
            return None
        try:
            counts = [usage["completion_tokens"] for usage in usages]
            usual = {*map(type, counts)} == {int} and 0 <= min(counts) <= max(counts) < 1 << 31
        except (KeyError, TypeError):
            usual = False
        # Three fields are the usual ones, of which those of the prompt stay as they are.
        if usual and max(map(len, usages)) <= 3:
            self.take(usages[0])
            self.take(usages[-1])
            return counts
        return [-1 if (count := self.take(usage)) is None else count for usage in usages]


def is_cache_hit(name: str) -> bool:
    """Whether a name in a usage, or of a header, is that of prompt tokens that came from a cache.

    OpenAI: prompt_tokens_details.cached_tokens; DeepSeek: prompt_cache_hit_tokens; Moonshot: cached_tokens; Anthropic:
    cache_read_input_tokens; LangChain: input_token_details.cache_read; Fireworks: fireworks-cached-prompt-tokens.
    """
    text = name.lower()
    return "cache" in text and "token" in text and not any(word in text for word in _NO_HITS)


def _count(value: object) -> int | None:
    """A count that a server told, also as a whole float or as text; None for anything that is no count."""
    try:
        number = float(value) if isinstance(value, int | float | str) and value is not True else -1.0
    except (ValueError, OverflowError):
        return None
    return int(number) if value is not False and 0 <= number < 1 << 31 and number.is_integer() else None


def _first_count(usage: dict[str, Any], *names: str) -> int | None:
    return next((count for name in names if (count := _count(usage.get(name))) is not None), None)
