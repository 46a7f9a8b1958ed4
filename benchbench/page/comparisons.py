"""What the page says of comparisons: the sentences it begins with, and what stands under each candidate. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from benchbench.analysis.runs import Run
from benchbench.comparison.candidates import pairs_of
from benchbench.comparison.figures import FEW_PAIRS
from benchbench.comparison.pairs import Pair
from benchbench.comparison.tables import caption, headline, notes, ratio_table, ratio_text, sentence
from benchbench.comparison.verdicts import PRIMARY
from benchbench.page.page_figures import PageFigure
from benchbench.safe_text import printable

_DASH = "\N{EN DASH}"


class Table(NamedTuple):
    """Plain texts."""

    head: list[str]
    rows: list[list[str]]


def printable_pairs(run: Run) -> list[Pair]:
    """The comparisons of a run whose records are there, with names that act nowhere."""
    pairs = pairs_of(run) if run.has_records else []
    return [replace(pair, base=printable(pair.base), candidate=printable(pair.candidate)) for pair in pairs]


def verdict_lines(pairs: Sequence[Pair]) -> list[str]:
    """The sentence of each candidate; of many the count of verdicts, and the fastest's."""
    if len(pairs) <= FEW_PAIRS:
        return [sentence(pair) for pair in pairs]
    overalls = [(overall, pair) for pair in pairs if (overall := headline(pair))]
    counts = Counter(overall.verdict for overall, _ in overalls)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "none has numbers"
    lines = [f"{len(pairs)} candidates against {pairs[0].base}: {verdicts}"]
    if overalls:
        best = max(overalls, key=lambda known: known[0].ratio.point)[1]
        lines.append(f"Highest ratio: {sentence(best)}")
    return lines


def compared_candidates(pairs: Sequence[Pair], figures: list[PageFigure]) -> dict[str, Any]:
    """`overview` of many candidates, best first, and each candidate's sentence, notes, table and caption."""
    head = ["Candidate"]
    for name in ("Sys tok/s", "TTFT"):
        head += [f"{name} ratio", "95 % CI", "Verdict"]
    ranked = sorted(pairs, key=lambda pair: -(overall.ratio.point if (overall := headline(pair)) else 0.0))
    overview = Table([*head, "Outputs"], [_overview_row(pair) for pair in ranked])
    return {
        "base": pairs[0].base,
        "overview": overview if len(pairs) > FEW_PAIRS else None,
        "pairs": [
            {
                "candidate": pair.candidate,
                "ratio": ", ".join(_overview_row(pair)[1:4]),
                "sentence": sentence(pair),
                "notes": notes(pair),
                "table": Table(*ratio_table(pair)),
                "caption": caption(pair),
            }
            for pair in ranked
        ],
        "figures": figures,
    }


def _overview_row(pair: Pair) -> list[str]:
    texts = [pair.candidate]
    for metric in PRIMARY:
        overall = headline(pair, metric)
        texts += [*ratio_text(overall), overall.verdict] if overall else [_DASH, _DASH, "no numbers"]
    return [*texts, pair.fidelity.replace("_", " ")]
