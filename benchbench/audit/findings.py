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

from benchbench.audit.claims import Claims, Row, Span
from benchbench.model.config import ModelFacts, billions
from benchbench.model.quantization import BITS
from benchbench.model.roofline import Bounds, Platform, bounds
from benchbench.spec.cell import cell_name

ROUNDING, NOISE, DECODE_NOISE = 0.03, 0.10, 0.05
EXPLANATIONS = {
    "cached": "prompts, or their beginnings, came from a prefix cache",
    "methods": "rows were not measured alike (requests not sent at once, another load, build or time)",
    "first": "it is the TTFT of a batch's first request, not the mean",
    "speculative": "a pass of the model gave several tokens (speculative decoding: EAGLE, MTP, a draft model, n-grams)",
    "routing": "requests shared experts more than under uniform routing",
    "parameters": "the number of parameters is wrong, or of another model",
    "length": "prompts or answers were not as long as stated",
    "hardware": "the hardware is not the stated one, or faster than its data sheet",
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
    """All findings, the impossible first. Invalid rows are a finding and take no part in the others, nor does a
    throughput that counts prompt tokens.

    Rows are compared within their table: another may be of another model.
    """
    measured = [row for row in claims.rows if row.get("status") != "invalid"]
    rows = [{**row, "sys_tok_s": None} if _total_line(row) else row for row in measured]
    alike = _groups(rows, "table", "variant", "load", "batch", "rate")
    findings = [
        *_parameters(claims),
        *_memory(claims),
        *_faster(claims, rows),
        *_total(measured),
        *_rates(rows),
        *_whole(rows),
        *_falling_ttft(alike),
        *_decoding(alike),
        *_scaling(rows),
        *_status(claims.rows),
    ]
    return sorted(findings, key=lambda finding: finding.severity)


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


def _groups(rows: Iterable[Row], *keys: str) -> list[list[Row]]:
    """The rows by their values of these keys."""
    groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row.get(key) for key in keys)].append(row)
    return list(groups.values())


def name_of(row: Row) -> str:
    """`in=128, out=128, batch=32 (line 7)`, its variant first if it has one."""
    return cell_name(row) + (f" (line {row['line']})" if row.get("line") else "")


def _number(row: Row, name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else None


# ---- the model --------------------------------------------------------------------------------------------


def _parameters(claims: Claims) -> Iterator[Finding]:
    model, parameters = claims.model, claims.model.parameters
    if parameters is None:
        return
    stored = [(claims.size, model.weight_dtype)] if claims.size and model.weight_dtype in BITS else []
    lines, too_many, too_few = [], False, False
    for (low, high), word in [*stored, *([claims.original] if claims.original else [])]:
        each, dtype = BITS[word or ""] / 8, (word or "").upper()
        too_many |= parameters > high / each * (1 + ROUNDING)
        too_few |= parameters < low / each / 2
        span = f"{billions(low / each)} to {billions(high / each)} parameters (as GB or GiB)"
        lines.append(
            f"{billions(parameters)} parameters in {dtype} take {parameters * each / 1e9:.0f} GB; "
            f"{low / 1e9:.0f} GB of {dtype} hold " + (span if high > low else f"{billions(high / each)} parameters")
        )
    if too_many or too_few:
        what = "The number of parameters contradicts the size of the weights."
        yield from _finding("parameters_size", what, lines, "parameters", impossible=too_many)
    active, experts, top = model.active_parameters, model.experts, model.top_k
    share = top / experts if experts and top else 0.0
    if active and (active < parameters * share * (1 - ROUNDING) or active > parameters):
        least = f"; top-{top} of {experts} experts are at least {billions(parameters * share)}" if share else ""
        what, line = "The active parameters do not fit the routing.", f"{billions(active)} active of "
        yield from _finding(
            "active_share", what, [f"{line}{billions(parameters)}{least}"], "parameters", impossible=True
        )


def _memory(claims: Claims) -> Iterator[Finding]:
    device, count, stated = claims.device, claims.count, claims.device_memory
    if device and device.memory_bytes and stated and not 0.9 * stated[0] < device.memory_bytes < 1.1 * stated[1]:
        what = "The memory of a device is not that of its data sheet."
        line = f"{stated[0] / 1e9:.0f} GB are stated, a {device.name} has {device.memory_bytes / 1e9:.0f} GB"
        yield from _finding("device_memory", what, [line], "hardware")
    each = stated[1] if stated else device.memory_bytes * 1.024**3 if device else 0.0  # its GB may be GiB
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
    model, shared = shape_for_bounds(claims), None
    if model is not None and claims.device is not None and claims.count:
        shared = Platform(model, claims.device, claims.count, claims.passes)
    lines: dict[str, list[str]] = defaultdict(list)
    first = False
    for row in rows:
        platform = claims.platforms.get(row.get("variant") or "", shared)
        if platform is None or not row.get("batch") or row.get("load") == "open":
            continue
        of = {"input": row["input"], "output": row["output"], "load": row.get("load") or "static"}
        limit, single = (bounds(platform, **of, batch=batch) for batch in (row["batch"], 1))
        likely = bounds(platform, **of, batch=row["batch"], likely=True)
        ttft, tpot, rate = (_number(row, name) for name in ("ttft_ms", "tpot_ms", "sys_tok_s"))
        if ttft and limit.ttft_s and ttft / 1e3 < limit.ttft_s:
            lines["ttft_bound"].append(_ttft_line(row, ttft / 1e3, limit, single, platform.model))
            first |= bool(single.ttft_s and ttft / 1e3 >= single.ttft_s)
        if tpot and limit.tpot_s and tpot / 1e3 < limit.tpot_s:
            lines["tpot_bound"].append(f"{name_of(row)}: {tpot:.2f} ms, at least {limit.tpot_s * 1e3:.2f} ms")
        whole, least = _number(row, "e2el_ms"), (limit.ttft_s or 0.0) + (row["output"] - 1) * (limit.tpot_s or 0.0)
        if whole and whole / 1e3 < least:
            lines["e2el_bound"].append(f"{name_of(row)}: {whole:.1f} ms, at least {least * 1e3:.1f} ms")
        for code, most in (("sys_tok_s_bound", limit.sys_tok_s), ("sys_tok_s_likely", likely.sys_tok_s)):
            if rate and most and rate > most:
                lines[code].append(f"{name_of(row)}: {rate:.1f} tok/s, at most {most:.1f} tok/s")
                break
    above = "Sys tok/s is above what the hardware allows"
    for code, what, *causes in (
        ("ttft_bound", "TTFT is below what the hardware allows.", "cached", *(("first", "methods") if first else ())),
        ("tpot_bound", "TPOT is below what the hardware allows.", "speculative"),
        ("e2el_bound", "E2EL is below what the hardware allows.", "cached", "speculative"),
        ("sys_tok_s_bound", f"{above}.", "cached", "speculative"),
        ("sys_tok_s_likely", f"{above} under uniform routing.", "cached", "speculative", "routing"),
    ):
        causes += ["parameters", "hardware", "length"]
        yield from _finding(code, what, lines[code], *causes, impossible=code != "sys_tok_s_likely")


def _ttft_line(row: Row, ttft_s: float, limit: Bounds, single: Bounds, model: ModelFacts) -> str:
    """What is too fast, by how much, and what would make it possible."""
    least, prompt = limit.ttft_s or 0.0, single.prefill_s or 0.0
    share = ttft_s / least
    line = f"{name_of(row)}: {ttft_s * 1e3:.1f} ms, at least {least * 1e3:.1f} ms"
    if math.isclose(least, (row["batch"] + 1) / 2 * prompt) and row["batch"] > 1 and row.get("load") != "closed":
        line += f" (one prompt {prompt * 1e3:.1f} ms, the mean of a batch ({row['batch']} + 1) / 2 of that)"
    active = model.active_parameters or model.parameters or 0
    possible = f"{math.floor(share * row['input'])} of {row['input']} prompt tokens computed"
    return f"{line}; possible with {possible}, or with {billions(share * active)} active parameters"


# ---- the rows against each other --------------------------------------------------------------------------


def _mean_s(row: Row) -> float | None:
    """What a mean request takes, s: TTFT + (output - 1) TPOT, else E2EL, else TTFT. None: unknown, or an open load."""
    ttft, tpot, whole = (_number(row, name) for name in ("ttft_ms", "tpot_ms", "e2el_ms"))
    if not (ttft or whole) or not row.get("batch") or row.get("load") == "open":
        return None
    if ttft and tpot:
        return float(ttft + (row["output"] - 1) * tpot) / 1e3
    return (whole or ttft or 0.0) / 1e3


def _whole(rows: Iterable[Row]) -> Iterator[Finding]:
    """E2EL is TTFT and the time of the tokens after the first: never less than TTFT, nor far from both."""
    lines: dict[bool, list[str]] = {True: [], False: []}  # impossible or not
    for row in rows:
        ttft, tpot, whole = (_number(row, name) for name in ("ttft_ms", "tpot_ms", "e2el_ms"))
        if not ttft or not whole:
            continue
        parts = ttft + (row["output"] - 1) * (tpot or 0.0)
        if whole < ttft * (1 - ROUNDING):
            lines[True].append(f"{name_of(row)}: {whole:.1f} ms, TTFT alone {ttft:.1f} ms")
        elif tpot and not parts * (1 - NOISE) <= whole <= parts / 0.7:
            follows = f"TTFT + {row['output'] - 1} x TPOT is {parts:.1f} ms"
            lines[False].append(f"{name_of(row)}: {whole:.1f} ms, {follows}")
    for impossible, contradictions in lines.items():
        what = "E2EL does not fit TTFT and TPOT." if not impossible else "E2EL is less than TTFT."
        yield from _finding("e2el", what, contradictions, "methods", "length", impossible=impossible)


def _total_line(row: Row) -> str | None:
    """The arithmetic, where the throughput fits only if prompt tokens count: B (I + O) / R is a mean request's time."""
    mean, rate, tokens = _mean_s(row), _number(row, "sys_tok_s"), row["input"] + row["output"]
    if mean is None or rate is None or not _number(row, "tpot_ms"):
        return None
    output, total = (row["batch"] * count / rate for count in (row["output"], tokens))
    if output >= mean * (1 - NOISE) or not mean * (1 - NOISE) <= total <= mean / (1 - NOISE):
        return None
    return (
        f"{name_of(row)}: {row['batch']} x ({row['input']} + {row['output']}) tokens at {rate:.1f} tok/s take "
        f"{total:.2f} s, a mean request {mean:.2f} s; output alone is {rate * row['output'] / tokens:.1f} tok/s"
    )


def _total(rows: Iterable[Row]) -> Iterator[Finding]:
    lines = [line for row in rows if (line := _total_line(row))]
    what = "The throughput counts prompt tokens: it is total throughput (input + output), not Sys tok/s."
    yield from _finding("total_throughput", what, lines)


def _rates(rows: Iterable[Row]) -> Iterator[Finding]:
    """A batch's B x output tokens at Sys tok/s take at least as long as a mean request."""
    lines: dict[bool, list[str]] = {True: [], False: []}  # impossible or not
    for row in rows:
        mean, tpot, rate = _mean_s(row), _number(row, "tpot_ms"), _number(row, "sys_tok_s")
        if not rate or mean is None:
            continue
        lasts = row["batch"] * row["output"] / rate
        has_parts = tpot and _number(row, "ttft_ms")
        formula = f"TTFT + {row['output'] - 1} x TPOT" if has_parts else "E2EL" if row.get("e2el_ms") else "TTFT alone"
        line = (
            f"{name_of(row)}: {row['batch']} x {row['output']} tokens at {rate:.1f} tok/s take {lasts:.2f} s, "
            f"a mean request {mean:.2f} s ({formula})"
        )
        tpot = tpot or _number(row, "e2el_ms")
        slack = NOISE if row.get("load") == "closed" and tpot else ROUNDING
        if lasts < mean * (1 - slack):
            lines[slack == ROUNDING].append(line)
        elif tpot and lasts > mean / 0.7:
            lines[False].append(line)
    for impossible, contradictions in lines.items():
        what = "Sys tok/s does not fit TTFT and TPOT."
        yield from _finding("rate", what, contradictions, "methods", "length", impossible=impossible)


def _falling_ttft(groups: Iterable[Sequence[Row]]) -> Iterator[Finding]:
    lines = []
    for group in groups:
        for row in group:
            shorter = [other for other in group if _falls(other, row)]
            if shorter:
                other = max(shorter, key=lambda other: float(other["ttft_ms"]))
                longer, slower = row["input"] / other["input"], row["ttft_ms"] / other["ttft_ms"]
                lines.append(
                    f"{name_of(row)}: {row['ttft_ms']:.1f} ms, but {other['ttft_ms']:.1f} ms at {name_of(other)}: "
                    f"{longer:.3g}x the input in {slower:.2f}x the time"
                )
    what = "TTFT falls as the input grows."
    yield from _finding("ttft_falls", what, lines, "cached", "methods", "length")


def _falls(shorter: Row, longer: Row) -> bool:
    """Whether TTFT is certainly lower at the longer input. In other loads than static it depends on the output too."""
    if shorter["input"] >= longer["input"]:
        return False
    if longer.get("load") not in {None, "static"} and shorter["output"] != longer["output"]:
        return False
    before, after = _number(shorter, "ttft_ms"), _number(longer, "ttft_ms")
    if before is None or after is None or after >= before * (1 - NOISE):
        return False
    high, low = _number(longer, "ttft_ms_high"), _number(shorter, "ttft_ms_low")
    return high is None or low is None or high < low


def _decode_span(row: Row) -> Span | None:
    """TPOT in s without what prompts of others add to it, at least and at most.

    At most: TPOT as stated, else what a mean request has after its first token, (B x output / Sys tok/s - TTFT) /
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
                other, least = max(slower, key=lambda pair: pair[1])
                lines.append(
                    f"{name_of(row)}: at most {most * 1e3:.1f} ms a token, but at least {least * 1e3:.1f} ms at "
                    f"{name_of(other)}"
                )
    what = "Tokens follow each other faster in longer contexts, or at very unlike rates in similar ones."
    yield from _finding("decode", what, lines, "methods", "length", "speculative")


def _scaling(rows: Sequence[Row]) -> Iterator[Finding]:
    lines = []
    known = [row for row in rows if row.get("batch") and _number(row, "sys_tok_s")]
    for group in _groups(known, "table", "variant", "load", "input", "output"):
        for small, large in pairwise(sorted(group, key=lambda row: int(row["batch"]))):
            faster, times = large["sys_tok_s"] / small["sys_tok_s"], large["batch"] / small["batch"]
            if faster > times * (1 + NOISE):
                line = f"{faster:.1f}x the tok/s of batch={small['batch']} with {times:.3g}x it"
                lines.append(f"{name_of(large)}: {line}")
    what = "Throughput grows faster than the batch."
    yield from _finding("scaling", what, lines, "methods", "cached", "length")


def _status(rows: Iterable[Row]) -> Iterator[Finding]:
    """What a run says of its own cells."""
    for status in ("invalid", "suspect"):
        bad = [row for row in rows if row.get("status") == status]
        lines = [f"{name_of(row)}: {row.get('reasons') or 'no reason recorded'}" for row in bad]
        beyond = any("faster_than_hardware" in line for line in lines)
        yield from _finding(status, f"The run itself calls cells {status}.", lines, impossible=beyond)
