"""The small language that picks cells: `batch>=8,input=128` (comma means and)."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from benchbench.products.product import settings_of

NUMBER_FIELDS = ("input", "output", "batch", "rate")
FIELDS = (*NUMBER_FIELDS, "variant")
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
ALLOWED = f"fields {', '.join(FIELDS)}; operators {' '.join(OPERATORS)}; comma means and"

_CONDITION = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.-]*)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_TEXT_OPERATORS = {"=", "==", "!="}


class SelectionError(ValueError):
    """The text is not a selection: `message` says which part, `allowed` what would be one."""

    def __init__(self, message: str, allowed: str = ALLOWED) -> None:
        self.message, self.allowed = message, allowed
        super().__init__(f"{message} (allowed: {allowed})")

    def __reduce__(self) -> tuple[type[SelectionError], tuple[str, str]]:
        return SelectionError, (self.message, self.allowed)


@dataclass(frozen=True, slots=True)
class Selection:
    """Conditions (field, operator, value), as `batch >= 8`, that must all hold."""

    conditions: tuple[tuple[str, str, float | str], ...]

    def matches(self, cell: Mapping[str, Any]) -> bool:
        """`cell` maps input, output, batch, rate and variant to their values; absent and None are alike.

        Another field is a setting, as the variant's name tells it: `tensor-parallel-size=8` of
        `max-num-seqs=64,tensor-parallel-size=8`. No condition holds where the cell lacks the field (an open cell has
        no batch), whatever the operator.
        """
        values: dict[str, Any] = {name: _value(text) for name, text in settings_of(cell.get("variant") or "").items()}
        values.update((field, cell.get(field)) for field in FIELDS)
        return all(_holds(values.get(field), op, value) for field, op, value in self.conditions)


def _holds(own: float | str | None, op: str, value: float | str) -> bool:
    if isinstance(own, str) != isinstance(value, str) and op not in _TEXT_OPERATORS:
        return False  # "auto" is neither above nor below 8
    return own is not None and OPERATORS[op](own, value)


def parse_selection(text: str, variants: Collection[str] = ()) -> Selection:
    """Parse `field op value` conditions joined by commas. `variants`: names that there are, whose settings are fields.

    Numbers are compared as numbers; `variant` and settings that are no numbers as text, with = and != only.
    Raises SelectionError.
    """
    named = sorted((name for name in variants if "," in name), key=len, reverse=True)
    if named:  # the commas of a name are its own
        known = "|".join(map(re.escape, named))
        whole = re.compile(rf"((?:^|,)\s*variant\s*[=!]?=\s*)({known})(?=\s*(?:,|$))")
        text = whole.sub(lambda match: match[1] + match[2].replace(",", "\0"), text)
    settings = dict.fromkeys(key for name in variants for key in settings_of(name))
    return Selection(tuple(_condition(part.replace("\0", ","), tuple(settings)) for part in text.split(",")))


def _condition(part: str, settings: tuple[str, ...]) -> tuple[str, str, float | str]:
    match = _CONDITION.fullmatch(part)
    if match is None:
        raise SelectionError(f"cannot read {part.strip()!r} as a condition like batch>=8")
    field, op, value = match.groups()
    if field not in (*FIELDS, *settings):
        raise SelectionError(
            f"unknown field {field!r}", ALLOWED.replace(", variant", ", ".join(["", "variant", *settings]))
        )
    if field == "variant":
        if op not in _TEXT_OPERATORS:
            raise SelectionError(f"variant is a name: {op} cannot order it", "= == !=")
        return field, op, value
    number = _value(value)
    if isinstance(number, str) and (field in FIELDS or op not in _TEXT_OPERATORS):
        raise SelectionError(f"{field} is compared with a number, not {value!r}")
    return field, op, number


def _value(text: str) -> float | str:
    """The number that the text is, or the text."""
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        return text
    number = float(text)
    return int(number) if number.is_integer() else number
