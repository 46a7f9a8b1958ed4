"""What one start of a variant answered to the fixed questions: the format of `fidelity/VARIANT-BLOCK.parquet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

Token = int | str
Unit = Literal["id", "text", "word"]


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


def answers_table(answers: StartAnswers) -> pa.Table:
    """One row a token: prompt, position, token (int64, or string where unit is no id), logprob, top_tokens,
    top_logprobs; null where not told. The other fields of `StartAnswers` are metadata.
    """
    import orjson
    import pyarrow as pa

    token_type = pa.int64() if answers.unit == "id" else pa.string()
    rows = [
        {
            "prompt": prompt,
            "position": position,
            "token": token,
            "logprob": answer.logprobs[position] if answer.logprobs else None,
            "top_tokens": list(answer.top[position]) if answer.top else None,
            "top_logprobs": list(answer.top[position].values()) if answer.top else None,
        }
        for prompt, answer in enumerate(answers.answers)
        for position, token in enumerate(answer.tokens)
    ]
    facts = {"unit": answers.unit, "asked": answers.questions_hash, "answers": len(answers.answers)}
    schema = pa.schema(
        {
            "prompt": pa.int32(),
            "position": pa.int32(),
            "token": token_type,
            "logprob": pa.float64(),
            "top_tokens": pa.list_(token_type),
            "top_logprobs": pa.list_(pa.float64()),
        },
        {b"benchbench": orjson.dumps(facts)},
    )
    return pa.Table.from_pylist(rows, schema)


def answers_of(table: pa.Table) -> StartAnswers:
    """The inverse of `answers_table`."""
    import orjson

    facts = orjson.loads(table.schema.metadata[b"benchbench"])
    rows: list[list[dict[str, Any]]] = [[] for _ in range(facts["answers"])]
    for row in table.to_pylist():
        rows[row["prompt"]].append(row)
    return StartAnswers(facts["unit"], facts["asked"], tuple(map(_answer, rows)))


def _answer(rows: Sequence[Mapping[str, Any]]) -> GreedyAnswer:
    logprobs = tuple(row["logprob"] for row in rows)
    return GreedyAnswer(
        tuple(row["token"] for row in rows),
        logprobs if None not in logprobs else (),
        tuple(dict(zip(row["top_tokens"], row["top_logprobs"], strict=True)) for row in rows)
        if all(row["top_tokens"] is not None for row in rows)
        else (),
    )
