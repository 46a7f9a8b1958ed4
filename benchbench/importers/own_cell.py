"""What `bench export` writes of a cell beside another format's own fields: its name, its status and its notes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from benchbench.analysis.reasons import Reason
from benchbench.analysis.runs import OWN
from benchbench.importers.result import Count, Positive


def _codes(value: Any) -> Any:  # noqa: ANN401 - JSON
    return value.split(";") if isinstance(value, str) else value


class OwnCell(BaseModel):
    """A cell of ours as a file of another format names it; `reasons` are codes, in a list or joined by `;`."""

    variant: str = ""
    load: Literal["static", "closed", "open"]
    input: Count
    output: Count
    batch: Annotated[int, Field(gt=0)] | None = None
    rate: Positive | None = None
    status: str = "invalid"
    reasons: Annotated[list[str], BeforeValidator(_codes)] = []
    start: Count | None = None
    rounds: Count = 1
    notes: list[str] = []

    @model_validator(mode="after")
    def _of_one_load(self) -> Self:
        if (self.rate is None) != (self.load != "open") or (self.batch is None) != (self.load == "open"):
            raise ValueError(f"load {self.load}: it has a rate where it is open, else a batch")
        return self

    def labels(self, version: str) -> dict[str, Any]:
        """The arguments of `result.imported` that it tells.

        A suspect cell has no reason that makes invalid, even where two degrees of one have one code.
        """
        bearable = {"suspect"} if self.status == "suspect" else {"suspect", "invalid"}
        return {
            **{name: getattr(self, name) for name in ("variant", "start", "rounds")},
            "inputs": (self.input, None),
            "outputs": (self.output, None),
            "tool": OWN,
            "version": version,
            "reasons": tuple(known for known in Reason if known.code in self.reasons and known.status in bearable),
            "notes": tuple(self.notes),
        }
