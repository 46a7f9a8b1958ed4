"""How long servers say that they took for the tokens of an answer, and whether its stream came in less. Pure.

A server makes the tokens of an answer one after the other, and a client sees them in no less time, unless something on
the way held them back and let them go faster: then TTFT is too long and TPOT too short.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

DECODE_MS = "decode_ms"  # the key of what is kept of it
LONGEST = 1e9
_TIMES = (
    ("timings", "predicted_ms", 1.0),  # llama.cpp
    ("usage", "completion_time", 1e3),  # Groq
    ("time_info", "completion_time", 1e3),  # Cerebras
)


def decode_ms(event: Mapping[str, Any]) -> float | None:
    """The time in ms that an answer's last event tells for its output tokens; None where it tells none."""
    beside = event.get("x_groq")
    for source in (event, beside if isinstance(beside, dict) else {}):
        for place, name, unit in _TIMES:
            if value := _positive(source.get(place), name):
                return value * unit
        whole, first = (_positive(source.get("usage"), key) for key in ("total_latency", "time_to_first_token"))
        if whole > first > 0:  # SambaNova
            return (whole - first) * 1e3
    return None


def _positive(part: object, name: str) -> float:
    """A number above 0 in a part of an event; 0.0 where it has none."""
    value = part.get(name) if isinstance(part, dict) else None
    return float(value) if isinstance(value, int | float) and 0 < value < LONGEST else 0.0


class Pace(NamedTuple):
    """How long the tokens after the first event took, in s: the server to make them, and to come to us."""

    made_s: float
    came_s: float


def paces(answers: Iterable[tuple[Mapping[str, Any], int, int, float]]) -> Iterator[Pace]:
    """Those of the answers that tell it. Of each: the times that it tells, its tokens, those of the first event, and
    how long the others took to come, in s.
    """
    for times, tokens, first, came_s in answers:
        if (following := tokens - first) > 0:
            whole_ms, each_ms = times.get(DECODE_MS), times.get("mean_itl_ms")  # vLLM's
            if whole_ms is not None:  # some begin with the first token, some before it
                yield Pace(whole_ms * following / tokens / 1e3, came_s)
            elif each_ms is not None:
                yield Pace(each_ms * following / 1e3, came_s)


def mean_pace(known: Iterable[Pace]) -> Pace | None:
    """The mean over answers; None without any."""
    columns = [*zip(*known, strict=True)]
    return Pace(*(sum(values) / len(values) for values in columns)) if columns else None
