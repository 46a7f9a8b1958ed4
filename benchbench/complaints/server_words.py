"""What a server says of a request that went wrong, in whatever form it says it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from benchbench.store.requests import ErrorKind

DETAIL = 300  # characters of a server's message that a record keeps

# The first of them that says something is the message.
_MESSAGES = (
    "message", "faultstring", "detail", "error", "errors", "error_message", "error_msg", "msg", "reason", "description",
    "text", "base_resp", "status_msg", "errmsg", "err_msg", "response",
)  # fmt: skip
# Names of a part that reports an error whatever the rest: fault, AWS' internalServerException, Tencent's Error.
_REPORTS = re.compile(r"(?:error|exception|(?<!de)fault)s?$|^(?:error|err)_?(?:code|message|msg)$")
# Finish reasons of a generation that did not end as the model or the limit of tokens would have it: parts of words,
_BROKEN = (
    *("error", "abort", "cancel", "fail", "filter", "timeout", "timed", "insufficient", "interrupt", "refus", "safety"),
    *("block", "recitation", "prohibit", "overload", "exception", "crash", "disconnect", "reject", "guardrail"),
    *("interven", "sensitiv", "moderat", "violat", "policy", "terminat", "preempt", "evict", "expire", "shutdown"),
    *("unavailab", "malform", "unexpected", "incomplete", "rate_limit", "quota", "deadline", "unknown", "unspecified"),
)
_BROKEN_WORDS = re.compile(r"(?<![a-z])(?:oom|kill\w*|other|spii|lost|dropped)(?![a-z])")  # and whole ones
# What a cache of answers says of one that it had: these words, or texts that are one of these.
_HITS, _STORED = re.compile(r"(?<![a-z])(?:refresh)?hit(?![a-z])"), {"stale", "updating", "revalidated"}
_YES = {"true", "yes", "1"}
_NO_REASON = {"", "null", "none"}


def message_of(data: object) -> str:
    """The message in an error's JSON; empty when there is none."""
    if isinstance(data, str):
        return data
    if isinstance(data, list):
        return "; ".join(filter(None, map(message_of, data)))
    if isinstance(data, Mapping):
        parts = {str(key).lower(): part for key, part in data.items()}
        keys = [*_MESSAGES, *filter(_REPORTS.search, parts)]
        return next(filter(None, (message_of(parts.get(key)) for key in keys)), "")
    return ""


def error_in(event: Mapping[str, Any], name: str = "") -> str | None:
    """The error that an event without choices reports: its message, or all of it. None when it reports none.

    `name`: of the server-sent event. OpenAI, vLLM and TGI have an object or a text `error`, older vLLM and FastChat
    `object: error` or `error_code`, Anthropic `type: error`, MiniMax `base_resp` (whose status 0 is none), proxies a
    status and a message.
    """
    base = event.get("base_resp")
    status = event.get("code") or event.get("status") or event.get("status_code")
    named = f"{name} {event.get('object')} {event.get('type')}".lower()
    reports = (
        "error" in named
        or "failed" in named
        or any(part and part != "0" and _REPORTS.search(str(key).lower()) for key, part in event.items())
        or is_broken(event.get("finish_reason") or "")
        or (type(status) is int and 400 <= status < 600)
        or bool(isinstance(base, Mapping) and base.get("status_code"))
    )
    inner = event.get("Response") or event.get("response")
    if not reports and isinstance(inner, Mapping):
        return error_in(inner)
    return message_of(event) or str(event) if reports else None


def error_beside(lines: bytes, name: str) -> str | None:
    """The error in lines of a stream that are no event's: JSON without `data:`, or a proxy's page. None without one."""
    if lines.lstrip()[:1] == b"<":
        return lines[:DETAIL].decode("utf-8", "replace").strip()
    try:
        data = orjson.loads(lines)
        return error_in(data, name) if isinstance(data, dict) else None
    except (AttributeError, TypeError, ValueError, RecursionError):
        return None


def finish_of(reason: object) -> str:
    """A finish reason as text; empty where it stands for none."""
    text = str(reason)
    return "" if text.lower() in _NO_REASON else text


def is_limit(reason: str) -> bool:
    """Whether a finish reason says that an answer was as long as it may be: length, max_tokens, a full context."""
    return any(part in reason.lower() for part in ("length", "max_tokens", "context"))


def is_broken(reason: object) -> bool:
    """Whether a finish reason says that the generation was broken off, by the server or by a filter."""
    kind = reason.get("type", reason) if isinstance(reason, dict) else reason
    text = str(kind).lower()
    return any(part in text for part in _BROKEN) or bool(_BROKEN_WORDS.search(text))


def no_stream(status: int, headers: Mapping[bytes, bytes], body: bytes) -> tuple[ErrorKind, str] | None:
    """(kind, sentence): why a response is no event stream that can be read; None when it is one."""
    fields = {name: headers.get(name, b"").decode("latin-1").strip() for name in _HEADERS}
    encoding, form, target = (fields[name] for name in _HEADERS)
    detail, is_packed = "", encoding.lower() not in {"", "identity", "none"}
    if is_packed:
        detail = f"the answer is compressed (Content-Encoding: {encoding}) although identity was asked for"
    is_stream = form.lower().startswith("text/event-stream")
    if status != 200 and not (200 < status < 300 and is_stream):  # frameworks answer a POST with 201
        detail = detail or (f"redirects to {target}" if target else _message(body))
        return ErrorKind.STATUS, f"status {status}: {detail}"[:DETAIL]
    for name, value in headers.items():
        if _is_stored(name.decode("latin-1"), value.decode("latin-1").strip().lower()):
            stored = f"{name.decode('latin-1')}: {value.decode('latin-1').strip()}"
            detail = detail or f"the answer is a stored one, of a cache of answers ({stored})"
    if not detail and not is_stream:
        form = f"Content-Type: {form}" if form else "no Content-Type"
        detail = f"the answer is not an event stream ({form}): {quoted(body)}"
    return (ErrorKind.PROTOCOL, detail[:DETAIL]) if detail else None


_HEADERS = (b"content-encoding", b"content-type", b"location")


def _is_stored(name: str, value: str) -> bool:
    """Whether a header says that a cache of whole answers had this one: `cf-aig-cache-status: HIT`, an `age`.

    A cache of prompts' keys and values is another thing.
    """
    if name == "age":
        return value.isdecimal() and int(value) > 0
    if "cache" not in name or any(part in name for part in ("kv", "prefix", "prompt", "token", "control")):
        return False
    if name.endswith("hits"):  # of each cache on the way
        return any(number.strip() not in {"", "0"} for number in value.split(",") if number.strip().isdecimal())
    is_told = value in _YES and any(part in name for part in ("hit", "cached", "from", "gptcache"))
    return is_told or value in _STORED or bool(_HITS.search(value))


def _message(body: bytes) -> str:
    """A server's error message, or the beginning of whatever it sent."""
    try:
        data = orjson.loads(body)
        return message_of(data) or (str(data) if data else "no message")
    except (ValueError, RecursionError):
        return body[:DETAIL].decode("utf-8", "replace").strip() or "no message"


def quoted(data: bytes) -> str:
    return repr(data[:200].rstrip())


def reported(message: str) -> str:
    return f"the server reported an error in the stream: {message}"
