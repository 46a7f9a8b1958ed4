"""Several candidates against one baseline: each a pair, with Holm's families over all of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchbench.analysis.runs import Run
from benchbench.comparison.pairs import Pair, pair, sides_of
from benchbench.comparison.verdicts import Noise, compare


def pairs_of(run: Run) -> list[Pair]:
    """The baseline of a run against each of its other variants; none of a run without variants."""
    base, *others = sides_of(run)
    return together([pair(base, other) for other in others])


def together(pairs: Sequence[Pair], floor: Sequence[Noise] = ()) -> list[Pair]:
    """The same pairs, of one baseline, judged as one question: Holm's families are over all of their candidates.

    So of candidates that are all unchanged the chance that any is called in a family is at most 5 %, however many they
    are; each with families of its own would have a chance of 5 % each.
    """
    if len(pairs) < 2:
        return list(pairs)
    return [
        replace(
            of_sides,
            compared=compare(
                of_sides.samples,
                paired=of_sides.interleaved,
                margin=of_sides.margin,
                floor=floor,
                planned=of_sides.planned,
                beside=[other.compared for other in pairs if other is not of_sides],
            ),
        )
        for of_sides in pairs
    ]
