"""What an engine answers to the fixed questions. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Token = int | str
Unit = Literal["id", "text", "word"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerJob:
    """Prompts for the in-process engine to answer greedily, untimed and one after another.

    `payloads`: token ids as little-endian int32.
    `output` tokens each, just so many if `exact`, with the `top` likeliest of each place.
    """

    payloads: list[bytes]
    output: int
    exact: bool
    top: int


@dataclass(frozen=True, slots=True)
class Finished:
    """What an engine in our own process tells of a request that has ended; None is not told.

    `server_metrics`: its own times, as a server's answers tell them.
    """

    input_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str = ""
    server_metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GreedyAnswer:
    """One greedy answer, place by place.

    `logprobs` (natural logarithms) and `top`, the likeliest tokens with theirs, are of each place, or empty where the
    server tells none.
    """

    tokens: tuple[Token, ...]
    logprobs: tuple[float, ...] = ()
    top: tuple[Mapping[Token, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StartAnswers:
    """All answers of one start. `questions_hash`: answers to other questions cannot be compared.

    `unit` is what a token is: its `id`, its `text` where the server tells no ids, or a `word` of the answer where it
    tells no tokens.
    """

    unit: Unit
    questions_hash: str
    answers: tuple[GreedyAnswer, ...]
