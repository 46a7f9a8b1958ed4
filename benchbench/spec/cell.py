"""A cell as a run stores it, and how it is called."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, computed_field, field_validator

from benchbench.datasets.row_lengths import differs, short_text
from benchbench.spec.schema import Slo, Validity

_AXES = (("", "variant"), ("in=", "input"), ("out=", "output"), ("batch=", "batch"), ("rate=", "rate"))


def cell_name(cell: Mapping[str, Any], separator: str = ", ") -> str:
    """`fa2, in=128, out=128, batch=8`, or `rate=2.5`; what the cell (a row, a stored cell) lacks is left out."""
    shown = {**cell, "output": output_text(cell)} if cell.get("output") is not None else cell
    shown = {**shown, "input": short_text(cell, "input")} if differs(cell, "input") else shown
    present = [(prefix, shown[key]) for prefix, key in _AXES if shown.get(key) not in {None, ""}]
    return separator.join(
        f"{prefix}{value:g}" if prefix == "rate=" else f"{prefix}{value}" for prefix, value in present
    )


def output_text(row: Mapping[str, Any]) -> str:
    """Output tokens: as asked, or where answers ended by themselves the mean received "of" the limit asked."""
    received, limit = row.get("output_tokens"), row.get("output")
    if differs(row, "output"):
        return short_text(row, "output")
    return str(limit) if received in {None, limit} else f"{received:.1f}".removesuffix(".0") + f" of {limit}"


class CellInfo(BaseModel):
    """An entry of the manifest's plan: all that reading a cell's records takes, so that the sweep is not needed.

    Lengths in tokens, `batch` requests in flight, `rate` requests/s. What a later version notes more is left out.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str
    index: int  # in written order
    variant: str
    input: int | None  # None where prompts are of a file and only the server can tell
    output: int
    batch: int | None
    rate: float | None
    lengths: str = ""  # the laws of those that differ within a round; `input` and `output` are their means
    load: str
    requests: int
    spread: bool = False  # a closed load whose first wave has spread lengths
    rounds_min: int
    rounds_max: int
    rel_ci: float
    warmup: int | str
    capped: bool  # an open load with a limit of requests in flight: waiting in our own queue is meant
    prompts: str
    output_mode: str
    slo: Slo
    validity: Validity

    @field_validator("slo", "validity", mode="before")
    @classmethod
    def _known(cls, value: Any, info: Any) -> Any:  # noqa: ANN401 # ValidationInfo's type is generic
        known = Slo if info.field_name == "slo" else Validity
        items = value.items() if isinstance(value, dict) else ()
        return _one(known, tuple(item for item in items if item[0] in known.model_fields)) if items else value

    def model_post_init(self, _: object) -> None:
        object.__setattr__(self, "__pydantic_fields_set__", _ALL)

    @computed_field  # type: ignore[prop-decorator] # mypy's limit, says pydantic
    @property
    def label(self) -> str:
        """As `in=128 out=128 batch=8`, the variant in front if there is one."""
        return cell_name(self.__dict__, " ")

    @property
    def shape(self) -> str:
        """The label without the variant: the same in any two builds."""
        return cell_name({**self.__dict__, "variant": ""}, " ")

    def to_entry(self) -> dict[str, Any]:
        """As JSON, for the manifest; `CellInfo.model_validate` reads it."""
        return self.model_dump(mode="json")


@cache
def _one(section: type[Slo | Validity], items: tuple[tuple[str, Any], ...]) -> Slo | Validity:
    return section.model_validate(dict(items))  # the same object for cells of the same limits: plans may be long


_ALL = {*CellInfo.model_fields}  # for all cells, too
