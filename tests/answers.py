"""What a server may say: heads, chunks, events and whole answers in vLLM's form, as steps of a script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

CLOSE, RESET, HANG = "close", "reset", "hang"  # HANG: nothing more until the server ends
Step = bytes | float | str  # bytes are sent, a number is a pause in seconds
Script = Sequence[Step]
SSE = "text/event-stream; charset=utf-8"
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Ask:
    """One request as it came. `nth` counts the requests of its connection from 0, `number` those of the server."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    nth: int
    number: int

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


def head(status: int = 200, kind: str = SSE, **headers: object) -> bytes:
    """A response head; `headers` with _ for -."""
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


CHUNKED = head(transfer_encoding="chunked")


def whole(status: int, body: object, **headers: object) -> bytes:
    """A complete JSON answer."""
    data = orjson.dumps(body)
    return head(status, "application/json", content_length=len(data), **headers) + data


def error(status: int, message: str, **headers: object) -> bytes:
    """An error as vLLM answers it."""
    return whole(status, {"error": {"message": message, "type": "X", "param": None, "code": status}}, **headers)


def models(*names: str, owner: str = "vllm", **more: object) -> bytes:
    return whole(200, {"object": "list", "data": [{"id": name, "owned_by": owner, **more} for name in names]})


def event(data: object) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def events(ask: Ask, tokens: int | None = None, *, usage: bool = True) -> list[bytes]:
    """The events of a completion of `tokens` tokens (as many as asked), with ids where they were asked for."""
    body = ask.json
    asked = body.get("max_tokens") or body["max_completion_tokens"]
    count = asked if tokens is None else tokens
    with_ids = body.get("return_token_ids", False)
    made = []
    for k in range(count):
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if k == count - 1 else None}
        choice |= {"delta": {"content": f" t{k}"}} if "messages" in body else {"text": f" t{k}"}
        choice |= {"token_ids": [k]} if with_ids else {}
        made.append(event({"id": f"cmpl-{ask.number}", "choices": [choice]}))
    if usage:
        prompt = body.get("prompt")
        given = len(prompt) if isinstance(prompt, list) else 7
        told = {"prompt_tokens": given, "completion_tokens": count}
        made.append(event({"id": f"cmpl-{ask.number}", "choices": [], "usage": told}))
    return made


def completion(ask: Ask, tokens: int | None = None, *, usage: bool = True) -> list[Step]:
    """A good streamed answer, chunked, one event a millisecond."""
    steps: list[Step] = [CHUNKED]
    for one in events(ask, tokens, usage=usage):
        steps += [chunk(one), 0.001]
    return [*steps, chunk(DONE) + LAST_CHUNK]
