"""How many drafted tokens a server with speculative decoding accepted, by its counters and by our events. Pure.

    acceptance rate    = accepted / drafted tokens
    acceptance length  = 1 + accepted / drafts                   (vLLM's "mean acceptance length")
    tokens per step    = tokens received / token events          ours: a step of the engine is one event of a request

Each step gives one token more than it accepts drafted ones, so events = tokens - accepted. That is how the counters
are held against the events: within AGREE, and the counters may hold up to a whole draft more for each request, since
vLLM also counts what it accepted beyond the last token asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol

AGREE = 0.01  # of the steps
POSITION = "spec_accepted_at_"  # of a round's facts: accepted tokens at this place of their draft, from 0


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Of a cell's measured rounds. `rates`: each round's acceptance rate; `positions`: that of each place of a draft.

    `agrees`: whether counters and events do; None where nobody can tell, as requests failed.
    """

    rate: float
    length: float
    tokens_per_step: float
    server_tokens_per_step: float
    agrees: bool | None
    rates: tuple[float, ...]
    positions: tuple[float, ...]


def agrees(acceptance: Acceptance | None) -> bool:
    """Whether counters and events are known to agree: then each event is one step."""
    return acceptance is not None and acceptance.agrees is True


def differs(acceptance: Acceptance | None) -> bool:
    """Whether they are known not to."""
    return acceptance is not None and acceptance.agrees is False


class Round(Protocol):
    """What is asked of a round's metrics: requests, failed ones, and one entry a token event."""

    @property
    def requests(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def lag_ns(self) -> Sized: ...


def acceptance_of(facts: Sequence[Mapping[str, Any]], rounds: Sequence[Round], tokens: int) -> Acceptance | None:
    """From the facts of the measured rounds (`server`: what was counted in each), these rounds and their `tokens`.

    None where the server does not tell it of each round, or drafted nothing.
    """
    views: list[Mapping[str, Any]] = [fact.get("server") or {} for fact in facts]
    events, requests = sum(len(r.lag_ns) for r in rounds), sum(r.requests for r in rounds)
    names = ("spec_drafts", "spec_draft_tokens", "spec_accepted_tokens")
    if not views or not events or any(view.get(name) is None for view in views for name in names):
        return None
    drafts, drafted, accepted = (sum(view[name] for view in views) for name in names)
    if not drafts or not drafted or accepted >= tokens:
        return None
    places = sorted({int(name.removeprefix(POSITION)) for view in views for name in view if name.startswith(POSITION)})
    longest, steps = len(places) or math.ceil(drafted / drafts), tokens - accepted
    surplus = events - steps  # accepted tokens that were not received
    return Acceptance(
        rate=accepted / drafted,
        length=1 + accepted / drafts,
        tokens_per_step=tokens / events,
        server_tokens_per_step=tokens / steps,
        agrees=None
        if any(r.failed for r in rounds)
        else -AGREE * steps <= surplus <= AGREE * steps + longest * requests,
        rates=tuple(
            view["spec_accepted_tokens"] / view["spec_draft_tokens"] for view in views if view["spec_draft_tokens"]
        ),
        positions=tuple(sum(view.get(f"{POSITION}{k}", 0) for view in views) / drafts for k in places),
    )


def acceptance_words(acceptance: Acceptance) -> str:
    """One line: `61.2 % of drafted tokens accepted (rounds 60.1 to 62.0 %), ...`."""
    low, high = (100 * end(acceptance.rates or (acceptance.rate,)) for end in (min, max))
    places = f"; by position {', '.join(f'{100 * share:.0f}' for share in acceptance.positions)} %"
    agreed = {
        True: "which agree",
        False: f"which differ by more than {100 * AGREE:.0f} %",
        None: "not held against each other, since requests failed",
    }
    return (
        f"{100 * acceptance.rate:.1f} % of drafted tokens accepted (rounds {low:.1f} to {high:.1f} %), "
        f"{acceptance.length:.2f} tokens a draft{places if acceptance.positions else ''}; "
        f"{acceptance.tokens_per_step:.3f} tokens a step by our events, {acceptance.server_tokens_per_step:.3f} by the "
        f"server's counters, {agreed[acceptance.agrees]}"
    )


def acceptance_note(label: str, base: Acceptance | None, candidate: Acceptance | None) -> str:
    """A sentence on a cell of two builds whose tokens a draft differ by more than AGREE; else ""."""
    if base is None or candidate is None or abs(candidate.length / base.length - 1) <= AGREE:
        return ""
    change = f"{100 * base.rate:.1f} and {100 * candidate.rate:.1f} %"
    change += f", {base.length:.2f} and {candidate.length:.2f} tokens a draft"
    return f"{label}: drafts are accepted otherwise ({change}), so the change is confounded with that"
