"""Prompts and request bodies. Pure: the same seed, cell, phase, round and attempt give the same bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from benchbench.datasets.conversations import turn_tokens
from benchbench.datasets.laws import Law
from benchbench.datasets.prompt_file import Prompt
from benchbench.loadgen.job import RoundJob
from benchbench.openai.target import Target, prompt_field
from benchbench.prompts.arrivals import due_offsets_ns
from benchbench.prompts.prefix_groups import lay_prefixes, turns_of
from benchbench.prompts.seeds import round_generator
from benchbench.refills.quota import openings
from benchbench.spec import Cell
from benchbench.spec.engine_sections import NEWER_LIMIT

SPARE_BATCHES = 4  # x batch: prompts beyond those asked for, where answers end by themselves
# Where prompts come from: token ids [low, high), or a maker of (generator, count, tokens) -> texts.
Texts = Callable[[np.random.Generator, int, int], list[str]]
Fit = Callable[[np.random.Generator, Prompt, Sequence[Prompt], int], Prompt]


@dataclass(slots=True)
class Dealt:
    """Prompts of a file for one round, the output tokens that the file asks of each, and other prompts of it.

    `fit`: makes a prompt one of so many tokens, with others after it where it is too short; None: it stays as it is.
    """

    prompts: Sequence[Prompt]
    outputs: Sequence[int] | None
    others: Sequence[Prompt] = ()
    fit: Fit | None = None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt as it stands; -1 where only the server can tell."""
        return [
            -1 if isinstance(prompt, str) or isinstance(prompt[0], dict) else len(prompt) for prompt in self.prompts
        ]

    def fitted(self, generator: np.random.Generator, inputs: Sequence[int]) -> Sequence[Prompt]:
        """What is sent, where these lengths were asked for."""
        if self.fit is None:
            return self.prompts
        pairs = zip(self.prompts, inputs, strict=True)
        return [self.fit(generator, prompt, self.others, length) for prompt, length in pairs]


Source = tuple[int, int] | Texts | Dealt


def spare_of(cell: Cell) -> int:
    """Requests beyond the planned ones, that keep a closed load's batch full where answers differ in length."""
    differ = cell.output_mode == "as_served" or cell.lengths.output is not None
    return SPARE_BATCHES * (cell.batch or 1) if cell.spread and differ else 0


def token_ids(
    generator: np.random.Generator, inputs: Sequence[int], vocab: tuple[int, int]
) -> Sequence[npt.NDArray[np.int32]]:
    """Fresh prompts of so many ids each, uniform over [low, high)."""
    if len({*inputs}) == 1:
        return generator.integers(*vocab, (len(inputs), inputs[0]), np.int32)  # type: ignore[return-value] # its rows
    return [generator.integers(*vocab, length, np.int32) for length in inputs]


def texts_of(generator: np.random.Generator, inputs: Sequence[int], texts: Texts) -> list[str]:
    """Fresh texts of so many tokens each."""
    if len({*inputs}) == 1:
        return texts(generator, len(inputs), inputs[0])
    return [texts(generator, 1, length)[0] for length in inputs]


def bodies(
    cell: Cell, generator: np.random.Generator, inputs: Sequence[int], outputs: Sequence[int], source: Source
) -> list[bytes]:
    """Request bodies with fresh prompts of so many tokens each, for so many output tokens.

    Token ids are uniform over `source` = [low, high); texts are what `source(generator, count, tokens)` makes.
    `extra_body` of the engine goes over everything but `max_completion_tokens`, which is of the cell.
    """
    engine, rest = cell.engine, dict[int, bytes]()
    for output in {*outputs}:
        fields = {
            "model": cell.model,
            engine.max_tokens_field: output,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if cell.output_mode == "exact":
            fields |= {"min_tokens": output, "ignore_eos": True, "return_token_ids": True}
        limit = {NEWER_LIMIT: output} if engine.max_tokens_field == NEWER_LIMIT else {}
        rest[output] = b"," + orjson.dumps(fields | engine.extra_body | limit)[1:]
    if isinstance(source, Dealt):
        prompts = [_prompt_field(engine.api, prompt) for prompt in source.fitted(generator, inputs)]
    elif isinstance(source, tuple):
        ids = lay_prefixes(cell, generator, token_ids(generator, inputs, source), source)
        prompts = [b'{"prompt":' + orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in ids]
    else:
        texts = texts_of(generator, inputs, source)
        prompts = [_prompt_field(engine.api, text) for text in texts]
    return [prompt + rest[output] for prompt, output in zip(prompts, outputs, strict=True)]


def _prompt_field(api: str, prompt: Prompt) -> bytes:
    """The field that holds a text, token ids or messages, as the beginning of a body."""
    messages = not isinstance(prompt, str) and isinstance(prompt[0], dict)
    return orjson.dumps({"messages": prompt} if messages else prompt_field(api, prompt))[:-1]  # type: ignore[arg-type]


def first_outputs(outputs: Sequence[int]) -> list[int]:
    """Output tokens of the first wave of a closed load: spread evenly from all of `outputs` down to output / batch.

    Sent at once and of one length, it would end at once, and so would all waves after it. Of these lengths, it ends as
    requests do in the steady state, one after the other, and the load is steady from then on. The last one is the
    shortest: if it were the first, its refill would wait for the prompts of those behind it.
    """
    batch = len(outputs)
    return [-(-output * (batch - place) // batch) for place, output in enumerate(outputs)]


def make_job(
    cell: Cell,
    target: Target,
    source: Source,
    phase: str,
    number: int,
    attempt: int,
    output: int | None = None,
    salt: int = 0,
) -> RoundJob:
    """Everything the worker needs for one round of a cell; `output` overrides the cell's output tokens.

    `salt`: where it is not 0, prompts are others than of another salt; lengths and arrivals are the same.
    """
    generator = round_generator(cell, phase, number, attempt)
    common = common_fields(cell, generator, output or cell.output, source if isinstance(source, Dealt) else None)
    if salt and cell.prompts.shared is None:
        generator = round_generator(cell, f"{phase} of {salt}", number, attempt)
    texts = bodies(cell, generator, common["asked_input"], common["asked_output"], source)
    payloads = [target.request(body) for body in texts]
    return RoundJob(**common, payloads=payloads, targets=(target,), connect_s=cell.timeouts.connect_s)


def _lengths(
    law: Law | None,
    length: int,
    generator: np.random.Generator,
    count: int,
    spare: int,
    of_file: Sequence[int] | None,
) -> list[int]:
    """Those of a round's requests and of its spare ones, each with the law's own spread, or as a file has them."""
    if law and law.kind == "file":
        return [*(of_file or ())]
    return law.draw(generator, count) + law.draw(generator, spare) if law else [length] * (count + spare)


def common_fields(
    cell: Cell, generator: np.random.Generator, output: int, dealt: Dealt | None = None
) -> dict[str, Any]:
    """The fields of `Job` but the payloads; the generator's first numbers are the arrival times.

    `output` below the cell's own is the most that any request asks for: of a short round of warm-up.
    """
    count, load, spare, laws = cell.requests, cell.load, spare_of(cell), cell.lengths
    texts, answers = (dealt.lengths, dealt.outputs) if dealt else (None, None)
    if load.kind == "open":
        due = due_offsets_ns(count, cell.rate or 0.0, load.arrival, load.burstiness, generator)
        in_flight = load.max_concurrency or count
    else:
        due, in_flight = [0] * count, cell.batch or 1
    turns = turns_of(cell)
    law = laws.input if turns == 1 else None
    inputs = _lengths(law, cell.input or 0, generator, count, spare, texts)
    outputs = [
        min(length, output) if output < cell.output else length
        for length in _lengths(laws.output, output, generator, count, spare, answers)
    ]
    first: Sequence[int] = range(in_flight)
    if turns > 1:
        conversations = in_flight - (-(count + SPARE_BATCHES * in_flight) // turns)
        inputs = conversations * turn_tokens(turns, cell.lengths.input.least if cell.lengths.input else 1, cell.output)
        outputs, spare = [output] * len(inputs), len(inputs) - count
        first = list(itertools.islice(openings(turns, in_flight), in_flight))
    if cell.spread:
        for place, length in zip(first, first_outputs([outputs[place] for place in first]), strict=True):
            outputs[place] = length
    return {
        "due_ns": due,
        "in_flight": in_flight,
        "asked_input": inputs,
        "asked_output": outputs,
        "spare": spare,
        "first_token_s": cell.timeouts.first_token_s,
        "stall_s": cell.timeouts.stall_s,
        "exact": cell.output_mode == "exact",
        "paced": load.kind == "open",
        "turns": turns,
    }
