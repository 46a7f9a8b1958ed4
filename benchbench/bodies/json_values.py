"""Whether JSON, and the records of a run, can hold a value. Pure."""

from __future__ import annotations

import math
from typing import Any

from benchbench.yamlfile.mistakes import show
from benchbench.yamlfile.refusal import problem


def _json_value(value: object) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise problem(f"has a key that is not text: {show(key)}")
            _json_value(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _json_value(item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise problem(f"holds {value}, which JSON cannot")
    elif isinstance(value, int) and value.bit_length() > 63:
        raise problem("holds a number beyond 64 bits")
    elif value is not None and not isinstance(value, (str, int, float)):
        raise problem(f"holds a value that JSON cannot: {type(value).__name__}")


def json_mapping(value: dict[str, Any]) -> dict[str, Any]:
    """`value`, refused where JSON or the run's records could not hold it."""
    _json_value(value)
    return value
