"""A round's job for the engine without HTTP. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchbench.errors import EngineError
from benchbench.loadgen.job import DirectJob
from benchbench.prompts.prefix_groups import lay_prefixes, prefixes
from benchbench.prompts.round_job import Dealt, Source, common_fields, token_ids
from benchbench.prompts.seeds import round_generator
from benchbench.spec import Cell, VllmInprocessEngine


def make_direct_job(
    cell: Cell, source: Source, phase: str, number: int, attempt: int, output: int | None = None
) -> DirectJob:
    """`make_job` for the in-process engine: the same prompts, as token ids, at the same times."""
    generator, dealt = round_generator(cell, phase, number, attempt), source if isinstance(source, Dealt) else None
    common = common_fields(cell, generator, output or cell.output, dealt)
    ids: Any
    if isinstance(source, tuple):
        ids = lay_prefixes(cell, generator, token_ids(generator, common["asked_input"], source), source)
    elif dealt:
        ids = dealt.fitted(generator, common["asked_input"])
    else:
        raise EngineError("the in-process engine takes token ids", "prompts.kind", allowed="token_ids")
    shared = prefixes(cell, source) if isinstance(source, tuple) else ()
    return DirectJob(
        **common,
        payloads=[np.asarray(row, "<i4").tobytes() for row in ids],
        detokenize=isinstance(cell.engine, VllmInprocessEngine) and cell.engine.detokenize,
        reset_prefix_cache=cell.rounds.reset_prefix_cache,
        prefixes=tuple(row.astype("<i4").tobytes() for row in shared),
    )
