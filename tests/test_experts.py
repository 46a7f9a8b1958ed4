"""How evenly experts were loaded: out of vLLM's log where it tells it, else said to be unknown."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs_made import made_run

from benchbench import open_run
from benchbench.experts.expert_load import RANDOM, UNTOLD, expert_load
from benchbench.model.served import caption_of
from benchbench.spec import spec_from_mapping
from benchbench.store.requests import round_facts

START = datetime(2026, 12, 31, 23, 59, 50, tzinfo=UTC)
PLAIN: dict[str, Any] = {
    "name": "experts",
    "model": "m",
    "engine": {"kind": "vllm_serve", "args": {"model": "m"}},
    "grid": {"input": 128, "output": 8, "batch": 1},
    "rounds": {"warmup": 0, "min": 2},
    "prompts": {"vocab": [1000, 30000]},
}


def log_of(steps: list[tuple[float, float, int]], zone: timedelta = timedelta()) -> str:
    """vLLM 0.33's lines (`distributed/eplb/eplb_state.py`) of (s after the start, mean, most)."""

    def line(seconds: float, text: str) -> str:
        at = START + zone + timedelta(seconds=seconds)
        return f"(EngineCore_DP0 pid=7) INFO {at:%m-%d %H:%M:%S} [eplb_state.py:634] {text}"

    told = "EPLB step: {} for model m: avg_tokens={:.2f}, max_tokens={}, balancedness={:.4f}, steps until"
    texts = [line(at, told.format(k, mean, most, mean / (most or 1))) for k, (at, mean, most) in enumerate(steps)]
    return "\n".join(["no time here", line(1, "Starting vLLM"), *texts, line(99, "bye"), "INFO 02-30 10:00:00 x"])


def ns(seconds: float) -> int:
    return round((START.timestamp() + seconds) * 1e9)


@given(st.integers(-48, 56))
def test_each_rounds_steps_are_those_of_its_seconds(quarters: int) -> None:
    """Whatever the zone of the log's clock, over the end of a year."""
    steps = [(4.0, 10.0, 10), (5.0, 10.0, 15), (6.0, 30.0, 60), (6.4, 0.0, 0), (7.0, 10.0, 99), (20.0, 10.0, 30)]
    log = log_of(steps, timedelta(minutes=15 * quarters))
    load = expert_load(log, ns(0), [(ns(4.5), ns(7.5)), (ns(10), ns(15)), (ns(19), ns(22))])
    assert load is not None
    assert load.rounds == pytest.approx((75 / 40, 3.0))  # seconds 5 and 6, then 20; the second round has none
    assert load.steps == 3
    assert "had 2.44 times the mean's tokens (rounds 1.88 to 3.00; 3 steps)" in load.words
    assert expert_load(log, ns(0), [(ns(4.1), ns(4.9))]) is None
    assert expert_load(log_of([]), ns(0), [(ns(0), ns(60))]) is None


def test_explain_says_it_of_mixtures_of_experts_alone(tmp_path: Path) -> None:
    def run_of(name: str, experts: int | None, log: str = "", **changes: Any) -> str:
        start = {"block": None, "variant": "", "time_ns": ns(0), "log": "logs/engine.log"}
        facts = {"model_facts": {"experts": experts}, "starts": [start]}
        path = made_run(tmp_path / name, PLAIN | changes, lambda *_: (50.0, 10.0), **facts)
        (path / "logs").mkdir()
        (path / "logs" / "engine.log").write_text(log)
        run = open_run(path)
        (cell,) = run.cells
        for number in run.directory.finished_rounds(cell.key):
            table = run.directory.read_round(cell.key, "measured", number)
            facts = {**round_facts(table), "started_ns": ns(10 + 5 * number), "wall_ns": 4 * 10**9}
            table = table.replace_schema_metadata({"benchbench": json.dumps(facts)})
            run.directory.write_round(table, cell.key, "measured", number)
        return run.explain()

    assert "experts:" not in run_of("dense", None)
    untold = run_of("untold", 64)
    assert f"experts:         {UNTOLD}; {RANDOM}" in untold
    told = run_of("told", 64, log_of([(11.0, 100.0, 120), (12.0, 100.0, 130), (16.0, 50.0, 75)]))
    assert "experts:         the busiest rank's experts had 1.38 times the mean's tokens (rounds 1.25 to 1.50" in told


def test_a_table_says_that_random_tokens_are_routed_otherwise() -> None:
    spec = spec_from_mapping(PLAIN)
    assert caption_of(spec, {"experts": 64}) == [
        "Prompts are random tokens, which a mixture of experts routes otherwise than text."
    ]
    assert caption_of(spec, {"experts": None}) == caption_of(spec) == []
    simulated = spec_from_mapping(PLAIN | {"engine": {"kind": "simulator"}})
    assert not any("experts" in line for line in caption_of(simulated, {"experts": 64}))
