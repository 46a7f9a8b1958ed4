"""The bytes of answers: streams and whole responses in the form of vLLM 0.32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from benchbench.engines.simulator.api import Generation
from benchbench.engines.simulator.http import LAST_CHUNK, chunk
from benchbench.engines.simulator.vocabulary import EOS, RESERVED, decode, word

if TYPE_CHECKING:
    from benchbench.engines.simulator.profiles import SimProfile

VERSION = "simulator-1"
OUTPUT_WORDS = 4096  # outputs are drawn from the first so many words; a power of two
KEEP_ALIVE = chunk(b": keep-alive\n\n")
DONE = chunk(b"data: [DONE]\n\n")
SERVER_ERROR = (
    b'{"error":{"message":"EngineCore encountered an issue.","type":"InternalServerError","param":null,"code":500}}'
)

# Texts and ids of all output tokens, as they stand in JSON: most events are then a join.
_TEXTS = tuple(f" {word(RESERVED + i)}".encode() for i in range(OUTPUT_WORDS))
_IDS = tuple(str(RESERVED + i).encode() for i in range(OUTPUT_WORDS))
_GAP = "\0"  # stands for a text and for ids in the form of an event


def error_ending(error: bytes) -> bytes:
    """An error inside a stream whose headers are sent, as vLLM ends it."""
    return chunk(b"data: %b\n\n" % error) + DONE + LAST_CHUNK


def _event(data: dict[str, Any]) -> bytes:
    """One server-sent event in an HTTP chunk of its own."""
    return chunk(b"data: %b\n\n" % orjson.dumps(data))


class Answer:
    """One generation's answer, as a stream of events or as one body. `made` tokens are rendered."""

    def __init__(self, request_id: str, generation: Generation, profile: SimProfile, created: int) -> None:
        self.generation, self.profile = generation, profile
        self.generated, self._of = 0, generation.output_tokens
        self.cached_tokens = 0
        kind = "text_completion"
        if generation.chat:
            kind = "chat.completion.chunk" if generation.stream else "chat.completion"
        self._base = {"id": request_id, "object": kind, "created": created, "model": generation.model}
        self._seed, self._stride = generation.seed, generation.seed >> 12 | 1
        self._reports_usage = generation.include_usage and not profile.faults.missing_usage
        self._role_due = generation.chat and profile.role_first
        # Events between the first and the last are alike but for text and ids: their form is made here, once.
        self._odd = max(1, profile.faults.reasoning_start if generation.chat else 0)  # so many first events are not
        self._texts = (b"",) * OUTPUT_WORDS if profile.empty_text else _TEXTS
        data = self._event_data(_GAP, _GAP, self._odd, finished=False)
        head, middle, *tail = (b"data: %b\n\n" % orjson.dumps(data)).split(orjson.dumps(_GAP))
        self._form = (head + b'"', b'"' + middle, b"".join(tail))

    def role_event(self) -> bytes:
        """The chat's first chunk, which holds the role and no token; empty the second time."""
        if not self._role_due:
            return b""
        self._role_due = False
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        ids = self.generation.prompt if self.generation.return_token_ids else None
        return _event({**self._base, "choices": [choice], "prompt_token_ids": ids, "prompt_text": None})

    def token_event(self, n_tokens: int) -> bytes:
        """The next `n_tokens` tokens as one framed event, with what goes before the first and after the last."""
        start, self.generated = self.generated, self.generated + n_tokens
        finished = self.generated == self._of
        if finished or start < self._odd:
            ids = self._ids(start, self.generated)
            event = self.role_event() + _event(self._event_data(self._text(ids), ids, start, finished=finished))
            return event + self._ending() if finished else event
        places = [(self._seed + i * self._stride) % OUTPUT_WORDS for i in range(start, self.generated)]
        head, middle, tail = self._form
        parts = [head, *[self._texts[place] for place in places], middle]
        if tail:
            parts += (b"[", b",".join([_IDS[place] for place in places]), b"]", tail)
        return chunk(b"".join(parts))

    def _ending(self) -> bytes:
        """Usage if it was asked for, [DONE], and the end of the body."""
        out = b""
        if self._reports_usage and not self.profile.usage_in_last_choice:
            out = _event({**self._base, "choices": [], "usage": self._usage(), "system_fingerprint": VERSION})
        return out + (DONE if self.profile.send_done else b"") + LAST_CHUNK

    def body(self) -> bytes:
        """The whole answer of a request that did not ask for a stream."""
        generation, self.generated = self.generation, self._of
        ids = self._ids(0, self.generated)
        with_ids = generation.return_token_ids
        prompt_ids = {"prompt_token_ids": generation.prompt if with_ids else None}
        choice: dict[str, Any] = {"index": 0}
        if generation.chat:
            message: dict[str, Any] = {"role": "assistant", "content": self._text(ids)}
            choice["message"] = {**message, "reasoning_content": None, "tool_calls": []}
        else:
            choice["text"] = self._text(ids)
        choice |= {"logprobs": self._logprobs(ids), "finish_reason": generation.finish_reason, "stop_reason": None}
        choice["token_ids"] = ids if with_ids else None
        answer: dict[str, Any] = {**self._base, "choices": [choice]}
        if generation.chat:
            answer |= prompt_ids
        else:
            choice |= {"prompt_logprobs": None, **prompt_ids, "routed_experts": None}
        answer |= {"service_tier": None, "system_fingerprint": VERSION}
        if not self.profile.faults.missing_usage:
            usage, details = self._usage(), "prompt_tokens_details"
            answer["usage"] = {**usage, details: usage.get(details), "completion_tokens_details": None}
        return orjson.dumps({**answer, "kv_transfer_params": None, "ec_transfer_params": None, "metrics": None})

    def _ids(self, start: int, end: int) -> list[int]:
        ids = [RESERVED + (self._seed + i * self._stride) % OUTPUT_WORDS for i in range(start, end)]
        if end == self._of and self.generation.finish_reason == "stop":
            ids[-1] = EOS
        return ids

    def _logprobs(self, ids: list[int]) -> dict[str, Any] | None:
        """Made up from the seed: the token itself, then its neighbours in the vocabulary, each less likely."""
        generation = self.generation
        if generation.logprobs is None:
            return None

        def name(token: int) -> str:
            return f"token_id:{token}" if generation.as_ids else f" {word(token)}"

        first = [-((self._seed + token * 2654435761) % 1000 + 1) / 2000 for token in ids]
        top = [
            {name(token + k): logprob - 1.5 * k for k in range(generation.logprobs)}
            for token, logprob in zip(ids, first, strict=True)
        ]
        names = [name(token) for token in ids]
        if not generation.chat:
            return {"tokens": names, "token_logprobs": first, "top_logprobs": top, "text_offset": []}
        likely = [[{"token": token, "logprob": logprob} for token, logprob in place.items()] for place in top]
        tokens = zip(names, first, likely, strict=True)
        return {"content": [{"token": t, "logprob": value, "top_logprobs": place} for t, value, place in tokens]}

    def _text(self, ids: list[int]) -> str:
        return "" if self.profile.empty_text else decode(token for token in ids if token != EOS)

    def _event_data(self, text: str, ids: object, start: int, *, finished: bool) -> dict[str, Any]:
        generation = self.generation
        with_ids, reason = generation.return_token_ids, generation.finish_reason if finished else None
        choice: dict[str, Any] = {"index": 0}
        if generation.chat:
            reasons = start < self.profile.faults.reasoning_start
            choice["delta"] = {"reasoning_content" if reasons else "content": text}
            choice |= {"logprobs": None, "finish_reason": reason, **({"stop_reason": None} if finished else {})}
        else:
            choice |= {"text": text, "logprobs": None, "finish_reason": reason, "stop_reason": None}
            choice["prompt_token_ids"] = generation.prompt if with_ids and start == 0 else None
        choice["token_ids"] = ids if with_ids else None
        data = {**self._base, "choices": [choice]}
        if finished and self.profile.usage_in_last_choice and self._reports_usage:
            data["usage"] = self._usage()
        if finished and not generation.include_usage:
            data["system_fingerprint"] = VERSION
        return data

    def _usage(self) -> dict[str, Any]:
        faults, prompt, generated = self.profile.faults, len(self.generation.prompt), self.generated
        prompt, generated = prompt + faults.wrong_usage.prompt_tokens, generated + faults.wrong_usage.completion_tokens
        usage: dict[str, Any] = {"prompt_tokens": prompt, "total_tokens": prompt + generated}
        usage["completion_tokens"] = generated
        cached = self.cached_tokens if self.profile.report_cached else None
        cached = cached if faults.cached_tokens is None else faults.cached_tokens
        if cached is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        return usage
