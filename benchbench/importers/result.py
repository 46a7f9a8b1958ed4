"""What a tool reports of one run of one shape, and how its JSON is checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from benchbench.analysis.reasons import Reason
from benchbench.analysis.runs import OWN
from benchbench.plausible.contradictions import contradiction
from benchbench.plausible.loads import Load, load_of, was_another

TOLERANCE = 0.02  # relative, of a length: tools that send text hit a number of tokens only nearly
STREAMED = 0.995, 1.02  # of E2EL; a TTFT between them, without a TPOT, is that of a whole answer
_ABOVE_0 = {"ttft_ms", "tpot_ms", "e2el_ms", "run_tok_s", "total_tok_s", "req_s", "round_s"}  # 0: a tool's "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedResult:
    """One run of one shape by `tool`.

    `values`: summary.csv's columns, as the tool gives them. `pools`: ttft, itl and e2el of each request or gap in ms,
    where the file has them. Unknown `load`, `version` and `date` are "". `conditions`: what else must be equal for two
    results to be rounds of one cell, as `{"burstiness": 1.0}`. `start`: of a run of ours with several starts of its
    engine, which of them it is of. `rounds`: that it is the mean of. `notes`: what a table of ours says below such
    rows, where `bench export` wrote the file.
    """

    tool: str
    version: str = ""
    date: str = ""
    model: str = ""
    variant: str = ""
    load: str
    input: int
    output: int
    batch: int | None
    rate: float | None = None
    requests: int | None = None
    failed: int | None = None
    start: int | None = None
    rounds: int = 1
    values: Mapping[str, float]
    pools: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    reasons: tuple[Reason, ...] = ()
    conditions: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _known(value: Any) -> Any:  # noqa: ANN401 - JSON
    return None if isinstance(value, float) and not math.isfinite(value) else value


# A number that a tool could not compute is NaN in one of them, null in another, and absent in the third.
Number = Annotated[float | None, BeforeValidator(_known)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

Model = TypeVar("Model", bound=BaseModel)


def parsed(model: type[Model], data: Any, tool: str) -> Model:  # noqa: ANN401 - JSON
    """Raises ValueError that names the first field that is wrong."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{tool}: {where}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def imported(
    values: Mapping[str, float],
    *,
    done: int,
    failed: int,
    load: Load,
    inputs: tuple[float | None, float | None],
    outputs: tuple[float | None, float | None],
    reasons: tuple[Reason, ...] = (),
    **more: Any,  # noqa: ANN401 - the other fields
) -> ImportedResult:
    """A result of requests that are `done` or `failed`, under a `load` as `load_of` gives it.

    `inputs` and `outputs`: mean length, and the length requested, which is the cell's where the file has it. Of a
    single wave the whole run's rate is what a static load means by Sys tok/s. `reasons`: what the file itself tells.
    """
    mean_output, is_ours = outputs[0] or 0.0, more["tool"] == OWN
    if not is_ours and (ramp := was_another(load, values, done, mean_output)):
        load = load_of(done, None, None, ramp=True)
        more["variant"] = f"{more.get('variant', '')} ramp-up: {ramp}".strip()
    kind, batch, rate = load
    (input_length, other_input), (output_length, other_output) = _length(*inputs), _length(*outputs)
    applying = {
        Reason.REQUEST_FAILED: failed > 0,
        Reason.OUTPUT_LENGTH: other_output and done > 0,
        Reason.INPUT_LENGTH: other_input and done > 0,
    }
    ttft, e2el = values.get("ttft_ms", 0.0), values.get("e2el_ms", math.inf)
    if mean_output > 1 and "tpot_ms" not in values and STREAMED[0] * e2el < ttft < STREAMED[1] * e2el:
        values = {name: value for name, value in values.items() if not name.startswith(("ttft", "tpot", "itl"))}
        more["pools"] = {name: pool for name, pool in more.get("pools", {}).items() if name == "e2el"}
    # Ours may be of several runs.
    if done and not is_ours and (why := contradiction(values, done, mean_output, more.get("pools"))):
        raise ValueError(f"{more['tool']}: {why}: a unit is another one, or the file is wrong")
    if kind == "static" and "run_tok_s" in values:
        values = {"sys_tok_s": values["run_tok_s"], **values}
    return ImportedResult(
        load=kind,
        batch=batch,
        rate=rate,
        input=input_length,
        output=output_length,
        requests=done + failed,
        failed=failed,
        values=values if done else {},
        reasons=(*(reason for reason, applies in applying.items() if applies), *reasons),
        **more,
    )


def _length(mean: float | None, target: float | None) -> tuple[int, bool]:
    if target is None:
        return round(mean or 0.0), False
    return round(target), abs((mean or 0.0) - target) > max(1.0, TOLERANCE * target)


def numbers(data: dict[str, Any], paths: Mapping[str, str], tool: str) -> dict[str, float]:
    """The numbers at these paths (keys with dots between), by column; absent, null, NaN or below 0, and what
    cannot be 0: left out.

    Raises ValueError for what is no number.
    """
    values = {}
    for column, path in paths.items():
        value: Any = data
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ValueError(f"{tool}: {path}: not a number")  # noqa: TRY004 - the file is wrong, not the caller
        if value is not None and 0 <= value < 1e18 and (value or column not in _ABOVE_0):
            values[column] = float(value)
    return values
