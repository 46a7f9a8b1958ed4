"""Speculative decoding: what the counters say of drafts, what the events say, and what follows where they differ."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from driving import bench, records, run_well
from hypothesis import assume, given
from hypothesis import strategies as st
from runs_made import made_run

from benchbench import open_run
from benchbench.counters.server_metrics import grown, parse
from benchbench.engines.simulator import SimulatorProcess
from benchbench.engines.simulator.model import DRAFTS, PER_POSITION, make_model
from benchbench.engines.simulator.profiles import load_profile
from benchbench.speculation.acceptance import AGREE, acceptance_of, acceptance_words
from benchbench.store.requests import round_facts

TOKENS = 3
OPTIONS = {"speculation": {"tokens": TOKENS, "acceptance": 0.6}}


def counted(drafts: int, accepted: int, tokens: int = TOKENS) -> dict[str, Any]:
    """A round's facts."""
    names = {"spec_drafts": drafts, "spec_draft_tokens": drafts * tokens, "spec_accepted_tokens": accepted}
    return {"server": names | {f"spec_accepted_at_{k}": accepted if k == 0 else 0 for k in range(tokens)}}


def a_round(requests: int, events: int, failed: int = 0) -> Any:
    return SimpleNamespace(requests=requests, failed=failed, lag_ns=[0] * events)


@given(st.lists(st.lists(st.integers(0, TOKENS), min_size=1, max_size=60), min_size=1, max_size=8), st.integers(0, 3))
def test_events_and_counters_of_the_same_steps_agree(requests: list[list[int]], beyond: int) -> None:
    """Each inner list: what each decode step of a request accepted, after its first token; the last is cut short."""
    accepted = sum(map(sum, requests))
    cut = sum(min(beyond, steps[-1]) for steps in requests)  # accepted, and beyond the last token asked for
    events, tokens = sum(1 + len(steps) for steps in requests), sum(1 + len(steps) + sum(steps) for steps in requests)
    assume(tokens - cut > accepted)
    rounds = [a_round(len(requests), events)]
    got = acceptance_of([counted(events - len(requests), accepted)], rounds, tokens - cut)
    assert got is not None
    assert got.agrees is True
    drafts = events - len(requests)
    assert (got.rate, got.length) == pytest.approx((accepted / drafts / TOKENS, 1 + accepted / drafts))
    assert got.tokens_per_step == pytest.approx((tokens - cut) / events)
    assert got.rates == (got.rate,)
    joined = int(events * (AGREE + 0.001)) + 1  # events that somebody put together
    fewer = acceptance_of([counted(drafts, accepted)], [a_round(len(requests), events - joined - cut)], tokens - cut)
    assert fewer is None or fewer.agrees is (events - joined - cut <= 0)


def test_what_is_not_told_is_not_known() -> None:
    rounds = [a_round(1, 20), a_round(1, 20)]
    assert acceptance_of([counted(19, 20), {}], rounds, 80) is None
    assert acceptance_of([counted(0, 0)] * 2, rounds, 40) is None
    assert acceptance_of([], [], 0) is None
    assert acceptance_of([{"server": None}], [a_round(1, 20)], 40) is None
    unlucky = acceptance_of([counted(19, 20)], [a_round(2, 20, failed=1)], 40)
    assert unlucky is not None
    assert (unlucky.agrees, unlucky.tokens_per_step) == (None, 2.0)
    assert "not held against each other, since requests failed" in acceptance_words(unlucky)


def test_vllms_counters_are_read_by_engine_and_position() -> None:
    def page(drafts: int) -> str:
        lines = [
            f'vllm:spec_decode_num_{name}_total{{engine="{engine}",model_name="m"{more}}} {float(value)}'
            for engine in (0, 1)
            for name, value, more in (
                ("drafts", drafts, ""),
                ("draft_tokens", 3 * drafts, ""),
                ("accepted_tokens", 2 * drafts, ""),
                *(("accepted_tokens_per_pos", drafts - k, f',position="{k}"') for k in range(3)),
            )
        ]
        return "\n".join([*lines, "process_start_time_seconds 5.0", ""])

    told = grown(parse(page(10)), parse(page(25)))
    assert told == {
        "spec_drafts": 30,
        "spec_draft_tokens": 90,
        "spec_accepted_tokens": 60,
        **{f"spec_accepted_at_{k}": 30 for k in range(3)},
    }
    assert not {name for name in parse('vllm:prompt_tokens_total{engine="0"} 5.0\n') if name.startswith("spec")}


@pytest.mark.parametrize("profile", ["fixed", "w7900d"])
def test_the_simulator_accepts_drafts_and_counts_them(profile: str) -> None:
    model = make_model(load_profile(profile, {"speculation": {"tokens": 4, "acceptance": 0.5}}))
    for k in range(20):
        model.submit(k, 0, 128, 300)
    events, last = [], 0
    while (due := model.next_due_ns()) is not None:
        events += model.take_due(due)
        last = due
    drafts, drafted, accepted = (int(model.counters[name]) for name in DRAFTS)
    received = sum(event.n_tokens for event in events) - len(events)
    assert sum(event.n_tokens for event in events) == 20 * 300
    assert drafted == 4 * drafts
    assert 0 <= accepted - received <= 20 * 4  # beyond the ends of answers
    assert accepted / drafts == pytest.approx(0.5 + 0.25 + 0.125 + 0.0625, rel=0.1)
    assert [model.counters[f"{PER_POSITION}/{k}"] / drafts for k in range(4)] == pytest.approx(
        [0.5, 0.25, 0.125, 0.0625], abs=0.04
    )
    plain, of_plain = make_model(load_profile(profile)), 0
    for k in range(20):
        plain.submit(k, 0, 128, 300)
    while (due := plain.next_due_ns()) is not None:
        plain.take_due(due)
        of_plain = due
    assert 1.6 < of_plain / last < 2.1  # a step costs what it did
    assert not {name for name in plain.counters if name.startswith("spec")}


def test_a_sweep_of_a_server_that_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters of each round are in its facts, and the row's tokens a step are those of the records."""
    monkeypatch.chdir(tmp_path)
    with SimulatorProcess("fixed", scale=0.3, options=OPTIONS) as simulator:
        run_well(simulator.url, grid={"input": 8, "output": 48, "batch": 4}, rounds={"warmup": 0, "min": 2, "max": 2})
    run = open_run(tmp_path / "run")
    (row,), sizes = run.rows, [n for record in records(run.path) for n in record["event_tokens"]]
    assert row["tokens_per_step"] == pytest.approx(sum(sizes) / len(sizes))
    assert max(sizes) <= 1 + TOKENS
    assert 0.25 < row["acceptance_rate"] < 0.55  # (0.6 + 0.36 + 0.216) / 3 = 0.39
    assert row["acceptance_length"] == pytest.approx(1 + TOKENS * row["acceptance_rate"])
    views = [round_facts(table)["server"] for table in run.directory.read_cell(row["key"])]
    assert all(view and view["spec_draft_tokens"] == TOKENS * view["spec_drafts"] for view in views)
    explained = bench("explain", run.path).stdout
    assert "tokens a step by our events" in explained
    assert "which agree" in explained
    assert not {"grouped_tokens", "acceptance_unclear"} & set(row["reasons"].split(";"))


AB: dict[str, Any] = {
    "name": "ab",
    "model": "m",
    "engine": {"kind": "simulator"},
    "variants": {"main": {}, "draft": {}},
    "blocks": 3,
    "grid": {"input": 128, "output": 41, "batch": 1},
    "rounds": {"warmup": 0, "min": 1},
    "prompts": {"vocab": [1000, 30000]},
}


def test_compare_warns_where_drafts_are_accepted_otherwise(tmp_path: Path) -> None:
    def run_of(path: Path, accepted: dict[str, int]) -> Path:
        made_run(path, AB, lambda _cell, start, k: (50.0 + k + (start.block or 0) % 2, 10.0))  # 41 events of one token
        run = open_run(path)
        for cell in run.cells:
            for number in run.directory.finished_rounds(cell.key):
                table = run.directory.read_round(cell.key, "measured", number)
                facts = {**round_facts(table), **counted(40, accepted[cell.variant])}
                table = table.replace_schema_metadata({"benchbench": json.dumps(facts)})
                run.directory.write_round(table, cell.key, "measured", number)
        return path

    alike = bench("compare", run_of(tmp_path / "alike", {"main": 0, "draft": 0}), "--format", "md")
    assert alike.exit_code == 0
    assert "drafts are accepted" not in alike.stdout
    other = bench("compare", run_of(tmp_path / "other", {"main": 0, "draft": 1}))
    words = "drafts are accepted otherwise (0.0 and 0.8 %, 1.00 and 1.02 tokens a draft), so the change is confounded"
    assert words in other.stdout
