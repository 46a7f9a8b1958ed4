"""How far another host's clock is from ours, from round trips. Pure; all times are ns.

An offset is the other clock minus ours, so a time of theirs less the offset is that time on our clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Trip(NamedTuple):
    """One question after the time: ours before it, theirs, ours after it."""

    sent_ns: int
    there_ns: int
    back_ns: int


class Offset(NamedTuple):
    """The true offset is within `offset_ns` +- `uncertainty_ns`."""

    offset_ns: int
    uncertainty_ns: int


def offset_of(trips: Iterable[Trip]) -> Offset:
    """From the fastest trip: theirs - (sent + back) / 2, +- (back - sent) / 2, however unequal the two ways were."""
    sent, there, back = min(trips, key=lambda trip: trip.back_ns - trip.sent_ns)
    return Offset(there - (sent + back) // 2, (back - sent) // 2 + 1)


def offset_between(before: Offset, after: Offset) -> Offset:
    """The offset at any time between two measurements, if it moved only one way: what both intervals span."""
    low = min(offset - uncertainty for offset, uncertainty in (before, after))
    high = max(offset + uncertainty for offset, uncertainty in (before, after))
    return Offset((low + high) // 2, (high - low) // 2 + 1)


def window_uncertainty_ns(offsets: Sequence[Offset]) -> int:
    """The largest error of a time between events of any two hosts: both ends' uncertainties; of one host's events 0."""
    return sum(sorted(offset.uncertainty_ns for offset in offsets)[-2:]) if len(offsets) > 1 else 0
