"""Prompts and request bodies. Pure: the same seed, cell, phase, round and attempt give the same bytes."""

from __future__ import annotations

import hashlib

import numpy as np
import orjson

from benchbench.loadgen.arrivals import due_offsets_ns
from benchbench.loadgen.job import RoundJob
from benchbench.loadgen.target import Target
from benchbench.spec import Cell

# Words that byte-pair vocabularies of English hold whole, with their leading space: about one token each.
WORDS = (  # noqa: SIM905 - a list of quoted words would fill a screen
    "time people way water day man world life hand part child eye woman place work week case point government "
    "company number group problem fact house area money story month lot right study book job word business "
    "issue side kind head power hour game line end member law car city community name president team minute "
    "idea body information back parent face level office door health person art war history party result "
    "change morning reason research girl guy moment air teacher force education foot boy age policy music "
    "market sense nation plan college interest death experience effect"
).split()


def round_generator(cell: Cell, phase: str, number: int, attempt: int) -> np.random.Generator:
    """The random numbers of one round. Neither engine nor variant counts: variants are asked the same.

    `attempt` counts how often this round was begun: a round that was cut off may have left its prompts in the
    server's prefix cache, so its repetition asks for others.
    """
    facts = (cell.seed, cell.input, cell.output, cell.batch, cell.rate, cell.load.kind, phase, number, attempt)
    digest = hashlib.sha256(orjson.dumps(facts)).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def bodies(cell: Cell, generator: np.random.Generator, count: int, output: int, vocab: tuple[int, int]) -> list[bytes]:
    """`count` request bodies with fresh prompts of `cell.input` tokens each (words, for text and chat).

    Token ids are uniform over [vocab[0], vocab[1]). `extra_body` of the engine goes over everything.
    """
    engine = cell.engine
    fields = {
        "model": cell.model,
        "max_tokens": output,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if cell.output_mode == "exact":
        fields |= {"min_tokens": output, "ignore_eos": True, "return_token_ids": True}
    rest = orjson.dumps(fields | engine.extra_body)[1:]
    if cell.prompts.kind == "token_ids":
        ids = generator.integers(vocab[0], vocab[1], (count, cell.input), np.int32)
        prompts = [orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in ids]
        return [b'{"prompt":' + prompt + b"," + rest for prompt in prompts]
    picks = generator.integers(0, len(WORDS), (count, cell.input))
    texts = [" ".join(WORDS[k] for k in row) for row in picks]
    if engine.api == "chat":
        return [b'{"messages":' + orjson.dumps([{"role": "user", "content": text}]) + b"," + rest for text in texts]
    return [b'{"prompt":' + orjson.dumps(text) + b"," + rest for text in texts]


def make_job(
    cell: Cell, target: Target, vocab: tuple[int, int], phase: str, number: int, attempt: int, output: int | None = None
) -> RoundJob:
    """Everything the worker needs for one round of a cell; `output` overrides the cell's output tokens."""
    generator = round_generator(cell, phase, number, attempt)
    count, asked = cell.requests, output or cell.output
    load = cell.load
    if load.kind == "open":
        due = due_offsets_ns(count, cell.rate or 0.0, load.arrival, load.burstiness, generator)
        in_flight = load.max_concurrency or count
    else:
        due, in_flight = [0] * count, cell.batch or 1
    return RoundJob(
        target=target,
        payloads=[target.request(body) for body in bodies(cell, generator, count, asked, vocab)],
        due_ns=due,
        in_flight=in_flight,
        asked_input=[cell.input] * count,
        asked_output=[asked] * count,
        connect_s=cell.timeouts.connect_s,
        first_token_s=cell.timeouts.first_token_s,
        stall_s=cell.timeouts.stall_s,
        exact=cell.output_mode == "exact",
        paced=load.kind == "open",
    )
