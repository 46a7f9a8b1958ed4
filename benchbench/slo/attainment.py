"""Up to which batch (or rate) a shape meets the SLO, in words. Pure, from summary rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from benchbench.spec.schema import Slo

_LIMITS = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2el_ms": "E2EL"}
_BEFORE = Slo(e2el_ms=1.0)  # of rows without `slo_met`: their goodput tells, by p99


class _Step(NamedTuple):
    """A measured cell of a shape: its batch or rate, whether it meets the SLO, its goodput in req/s, its status."""

    size: float
    met: bool
    goodput_req_s: float
    suspect: bool


def share_of(statistic: str) -> float | None:
    """The share of requests that must be within every limit: 0.99 for p99; None for the mean."""
    return None if statistic == "mean" else float(statistic.removeprefix("p")) / 100


def meets(slo: Slo, value: Callable[[str], float | None]) -> bool | None:
    """Whether a cell meets its SLO; None without one, and without its numbers. `value`: of a column of its row.

    Of a share, goodput is at least that share of req/s; of the mean, each limited mean over rounds is within its limit.
    """
    if not slo.is_set:
        return None
    share = share_of(slo.statistic)
    if share is None:
        both = [(value(name), limit) for name in _LIMITS if (limit := getattr(slo, name)) is not None]
        known = [mean <= limit for mean, limit in both if mean is not None]
        return all(known) if known else None
    goodput, req_s = value("goodput_req_s"), value("req_s")
    return None if goodput is None or not req_s else goodput >= share * req_s * (1 - 1e-9)


def limits_of(slo: Slo) -> tuple[str, float | None]:
    """What is held against the limits, as `TTFT, p99`, and the limit in ms where there is one alone."""
    limits = {title: limit for name, title in _LIMITS.items() if (limit := getattr(slo, name)) is not None}
    if len(limits) == 1:
        return f"{next(iter(limits))}, {slo.statistic}", next(iter(limits.values()))
    return f"Worst of {', '.join(limits)}, {slo.statistic}", None


def slo_sentence(plan: Iterable[Mapping[str, Any]]) -> list[str]:
    """The limits of a plan's cells and what meeting them is, in one line; none without limits."""
    limits = {(_limits(slo := cell.get("slo") or {}), slo.get("statistic", "p99")): None for cell in plan}
    limits = {both: None for both in limits if both[0]}
    if not limits:
        return []
    texts = [list(dict.fromkeys(of_all)) for of_all in zip(*limits, strict=True)]
    text = texts[0][0] if len(texts[0]) == 1 else "of each cell its own limits"
    share = share_of(texts[1][0])
    where = "its means are" if share is None else f"{100 * share:g} % of its requests are"
    where = where if len(texts[1]) == 1 else "what its slo.statistic names is"
    return [f"SLO: {text}; a cell meets it where {where} within every limit."]


def _limits(slo: Mapping[str, Any]) -> str:
    limits = [f"{title} {slo[name]:g} ms" for name, title in _LIMITS.items() if slo.get(name)]
    return f"{', '.join(limits)} at most" if limits else ""


def slo_lines(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line a shape: the largest batch (or rate) up to which every measured one meets the SLO.

    A cell meets it as its row says (`slo_met`), or without that by p99. Invalid cells, and those without goodput or
    req/s, count as not measured: a line names them but above the first that misses it, and the suspect ones that it
    rests on.
    Nothing of shapes without goodput.
    """
    shapes: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        shape = (row.get("variant") or "", row.get("load"), row.get("input"), row.get("output"))
        shapes.setdefault(shape, []).append(row)
    return [f"{_named(shape, shapes)}: {text}" for shape in shapes if (text := _shape_text(shapes[shape]))]


def _named(shape: tuple[Any, ...], shapes: Mapping[tuple[Any, ...], Any]) -> str:
    variant, load, *lengths = shape
    several = len({other[1] for other in shapes}) > 1
    return ", ".join([*filter(None, [variant, load if several else ""]), "in={}, out={}".format(*lengths)])


def _shape_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """`meets the SLO up to batch 16 (goodput 19.2 req/s)`; nothing where no cell has goodput."""
    axis = "batch" if any(row.get("batch") for row in rows) else "rate"
    steps = sorted(step for row in rows if (step := _step(row, axis)))
    unknown = sorted(row[axis] for row in rows if row.get(axis) and not _step(row, axis))
    if not steps:
        return ""
    first_missed = next((k for k, step in enumerate(steps) if not step.met), len(steps))
    good, beyond = steps[:first_missed], steps[first_missed:]
    again = [step.size for step in beyond if step.met]
    if good:
        last = good[-1]
        text = f"meets the SLO up to {axis} {last.size:g} (goodput {_goodput(last.goodput_req_s)} req/s)"
        text += f", not at {axis} {beyond[0].size:g}" if beyond else ", the largest measured"
    else:
        text = f"misses the SLO at {axis} {beyond[0].size:g}" if again else f"meets the SLO at no measured {axis}"
    text += f", yet meets it at {_sizes(axis, again)}" if again else ""
    rests_on = [*good, *beyond[:1]]
    if suspect := [step.size for step in rests_on if step.suspect]:
        text += f" (suspect: {_sizes(axis, suspect)})"
    if passed := [size for size in unknown if not beyond or size < beyond[0].size]:
        text += f"; no usable number at {_sizes(axis, passed)}"
    return text


def _step(row: Mapping[str, Any], axis: str) -> _Step | None:
    goodput, req_s = row.get("goodput_req_s"), row.get("req_s")
    if row.get("status") not in {"valid", "suspect"} or goodput is None or not req_s or not row.get(axis):
        return None
    met = row["slo_met"] if row.get("slo_met") is not None else meets(_BEFORE, row.get)
    return _Step(float(row[axis]), bool(met), goodput, row["status"] == "suspect")


def _sizes(axis: str, sizes: Sequence[float]) -> str:
    return f"{axis} {' and '.join(f'{size:g}' for size in sizes)}"


def _goodput(req_s: float) -> str:
    return f"{req_s:.1f}" if req_s >= 10 else f"{req_s:.3g}"
