"""A round's job for the engine without HTTP. Pure."""

from __future__ import annotations

from benchbench.loadgen.job import DirectJob
from benchbench.prompts.prefix_groups import lay_prefixes, prefixes
from benchbench.prompts.round_job import common_fields, token_ids
from benchbench.prompts.seeds import round_generator
from benchbench.spec import Cell, VllmInprocessEngine


def make_direct_job(
    cell: Cell, vocab: tuple[int, int], phase: str, number: int, attempt: int, output: int | None = None
) -> DirectJob:
    """`make_job` for the in-process engine: the same prompts, as token ids in [low, high), at the same times."""
    generator = round_generator(cell, phase, number, attempt)
    common = common_fields(cell, generator, output or cell.output)
    ids = lay_prefixes(cell, generator, token_ids(generator, common["asked_input"], vocab), vocab)
    return DirectJob(
        **common,
        payloads=[row.astype("<i4").tobytes() for row in ids],
        detokenize=isinstance(cell.engine, VllmInprocessEngine) and cell.engine.detokenize,
        reset_prefix_cache=cell.rounds.reset_prefix_cache,
        prefixes=tuple(row.astype("<i4").tobytes() for row in prefixes(cell, vocab)),
    )
