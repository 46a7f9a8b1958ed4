"""The builds between good and bad, in order, and the sweep that measures some of them. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchbench.engines.git_checkout import Commit
from benchbench.spec import Cell, Plan, Session, SweepSpec, make_plan, spec_from_mapping

GOOD, BAD = "good", "bad"


@dataclass(frozen=True, slots=True)
class Line:
    """`base` is good. `places[k - 1]`: the commits that place k stands for, of which the last is built.

    The others come before it and are left out by `--path`.
    """

    base: Commit
    places: tuple[tuple[Commit, ...], ...]

    @property
    def bad(self) -> int:
        """The place of the bad build."""
        return len(self.places)

    @property
    def prior(self) -> tuple[float, ...]:
        """A commit that touches the paths weighs 1; the rest after the last of them together 1, where there is any."""
        return (1.0,) * len(self.places)

    def built(self, place: int) -> Commit:
        """The commit that is built at a place."""
        return self.places[place - 1][-1] if place else self.base

    def name(self, place: int) -> str:
        """What the build's variant is called."""
        ends = {0: GOOD, self.bad: BAD}
        return ends.get(place) or f"{place:0{len(str(self.bad))}d}-{self.built(place).sha[:9]}"


def line_of(base: Commit, commits: Sequence[Commit]) -> Line:
    """The line of `commits_between`'s commits; what comes after the last within the paths ends with bad."""
    places: list[tuple[Commit, ...]] = []
    waiting: list[Commit] = []
    for commit in commits:
        waiting.append(commit)
        if commit.within or commit is commits[-1]:
            places.append(tuple(waiting))
            waiting = []
    return Line(base, tuple(places))


def template_of(spec: SweepSpec, variant: str | None) -> str:
    """The variant whose repository, build commands and engine all builds have: as named, else the baseline, else any.

    Raises ValueError for a sweep without one.
    """
    sources = [name for name, variant_of in spec.variants.items() if variant_of.git is not None]
    if variant is not None and variant not in sources:
        allowed = ", ".join(sources) or "none has"
        raise ValueError(f"--variant {variant}: no variant of {spec.name} that has `git` (allowed: {allowed})")
    if not sources:
        raise ValueError(f"{spec.name}: needs a variant with `git`: repo, ref and build (docs/bisect.md)")
    if any("variant" in override.when for override in spec.overrides):
        raise ValueError("overrides that select by variant do not select builds of a bisection: take them out")
    return variant or (spec.baseline if spec.baseline in sources else sources[0])


def sweep_of(spec: SweepSpec, template: str, builds: Mapping[str, str], blocks: int, suffix: str) -> SweepSpec:
    """The sweep with these builds as variants, name -> commit, the first as the baseline. Raises SpecError."""
    data = spec.model_dump(mode="json")
    variant = data["variants"][template]
    variants = {name: variant | {"git": variant["git"] | {"ref": ref}} for name, ref in builds.items()}
    fixed: dict[str, Any] = {"fidelity": "off", "profile": False, "baseline": next(iter(builds))}
    return spec_from_mapping(
        data | fixed | {"name": f"{spec.name}-{suffix}", "variants": variants, "blocks": max(1, blocks)}
    )


def plan_of_blocks(spec: SweepSpec, only: str | None, blocks: Iterable[tuple[int, Sequence[str]]]) -> Plan:
    """The plan with the sessions of these blocks: its number, and the variants in the order in which they start."""
    cells: dict[str, list[Cell]] = {}
    for cell in sorted(make_plan(spec, only).cells, key=lambda cell: cell.index):
        cells.setdefault(cell.variant, []).append(cell)
    sessions = []
    for number, variants in blocks:
        for variant in variants:
            ordered = list(cells[variant])
            if spec.order == "random":
                random.Random(f"{spec.seed} {number}").shuffle(ordered)
            sessions.append(Session(number, variant, tuple(ordered)))
    return Plan(spec, tuple(sessions))


def in_order(number: int, places: Sequence[int]) -> Sequence[int]:
    """The places of a block in the order of their starts, which turns round from block to block."""
    return places if number % 2 == 0 else places[::-1]
