"""How long a sweep takes, foretold: beside the simulator's own virtual time; from what a run or a check has left."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from driving import CARRIED_OUT, bench, write_sweep
from servers import ScriptedServer

from benchbench.engines.simulator import load_profile
from benchbench.engines.simulator.model import SEND_GAP_NS, make_model, static_rate
from benchbench.forecast.durations import Point, Span, Speed, by_one_stream, by_points, sweep_span
from benchbench.forecast.speeds import keep_check
from benchbench.spec import Plan, load_spec, make_plan, spec_from_mapping

BATCHES = [1, 2, 4, 8, 16, 32]


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def plan_of(**changes: Any) -> Plan:
    data = {
        "name": "t",
        "model": "sim",
        "engine": {"kind": "simulator", "profile": "w7900d"},
        "grid": {"input": [128, 1024, 2048], "output": [128, 1024], "batch": BATCHES},
        "rounds": {"warmup": 0, "min": 1, "max": 1},
        "prompts": {"kind": "token_ids", "vocab": [1000, 30000]},
    }
    return make_plan(spec_from_mapping(data | changes))


def truth(prompt: int, output: int, batch: int) -> Point:
    """What a request takes, in the simulator's virtual time."""
    model = make_model(load_profile("w7900d", {}))
    for number in range(batch):
        model.submit(number, number * SEND_GAP_NS, prompt, output)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    while (due := model.next_due_ns()) is not None:
        for token in model.take_due(due):
            first.setdefault(token.request_id, due)
            last[token.request_id] = due
    ttft_s = sum(at - number * SEND_GAP_NS for number, at in first.items()) / batch / 1e9
    return Point("", prompt, batch, ttft_s, (sum(last.values()) - sum(first.values())) / batch / (output - 1) / 1e9)


def test_from_a_few_cells_the_whole_grid_is_foretold_as_the_simulator_has_it() -> None:
    plan = plan_of()
    profile = load_profile("w7900d", {})
    points = [truth(prompt, 128, batch) for prompt in (128, 2048) for batch in (1, 4, 32)]
    round_s = by_points(points)
    actual = 0.0
    for cell in plan.cells:
        assert cell.batch is not None
        took = cell.tokens / static_rate(profile, cell.input, cell.output, cell.batch)
        assert round_s(cell, cell.output) == pytest.approx(took, rel=0.3)
        actual += took
    span = sweep_span(plan, Speed("", round_s))
    assert span == (pytest.approx(actual, rel=0.1), pytest.approx(actual, rel=0.1))


def test_rounds_warmup_budget_and_starts() -> None:
    grid = {"input": 10, "output": 101, "batch": 4}
    speed = Speed("", by_points([Point("", 10, 4, 1.0, 0.1)]))  # 11 s a round, 4.1 s a warm-up of 32 tokens
    rounds = {"warmup": "auto", "min": 3, "max": 10}
    assert sweep_span(plan_of(grid=grid, rounds=rounds), speed) == pytest.approx((33 + 2 * 4.1, 110 + 8 * 4.1))
    cut = plan_of(grid=grid, rounds=rounds | {"budget_s": 50})
    assert sweep_span(cut, speed) == pytest.approx((33 + 2 * 4.1, 55 + 8 * 4.1))
    blocks = plan_of(grid=grid, rounds={"warmup": 1, "min": 3, "max": 3}, blocks=5)
    assert sweep_span(blocks, speed) == pytest.approx((5 * 4 * 11, 5 * 4 * 11))
    assert sweep_span(plan_of(grid=grid), Speed("", by_points([]))) is None


def test_of_a_variant_its_own_points_count() -> None:
    plan = plan_of(grid={"input": 10, "output": 11, "batch": 4})
    points = [Point("", 10, 4, 0.0, 0.1), Point("B", 10, 4, 0.0, 9.0)]
    assert sweep_span(plan, Speed("", by_points(points))) == Span(1.0, 1.0)


def test_prompts_of_unknown_length_have_points_of_their_own() -> None:
    Path("p.jsonl").write_text('{"prompt": "Who?"}\n')
    words = {"grid": {"input": "file", "output": 11, "batch": 4}, "prompts": {"kind": "file", "path": "p.jsonl"}}
    unknown, known = plan_of(**words), plan_of(grid={"input": 10, "output": 11, "batch": 4})
    own, other = ([Point("", length, 4, 1.0, 0.1)] for length in (None, 10))
    assert sweep_span(unknown, Speed("", by_points(own + other))) == Span(2.0, 2.0)
    assert sweep_span(unknown, Speed("", by_points(other))) is None
    assert sweep_span(known, Speed("", by_points(own))) is None


def test_as_assumed() -> None:
    closed = plan_of(grid={"input": 100, "output": 101, "batch": 4}, load={"kind": "closed", "requests": 20})
    assert sweep_span(closed, Speed("", by_one_stream(50)))[0] == pytest.approx(5 * 2.0)  # type: ignore[index]
    assert sweep_span(closed, Speed("", by_one_stream(50, 400)))[0] == pytest.approx(5 * 3.0)  # type: ignore[index]


def told(*options: str) -> str:
    result = bench("sweep", "s.yaml", "--dry-run", *options)
    assert result.exit_code == 0, result.stderr
    return result.stdout.rpartition("time: ")[2].strip()


def test_a_dry_run_knows_the_last_run_and_the_last_check_of_this_sweep() -> None:
    with ScriptedServer() as server:
        write_sweep(Path("s.yaml"), server.url)
        assert told() == "unknown for this engine: bench check FILE measures it, or give --assume-tok-s"
        assumed = told("--assume-tok-s", "5")
        assert assumed == "about 0:01, as assumed: 5 tok/s of each stream at every batch, prefill left out"
        assert bench("sweep", "s.yaml", "--no-plots").exit_code in CARRIED_OUT
        (run,) = Path("runs").iterdir()
        assert told().startswith(f"about 0:00, by the run {run}, of {time.strftime('%Y-')}")
        assert told("--set", "model=other").startswith("unknown")
        assert told("--set", "name=other").startswith("unknown")
        assert told("--set", "name=other", "--out", str(run)).startswith("unknown")
        assert server.asks
        (run / "summary.parquet").write_bytes(b"cut")  # is no reason to fail
        assert told().startswith("unknown")


def test_a_check_is_kept_for_the_dry_run() -> None:
    engine = {"kind": "simulator", "profile": "fixed", "scale": 0.1}
    write_sweep(Path("s.yaml"), "", engine=engine)
    assert told() == "about 0:00, by the simulator's profile"
    checked = bench("check", "s.yaml", "--seconds", "1").stdout
    assert "time: about 0:00, by these batches" in checked or "ready" not in checked
    assert told().startswith("about 0:00, by bench check of ") or "ready" not in checked  # too busy a machine
    keep_check(load_spec("s.yaml"), [Point("", 8, 1, 40.0, 4.0)])
    assert told().startswith("about 1:00, by bench check of ")  # 40 s and five tokens
    assert told("--set", "engine.scale=1") == "about 0:00, by the simulator's profile"


@pytest.mark.parametrize("text", ["0", "-1", "x", "1,2,3", "nan", "inf", "1,"])
def test_what_is_no_speed_is_refused(text: str) -> None:
    write_sweep(Path("s.yaml"), "http://127.0.0.1:1")
    result = bench("sweep", "s.yaml", "--dry-run", "--assume-tok-s", text)
    assert result.exit_code == 2
    assert "expects one or two positive numbers, as 20 or 20,4000" in result.stderr
