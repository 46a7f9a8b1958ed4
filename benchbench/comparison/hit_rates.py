"""Whether two sides hit the server's prefix cache alike: if not, a change is confounded with that. Pure."""

from __future__ import annotations

from benchbench.prefixes.hits import Hits

ALIKE = 0.002  # of two hit rates, each within one point of the asked one


def unlike_hits(base: Hits | None, candidate: Hits | None) -> str:
    """Why a cell whose sides were asked for these hits is not compared; empty where they were asked for the same."""
    sides = [_wanted(hits) for hits in (base, candidate)]
    if sides[0] == sides[1]:
        return ""
    return f"asked for different hits of the prefix cache ({' and '.join(sides)}), with which a change is confounded"


def _wanted(hits: Hits | None) -> str:
    return f"{100 * hits.asked_rate:.1f} % of {hits.prefix_tokens} tokens" if hits else "none"


def hit_note(label: str, base: Hits | None, candidate: Hits | None) -> str:
    """What is said of a cell whose sides hit unequally, though both are near what was asked for."""
    rates = [(hits.rate or 0.0) if hits else 0.0 for hits in (base, candidate)]
    if abs(rates[0] - rates[1]) <= ALIKE:
        return ""
    return f"{label}: hit rates differ ({rates[0]:.3f} and {rates[1]:.3f}), with which the change is confounded"
