"""What a publication claims: its table, model and hardware, read from a card's Markdown or a CSV file. Pure."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchbench.model.accelerators import Accelerator, accelerator
from benchbench.model.config import ModelFacts
from benchbench.model.quantization import dtype_word
from benchbench.report.markdown import read_tables

if TYPE_CHECKING:
    from benchbench.analysis.runs import Run
    from benchbench.model.roofline import Platform

Row = Mapping[str, Any]
Span = tuple[float, float]  # bytes, at least and at most: cards write GB and may mean GiB

_MEAN = r"(?:mean |avg |average )?"
_UNIT = r"(?: mean| avg)?(?: (?P<unit>ms|us|s|secs?|seconds?|min|minutes))?"
_MS = {"ms": 1.0, "us": 1e-3, **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1e3)}  # in a unit of time
_MS |= dict.fromkeys(("min", "minutes"), 6e4)
_THOUSANDS = {"k": 1e3, "m": 1e6}  # behind a rate
# Titles in lower case with all else than letters and digits as one space; the columns are those of summary.csv.
_COLUMNS = {
    "variant": r"variant|build",
    "load": r"load",
    "status": r"status",
    "reasons": r"reasons",
    "input": r"(?:random )?(?:input|in|isl|prompt)(?: (?:len|length|tokens))?",
    "output": r"(?:random )?(?:output|out|osl|generated)(?: (?:len|length|tokens))?",
    "batch": r"batch(?: size)?|bs|(?:max )?concurren(?:cy|t requests)|users|requests in flight",
    "ttft_ms": rf"{_MEAN}(?:ttft|time to first token){_UNIT}",
    "tpot_ms": rf"{_MEAN}(?:tpot|time per output token){_UNIT}",
    "e2el_ms": rf"{_MEAN}(?:e2el?|(?:e2e|end to end|request) latency){_UNIT}",
    "sys_tok_s": r"(?:(?:sys|system|output|generation) )?(?:token )?(?:throughput|tok s|tokens s|tps)(?: tok\w* s)?",
    **{
        f"{name}_{end}": f"{name} {end}".replace("_", " ")
        for name in ("ttft_ms", "sys_tok_s")
        for end in ("low", "high")
    },
}
_WORDS = ("variant", "load", "status", "reasons")
_NUMBER = re.compile(r"(?<![\w.])(\d{1,3}(?:,\d{3}){1,4}(?:\.\d+)?|\d{1,15}(?:\.\d+)?|\.\d+)(?!\d)\s*([A-Za-z]*)")
_GROUPS = re.compile(r"(?<=\d)[ \u00a0\u2009\u202f'_](?=\d{3}(?!\d))")  # what stands between thousands
# Beside a number: of a limit; of a range, a decimal comma, a power of ten. Then it is not meant as it stands.
_LIMIT = re.compile(r"[<>\N{LESS-THAN OR EQUAL TO}\N{GREATER-THAN OR EQUAL TO}]\s*$")
_GOES_ON = re.compile(r"\s*[-/\N{EN DASH}\N{EM DASH}]\s*\d|[.,]\d|e[+-]?\d")
_MICRO = str.maketrans("\N{MICRO SIGN}\N{GREEK SMALL LETTER MU}", "uu")
_DTYPE = re.compile(r"\b(bf16|fp16|fp8|int8|int4|mxfp4|nvfp4|fp4|bfloat16|float16)\b", re.IGNORECASE)
_TIMES = {"t": 1e12, "b": 1e9, "m": 1e6, "trillion": 1e12, "billion": 1e9, "million": 1e6}
_COUNT = re.compile(r"(\d{1,15}(?:\.\d+)?)\s*(T|B|M|(?:tr|b|m)illion)\b([^\d,;|]*)", re.IGNORECASE)
_SIZE = re.compile(r"(\d[\d,]{0,15}(?:\.\d+)?)\s*(MB|GB|TB|MiB|GiB|TiB)\b", re.IGNORECASE)
_SPECULATIVE = re.compile(
    r"speculat(?:ive|or)|\beagle[- ]?\d?\b|\bmtp\b|multi[- ]token prediction|\bmedusa\b|\bhydra heads\b|\bnextn\b"
    r"|\bdraft(?:er)?[- _](?:model|tokens?|head)|\bn-?gram\b|\blook-?ahead (?:decoding|reasoning)|prompt[- ]lookup",
    re.IGNORECASE,
)
_NOT_SPECULATIVE = re.compile(
    r"\b(?:without|no|not (?:using|with))\s+(?:any )?(?:speculative|eagle|mtp|medusa)[^.;\n|]*"
    r"|speculative[- ](?:decoding|config)\W{1,5}(?:off|none|no|disabled|false)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Rows have keys of summary.csv (latencies in ms, Sys tok/s in 1/s), and `line`, their line in the source."""

    rows: tuple[Row, ...] = ()
    model: ModelFacts = field(default_factory=ModelFacts)
    size: Span | None = None  # of the weights as served, bytes
    original: tuple[Span, str] | None = None  # of the weights before quantization, and their dtype
    device: Accelerator | None = None
    count: int | None = None  # devices
    device_memory: Span | None = None  # of one, as the source says
    passes: float = 1.0  # of the model per token, at least; 0 with speculative decoding (see roofline.Platform)
    notes: tuple[str, ...] = ()  # assumptions
    platforms: Mapping[str, Platform | None] = field(default_factory=dict)  # by variant, where their models are unlike


def count_of(text: str) -> int:
    """`456B`, `45.9 B`, `1.5T` or plain digits as a number of parameters. Raises ValueError."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([TBM])?", text.strip(), re.IGNORECASE):
        return round(float(match[1]) * _TIMES.get((match[2] or "").lower(), 1))
    raise ValueError(f"{text}: not a number of parameters (allowed: as 456B, 800M or 228689748992)")


def claims_of_run(run: Run) -> Claims:
    """A run's rows, recomputed from its records, and what its manifest knows of model and hardware."""
    platform, rows = run.platform(), tuple(_received(row) for row in run.rows if not row.get("lengths"))
    spread = len(run.rows) - len(rows)
    notes = (f"{spread} rows are left out: their lengths differ within a round, and each check needs one.",) * bool(
        spread
    )
    if run.manifest.get("variant_model_facts"):  # rows of unlike models have no facts in common
        platforms = {cell.variant: run.platform(cell.variant) for cell in run.cells}
        return Claims(rows=rows, notes=notes, platforms=platforms)
    if platform is None:
        return Claims(rows=rows, notes=notes)
    size = float(platform.model.weight_bytes) if platform.model.weight_bytes else None
    return Claims(
        rows=rows,
        model=platform.model,
        size=(size, size) if size else None,
        device=platform.device,
        count=platform.count,
        passes=platform.passes,
        notes=notes,
    )


def _received(row: Row) -> Row:
    """A row whose output is what was received, where answers ended by themselves before the limit asked."""
    received = row.get("output_tokens")
    return row if received is None else {**row, "output": round(received)}


def claims_of_csv(text: str) -> Claims:
    """The rows of a CSV file, ours or another's. Raises ValueError for unknown columns."""
    reader = csv.reader(text.splitlines())
    try:
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise ValueError(f"is no CSV: {error}") from None
    rows = tuple(_rows(lines[0][1], lines[1:])) if lines else ()
    if not rows:
        raise ValueError("has no rows with input, output and TTFT, E2EL or Sys tok/s")
    return Claims(rows=rows)


def claims_of_card(text: str) -> Claims:
    """What a model card says: its performance table, or facts of a model alone. Raises ValueError without either.

    Of several devices those named last before the table are meant. A batch is assumed to be sent at once unless a
    column or the text names the load: concurrency is a closed load.
    """
    text = "\n".join(text.splitlines())
    rows, place = _performance(text)
    model, size = _model(text), _labelled(text, r"(?:model )?size|weights")
    if not rows and model == ModelFacts():
        raise ValueError("has no table with input, output and TTFT, E2EL or Sys tok/s, and no facts of a model")
    named = re.search(r"\b(static|closed|open) load", text)
    load = named[1] if named else "static"
    before = _labelled(text, r"original size|base size|(?:size in )?(?:bf16|fp16)(?: size)?")
    original = before and _span(before)
    dtype = _DTYPE.search(before or "")
    device, count, words = _hardware(text, place)
    parallel = re.search(r"(?:\bTP\s*=\s*|tensor-parallel-size[ =])([1-9]\d{0,5})\b", text)
    return Claims(
        rows=tuple({"load": load, **row} for row in rows),
        model=model,
        size=_span(size) if size else None,
        original=(original, (dtype_word(dtype[1]) if dtype else None) or "bf16") if original else None,
        device=device,
        count=count or (int(parallel[1]) if parallel else None),
        device_memory=_span(words),
        passes=0.0 if _SPECULATIVE.search(_NOT_SPECULATIVE.sub("", text)) else 1.0,
        notes=(f"The load is unknown; assumed to be {load}.",)
        if rows and not named and not any("load" in row for row in rows)
        else (),
    )


# ---- tables -----------------------------------------------------------------------------------------------


def _performance(text: str) -> tuple[list[Row], int]:
    """The rows of all tables of performance, and where the first of them begins. Rows of later ones say `table`."""
    rows: list[Row] = []
    first, count = len(text), 0
    for table in read_tables(text):
        if read := list(_rows(table.head, table.rows)):
            count += 1
            first = min(first, sum(len(line) + 1 for line in text.split("\n")[: table.line - 1]))
            rows += [{**row, "table": count} for row in read] if count > 1 else read
    return rows, first


def _rows(titles: Sequence[str], body: Sequence[tuple[int, Sequence[str]]]) -> Iterator[Row]:
    """The rows (with their lines) that have lengths and a speed; nothing for a table without such columns."""
    columns: dict[str, tuple[int, float]] = {}
    load: dict[str, str] = {}
    for index, title in enumerate(titles):
        plain = re.sub(r"[^a-z0-9]+", " ", title.lower().translate(_MICRO)).strip()
        for name, pattern in _COLUMNS.items():
            if name not in columns and (match := re.fullmatch(pattern, plain)):
                unit = match.groupdict().get("unit") or "ms"
                columns[name] = index, _MS[unit]
                load = {"load": "closed"} if name == "batch" and "concurr" in plain else load
    if not {"input", "output"} <= columns.keys() or not {"ttft_ms", "sys_tok_s", "e2el_ms"} & columns.keys():
        return
    for line, cells in body:
        row: dict[str, Any] = {"line": line, **load}
        for name, (index, scale) in columns.items():
            value = cells[index].translate(_MICRO) if index < len(cells) else ""
            if name in _WORDS:
                row |= {name: value} if value else {}
            elif "~~" not in value and (number := _number(value)):
                row[name] = _amount(float(number[1].replace(",", "")), number[2].lower(), name, scale)
        row |= {name: int(row[name]) for name in ("input", "output", "batch") if name in row}
        if row.get("input") and row.get("output"):
            yield row


def _number(text: str) -> re.Match[str] | None:
    """The first number in a field, with its unit; None where it is no number that stands for itself."""
    text = _GROUPS.sub("", text)
    number = _NUMBER.search(text)
    is_part = number and (_LIMIT.search(text[: number.start(1)]) or _GOES_ON.match(text[number.end(1) :]))
    return None if is_part else number


def _amount(number: float, unit: str, column: str, scale: float) -> float:
    """A field's number in the unit of its column: `scale` is that of the title, the field's own stands over it.

    1K tokens are 1024 where that is meant, of powers of two; 10K are 10000.
    """
    if column.endswith("_ms"):
        return number * _MS.get(unit, scale)
    if column in {"input", "output"} and unit == "k":
        return number * (1024 if number.is_integer() and int(number).bit_count() == 1 else 1000)
    return number * _THOUSANDS.get(unit, 1.0) if column.startswith("sys_tok_s") else number


# ---- facts in the text ------------------------------------------------------------------------------------


def _labelled(text: str, label: str) -> str | None:
    """The text beside a label, in a table's row or after a colon."""
    match = re.search(rf"^[\s|*_-]*(?:{label})[\s*_]*[|:][\s*_]*([^\n]+)", text, re.IGNORECASE | re.MULTILINE)
    return match[1].strip(" |") if match else None


def _span(text: str) -> Span | None:
    """A size in bytes. GB alone may mean GiB; where both stand, each means itself."""
    match = _SIZE.search(text)
    if not match:
        return None
    amount, power = float(match[1].replace(",", "")), {"M": 2, "G": 3, "T": 4}[match[2][0].upper()]
    binary = match[2][1].lower() == "i"
    low, high = amount * (1024 if binary else 1000) ** power, amount * 1024**power
    return (low, low) if binary or re.search(r"\d\s*[GT]iB", text) else (low, high)


def _model(text: str) -> ModelFacts:
    total, active = _counts(_labelled(text, r"(?:total )?param(?:eter)?s(?: \(total\))?") or "")
    if label := _labelled(text, r"active param(?:eter)?s"):
        active = _counts(label + " active")[1] if _COUNT.search(label) else None
    if total is None and (
        named := re.search(r"(\d{1,6}(?:\.\d+)?)B(?:-A(\d{1,6}(?:\.\d+)?)B|\s+(?:MoE|param|total))", text)
    ):
        total, active = count_of(named[1] + "B"), count_of(named[2] + "B") if named[2] else active

    def first(pattern: str) -> int | None:
        match = re.search(pattern, text, re.IGNORECASE)
        return int(match[1]) if match else None

    weight, activation = _dtypes(text)
    return ModelFacts(
        architecture="MoE" if re.search(r"\bMoE\b|mixture[- ]of[- ]experts", text, re.IGNORECASE) else None,
        layers=first(r"(\d{1,9})\s+layers"),
        experts=first(r"(\d{1,9})\s+(?:routed )?experts"),
        top_k=first(r"top[- ](\d{1,9})\b(?! %)"),
        parameters=total,
        active_parameters=active,
        shards=first(r"(\d{1,9})\s+(?:safetensors )?shards"),
        weight_dtype=weight,
        compute_dtype=activation,
    )


def _counts(text: str) -> tuple[int | None, int | None]:
    """Total and active parameters: `456B total, ~45.9B active`, `229B (10B active)`."""
    total = active = None
    for match in _COUNT.finditer(text):
        count = round(float(match[1]) * _TIMES[match[2].lower()])
        if "activ" in match[3].lower():
            active = active or count
        else:
            total = total or count
    return total, active


def _dtypes(text: str) -> tuple[str | None, str | None]:
    """Dtype of the weights and of the products: from a scheme's table, `W8A8 INT8`, or a precision."""
    matches = [_DTYPE.search(_labelled(text, label) or "") for label in ("weights?", "activations?")]
    weight, activation = (dtype_word(match[1]) if match else None for match in matches)
    if weight is None and (short := re.search(r"\bW(\d+)A(\d+)\b[ -]*(INT|FP)?", text, re.IGNORECASE)):
        kind = short[3] or "int"
        weight, activation = (dtype_word(f"{kind if int(bits) < 16 else 'bf'}{bits}") for bits in short.group(1, 2))
        activation = None if int(short[1]) < int(short[2]) else activation  # kernels may quantize activations too
    if weight is None and (plain := _labelled(text, r"quantization|dtype(?: of most weights)?|precision")):
        match = _DTYPE.search(plain)
        weight = dtype_word(match[1]) if match else None
    return weight, activation or ("bf16" if weight in {"bf16", "fp16"} else None)


def _hardware(text: str, place: int) -> tuple[Accelerator | None, int | None, str]:
    named = [
        (match.start(), device, int(match[1]), match[2])
        for match in re.finditer(
            r"(?<![\w.])([1-9]\d{0,5})\s*(?:x|\N{MULTIPLICATION SIGN})\s*([A-Za-z][^|\n]{2,80})", text
        )
        if (device := accelerator(match[2]))
    ]
    before = [mention for mention in named if mention[0] < place]
    if named:
        return (before[-1] if before else named[0])[1:]
    words = _labelled(text, r"hardware|gpus?|accelerators?") or ""
    return accelerator(words), None, words
