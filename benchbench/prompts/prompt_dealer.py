"""Which prompts of a file each round of a sweep sends: dealt out once, so that no two rounds send the same.

A file's prompts are shuffled by the sweep's seed and its own hash, and dealt out over the whole sweep as written: to
each shape of the grid its warm-up rounds and then its measured ones, whatever the engine. So variants are asked the
same, and another run of the sweep asks the same again. What is left is for rounds that are begun anew, in the order in
which that happens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from benchbench.datasets.prompt_file import PromptFile, PromptFileError, read_prompts
from benchbench.errors import EngineError
from benchbench.prompts.round_job import Dealt, spare_of
from benchbench.spec import Cell, SweepSpec, make_plan
from benchbench.spec.schema import WARMUP_ROUNDS

Attempts = Mapping[tuple[str, str, int], int]  # (cell's key, phase, number) -> how often it was begun
FOLLOWING = 8  # prompts of the file that make one which is too short longer


class Hand(NamedTuple):
    """What a shape is dealt: `size` prompts a round from place `start` on, of warm-up rounds first."""

    start: int
    size: int
    warmups: int
    rounds: int

    def place(self, phase: str, number: int) -> int | None:
        """Where a round's prompts begin; None for one that nothing was dealt to."""
        rounds = {"warmup": (0, self.warmups), "measured": (self.warmups, self.rounds)}.get(phase)
        return self.start + (rounds[0] + number) * self.size if rounds and number < rounds[1] else None

    @property
    def end(self) -> int:
        return self.start + (self.warmups + self.rounds) * self.size


@dataclass(slots=True)
class Dealer:
    """Deals out the prompts of a sweep's files. `attempts`: what the run has begun, the round dealt for included."""

    spec: SweepSpec
    attempts: Attempts = field(default_factory=dict)
    _cells: list[Cell] = field(init=False)  # whose prompts are of a file, in the order of the plan
    _hands: dict[str, Hand] = field(init=False)  # by a cell's key
    _files: dict[str, str] = field(init=False)  # a cell's key -> its file's hash
    _orders: dict[str, tuple[PromptFile, list[int]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._cells = cells_of_files(self.spec)
        self._hands, self._files = hands_of(self._cells, self.spec.block_count)

    def needed(self) -> dict[str, tuple[str, int]]:
        """By the hash of each file: its path, and how many prompts the sweep may send at most, repeats left out."""
        paths = {cell.prompts.sha256: cell.prompts.path for cell in self._cells}
        return {sha: (str(paths[sha]), self._end(sha)) for sha in dict.fromkeys(self._files.values())}

    def check(self) -> list[str]:
        """One sentence a file: how many prompts the sweep may send, and how many there are.

        Raises EngineError when a file has too few, cannot be read, or has changed since the sweep was read.
        """
        lines = []
        for cell in self._cells:
            sha = self._files[cell.key]
            if sha in self._orders:
                continue
            read = self._read(cell)
            (path, needed), there = self.needed()[sha], len(read.prompts)
            left_out = f", {read.repeated} repeated ones left out" if read.repeated else ""
            left_out += f", {read.skipped} conversations without a user's turn too" if read.skipped else ""
            if there < needed:
                message = f"the sweep may send {needed:,} prompts, no two alike, and {path} has {there:,}{left_out}"
                ways = "a longer file, a lower rounds.max, fewer warm-up rounds or requests, or prompts.kind: corpus"
                raise EngineError(message, "prompts.path", allowed=ways)
            lines.append(f"prompts: {needed:,} at most of the {there:,} in {path}{left_out}, SHA-256 {sha}")
        return lines

    def take(self, cell: Cell, phase: str, number: int) -> Dealt:
        """The prompts of a round of a cell whose prompts are of a file. Raises EngineError where none are left."""
        if cell.key not in self._files:
            message = f"{cell.label} is no cell of the sweep's grid, and a file's prompts are dealt out over that alone"
            raise EngineError(message, "prompts.kind", allowed="corpus, text, token_ids")
        sha, hand = self._files[cell.key], self._hands[cell.key]
        read = self._read(cell)
        begun, start = self.attempts.get((cell.key, phase, number), 1), hand.place(phase, number)
        if start is None or begun > 1:
            start = self._end(sha) + max(0, self._anew(sha) - hand.size)
            if phase not in {"warmup", "measured"}:  # of no run
                start = (self._end(sha) + number * hand.size) % max(1, len(read.prompts) - hand.size)
        size = cell.requests + spare_of(cell)
        places = self._orders[sha][1][start : start + size]
        if len(places) < size:
            left = f"{size} prompts are needed, {len(places)} are left in {cell.prompts.path}"
            message = f"round {number} of {cell.label} is begun anew, and no prompt is sent twice: {left}"
            raise EngineError(message, "prompts.path", allowed="a new run, with a longer file")
        after = [read.prompts[(places[-1] + step) % len(read.prompts)] for step in range(1, FOLLOWING + 1)]
        outputs = [read.outputs[place] for place in places] if read.outputs else None
        return Dealt([read.prompts[place] for place in places], outputs, after)

    def kind(self, cell: Cell) -> str:
        """Of a cell whose prompts are of a file: text, messages or token_ids."""
        return self._read(cell).kind

    def _anew(self, sha: str) -> int:
        """Prompts that rounds took to which nothing was dealt: those begun anew, or beyond the plan."""
        taken = 0
        for (key, phase, number), begun in self.attempts.items():
            if self._files.get(key) == sha:
                hand = self._hands[key]
                taken += hand.size * (begun - (hand.place(phase, number) is not None))
        return taken

    def _end(self, sha: str) -> int:
        return max(hand.end for key, hand in self._hands.items() if self._files[key] == sha)

    def _read(self, cell: Cell) -> PromptFile:
        prompts, sha = cell.prompts, self._files[cell.key]
        if sha not in self._orders:
            try:
                read = read_prompts(str(prompts.path), prompts.field, prompts.output)
            except PromptFileError as error:
                raise EngineError(str(error), "prompts.path") from None
            if read.sha256 != sha:
                message = f"{prompts.path} has changed since the sweep was read: SHA-256 {read.sha256}, not {sha}"
                raise EngineError(message, "prompts.path")
            digest = hashlib.sha256(f"{self.spec.seed} {sha}".encode()).digest()
            order = np.random.default_rng(np.frombuffer(digest, np.uint32)).permutation(len(read.prompts))
            self._orders[sha] = read, order.tolist()
        return self._orders[sha][0]


def cells_of_files(spec: SweepSpec) -> list[Cell]:
    """The cells of a sweep whose prompts are of a file. Few sweeps have any: the others are not planned for it."""
    sections = (spec.prompts.kind, *((each.changes.get("prompts") or {}).get("kind") for each in spec.overrides))
    return [cell for cell in make_plan(spec).cells if cell.prompts.kind == "file"] if "file" in sections else []


def hands_of(cells: Sequence[Cell], blocks: int | None) -> tuple[dict[str, Hand], dict[str, str]]:
    """What each cell is dealt, by its key, and the hash of its file. Variants of a shape share a hand."""
    cells = sorted(cells, key=lambda cell: cell.index)
    most: dict[tuple[Any, ...], tuple[int, int, int]] = {}
    for cell in cells:
        size = cell.requests + spare_of(cell)
        warmups = (WARMUP_ROUNDS if cell.rounds.warmup == "auto" else int(cell.rounds.warmup)) * (blocks or 1)
        rounds = cell.rounds.min * blocks if blocks else cell.rounds.max
        before = most.get(_place(cell), (0, 0, 0))
        most[_place(cell)] = (max(before[0], size), max(before[1], warmups), max(before[2], rounds))
    ends: dict[str, int] = {}
    dealt: dict[tuple[Any, ...], Hand] = {}
    for place, (size, warmups, rounds) in most.items():
        dealt[place] = Hand(ends.get(place[0], 0), size, warmups, rounds)
        ends[place[0]] = dealt[place].end
    return {cell.key: dealt[_place(cell)] for cell in cells}, {cell.key: str(cell.prompts.sha256) for cell in cells}


def _place(cell: Cell) -> tuple[Any, ...]:
    """A shape of the grid, whatever the engine; first the file that its prompts are of."""
    return (
        str(cell.prompts.sha256), cell.input, cell.output, cell.batch, cell.rate, str(cell.lengths), cell.load.kind,
    )  # fmt: skip


def dealt_otherwise(earlier: Mapping[str, Any], spec: SweepSpec) -> str:
    """Why a run that was begun with the sweep `earlier` (of its manifest) cannot go on with `spec`; else empty."""
    before, now = earlier.get("prompts") or {}, spec.prompts
    if (before.get("kind"), before.get("sha256")) != (now.kind, now.sha256) and (before.get("sha256") or now.sha256):
        names = [
            f"{kind} {(sha or '')[:12]}".strip()
            for kind, sha in ((before.get("kind"), before.get("sha256")), (now.kind, now.sha256))
        ]
        return f"its prompts are of {names[0]}, those of the sweep now of {names[1]}: begin a new run"
    if not (hands := hands_of(cells_of_files(spec), spec.block_count))[0]:
        return ""
    old = SweepSpec.model_validate(dict(earlier))
    if hands_of(cells_of_files(old), old.block_count) != hands:
        what = "the prompts of a file are dealt out over the whole sweep once"
        return f"{what}, and its grid, load, rounds or blocks have changed since: begin a new run"
    return ""
