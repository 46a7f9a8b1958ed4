"""What cannot be, or is unlikely, in a published table: claims -> findings with their arithmetic. Pure.

Every finding's formula is in docs/audit.md. Tolerances: rounding and means of rounds 3 %, noise of a TTFT or of a ratio
10 %, of a decode speed 5 %.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from benchbench.analysis.roofline import Bounds, bounds
from benchbench.audit.claims import Claims, Row, Span
from benchbench.model.config import ModelFacts
from benchbench.model.quantization import BITS

ROUNDING, NOISE, DECODE_NOISE = 0.03, 0.10, 0.05
EXPLANATIONS = {
    "cached": "prompts, or their beginnings, came from a prefix cache",
    "methods": "rows were not measured alike (requests not sent at once, another load, build or time)",
    "first": "it is the TTFT of a batch's first request, not the mean",
    "parameters": "the count of parameters is wrong, or of another model",
    "length": "prompts or answers were not as long as told",
    "hardware": "the hardware is not what is told, or faster than its data sheet",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`arithmetic`: a line for each row concerned, or each quantity; `explanations`: keys of EXPLANATIONS."""

    code: str
    severity: Literal["impossible", "suspicious"]
    what: str
    arithmetic: tuple[str, ...]
    explanations: tuple[str, ...]


def audit(claims: Claims) -> list[Finding]:
    """All findings, the impossible first. Invalid rows are a finding and take no part in the others.

    Rows are compared within their table: another may be of another model.
    """
    rows = [row for row in claims.rows if row.get("status") != "invalid"]
    alike: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        alike[tuple(row.get(key) for key in ("table", "variant", "load", "batch", "rate"))].append(row)
    found = [
        *_parameters(claims),
        *_memory(claims),
        *_faster(claims, rows),
        *_rates(rows),
        *_falling_ttft(alike.values()),
        *_decoding(alike.values()),
        *_scaling(rows),
        *_status(claims.rows),
    ]
    return sorted(found, key=lambda one: one.severity)


def _finding(
    code: str, what: str, lines: Sequence[str], *explanations: str, impossible: bool = False
) -> Iterator[Finding]:
    """One finding, none without a line; its explanations in the order of EXPLANATIONS."""
    if lines:
        yield Finding(
            code=code,
            severity="impossible" if impossible else "suspicious",
            what=what,
            arithmetic=tuple(lines),
            explanations=tuple(key for key in EXPLANATIONS if key in explanations),
        )


def name_of(row: Row) -> str:
    """`in=128, out=128, batch=32`, its variant first if it has one."""
    axes = (("", "variant"), ("in=", "input"), ("out=", "output"), ("batch=", "batch"), ("rate=", "rate"))
    return ", ".join(f"{label}{row[key]}" for label, key in axes if row.get(key))


def _number(row: Row, name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else None


# ---- the model --------------------------------------------------------------------------------------------


def _parameters(claims: Claims) -> Iterator[Finding]:
    model, told = claims.model, claims.model.parameters
    if told is None:
        return
    stored = [(claims.size, model.weight_dtype)] if claims.size and model.weight_dtype in BITS else []
    lines, too_many, too_few = [], False, False
    for (low, high), word in [*stored, *([claims.original] if claims.original else [])]:
        each, dtype = BITS[word or ""] / 8, (word or "").upper()
        too_many |= told > high / each * (1 + ROUNDING)
        too_few |= told < low / each / 2
        span = f"{_b(low / each)} to {_b(high / each)} parameters (as GB or GiB)"
        lines.append(
            f"{_b(told)} parameters in {dtype} take {told * each / 1e9:.0f} GB; {low / 1e9:.0f} GB of {dtype} hold "
            + (span if high > low else f"{_b(high / each)} parameters")
        )
    if too_many or too_few:
        what = "The number of parameters contradicts the size of the weights."
        yield from _finding("parameters_size", what, lines, "parameters", impossible=too_many)
    active, experts, top = model.active_parameters, model.experts, model.top_k
    share = top / experts if experts and top else 0.0
    if active and (active < told * share * (1 - ROUNDING) or active > told):
        least = f"; top-{top} of {experts} experts are at least {_b(told * share)}" if share else ""
        what, line = "The active parameters do not fit the routing.", f"{_b(active)} active of {_b(told)}{least}"
        yield from _finding("active_share", what, [line], "parameters", impossible=True)


def _memory(claims: Claims) -> Iterator[Finding]:
    device, count, said = claims.device, claims.count, claims.device_memory
    if device and device.memory_bytes and said and not 0.9 * said[0] < device.memory_bytes < 1.1 * said[1]:
        what = "The memory of a device is not that of its data sheet."
        line = f"{said[0] / 1e9:.0f} GB are told, a {device.name} has {device.memory_bytes / 1e9:.0f} GB"
        yield from _finding("device_memory", what, [line], "hardware")
    each = said[1] if said else device.memory_bytes * 1.024**3 if device else 0.0  # its GB may be GiB
    if claims.size and count and each and claims.size[0] > count * each:
        what = "The weights do not fit the memory of the devices (unless some are kept elsewhere)."
        line = f"{claims.size[0] / 1e9:.0f} GB of weights; {count} x {each / 1e9:.0f} GB of memory"
        yield from _finding("memory", what, [line], "hardware", "parameters", impossible=True)


# ---- the hardware's bounds --------------------------------------------------------------------------------


def shape_for_bounds(claims: Claims) -> ModelFacts | None:
    """The model with the fewest bytes and active parameters that the claims allow; None when they do not say."""
    model = claims.model
    if claims.size:
        model = replace(model, weight_bytes=round(claims.size[0]))
    if model.active_parameters is None and (model.experts or model.architecture == "MoE"):
        if not (model.parameters and model.experts and model.top_k):
            return None
        model = replace(model, active_parameters=model.parameters * model.top_k // model.experts)
    return model if model.active_parameters or model.parameters else None


def _faster(claims: Claims, rows: Sequence[Row]) -> Iterator[Finding]:
    model = shape_for_bounds(claims)
    if model is None or claims.device is None or not claims.count:
        return
    lines: dict[str, list[str]] = defaultdict(list)
    reasons: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if not row.get("batch") or row.get("load") == "open":
            continue
        limit, one = (
            bounds(
                model,
                claims.device,
                claims.count,
                input=row["input"],
                output=row["output"],
                batch=batch,
                load=row.get("load") or "static",
                passes=0.0 if claims.speculative else 1.0,
            )
            for batch in (row["batch"], 1)
        )
        ttft, tpot, rate = (_number(row, name) for name in ("ttft_ms", "tpot_ms", "sys_tok_s"))
        if ttft and limit.ttft_s and ttft / 1e3 < limit.ttft_s:
            lines["ttft"].append(_ttft_line(row, ttft / 1e3, limit, one, model))
            reasons["ttft"] |= {"first", "methods"} if one.ttft_s and ttft / 1e3 >= one.ttft_s else set()
        if tpot and limit.tpot_s and tpot / 1e3 < limit.tpot_s:
            lines["tpot"].append(f"{name_of(row)}: {tpot:.2f} ms, at least {limit.tpot_s * 1e3:.2f} ms")
        if rate and limit.sys_tok_s and rate > limit.sys_tok_s:
            lines["sys_tok_s"].append(f"{name_of(row)}: {rate:.1f} tok/s, at most {limit.sys_tok_s:.1f} tok/s")
    titles = {"ttft": "TTFT is below", "tpot": "TPOT is below", "sys_tok_s": "Sys tok/s is above"}
    common = {"ttft": {"cached", "length"}, "tpot": {"length"}, "sys_tok_s": {"cached", "length"}}
    for metric, found in lines.items():
        causes = reasons[metric] | common[metric] | {"parameters", "hardware"}
        what = f"{titles[metric]} what the hardware allows."
        yield from _finding(f"{metric}_bound", what, found, *causes, impossible=True)


def _ttft_line(row: Row, ttft_s: float, limit: Bounds, one: Bounds, model: ModelFacts) -> str:
    """What is too fast, by how much, and what would make it possible."""
    least, prompt = limit.ttft_s or 0.0, one.prefill_s or 0.0
    share = ttft_s / least
    line = f"{name_of(row)}: {ttft_s * 1e3:.1f} ms, at least {least * 1e3:.1f} ms"
    if math.isclose(least, (row["batch"] + 1) / 2 * prompt) and row["batch"] > 1 and row.get("load") != "closed":
        line += f" (one prompt {prompt * 1e3:.1f} ms, the mean of a batch ({row['batch']} + 1) / 2 of that)"
    active = model.active_parameters or model.parameters or 0
    possible = f"{math.floor(share * row['input'])} of {row['input']} prompt tokens computed"
    return f"{line}; possible with {possible}, or with {_b(share * active)} active parameters"


# ---- the rows against each other --------------------------------------------------------------------------


def _rates(rows: Iterable[Row]) -> Iterator[Finding]:
    """A batch's B x output tokens at Sys tok/s take at least as long as a mean request."""
    lines: dict[bool, list[str]] = {True: [], False: []}  # impossible or not
    for row in rows:
        ttft, tpot, rate = (_number(row, name) for name in ("ttft_ms", "tpot_ms", "sys_tok_s"))
        if not rate or not ttft or not row.get("batch") or row.get("load") == "open":
            continue
        lasts = row["batch"] * row["output"] / rate
        mean = (ttft + (row["output"] - 1) * (tpot or 0.0)) / 1e3
        made = f"TTFT + {row['output'] - 1} x TPOT" if tpot else "TTFT alone"
        line = (
            f"{name_of(row)}: {row['batch']} x {row['output']} tokens at {rate:.1f} tok/s take {lasts:.2f} s, "
            f"a mean request {mean:.2f} s ({made})"
        )
        slack = NOISE if row.get("load") == "closed" and tpot else ROUNDING
        if lasts < mean * (1 - slack):
            lines[slack == ROUNDING].append(line)
        elif tpot and lasts > mean / 0.7:
            lines[False].append(line)
    for impossible, found in lines.items():
        what = "Sys tok/s does not fit TTFT and TPOT."
        yield from _finding("rate", what, found, "methods", "length", impossible=impossible)


def _falling_ttft(groups: Iterable[Sequence[Row]]) -> Iterator[Finding]:
    lines = []
    for group in groups:
        for row in group:
            shorter = [
                other
                for other in group
                if other["input"] < row["input"]
                and (row.get("load") in {None, "static"} or other["output"] == row["output"])
                and _falls(other, row)
            ]
            if shorter:
                other = max(shorter, key=lambda one: float(one["ttft_ms"]))
                longer, slower = row["input"] / other["input"], row["ttft_ms"] / other["ttft_ms"]
                lines.append(
                    f"{name_of(row)}: {row['ttft_ms']:.1f} ms, but {other['ttft_ms']:.1f} ms at {name_of(other)}: "
                    f"{longer:.3g}x the input in {slower:.2f}x the time"
                )
    what = "TTFT falls as the input grows."
    yield from _finding("ttft_falls", what, lines, "cached", "methods", "length")


def _falls(shorter: Row, longer: Row) -> bool:
    before, after = _number(shorter, "ttft_ms"), _number(longer, "ttft_ms")
    if before is None or after is None or after >= before * (1 - NOISE):
        return False
    high, low = _number(longer, "ttft_ms_high"), _number(shorter, "ttft_ms_low")
    return high is None or low is None or high < low


def _decode_span(row: Row) -> Span | None:
    """TPOT in s without what prompts of others add to it, at least and at most.

    At most: TPOT as told, else what a mean request has after its first token, (B x output / Sys tok/s - TTFT) /
    (output - 1). At least: less the prompts computed meanwhile. In a static batch they last up to 2 B / (B + 1) of the
    mean TTFT, so (B - 1) / (B + 1) of it come after the mean; in a closed load up to B - 1 others.
    """
    ttft, tpot, rate = (_number(row, name) for name in ("ttft_ms", "tpot_ms", "sys_tok_s"))
    batch, following = row.get("batch"), row["output"] - 1
    if not ttft or not (tpot or rate) or not batch or not following or row.get("load") == "open":
        return None
    most = tpot / 1e3 if tpot else (batch * row["output"] / (rate or 1.0) - ttft / 1e3) / following
    meanwhile = batch - 1 if row.get("load") == "closed" else (batch - 1) / (batch + 1)
    return most - meanwhile * ttft / 1e3 / following, most


def _decoding(groups: Iterable[Sequence[Row]]) -> Iterator[Finding]:
    lines = []
    for group in groups:
        spans = [(row["input"] + row["output"] / 2, span, row) for row in group if (span := _decode_span(row))]
        for context, (_, most), row in spans:
            slower = [
                (other, least)
                for length, (least, _), other in spans
                if (length < context and most < least * (1 - DECODE_NOISE))
                or (context <= length <= 2 * context and most < least / 1.5 * context / length)
            ]
            if slower:
                other, least = max(slower, key=lambda one: one[1])
                lines.append(
                    f"{name_of(row)}: at most {most * 1e3:.1f} ms a token, but at least {least * 1e3:.1f} ms at "
                    f"{name_of(other)}"
                )
    what = "Tokens follow each other faster in longer contexts, or at very unlike rates in similar ones."
    yield from _finding("decode", what, lines, "methods", "length")


def _scaling(rows: Sequence[Row]) -> Iterator[Finding]:
    lines = []
    shapes: dict[tuple[object, ...], list[tuple[int, float, Row]]] = defaultdict(list)
    for row in rows:
        if row.get("batch") and (rate := _number(row, "sys_tok_s")):
            key = tuple(row.get(name) for name in ("table", "variant", "load", "input", "output"))
            shapes[key].append((row["batch"], rate, row))
    for found in shapes.values():
        found.sort(key=lambda one: one[0])
        for (small, slow, _), (large, fast, row) in pairwise(found):
            if fast / slow > large / small * (1 + NOISE):
                lines.append(
                    f"{name_of(row)}: {fast / slow:.1f}x the tok/s of batch={small} with {large / small:.3g}x it"
                )
    what = "Throughput grows faster than the batch."
    yield from _finding("scaling", what, lines, "methods", "cached", "length")


def _status(rows: Iterable[Row]) -> Iterator[Finding]:
    """What a run says of its own cells."""
    for status in ("invalid", "suspect"):
        bad = [row for row in rows if row.get("status") == status]
        lines = [f"{name_of(row)}: {row.get('reasons') or 'no reason recorded'}" for row in bad]
        beyond = any("faster_than_hardware" in line for line in lines)
        yield from _finding(status, f"The run itself calls cells {status}.", lines, impossible=beyond)


def _b(count: float) -> str:
    return f"{count / 1e9:.1f} B" if count >= 1e8 else f"{count / 1e6:.1f} M"
