"""What searches have found, in sentences, as a table and as JSON. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from benchbench.boundary.boundary_search import Answer
from benchbench.capacity.over_starts import Against, Starts, against, against_record, starts_of, starts_record
from benchbench.capacity.probes import SearchState, searches_of
from benchbench.report.markdown import escape_markdown, write_table
from benchbench.slo.attainment import slo_sentence
from benchbench.store.run_directory import RunDirectory

CONFIDENCE = 0.95
_DASH = "\N{EN DASH}"
_ENDS = {
    "width": "",
    "never": "",
    "always": "",
    "noise": "as near to each other as the scatter of rounds allows",
    "budget": "the rounds of a search were used up",
    "time": "its time was used up (--budget-s)",
    "instrument": "the load generator is the limit",
    "": "the search is not over",
}


def answer_record(state: SearchState) -> dict[str, Any]:
    """A search of one start: what it has come to, as JSON. `holds_at`, `fails_at`: None where no load is certified."""
    step = state.step()
    answer = step if isinstance(step, Answer) else Answer(*state.ends, "")
    ends = [None if end is None else state.target.number(end) for end in (answer.holds_at, answer.fails_at)]
    return {
        **state.target.to_entry(),
        "holds_at": ends[0],
        "fails_at": ends[1],
        "confidence": CONFIDENCE,
        "ended": answer.reason,
        "width": state.width,
        "probes": len(state.made),
        "rounds": sum(made.rounds for made in state.counted),
        "seconds": round(state.seconds, 3),
        "reasons": reasons_of([state]),
    }


def reasons_of(states: Iterable[SearchState]) -> dict[str, list[str]]:
    """Load (as text) -> the reasons that its probes had: why a load failed or was void, and what is suspect."""
    reasons: dict[str, dict[str, None]] = {}
    for state in states:
        for made in state.made:
            seen = made.observed
            for code in (*seen.failing, *seen.limited, *seen.suspect):
                reasons.setdefault(f"{state.target.label} {state.target.at(made.load)}", {})[code] = None
    return {load: list(codes) for load, codes in reasons.items()}


def sentence_of(state: SearchState) -> str:
    """As `in=128 out=64: meets the SLO at batch 13, not at batch 14 (95 % confidence)`."""
    record, target = answer_record(state), state.target
    holds, fails, ended = record["holds_at"], record["fails_at"], record["ended"]
    largest = ", the largest asked for" if holds == target.high else ""
    smallest = ", the smallest asked for" if fails == target.low else ""
    if holds and fails:
        text = f"meets the SLO at {target.at(holds)}, not at {target.at(fails)}"
    elif holds:
        text = f"meets the SLO at {target.at(holds)}{largest}"
    elif fails:
        text = f"misses the SLO at {target.at(fails)}{smallest}"
    else:
        return f"{target.label}: nothing is certain of any load: {_ENDS[ended]}{_limit(state)}"
    text = f"{target.label}: {text} (95 % confidence)"
    if fails and (why := [code for m in state.counted if m.load == fails for code in m.observed.failing]):
        text += f", where {', '.join(dict.fromkeys(why))}"
    return text + (f"; {_ENDS[ended]}{_limit(state)}" if _ENDS[ended] else "")


def _limit(state: SearchState) -> str:
    """Where the load generator was the limit."""
    if not state.void:
        return ""
    lowest = min(state.void, key=lambda made: made.load)
    return f" at {state.target.at(lowest.load)} ({', '.join(lowest.observed.limited)})"


def progress_text(state: SearchState) -> str:
    """One line on the last probe: where its figure is, and what is certain so far."""
    made = state.made[-1]
    text = f"{state.target.label} {state.target.at(made.load)}: "
    seen = made.observed
    if seen.failing or seen.limited:
        text += ", ".join(seen.failing + seen.limited)
    else:
        mean = math.fsum(seen.excess) / max(1, len(seen.excess))
        text += f"{made.rounds} rounds, {abs(100 * mean):.1f} % {'beyond' if mean > 0 else 'within'} the limit"
    if state.block is not None:
        return text
    holds, fails = state.ends
    parts = [f"holds at {holds:.4g}"] if holds else []
    parts += [f"fails at {fails:.4g}"] if fails else []
    return f"{text}; certain so far: {', '.join(parts) or 'nothing'}"


Texts = tuple[list[str], list[list[str]]]  # a table's head and rows, plain


class Parts(NamedTuple):
    """What is said of searches, plain: sentences, tables, and notes (reasons by load, the SLO)."""

    lines: list[str]
    tables: list[Texts]
    reasons: list[str]
    slo: list[str]


def parts_of(states: Sequence[SearchState], slo: Sequence[str], pairs: Sequence[Against] = ()) -> Parts:
    """A row a search, or with blocks a variant and shape, and a table of the ratios of `pairs`."""
    blocks = any(state.block is not None for state in states)
    table = _starts_table(starts_of(states)) if blocks else _search_table(states)
    lines = [] if blocks else [sentence_of(state) for state in states]
    lines += [line for pair in pairs for line in pair.sentences]
    reasons = [f"{at}: {', '.join(codes)}" for at, codes in reasons_of(states).items()]
    return Parts(lines, [table, *_ratio_tables(pairs)], reasons, [*slo])


def _markdown(table: Texts) -> str:
    head, rows = table
    return "\n".join(write_table(head, [[*map(escape_markdown, row)] for row in rows]))


def _search_table(states: Sequence[SearchState]) -> Texts:
    axis = states[0].target.axis if states else "batch"
    named = any(state.target.variant for state in states)
    head = [
        *["Variant"] * named,
        "Shape",
        f"Holds at {axis}",
        f"Fails at {axis}",
        "Ended",
        "Probes",
        "Rounds",
        "Time (s)",
    ]
    rows = []
    for state in states:
        record, target = answer_record(state), state.target
        ends = [_DASH if record[end] is None else f"{record[end]:.4g}" for end in ("holds_at", "fails_at")]
        counts = [str(record["probes"]), str(record["rounds"]), f"{record['seconds']:.0f}"]
        texts = [*[target.variant] * named, target.shape, *ends, record["ended"] or "open", *counts]
        rows.append(texts)
    return head, rows


def _starts_table(starts: Sequence[Starts]) -> Texts:
    axis = starts[0].axis if starts else "batch"
    head = ["Variant", "Shape", f"Capacity ({axis})", "95 % CI", "Starts", "Of each start"]
    rows = []
    for of in starts:
        mean = _DASH if of.mean is None else f"{of.mean:.4g}"
        interval = _DASH if of.low is None or of.high is None else f"{of.low:.4g}{_DASH}{of.high:.4g}"
        each = [f"{capacity:.4g}" for capacity in of.capacities.values()] + list(of.censored.values())
        count = str(len(of.capacities) + len(of.censored))
        rows.append([of.variant, of.shape, mean, interval, count, ", ".join(each)])
    return head, rows


def _ratio_tables(pairs: Sequence[Against]) -> list[Texts]:
    """None without a ratio."""
    rows = []
    for pair in pairs:
        for record in against_record(pair):
            point, low, high = record["ratio"].values()
            interval = _DASH if low is None else f"{low:.3f}{_DASH}{min(high, 999):.3f}"
            sides = [f"{record[side]:.4g}" for side in ("base_capacity", "candidate_capacity")]
            texts = [pair.base, pair.candidate, record["shape"], *sides, f"{point:.3f}", interval, record["verdict"]]
            rows.append(texts)
    head = ["Base", "Candidate", "Shape", "Base carries", "Candidate carries", "Ratio", "95 % CI", "Verdict"]
    return [(head, rows)] if rows else []


def pairs_within(run: RunDirectory, states: Sequence[SearchState]) -> list[Against]:
    """A run's baseline against each of its other variants, paired over blocks."""
    spec = run.manifest()["spec"]
    variants = list(spec["variants"])
    if len(variants) < 2:
        return []
    base = spec["baseline"] or variants[0]
    starts = {name: [of for of in starts_of(states) if of.variant == name] for name in variants}
    others = [name for name in variants if name != base]
    return [against(starts[base], starts[name], (base, name), paired=True) for name in others]


def pair_table(pair: Against) -> str:
    """Markdown of one comparison."""
    return "\n\n".join([*map(_markdown, _ratio_tables([pair])), *map(escape_markdown, pair.sentences)]) + "\n"


def pairs_json(pairs: Sequence[Against]) -> str:
    """Comparisons as JSON: `pairs`, one a candidate and shape."""
    return json.dumps({"pairs": [entry for pair in pairs for entry in against_record(pair)]}, indent=1) + "\n"


def run_parts(run: RunDirectory) -> Parts:
    """The answers of a run, from its journal and records. Raises RunError."""
    states = searches_of(run)
    return parts_of(states, slo_sentence(run.manifest()["plan"]), pairs_within(run, states))


def run_table(run: RunDirectory) -> str:
    """The same as Markdown."""
    lines, tables, reasons, slo = run_parts(run)
    blocks = [*map(_markdown, tables), *map(escape_markdown, lines)]
    blocks += ["\n".join(f"- {escape_markdown(reason)}" for reason in reasons), "\n".join(map(escape_markdown, slo))]
    return "\n\n".join(filter(None, blocks)) + "\n"


def run_json(run: RunDirectory) -> str:
    """The same as JSON: `searches`; with blocks `starts`, one a variant and shape, and `pairs`."""
    states = searches_of(run)
    record: dict[str, Any] = {"searches": [answer_record(state) for state in states if state.block is None]}
    if any(state.block is not None for state in states):
        record["starts"] = [starts_record(of) for of in starts_of(states)]
        record["pairs"] = [entry for pair in pairs_within(run, states) for entry in against_record(pair)]
    return json.dumps(record, indent=1) + "\n"
