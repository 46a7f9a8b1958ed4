"""What each start of a variant answered, in the run's folder: `fidelity/VARIANT-BLOCK.parquet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from benchbench.fidelity.answers import GreedyAnswer, StartAnswers
from benchbench.store.parquet_files import parquet_bytes, read_parquet
from benchbench.store.run_directory import RunDirectory, replace_file


def answers_path(run: RunDirectory, variant: str, block: int) -> Path:
    """Where these answers are, once they are stored."""
    return run.path / "fidelity" / f"{variant}-{block}.parquet"


def store_answers(run: RunDirectory, variant: str, block: int, answers: StartAnswers) -> None:
    """Store what a variant answered in a block. Raises OSError."""
    path = answers_path(run, variant, block)
    path.parent.mkdir(exist_ok=True)
    replace_file(path, parquet_bytes(answers_table(answers)))


def read_answers(run: RunDirectory, variant: str) -> dict[int, StartAnswers]:
    """What a variant answered, by block. Raises RunError for a file that is damaged."""
    names = [path.stem.rpartition("-") for path in (run.path / "fidelity").glob("*.parquet")]
    blocks = sorted(int(block) for name, _, block in names if name == variant and block.isdecimal())
    remedy = "remove it, and these answers are not compared"
    return {block: answers_of(read_parquet(answers_path(run, variant, block), remedy)) for block in blocks}


def answers_table(answers: StartAnswers) -> pa.Table:
    """One row a token: prompt, position, token (int64, or string where unit is no id), logprob, top_tokens,
    top_logprobs; null where not told. The other fields of `StartAnswers` are metadata.
    """
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
