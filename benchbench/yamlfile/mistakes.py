"""What is wrong with a sweep file, in plain words and with its place."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from benchbench.errors import BenchError
from benchbench.safe_text import printable

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

Loc = tuple[int | str, ...]

TYPE_WORDS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping (key: value)",
    "model_type": "must be a mapping (key: value)",
    "model_attributes_type": "must be a mapping (key: value)",
}
BOUND_WORDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `file:line: key.path: message (allowed: ...)`, always on one line.

    `file` is `--set key.path=value` or `--only selection` for what the command line said; `line` counts
    from 1 and is None where there is none.
    """

    file: str
    line: int | None
    path: str
    message: str
    allowed: str = ""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        parts = [place, self.path, self.message] if self.path else [place, self.message]
        text = ": ".join(parts) + (f" (allowed: {self.allowed})" if self.allowed else "")
        return printable(text)


class SpecError(BenchError):
    """A sweep cannot be used; `problems` holds everything that is wrong with it, at least one."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[SpecError], tuple[tuple[Problem, ...]]]:
        return SpecError, (self.problems,)


class Fault(NamedTuple):
    """A problem that knows its place in the data, not yet its place in a file."""

    loc: Loc
    message: str
    allowed: str = ""


def show(value: object) -> str:
    """The value as a reader of the file would name it, short enough for one line."""
    if value is None:
        text = "empty"
    elif isinstance(value, dict):
        text = "a mapping"
    elif isinstance(value, (list, tuple)):
        text = "a list"
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, int) and value.bit_length() > 256:
        text = "a number of more than 256 bits"
    elif isinstance(value, str):
        text = json.dumps(value if len(value) <= 80 else value[:77] + "...", ensure_ascii=False)
    else:
        text = str(value)[:80]
    return text


def unknown_key(key: object, allowed: Iterable[str], what: str = "key") -> tuple[str, str]:
    """Message and allowed names for a key (or `what` else) that nobody reads, with the nearest known one."""
    names = list(allowed)
    near = difflib.get_close_matches(str(key), names, n=1)
    return f"unknown {what}" + (f", did you mean {near[0]}?" if near else ""), ", ".join(names)


def known_keys(model: type[BaseModel], place: Loc = ()) -> dict[Loc, tuple[str, ...]]:
    """The keys of a model's sections, by their place: without list indices, with the tags of unions."""
    keys = {place: tuple(model.model_fields)}
    for name, field in model.model_fields.items():
        for section in _models_in(field.annotation):
            tag = get_args(section.model_fields["kind"].annotation) if field.discriminator else ()
            keys |= known_keys(section, (*place, name, *tag))
    return keys


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 - any type
    if hasattr(annotation, "model_fields"):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def faults_of(error: ValidationError, keys: Mapping[Loc, tuple[str, ...]]) -> list[Fault]:
    """Pydantic's errors in plain words; `keys` are `known_keys` of the model."""
    faults = []
    for detail in error.errors(include_url=False):
        tagged: Loc = detail["loc"]
        in_union = tagged[:2] in keys and tagged[:1] not in keys  # then the second part is the kind
        loc = tagged[:1] + tagged[2:] if in_union else tagged
        if detail["type"] == "extra_forbidden":
            section = tuple(part for part in tagged[:-1] if isinstance(part, str))
            section = section[:1] + section[2:] if section[:1] == ("variants",) else section  # their names are free
            faults.append(Fault(loc, *unknown_key(tagged[-1], keys.get(section, ()))))
        elif detail["type"] in {"union_tag_invalid", "union_tag_not_found"}:
            faults.append(_kind_fault(loc, detail, keys))
        else:
            faults.append(Fault(loc, *_words(detail)))
    return faults


def _kind_fault(loc: Loc, detail: ErrorDetails, keys: Mapping[Loc, tuple[str, ...]]) -> Fault:
    section: Any = detail["input"]
    if not isinstance(section, dict):
        return Fault(loc, f"must be a mapping (key: value), is {show(section)}")
    kinds = (place[1] for place in keys if place[:1] == loc and len(place) == 2)
    where, allowed = (*loc, "kind"), ", ".join(map(str, kinds))
    if "kind" not in section:
        return Fault(where, "is missing", allowed)
    return Fault(where, f"unknown kind {show(section['kind'])}", allowed)


def _words(detail: ErrorDetails) -> tuple[str, str]:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in TYPE_WORDS:
        return f"{TYPE_WORDS[kind]}, is {show(value)}", ""
    if kind in BOUND_WORDS:
        key, word = BOUND_WORDS[kind]
        return f"must be {word} {context[key]:g}, is {show(value)}", ""
    if kind == "missing":
        return "is missing", ""
    if kind in {"too_short", "string_too_short"}:
        return "must not be empty", ""
    if kind == "literal_error":
        names = re.findall(r"'([^']*)'", context["expected"])
        return f"unknown value {show(value)}", ", ".join(names)
    return detail["msg"], str(context.get("allowed", ""))
