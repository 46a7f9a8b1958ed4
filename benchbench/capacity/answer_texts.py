"""What searches have found, in sentences, as a table and as JSON. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from benchbench.boundary.boundary_search import Answer
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


def answers_table(states: Sequence[SearchState], caption: Sequence[str]) -> str:
    """Markdown: a row a search, its sentence, what each load's reasons were, and `caption`."""
    axis = states[0].target.axis if states else "batch"
    head = ["Variant"] * any(s.target.variant for s in states)
    head += ["Input", "Output", f"Holds at {axis}", f"Fails at {axis}", "Ended", "Probes", "Rounds", "Time (s)"]
    rows = []
    for state in states:
        record, target = answer_record(state), state.target
        ends = [_DASH if record[end] is None else f"{record[end]:.4g}" for end in ("holds_at", "fails_at")]
        counts = [str(record["probes"]), str(record["rounds"]), f"{record['seconds']:.0f}"]
        name = [target.variant] if len(head) > 8 else []
        rows.append([*name, str(target.input), str(target.output), *ends, record["ended"] or "open", *counts])
    lines = [*write_table(head, rows), "", *(escape_markdown(sentence_of(state)) for state in states)]
    reasons = [f"- {escape_markdown(': '.join([at, ', '.join(codes)]))}" for at, codes in reasons_of(states).items()]
    return "\n".join([*lines, *([""] if reasons else []), *reasons, "", *map(escape_markdown, caption)]) + "\n"


def run_table(run: RunDirectory) -> str:
    """The answers of a run, from its journal and records. Raises RunError."""
    return answers_table(searches_of(run), slo_sentence(run.manifest()["plan"]))


def answers_json(states: Sequence[SearchState]) -> str:
    """Each search's record, in a list under `searches`."""
    return json.dumps({"searches": [answer_record(state) for state in states]}, indent=1) + "\n"
