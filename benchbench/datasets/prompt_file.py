"""Prompts of a file: JSON lines, or one JSON array, of texts, messages or token ids, as people and tools have them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from benchbench.yamlfile.mistakes import show

FIELDS = ("conversations", "messages", "prompt_token_ids", "token_ids", "prompt", "text")
OUTPUT = "output_tokens"  # of vLLM's custom layout
Prompt = str | tuple[int, ...] | tuple[dict[str, Any], ...]
_USERS = {"human", "user"}


class PromptFileError(ValueError):
    """A file that holds no prompts; the message has its name and line."""


@dataclass(frozen=True, slots=True)
class PromptFile:
    """What a file holds. `kind`: text, messages or token_ids, of all of them; `prompts`: each once, as they stand.

    `outputs`: the tokens that each answer should have, None where a prompt does not say (`silent` names the first such
    line). `skipped`: lines whose conversation has no turn of a user. `repeated`: prompts that stood there before.
    """

    kind: str
    prompts: tuple[Prompt, ...]
    outputs: tuple[int, ...] | None
    silent: str
    sha256: str
    skipped: int
    repeated: int


def read_prompts(path: str, field: str | None = None, output: str | None = None) -> PromptFile:
    """The prompts under `field` (empty: the first of FIELDS that the first line has) of each line, and their outputs.

    A text, a list of token ids, a list of messages ({role, content}), or a conversation of ShareGPT's ({from, value}),
    of which the first turn of its user is the prompt. Raises PromptFileError with file and line.
    """
    try:
        status = Path(path).stat()
        return _read(path, field, output or OUTPUT, (status.st_mtime_ns, status.st_size))
    except OSError as error:
        raise PromptFileError(f"{path}: {error.strerror}") from None


def digest_of(data: bytes) -> str:
    """SHA-256 in hex: what a file of prompts is known by."""
    return hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=8)
def _read(path: str, field: str | None, output: str, _stamp: tuple[int, int]) -> PromptFile:
    data = Path(path).read_bytes()
    prompts: dict[Prompt | bytes, tuple[Prompt, int | None]] = {}
    kind, silent, skipped, repeated = "", "", 0, 0
    for place, entry in _entries(data, path):
        if not isinstance(entry, dict):
            raise PromptFileError(f"{place}: must be an object, is {show(entry)}")
        field = field or next((name for name in FIELDS if name in entry), None)
        if field is None or field not in entry:
            names = field or ", ".join(FIELDS)
            raise PromptFileError(f"{place}: has no {names} (prompts.field); its keys are {', '.join(entry)[:120]}")
        prompt = _prompt(entry[field], f"{place}: {field}")
        if prompt is None:
            skipped += 1
            continue
        its = "text" if isinstance(prompt, str) else "token_ids" if isinstance(prompt[0], int) else "messages"
        if its != (kind := kind or its):
            raise PromptFileError(
                f"{place}: {field} holds {its.replace('_', ' ')}, the lines before {kind.replace('_', ' ')}"
            )
        tokens = entry.get(output)
        if tokens is None:
            silent = silent or place
        elif type(tokens) is not int or not 1 <= tokens <= 10**9:
            raise PromptFileError(f"{place}: {output} must be a whole number of tokens from 1, is {show(tokens)}")
        same = orjson.dumps(prompt) if its == "messages" else prompt
        repeated += same in prompts
        prompts.setdefault(same, (prompt, tokens))
    if not prompts:
        raise PromptFileError(f"{path}: holds no prompts")
    outputs = None if silent else tuple(tokens or 0 for _, tokens in prompts.values())
    every = tuple(prompt for prompt, _ in prompts.values())
    return PromptFile(kind, every, outputs, silent, digest_of(data), skipped, repeated)


def _entries(data: bytes, path: str) -> Iterator[tuple[str, Any]]:
    """(`file:line`, parsed) of each line that is not blank; of an array (`file, entry 3`)."""
    if data.lstrip()[:1] == b"[":
        try:
            entries = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise PromptFileError(f"{path}:{error.lineno}: is not JSON: {error.msg}") from None
        yield from ((f"{path}, entry {number}", entry) for number, entry in enumerate(entries, 1))
        return
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise PromptFileError(f"{path}:{number}: is not JSON: {error.msg}") from None
        yield f"{path}:{number}", entry


def _prompt(value: Any, place: str) -> Prompt | None:  # noqa: ANN401 - JSON
    """What is sent; None of a conversation in which no user speaks."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value and all(type(token) is int and 0 <= token < 2**31 for token in value):
        return tuple(value)
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        if all("value" in turn and "from" in turn for turn in value):
            return next((turn["value"] for turn in value if turn["from"] in _USERS and _is_text(turn["value"])), None)
        if all(_is_text(turn.get("role")) and "content" in turn for turn in value):
            users = [number for number, turn in enumerate(value, 1) if turn["role"] in _USERS]
            return tuple(value[: users[-1]]) if users else None  # an answer that follows is not sent
    forms = "a text, a list of token ids, messages ({role, content}) or a conversation ({from, value})"
    raise PromptFileError(f"{place} must be {forms}, is {show(value)}")


def _is_text(value: Any) -> bool:  # noqa: ANN401 - JSON
    return isinstance(value, str) and bool(value.strip())


def fitted_ids(prompt: Sequence[int], length: int, others: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """`prompt` cut to `length` ids, or followed by the `others`, over and over, until there are as many."""
    ids = list(prompt)
    while len(ids) < length:
        for other in others:
            ids += other
    return tuple(ids[:length])
