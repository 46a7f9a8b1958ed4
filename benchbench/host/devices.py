"""A device of this host, as what asks its library sees it: facts, and questions that are asked again and again.

What a device, its driver or a version of the library lacks is absent, never 0, and is asked for once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Value = float | str | None
ALL_ONES = {0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF}  # "not here", by the width of the field


@dataclass(slots=True)
class Read:
    """One question to a library, and the columns that its answer may fill."""

    columns: tuple[str, ...]
    ask: Callable[[], Mapping[str, Value]]
    pause_s: float = 0.0  # at least, between two answers
    answered: bool = False  # once, so that a later silence is not for good
    due_s: float = 0.0


@dataclass(slots=True)
class Device:
    """An accelerator. `reads` are tried in order, a later one only for columns that are still lacking."""

    label: str  # gpu0, gpu1 ...
    facts: dict[str, Any]
    reads: list[Read]
    lasting: Callable[[Exception], bool]  # whether an error means that the answer will never come

    def sample(self, tell: Callable[[str], None] = lambda _: None) -> dict[str, Value]:
        """The columns known now: power_w, energy_j (counter), core_clock_mhz, memory_clock_mhz, temperature_c (edge),
        hotspot_c, memory_used_bytes, utilisation (share), throttle (words joined by ";", empty: none).

        A library's error becomes a missing column and, unless it only says "not supported", a sentence for `tell`.
        """
        row: dict[str, Value] = {}
        for read in tuple(self.reads):
            if all(row.get(column) is not None for column in read.columns) or time.monotonic() < read.due_s:
                continue
            read.due_s = time.monotonic() + read.pause_s
            try:
                readings = read.ask()
            except Exception as error:  # noqa: BLE001 - whatever a vendor's library raises ends no sweep
                if absent(error) or self.lasting(error):
                    self.reads.remove(read)
                else:
                    tell(f"{self.label}: {', '.join(read.columns)}: {text_of(error)}")
                continue
            read.answered |= any(value is not None for value in readings.values())
            if not read.answered:
                self.reads.remove(read)
            row |= {column: value for column, value in readings.items() if row.get(column) is None}
        return row


def text_of(error: Exception) -> str:
    """One line of an error, of 200 characters at most."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def absent(error: Exception) -> bool:
    """Whether an error means another version of the library."""
    return isinstance(error, AttributeError | TypeError | KeyError)


def number(value: Any, unit: float = 1.0) -> float | None:  # noqa: ANN401 - anything that a library says
    """A measured quantity in units of `unit`; None for what stands for "none": N/A, all ones, and 0, which no living
    device has.
    """
    good = isinstance(value, int | float) and value > 0 and value not in ALL_ONES
    return value * unit if good else None


def single(column: str, ask: Callable[[], Value], pause_s: float = 0.0) -> Read:
    """A question for one column."""
    return Read((column,), lambda: {column: ask()}, pause_s)


def first(*values: Any) -> float | None:  # noqa: ANN401 - anything that a library says
    """The first that is a `number`."""
    return next((good for value in values if (good := number(value)) is not None), None)


def share(percent: Any) -> float | None:  # noqa: ANN401 - anything that a library says
    """Per cent as a share of 1; None for what is none."""
    return percent / 100 if isinstance(percent, int | float) and percent <= 100 else None


def words_of(bits: int, words: Mapping[int, str]) -> str:
    """The words whose masks meet `bits`, each once, joined by ";"."""
    return ";".join(sorted({word for mask, word in words.items() if bits & mask}))


def facts_of(device: dict[str, Any], **asks: Callable[[], Any]) -> dict[str, Any]:
    """`device` and the answers that come: what raises or says N/A is left out."""
    for name, ask in asks.items():
        with contextlib.suppress(Exception):
            value = ask()
            if value not in {None, "", "N/A"}:
                device[name] = value.decode() if isinstance(value, bytes) else value
    return device
