"""How many tokens each event of a stream held, from the best evidence that there is. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from statistics import median
from typing import Any, NamedTuple

ROLE, EMPTY, OUTPUT = -1, 0, 1  # what an event holds: a role alone, nothing, output
NEARLY_ALL = 0.9  # of the events with output: a usage that grows with so many is a running one
# Parts of an object in a delta that are no output by themselves,
_FORM = {"role", "type", "id", "index", "format", "object", "signature", "thought_signature"}
# and fields that servers put into a delta beside its output.
_BESIDE = {"name", "model", "provider", "status", "obfuscation", "annotations", "citations", "metadata"}
_OPAQUE = ("encrypted", "redacted")  # types of parts that hold nothing which can be read
MIN_STEP_NS = 100_000  # no server takes less for a token of one request


class Events(NamedTuple):
    """Choices of events in their order, as columns."""

    reads: Sequence[int]  # place in the log of the read that completed it
    holds: Sequence[int]
    ids: Sequence[int]  # number of its token ids, -1 when it has none
    running: Sequence[int] | None  # usage.completion_tokens as it stood with it, -1 when unknown
    closes: Sequence[bool]  # it has a finish_reason
    choices: Sequence[object]  # its index, as the server sent it


def count_tokens(events: Events, total: int | None, when: Callable[[int], int]) -> tuple[str, list[int]]:
    """(source, tokens of each event), where the server reported `total` tokens.

    Sources, best first: "ids"; "usage" (a running one); "events", one each; "spread", the total over the events, since
    some held several. An event without output is no token until ids, usage or the total make it one, and never the
    first. The sum differs from `total` where they contradict each other. `when(read)`: its time in ns.
    """
    _, holds, ids, running, closes, choices = events
    if max(ids) > 0 and (min(ids) >= 0 or _cover(holds, ids) or sum(n for n in ids if n > 0) == total):
        return "ids", list(ids) if min(ids) > 0 else [max(n, 0) for n in ids]
    outputs = holds.count(OUTPUT)
    texts = [1] * outputs if outputs == len(holds) else [int(held == OUTPUT) for held in holds]
    grown = _growth(holds, running, choices) if running else None
    if grown is not None and sum(grown) == total and (outputs != total or grown == texts):
        return "usage", grown
    if outputs == total:
        return "events", texts
    one_each = _one_each(texts, holds, closes)
    if max(ids) > 0:
        one_each = ([n if n >= 0 else text for n, text in zip(ids, texts, strict=True)], *one_each)
    source, counts = "events", texts
    if total is None:
        counts = one_each[0]
    elif (match := next((c for c in one_each if sum(c) == total), None)) is not None:
        counts = match
    elif grown is not None and running and running[-1] >= 0:
        source, counts = "usage", grown  # it contradicts the total
    elif 0 < outputs <= total:
        source, counts = "spread", _spread(events, total, when)
    return source, counts


def count_hidden(events: Events, total: int | None, hidden: int, when: Callable[[int], int]) -> tuple[str, list[int]]:
    """As `count_tokens`, where `hidden` tokens of the total may have been made and not sent.

    If the others are what came, they count with the first event, before which they were made; the source is "hidden".
    """
    source, counts = count_tokens(events, total, when)
    if total is not None and 0 < hidden < total and (source == "spread" or sum(counts) != total):
        rest = count_tokens(events, total - hidden, when)[1]
        if sum(rest) == total - hidden:
            first = next(k for k, count in enumerate(rest) if count)
            return "hidden", [*rest[:first], rest[first] + hidden, *rest[first + 1 :]]
    return source, counts


def _cover(holds: Sequence[int], ids: Sequence[int]) -> bool:
    return all(n >= 0 for n, held in zip(ids, holds, strict=True) if held == OUTPUT)


def _growth(holds: Sequence[int], running: Sequence[int], choices: Sequence[object]) -> list[int] | None:
    """What a running usage grew by with each event, None where it is no running one: it is constant, falls, is missing
    beside output, or counts from another event on. Each choice may have a usage of its own.
    """
    candidates = [_increments(running)]
    if choices.count(choices[0]) < len(choices):
        owners = [choice if type(choice) is int else 0 for choice in choices]
        parts = {k: iter(_increments([n for n, c in zip(running, owners, strict=True) if c == k])) for k in {*owners}}
        candidates.append([next(parts[owner]) for owner in owners])
    return next((c for c in candidates if min(c) > 0 or (min(c) >= 0 and _grows(holds, running, c))), None)


def _increments(running: Sequence[int]) -> list[int]:
    known, last = running, 0
    if min(running) < 0:
        known = [last := n if n >= 0 else last for n in running]
    return [b - a for a, b in pairwise((0, *known))]


def _grows(holds: Sequence[int], running: Sequence[int], grown: list[int]) -> bool:
    with_output = [k for k, held in enumerate(holds) if held == OUTPUT]
    first = next((k for k, growth in enumerate(grown) if growth), len(grown))
    if not with_output:  # no text at all: then from the first growth on
        with_output = [k for k in range(first, len(holds)) if holds[k] == EMPTY]
    return (
        bool(with_output)
        and first <= with_output[0]
        and all(running[k] >= 0 for k in with_output)
        and sum(grown[k] > 0 for k in with_output) >= NEARLY_ALL * len(with_output)
    )


def _one_each(texts: list[int], holds: Sequence[int], closes: Sequence[bool]) -> tuple[list[int], ...]:
    """One token an event: those with output and empty ones after the first (half characters), without and with closing
    ones.

    A stream without any output has a token in every event or in none that is known.
    """
    first = texts.index(1) if 1 in texts else -1
    later = [
        int(text or (k > first and held == EMPTY)) for k, (text, held) in enumerate(zip(texts, holds, strict=True))
    ]
    usual = [int(text or (count and not last)) for text, count, last in zip(texts, later, closes, strict=True)]
    return usual if first >= 0 else texts, later


def _spread(events: Events, total: int, when: Callable[[int], int]) -> list[int]:
    """`total` tokens over the events: equal shares for those with output and for empty ones between them.

    Empty ones after the last output have as many as fit into the time since then, at the usual gap: tokens without text
    end with the closing event. None has less than one token while another has output.
    """
    holds = events.holds
    outputs = [k for k, held in enumerate(holds) if held == OUTPUT]
    first, last = outputs[0], outputs[-1]
    times = [when(read) for read in events.reads]
    gaps = [times[b] - times[a] for a, b in pairwise(outputs)]
    silent = times[-1] - times[last]
    step = (median(gaps) or (times[last] - times[first]) / len(gaps)) if gaps else 0.0
    if step < MIN_STEP_NS and (step := silent / max(1, total - len(outputs))) < MIN_STEP_NS:
        step = float("inf")
    weights = [0.0] * len(holds)
    for k in range(first, len(holds)):
        if holds[k] == OUTPUT or (k < last and holds[k] == EMPTY):
            weights[k] = 1.0
        elif k > last:
            weights[k] = (times[k] - times[k - 1]) / step
    empties = sum(weights) - len(outputs)
    scale = min(1.0, (total - len(outputs)) / empties) if empties else 0.0
    scaled = [weight if held == OUTPUT else weight * scale for weight, held in zip(weights, holds, strict=True)]
    parts = list(accumulate(scaled))
    ends = [int(total * part / parts[-1] + 1e-6) for part in parts]
    return [end - begin for begin, end in pairwise([0, *ends])]


def parts_of(choice: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a choice that may hold generated output: a delta's fields, or its text and message."""
    delta = choice.get("delta")
    if type(delta) is dict:
        is_plain = delta.keys().isdisjoint(_BESIDE)
        return delta if is_plain else {name: part for name, part in delta.items() if name not in _BESIDE}
    return {"text": choice.get("text") if delta is None else delta, "message": choice.get("message")}


def has_output(value: object) -> bool:
    """Whether a part of a delta holds generated output: text or data anywhere in it, under whatever name."""
    if isinstance(value, dict):
        if any(word in str(value.get("type")) for word in _OPAQUE):
            return False
        return any(part and name not in _FORM and has_output(part) for name, part in value.items())
    if isinstance(value, list):
        return any(type(part) in {int, float} or has_output(part) for part in value)
    return isinstance(value, str) and bool(value)
