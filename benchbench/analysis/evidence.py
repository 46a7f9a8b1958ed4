"""What a cell's records show, for `validity.status_of` to decide on and `bench explain` to tell. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchbench.analysis.metrics import (
    Pools,
    RoundMetrics,
    by_start,
    in_blocks,
    over_starts,
    request_times,
    round_metrics,
)
from benchbench.analysis.server_times import Report, reported_times, reports_of, server_times, times_by_metrics
from benchbench.analysis.stats import agree, rounds_needed
from benchbench.analysis.validity import Evidence
from benchbench.complaints import server_words
from benchbench.events.round_events import Recorded, Round, gathered
from benchbench.host.energy import Window, window_of
from benchbench.identity.answering_engines import engines_of, other_models
from benchbench.prefixes.hits import together
from benchbench.queueing.backlog import grew_s
from benchbench.queueing.places import typical
from benchbench.replicas.server_figures import ServerRound, by_server, parts_of_round
from benchbench.reported.decode_time import Pace, mean_pace, paces
from benchbench.spec.cell import CellInfo
from benchbench.speculation.acceptance import acceptance_of
from benchbench.steadiness.steadiness import drift_of, rounds_to_confirm
from benchbench.store.arrow import array_of
from benchbench.store.requests import ErrorKind, RequestStatus, round_facts

_LENGTHS = {ErrorKind.SHORT_OUTPUT, ErrorKind.LONG_OUTPUT}


ABOUT = 0.10  # of the asked input, that the mean of prompts without an exact length may be off
LONG_PILOT = 8  # rounds, where a sweep is noisy


def pilot_of(cell: CellInfo, rounds: Sequence[RoundMetrics]) -> int:
    """Rounds of a cell's pilot, n0 of Stein's rule, as its records say, or `rounds.min` where that is more."""
    return max(cell.rounds_min, next((r.pilot for r in rounds if r.pilot), 0))


def pilot_for(cell: CellInfo, earlier: Sequence[bool]) -> int:
    """Rounds of the pilot of a cell to be measured: `rounds.min`, but 8 where half of the `earlier` cells are noisy.

    The cell's own rounds have no say in it: a pilot that is chosen by its own spread would cost up to 1.5 points of
    coverage (benchmarks/coverage.py). `rounds.max` is kept.
    """
    long = sum(earlier) * 2 >= len(earlier) > 0
    return max(cell.rounds_min, min(LONG_PILOT, cell.rounds_max)) if long else cell.rounds_min


def is_noisy(cell: CellInfo, rounds: Sequence[RoundMetrics]) -> bool:
    """Whether the first `rounds.min` rounds ask for 8 or more: at 5 rounds, a noise of 1 x `rel_ci` or more."""
    return rounds_needed(_rates(rounds), cell.rounds_min, cell.rel_ci) >= LONG_PILOT


def needed_rounds(cell: CellInfo, rounds: Sequence[RoundMetrics]) -> int:
    """Rounds that the asked interval of Sys tok/s needs, by Stein's rule; `rounds.min` where no interval can be had.

    With variants `rounds.min` of each start: how many starts are needed, the comparison says.
    """
    if in_blocks(rounds):
        return cell.rounds_min * len(by_start(rounds))
    if cell.rounds_max < 2:
        return cell.rounds_min
    pilot = pilot_of(cell, rounds)
    return max(pilot, rounds_needed(_rates(rounds), pilot, cell.rel_ci))


def wanted_rounds(cell: CellInfo, rounds: Sequence[RoundMetrics]) -> int:
    """Rounds to measure in all: those that the asked interval needs, then those that confirm a drift or refute it."""
    needed = needed_rounds(cell, rounds)
    if in_blocks(rounds):
        return needed
    return rounds_to_confirm(_rates(rounds), needed, cell.rounds_max, cell.rel_ci)


def _rates(rounds: Sequence[RoundMetrics]) -> list[float]:
    return [r.sys_tok_s for r in rounds if r.sys_tok_s is not None]


def _drift(cell: CellInfo, rounds: Sequence[RoundMetrics]) -> tuple[bool, bool]:
    """(drifts, confirmed). Over starts where there are several, and of these no more are asked for."""
    values = over_starts(rounds, lambda r: r.sys_tok_s)
    needed = len(values) if in_blocks(rounds) else needed_rounds(cell, rounds)
    return drift_of(values, needed, needed if in_blocks(rounds) else cell.rounds_max, cell.rel_ci)


def warmed_up(cell: CellInfo, warmups: Sequence[RoundMetrics]) -> bool | None:
    """Whether the last two warm-up rounds (of each start) agree in mean E2EL; None when their number was given."""
    if cell.warmup != "auto":
        return None
    lasts = [[float(r.e2el_s.mean()) for r in start[-2:] if len(r.e2el_s)] for start in by_start(warmups) or [[]]]
    return all(len(last) == 2 and agree(last[0], last[1], cell.validity.warmup_agree) for last in lasts)


class Measured(NamedTuple):
    """What is taken of a measured round, so that the events of one round alone are in memory."""

    metrics: RoundMetrics
    facts: Mapping[str, Any]
    window: Window | None
    counts: Counter[str]
    reports: list[Report]
    servers: tuple[ServerRound, ...]
    paces: list[Pace]


def measured(cell: CellInfo, recorded: Recorded, *, doubted: bool = False) -> Measured:
    """That of a round. `doubted`: nobody knows whether its server is the one of the run's other rounds."""
    taken = gathered(recorded)
    facts: Mapping[str, Any] = {**round_facts(taken.requests), "doubted": doubted}
    metrics = round_metrics(taken, load=cell.load, in_flight=cell.batch, slo=cell.slo)
    counts = _requests(taken, bool(facts.get("approximate")))
    parts = parts_of_round(taken, facts, lambda: request_times(taken, load=cell.load, in_flight=cell.batch))
    times, events = reported_times(taken.requests), taken.events
    came_s = (events.last_ns - events.first_ns) / 1e9
    pace = [*paces((own, events.tokens[k], events.first_tokens[k], came_s[k]) for k, own in times.items())]
    return Measured(metrics, facts, window_of(taken), counts, reports_of(taken, times), parts, pace)


def _clock_share(taken: Measured) -> float:
    """How well the clocks of several hosts are known in a round, as a share of the window of Sys tok/s."""
    uncertainty_s = float(taken.facts.get("clock_uncertainty_ns", 0)) / 1e9
    return uncertainty_s / taken.metrics.window_s if taken.metrics.window_s else 0.0


def evidence_of(cell: CellInfo, taken: Sequence[Measured], warmups: Sequence[RoundMetrics], pools: Pools) -> Evidence:
    """Sum up the measured rounds, with the pools of their metrics."""
    rounds, facts = [r.metrics for r in taken], [r.facts for r in taken]
    counts: dict[str, Any] = sum((r.counts for r in taken), Counter())
    late = None if cell.capped else pools["late_s"].percentiles[99]
    server = server_times([report for r in taken for report in r.reports], rounds, facts)
    path = times_by_metrics(rounds, facts) or server
    in_process = any(fact.get("stamps") == "in process" for fact in facts)
    drifts, confirmed = _drift(cell, rounds)
    return Evidence(
        rounds=len(rounds),
        rounds_needed=needed_rounds(cell, rounds),
        requests=sum(r.requests for r in rounds),
        events=sum(len(r.lag_ns) for r in rounds),
        shared_events=sum(r.shared_events for r in rounds),
        first_shared=sum(r.first_shared for r in rounds),
        first_later=sum(r.first_later for r in rounds),
        buffered=sum(r.buffered for r in rounds),
        clock_step_ns=max((fact.get("clock_step_ns", 0) for fact in facts), default=0),
        stolen_ns=sum(fact.get("stolen_ns", 0) for fact in facts),
        wall_ns=sum(fact.get("wall_ns", 0) for fact in facts),
        clock_share=max((_clock_share(r) for r in taken), default=0.0),
        kernel_stamps=all(fact.get("kernel_stamps", True) for fact in facts),
        in_process=in_process,
        windowed=all(r.settled for r in rounds),
        ttft_s=pools["ttft_s"].mean,
        itl_s=pools["itl_s"].percentiles[50],
        gap_s=pools["itl_s"].mean,
        in_flight=cell.batch if cell.load != "open" else None,
        by_server=by_server([r.servers for r in taken]),
        server=server,
        acceptance=acceptance_of(facts, rounds, counts["tokens"]),
        outside_s=path.outside_s if path and not in_process else None,
        pace=None if in_process else mean_pace(pace for r in taken for pace in r.paces),
        places=typical([r.places for r in rounds]),
        ttft_grew_s=grew_s([r.ttft_scheduled_s for r in rounds]) if cell.load == "open" else 0.0,
        send_skew_s=max((r.send_skew_s for r in rounds), default=0.0),
        late_p99_s=late or 0.0,
        lag_p99_s=pools["lag_s"].percentiles[99] or 0.0,
        drift=drifts,
        drift_confirmed=confirmed,
        warmup_agreed=warmed_up(cell, warmups),
        hits=together([r.hits for r in rounds]),
        engines=engines_of(facts),
        in_use=tuple(sorted({gpu for fact in facts for gpu in fact.get("in_use", ())})),
        other_models=tuple(other_models(facts)),
        **counts,
        **_server(facts),
    )


def _requests(taken: Round, approximate: bool) -> Counter[str]:
    """Counts over the requests of one round; lengths are judged on successful ones.

    `approximate`: prompts have no exact length.
    """
    table, events = taken
    status, kinds = table["status"].to_pylist(), table["error_kind"].to_pylist()
    ok = np.array([text == RequestStatus.OK for text in status], np.bool_)
    reported, requested = array_of(table["input_tokens"]), array_of(table["asked_input_tokens"])
    known = ok & (reported >= 0)
    other = int((known & (reported != requested) & (requested >= 0)).sum())
    near = approximate and other > 0 and abs(reported[known].sum() / requested[known].sum() - 1) <= ABOUT
    output, cached = array_of(table["output_tokens"]), array_of(table["cached_tokens"])
    hidden = table["tokens_from"].to_pylist().count("hidden")  # which count with an event of each
    at_limit = np.array([server_words.is_limit(reason) for reason in table["finish_reason"].to_pylist()], np.bool_)
    short = np.maximum(output, events.tokens) < array_of(table["asked_output_tokens"])
    return Counter(
        failed=sum(text != RequestStatus.OK and kind not in _LENGTHS for text, kind in zip(status, kinds, strict=True)),
        wrong_length=sum(kind in _LENGTHS for kind in kinds),
        resent=int(array_of(table["resent"]).sum()),
        grouped=events.grouped - hidden,
        hidden=hidden,
        below_limit=int((ok & at_limit & short).sum()),
        tokens=int(events.tokens.sum()),
        cached_tokens=int(cached[cached > 0].sum()),
        input_wrong=0 if near else other,
        input_about=other if near else 0,
        input_unknown=int((ok & (reported < 0)).sum()),
        output_unknown=int((ok & (output < 0)).sum()),
        usage_wrong=int(((output >= 0) & (output != events.tokens)).sum()),
    )


def _server(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The server's own counts over the rounds that have them; None where none has."""
    views = [fact.get("server") or {} for fact in facts]
    silent = sum("replicas" not in view for view in views)

    def total(name: str) -> int | None:
        known = [view[name] for view in views if view.get(name) is not None]
        return sum(known) if known else None

    return {
        "replicas": any(view.get("replicas") for view in views) or any(fact["doubted"] for fact in facts),
        "unchecked": silent if any(views) else 0,
        "foreign_tokens": total("foreign_tokens"),
        "missing_tokens": total("missing_tokens"),
        "preemptions": total("preemptions"),
        "prefix_hits": total("prefix_hits"),
        "common_tokens": sum(fact.get("common_tokens", 0) for fact in facts),
    }
