"""Shared prefixes of a cell: their token ids, and which requests of a round begin with which. Pure.

A prefix depends on the seed and the shape alone: it is the same in all rounds and starts of a cell, so that a server
that was sent it finds it in its cache. All else of a prompt is fresh in each round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchbench.prefixes.feasible import hits_per_round
from benchbench.prompts.seeds import round_generator
from benchbench.spec import Cell, Plan
from benchbench.store.requests import RoundColumns

Ids = npt.NDArray[np.int32]
MISS = -1


def turns_of(cell: Cell) -> int:
    """Requests of a conversation; 1 where there are none."""
    return (cell.prompts.shared and cell.prompts.shared.turns) or 1


def prefixes(cell: Cell, vocab: tuple[int, int]) -> Ids:
    """The token ids of a cell's prefixes, uniform over [low, high): shape (groups, prefix_tokens); of none (0, 0)."""
    shared = cell.prompts.shared
    if shared is None or shared.prefix_tokens is None:
        return np.empty((0, 0), np.int32)
    return round_generator(cell, "prefixes", 0, 0).integers(*vocab, (shared.groups, shared.prefix_tokens), np.int32)


def groups(cell: Cell, generator: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    """The group of each of a round's `count` requests, MISS where it shares no prefix.

    Exactly `hits_per_round` of the cell's requests hit. In static and closed loads they are spread evenly, so that
    rounds, and the steady part of each, differ little; in an open load they come in random order, as arrivals do.
    Groups take turns. `generator` must be fresh, as `round_generator(...).spawn(1)[0]`.
    """
    shared, planned = cell.prompts.shared, cell.requests
    assert shared is not None  # noqa: S101 - asked for only where there are any
    hits, first = hits_per_round(planned, shared.hit_rate), int(generator.integers(planned))
    place = np.arange(count)
    hit = ((place + 1) * hits + first) // planned > (place * hits + first) // planned
    if cell.load.kind == "open":
        hit = generator.permutation(hit)
    turn = np.cumsum(hit) - 1 + int(generator.integers(shared.groups))
    return np.where(hit, turn % shared.groups, MISS)


def lay_prefixes(
    cell: Cell, generator: np.random.Generator, ids: Sequence[Ids], vocab: tuple[int, int]
) -> Sequence[Ids]:
    """`ids`, a round's fresh prompts, those that are to hit beginning with their group's prefix.

    Of conversations each prompt begins with the whole one before it. What follows stands for the answer, whose tokens
    nobody knows yet, and for what is new.
    """
    if cell.prompts.shared is None:
        return ids
    if (turns := turns_of(cell)) > 1:
        for place in range(len(ids)):
            if place % turns:
                ids[place][: len(ids[place - 1])] = ids[place - 1]
        return ids
    known = prefixes(cell, vocab)
    for prompt, group in zip(ids, groups(cell, generator.spawn(1)[0], len(ids)), strict=True):
        if group != MISS:
            prompt[: known.shape[1]] = known[group]
    return ids


def with_asked_hits(
    columns: RoundColumns, cell: Cell, labels: Mapping[str, Any], facts: dict[str, Any]
) -> RoundColumns:
    """The columns of a round, and the prompt tokens that each request is asked to find in the server's cache, where
    prompts share prefixes. `labels` name the round: phase, round, attempt. Of conversations `facts` get their turns.
    """
    if (shared := cell.prompts.shared) is None:
        return columns
    index, lengths, law = columns["index"], columns["asked_input_tokens"], cell.lengths.input
    if shared.turns and law:
        facts["turns"] = shared.turns
        began = (lengths == law.least) | (index < (cell.batch or 1))  # the first B, at any turn, without those before
        wanted = np.where(began, 0, lengths - law.least - cell.output)  # the prompt of the turn before
    else:
        generator = round_generator(cell, labels["phase"], labels["round"], labels["attempt"]).spawn(1)[0]
        of = groups(cell, generator, int(max(cell.requests, index.max(initial=-1) + 1)))
        wanted = np.where(of[index] == MISS, 0, shared.prefix_tokens or 0)
    return {**columns, "asked_cached_tokens": wanted.astype(np.int32)}


def block_notes(plan: Plan, cache: Mapping[str, str]) -> list[str]:
    """What the server's cache, as its metrics describe it, leaves of the hits that are asked for."""
    shares = [cell for cell in plan.cells if cell.prompts.shared]
    lengths = sorted({cell.prompts.shared.prefix_tokens or 0 for cell in shares if cell.prompts.shared})
    if shares and cache.get("enable_prefix_caching") == "False":
        return ["prompts.shared: the server's prefix cache is off, so that nothing can hit"]
    block = int(size) if (size := cache.get("block_size", "")).isdecimal() else 0
    return [
        f"prompts.shared.prefix_tokens: {tokens} is no multiple of the cache's block size, {block}: hits are of "
        f"{tokens - tokens % block} tokens, and too few"
        for tokens in lengths
        if block and tokens % block
    ]
