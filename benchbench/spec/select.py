"""The small language that picks cells: `batch>=8,input=128` (comma means and)."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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

_CONDITION = re.compile(r"\s*([A-Za-z_]+)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)


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

        No condition holds where the cell lacks the field (an open cell has no batch), whatever the operator.
        """
        return all(
            cell.get(field) is not None and OPERATORS[op](cell[field], value) for field, op, value in self.conditions
        )


def parse_selection(text: str) -> Selection:
    """Parse `field op value` conditions joined by commas.

    Numbers are compared as numbers; `variant` is compared as text, with = and != only.
    Raises SelectionError.
    """
    return Selection(tuple(_condition(part) for part in text.split(",")))


def _condition(part: str) -> tuple[str, str, float | str]:
    match = _CONDITION.fullmatch(part)
    if match is None:
        raise SelectionError(f"cannot read {part.strip()!r} as a condition like batch>=8")
    field, op, value = match.groups()
    if field not in FIELDS:
        raise SelectionError(f"unknown field {field!r}")
    if field == "variant":
        if op not in {"=", "==", "!="}:
            raise SelectionError(f"variant is a name: {op} cannot order it", "= == !=")
        return field, op, value
    if not _NUMBER.fullmatch(value) or not math.isfinite(float(value)):
        raise SelectionError(f"{field} is compared with a number, not {value!r}")
    number = float(value)
    return field, op, int(number) if number.is_integer() else number
