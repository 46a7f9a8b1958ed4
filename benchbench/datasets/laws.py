"""Lengths of requests that differ within a round: a law, its mean and its bounds, and draws from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError, core_schema

from benchbench.yamlfile.mistakes import Fault, show

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MOST = 10**9  # tokens
FORMS = "a whole number, {lognormal: {mean: 1024, p99: 4096}}, {uniform: [128, 2048]}, file"
_Z99 = NormalDist().inv_cdf(0.99)
_GRID = 4096  # quantiles over which a mean is taken


@dataclass(frozen=True, slots=True)
class Law:
    """How the lengths of one axis are spread, in tokens.

    `kind`: lognormal, uniform, or file (each prompt of a file has its own). `mean`: of the lengths as they are drawn,
    bounds included; None where only the server can tell. `least` and `most`: no length is beyond them (most is None
    where nobody knows). `p99`: of a lognormal law.
    """

    kind: str
    mean: float | None
    least: int = 1
    most: int | None = None
    p99: float | None = None

    def __str__(self) -> str:
        """As `lognormal, mean 1024, p99 4096, 1 to 8192`; the same text is the same law."""
        parts = [self.kind]
        parts += [f"mean {self.mean:g}"] if self.mean is not None and self.kind != "uniform" else []
        parts += [f"p99 {self.p99:g}"] if self.p99 is not None else []
        parts += [f"{self.least} to {self.most}"] if self.most is not None else []
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """As it may stand in a sweep."""
        if self.kind == "uniform":
            return {"uniform": [self.least, self.most]}
        known = {"mean": self.mean, "p99": self.p99, "min": self.least, "max": self.most}
        return {self.kind: {key: value for key, value in known.items() if value is not None}}

    def draw(self, generator: np.random.Generator, count: int) -> list[int]:
        """`count` lengths, one from each of `count` equal parts of the law, in random order.

        So every round has about the law's own mean and spread: rounds differ by less than independent draws would, and
        what differs between builds is not lost in it.
        """
        shares = (generator.permutation(count) + generator.random(count)) / max(1, count)
        lengths: list[int] = self._at(shares).tolist()
        return lengths

    def _at(self, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """The length below which each of these shares lies."""
        import numpy as np

        most = self.most or MOST
        if self.kind == "uniform":
            return self.least + np.floor(shares * (most - self.least + 1)).astype(np.int64)
        sigma = _sigma(self.mean or 1.0, self.p99 or 1.0, self.least, most) or 0.0
        return _lognormal(_normal(shares), self.p99 or 1.0, sigma, self.least, most)


@dataclass(frozen=True, slots=True)
class Lengths:
    """The laws of a cell's lengths; None where all its requests are of one length. False where both are."""

    input: Law | None = None
    output: Law | None = None

    def __bool__(self) -> bool:
        return bool(self.input or self.output)

    def __str__(self) -> str:
        laws = (("input", self.input), ("output", self.output))
        return "; ".join(f"{name} {law}" for name, law in laws if law)


def longest(cell: Any) -> int | None:  # noqa: ANN401 - a Cell, whose room is a later one
    """Tokens of a cell's longest request, prompt and answer; None where nobody knows."""
    prompt = cell.lengths.input.most if cell.lengths.input else cell.input
    answer = cell.lengths.output.most if cell.lengths.output else cell.output
    return None if prompt is None or answer is None else prompt + answer


def ambiguous(shapes: Iterable[tuple[Any, ...]]) -> list[Fault]:
    """Points of a grid, (input, output, batch, rate, laws) each, that no table could tell from each other."""
    laws: dict[tuple[Any, ...], Lengths] = {}
    shapes = list(shapes)
    if len({point[0] is None for point in shapes}) > 1:
        return [Fault(("grid",), "has prompts of a file beside prompts of given lengths", "one of them in a sweep")]
    for *means, lengths in shapes:
        if laws.setdefault(tuple(means), lengths) != lengths:
            message = (
                f"has two laws of lengths with the means {means[0]} and {means[1]}: no table could tell them apart"
            )
            return [Fault(("grid",), message, "means that differ, or a sweep each")]
    return []


def mean_of(length: int | Law) -> int | None:
    """The whole number of tokens that stands for an axis' value: itself, or the mean of a law."""
    mean = length.mean if isinstance(length, Law) else length
    return None if mean is None else round(mean)


def _normal(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    import numpy as np

    inverse = NormalDist().inv_cdf
    return np.array([inverse(min(max(share, 1e-12), 1 - 1e-12)) for share in shares.tolist()])


def _lognormal(z: npt.NDArray[np.float64], p99: float, sigma: float, least: int, most: int) -> npt.NDArray[np.int64]:
    import numpy as np

    lengths = np.exp(math.log(p99) + sigma * (z - _Z99))
    return np.clip(np.rint(lengths), least, most).astype(np.int64)


@lru_cache(maxsize=64)
def _sigma(mean: float, p99: float, least: int, most: int) -> float | None:
    """The spread at which a lognormal law with this p99, kept within bounds, has this mean; None where none has."""
    import numpy as np

    z = _normal((np.arange(_GRID) + 0.5) / _GRID)

    def reached(sigma: float) -> float:
        return float(_lognormal(z, p99, sigma, least, most).mean())

    narrow, wide = 1e-9, _Z99
    if not reached(wide) <= mean <= reached(narrow):
        return None
    for _ in range(60):
        middle = (narrow + wide) / 2
        narrow, wide = (middle, wide) if reached(middle) > mean else (narrow, middle)
    return (narrow + wide) / 2


# ---- As they stand in a sweep -----------------------------------------------------------------------------


def _problem(message: str, allowed: str = FORMS) -> PydanticCustomError:
    return PydanticCustomError("bench", message.replace("{", "{{").replace("}", "}}"), {"allowed": allowed})


def law_of(value: object) -> Law:
    """The law that a sweep names. Raises PydanticCustomError in the words that its reader sees."""
    if value == "file":
        return Law("file", None)
    if not isinstance(value, dict) or len(value) != 1:
        raise _problem(f"must be a length or one law of lengths, is {show(value)}")
    ((kind, given),) = value.items()
    if kind == "uniform":
        return _uniform(given)
    keys = {"lognormal": ("mean", "p99", "min", "max"), "file": ("mean", "min", "max")}.get(kind)
    if keys is None:
        raise _problem(f"unknown law {show(kind)}")
    if not isinstance(given, dict) or (other := [key for key in given if key not in keys]):
        what = f"has the unknown key {show(other[0])}" if isinstance(given, dict) else f"is {show(given)}"
        raise _problem(f"{kind} {what}", ", ".join(keys))
    for key, number in given.items():
        whole = key in {"min", "max"}
        if (
            isinstance(number, bool)
            or not isinstance(number, int if whole else (int, float))
            or not 1 <= number <= MOST
        ):
            raise _problem(f"{kind}.{key} must be a {'whole ' * whole}number of tokens from 1, is {show(number)}", "")
    if kind == "file":
        return Law("file", given.get("mean"), given.get("min", 1), given.get("max"))
    return _lognormal_law(given)


def _uniform(given: object) -> Law:
    if not isinstance(given, (list, tuple)) or [type(end) for end in given] != [int, int]:
        raise _problem(f"uniform must be two whole numbers, the least and the most, is {show(given)}", "[128, 2048]")
    least, most = given
    if not 1 <= least <= most <= MOST:
        raise _problem(f"uniform must be from 1 tokens on and ascend, is [{least}, {most}]", "[128, 2048]")
    return Law("uniform", (least + most) / 2, least, most)


def _lognormal_law(given: Mapping[str, Any]) -> Law:
    if missing := [key for key in ("mean", "p99") if key not in given]:
        raise _problem(f"lognormal.{missing[0]} is missing", "{lognormal: {mean: 1024, p99: 4096}}")
    mean, p99, least = given["mean"], given["p99"], given.get("min", 1)
    most = given.get("max", math.ceil(2 * p99))
    if not least < mean < p99 <= most:
        raise _problem("lognormal must have min below mean below p99, and max no less than p99", "")
    if _sigma(mean, p99, least, most) is None:
        raise _problem(
            f"lognormal has no law of mean {mean:g} and p99 {p99:g} within {least} to {most}", "p99 <= 10 x mean"
        )
    return Law("lognormal", float(mean), least, most, float(p99))


def _length(value: object, whole: Callable[[object], int]) -> int | Law:
    if isinstance(value, Law):
        return value
    return law_of(value) if isinstance(value, dict) or value == "file" else whole(value)


class LengthSchema:
    """How pydantic reads an axis' value: a whole number, or a law."""

    @staticmethod
    def __get_pydantic_core_schema__(_source: object, _handler: object) -> core_schema.CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(
            lambda length: length.to_json() if isinstance(length, Law) else length
        )
        whole = core_schema.int_schema(strict=True, ge=1, le=MOST)
        return core_schema.no_info_wrap_validator_function(_length, whole, serialization=written)


_TOKENS = {"type": "integer", "minimum": 1, "maximum": MOST}
_NUMBER = {"type": "number", "minimum": 1, "maximum": MOST}
_LENGTH: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 1},
    {
        "type": "object",
        "description": "a lognormal law by its mean and p99, kept within min (1) and max (2 x p99)",
        "properties": {
            "lognormal": {
                "type": "object",
                "properties": {"mean": _NUMBER, "p99": _NUMBER, "min": _TOKENS, "max": _TOKENS},
                "required": ["mean", "p99"],
                "additionalProperties": False,
            }
        },
        "required": ["lognormal"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "description": "any length from the least to the most, each as likely",
        "properties": {"uniform": {"type": "array", "items": _TOKENS, "minItems": 2, "maxItems": 2}},
        "required": ["uniform"],
        "additionalProperties": False,
    },
    {"const": "file", "description": "as each prompt of prompts.path has it"},
]
AXIS_SCHEMA = {"anyOf": [*_LENGTH, {"type": "array", "items": {"anyOf": _LENGTH}, "minItems": 1}]}
