"""The bytes of answers: streams and whole responses in the form of vLLM 0.32, framed as HTTP/1.1."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import orjson

from benchbench.engines.simulator.api import Generation
from benchbench.engines.simulator.profiles import SimProfile
from benchbench.engines.simulator.vocabulary import EOS, OUTPUT_WORDS, RESERVED, word

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
SERVER_ERROR = (
    b'{"error":{"message":"EngineCore encountered an issue.","type":"InternalServerError","param":null,"code":500}}'
)

# Texts and ids of all output tokens, as they stand in JSON: an event is then a few joins.
_TEXTS = tuple(f" {word(RESERVED + i)}".encode() for i in range(OUTPUT_WORDS))
_IDS = tuple(str(RESERVED + i).encode() for i in range(OUTPUT_WORDS))


def chunk(payload: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def event(payload: bytes) -> bytes:
    """One server-sent event in a chunk of its own."""
    return chunk(b"data: %b\n\n" % payload)


def head(status: int, headers: Mapping[str, str], *, keep_alive: bool) -> bytes:
    """A response's status line and headers."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"date: {_date(int(time.time()))}"]
    lines += ["server: benchbench-simulator", *(f"{name}: {value}" for name, value in headers.items())]
    if not keep_alive:
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def whole(status: int, body: bytes, *, keep_alive: bool, headers: Mapping[str, str] | None = None) -> bytes:
    """A response with its body; JSON unless `headers` say otherwise."""
    fields = {"content-length": str(len(body)), "content-type": "application/json", **(headers or {})}
    return head(status, fields, keep_alive=keep_alive) + body


def stream_head(*, keep_alive: bool) -> bytes:
    fields = {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"}
    return head(200, fields, keep_alive=keep_alive)


@lru_cache(maxsize=4)
def _date(second: int) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(second))


class Answer:
    """One generation's answer, as a stream of events or as one body.

    All that does not change from event to event is rendered here, before the first token.
    """

    def __init__(self, request_id: str, generation: Generation, profile: SimProfile, created: int) -> None:
        self.generation, self.profile = generation, profile
        self.made = 0
        self.cached_tokens = 0
        chat = generation.chat
        self._base = {
            "id": request_id,
            "object": ("chat.completion.chunk" if generation.stream else "chat.completion")
            if chat
            else "text_completion",
            "created": created,
            "model": generation.model,
        }
        # {"id":...,"model":"sim" without its closing brace: events go on from there.
        self._open = orjson.dumps(self._base)[:-1]
        ids = b',"token_ids":' if generation.return_token_ids else b',"token_ids":null'
        if chat:
            self._head = self._open + b',"choices":[{"index":0,"delta":{"content":"'
            self._reasoning_head = self._open + b',"choices":[{"index":0,"delta":{"reasoning_content":"'
            self._middle = b'"},"logprobs":null,"finish_reason":null' + ids
            finish = b'"},"logprobs":null,"finish_reason":"%b","stop_reason":null' + ids
            self._first_middle = self._middle
        else:
            self._head = self._open + b',"choices":[{"index":0,"text":"'
            form = b'","logprobs":null,"finish_reason":%b,"stop_reason":null,"prompt_token_ids":%b'
            self._middle = form % (b"null", b"null") + ids
            prompt = orjson.dumps(generation.prompt) if generation.return_token_ids else b"null"
            self._first_middle = form % (b"null", prompt) + ids
            finish = form % (b'"%b"', prompt if generation.output_tokens == 1 else b"null") + ids
        self._last_middle = finish % generation.finish_reason.encode()
        self._seed, self._stride = generation.seed, generation.seed >> 12 | 1
        self._eos = generation.finish_reason == "stop"
        self._report_usage = not profile.faults.missing_usage
        self._continuous = generation.continuous_usage and self._report_usage

    def role_event(self) -> bytes:
        """The chat's first chunk, which holds the role and no token."""
        prompt = orjson.dumps(self.generation.prompt) if self.generation.return_token_ids else b"null"
        return event(
            self._open + b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
            b'"finish_reason":null}],"prompt_token_ids":%b,"prompt_text":null}' % prompt
        )

    def token_event(self, n_tokens: int, *, finished: bool) -> bytes:
        """The next `n_tokens` tokens as one framed event."""
        start, self.made = self.made, self.made + n_tokens
        places = [(self._seed + i * self._stride) % OUTPUT_WORDS for i in range(start, self.made)]
        texts = [] if self.profile.empty_text else [_TEXTS[place] for place in places]
        middle = self._last_middle if finished else self._middle if start else self._first_middle
        head = self._head
        if start < self.profile.faults.reasoning_start and self.generation.chat:
            head = self._reasoning_head
        parts = [b"data: ", head, *texts, middle]
        if finished and self._eos and texts:
            del parts[len(parts) - 2]  # the end token has no text
        if self.generation.return_token_ids:
            ids = [_IDS[place] for place in places]
            if finished and self._eos:
                ids[-1] = b"%d" % EOS
            parts += (b"[", b",".join(ids), b"]")
        parts.append(b"}]")
        if self._continuous or (finished and self.profile.usage_in_last_choice and self._wants_usage()):
            parts += (b',"usage":', orjson.dumps(self.usage()))
        if finished and not self.generation.include_usage:
            parts.append(b',"system_fingerprint":"%b"' % self.profile.version.encode())
        parts.append(b"}\n\n")
        return chunk(b"".join(parts))

    def ending(self) -> bytes:
        """What follows the last token: usage if it was asked for, [DONE], and the end of the body."""
        out = b""
        if self._wants_usage() and not self.profile.usage_in_last_choice:
            out = event(
                self._open
                + b',"choices":[],"usage":%b,"system_fingerprint":"%b"}'
                % (orjson.dumps(self.usage()), self.profile.version.encode())
            )
        return out + (chunk(DONE) if self.profile.send_done else b"") + LAST_CHUNK

    def body(self) -> bytes:
        """The whole answer of a request that did not ask for a stream."""
        generation, profile = self.generation, self.profile
        self.made = generation.output_tokens
        places = [(self._seed + i * self._stride) % OUTPUT_WORDS for i in range(self.made)]
        ids = [RESERVED + place for place in places]
        worded = places[:-1] if self._eos else places
        text = "" if profile.empty_text else b"".join(_TEXTS[place] for place in worded).decode()
        if self._eos:
            ids[-1] = EOS
        own_ids = ids if generation.return_token_ids else None
        prompt_ids = generation.prompt if generation.return_token_ids else None
        ending = {
            "logprobs": None,
            "finish_reason": generation.finish_reason,
            "stop_reason": None,
            "token_ids": own_ids,
        }
        answer: dict[str, Any] = {**self._base}
        if generation.chat:
            message: dict[str, Any] = {
                "role": "assistant",
                "content": text,
                "reasoning_content": None,
                "tool_calls": [],
            }
            answer |= {"choices": [{"index": 0, "message": message, **ending}], "prompt_token_ids": prompt_ids}
        else:
            whole_only = {"prompt_logprobs": None, "prompt_token_ids": prompt_ids, "routed_experts": None}
            answer["choices"] = [{"index": 0, "text": text, **ending, **whole_only}]
        answer |= {"service_tier": None, "system_fingerprint": profile.version}
        if self._report_usage:
            usage = self.usage()
            for details in ("prompt_tokens_details", "completion_tokens_details"):
                usage.setdefault(details, None)
            answer["usage"] = usage
        return orjson.dumps({**answer, "kv_transfer_params": None, "ec_transfer_params": None, "metrics": None})

    def usage(self) -> dict[str, Any]:
        faults, prompt, made = self.profile.faults, len(self.generation.prompt), self.made
        if faults.wrong_usage:
            prompt += faults.wrong_usage.prompt_tokens
            made += faults.wrong_usage.completion_tokens
        usage: dict[str, Any] = {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made}
        if faults.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": faults.cached_tokens}
        elif self.profile.report_cached:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        return usage

    def _wants_usage(self) -> bool:
        return self.generation.include_usage and self._report_usage
