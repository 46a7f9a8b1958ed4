"""What a server is asked for one greedy answer that is not streamed, and what it answered. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import orjson

from benchbench.fidelity.answers import GreedyAnswer, Token, Unit
from benchbench.openai.target import Prompt, untimed_body
from benchbench.spec import Engine

TOP = 5  # likeliest tokens a place: the most that OpenAI's completions allow
LEAST = -9999.0  # what vLLM's server says for a logarithm of 0
_PREFIX = "token_id:"  # how vLLM names a token where return_tokens_as_token_ids is asked


def requests_for(engine: Engine, model: str, prompt: Prompt, output: int, *, exact: bool) -> list[dict[str, Any]]:
    """The same request in four forms, the most telling first: a server may refuse log-probabilities, vLLM's own
    fields, or both.
    """
    if engine.api == "chat":
        logprobs: dict[str, Any] = {"logprobs": True, "top_logprobs": TOP}
    else:
        logprobs = {"logprobs": TOP}
    body = untimed_body(engine, model, prompt, output) | {"temperature": 0, "seed": 0}
    if exact:
        body |= {"min_tokens": output, "ignore_eos": True}
    ids = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    return [body | logprobs | ids, body | logprobs, body | ids, body]


def read_answer(body: bytes) -> tuple[Unit, GreedyAnswer]:
    """The first choice of a completion or chat. Raises ValueError where it holds nothing to compare."""
    try:
        choice = orjson.loads(body)["choices"][0]
        names, logprobs, top = _tokens_of(choice.get("logprobs") or {})
        ids = choice.get("token_ids")
        if names and all(name.startswith(_PREFIX) for name in names):
            return "id", GreedyAnswer(
                tuple(map(_id, names)), logprobs, tuple({_id(k): v for k, v in m.items()} for m in top)
            )
        if isinstance(ids, list):
            return "id", GreedyAnswer(tuple(map(int, ids)), logprobs if len(logprobs) == len(ids) else ())
        if names:
            return "text", GreedyAnswer(tuple(names), logprobs, top)
        message = choice.get("message") or {}
        parts = (message.get("reasoning_content") or message.get("reasoning"), message.get("content"))
        text = choice.get("text") or "".join(part or "" for part in parts)
        words: tuple[Token, ...] = tuple(re.findall(r"\s*\S+", text))
    except (orjson.JSONDecodeError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"an answer that cannot be read ({type(error).__name__})") from None
    if not words:
        raise ValueError("an answer without tokens and without text")
    return "word", GreedyAnswer(words)


def floored(logprob: float) -> float:
    """Finite: what JSON cannot say is LEAST."""
    return max(logprob, LEAST) if math.isfinite(logprob) else LEAST


def _tokens_of(logprobs: Mapping[str, Any]) -> tuple[list[str], tuple[float, ...], tuple[dict[Token, float], ...]]:
    """Tokens by name, their log-probabilities, and the likeliest of each place; empty where one place lacks them."""
    if places := logprobs.get("content"):  # chat
        names, values = [place["token"] for place in places], [place["logprob"] for place in places]
        top = [{each["token"]: each["logprob"] for each in place.get("top_logprobs") or ()} for place in places]
    else:
        names, values, top = (logprobs.get(key) or [] for key in ("tokens", "token_logprobs", "top_logprobs"))
    if len(values) != len(names) or None in values:
        return names, (), ()
    whole = len(top) == len(names) and all(top)
    floors = tuple({name: floored(value) for name, value in place.items()} for place in top) if whole else ()
    return names, tuple(map(floored, values)), floors


def _id(name: Token) -> int:
    return int(str(name).removeprefix(_PREFIX))
