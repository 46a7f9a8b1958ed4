"""The random numbers of a round. Pure."""

from __future__ import annotations

import hashlib

import numpy as np
import orjson

from benchbench.spec import Cell


def round_generator(cell: Cell, phase: str, number: int, attempt: int) -> np.random.Generator:
    """The random numbers of one round. Neither engine nor variant counts: variants are asked the same.

    `attempt` counts how often this round was begun: a round that was cut off may have left its prompts in the
    server's prefix cache, so its repetition asks for others.
    """
    facts = (cell.seed, cell.input, cell.output, cell.batch, cell.rate, cell.load.kind, phase, number, attempt)
    digest = hashlib.sha256(orjson.dumps(facts)).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))
