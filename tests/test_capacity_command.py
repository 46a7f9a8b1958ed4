"""`bench capacity` on the simulator: what it answers, that it resumes, and what may certify nothing."""

from __future__ import annotations

import json
import math
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from driving import bench, sweeping, write_sweep
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from benchbench import open_run
from benchbench.api.artifacts import page_of
from benchbench.api.pictures import Pictures
from benchbench.boundary.boundary_search import Answer, Ask, Question
from benchbench.boundary.certify import FAILED
from benchbench.boundary.start_estimate import Estimate, next_load
from benchbench.capacity.answer_texts import answer_record, progress_text, sentence_of
from benchbench.capacity.observations import Observed, of_share, pooling
from benchbench.capacity.over_starts import Starts, against
from benchbench.capacity.probes import COUNTED, VOID, Made, SearchState, searches_of
from benchbench.capacity.searches_shown import shown
from benchbench.capacity.targets import Target
from benchbench.figures.caption import PROBES, run_title
from benchbench.figures.searches import search_figures
from benchbench.figures.sheet import STYLE
from benchbench.spec.schema import Slo
from benchbench.store.run_directory import RunDirectory

LOOSE = {"send_skew": 1, "late_send": 1, "client_lag": 1, "shared_suspect": 1, "shared_invalid": 1}
# TPOT is 8 ms + 3 ms a request in flight: 15.5 ms are met by a batch of 2 and missed by 3.
LAW = {"kind": "linear", "base_s": 0.008, "per_seq_s": 0.003}


@pytest.fixture(autouse=True)
def drawn(monkeypatch: Any) -> list[Pictures]:
    """What was to be drawn: it would take processes of its own."""
    pictures: list[Pictures] = []

    def record(drawing: Pictures) -> tuple[list[Path], list[str]]:
        pictures.append(drawing)
        return [drawing.out / "capacity.png"], []

    monkeypatch.setattr("benchbench.cli.drawing.drawn", record)
    return pictures


def sweep_of(path: Path, law: dict[str, Any] = LAW, noise: float = 0.005, **changes: Any) -> Path:
    engine = {"kind": "simulator", "profile": "tiny", "options": {"law": law, "faults": {"noise": noise}}}
    sections: dict[str, Any] = {
        "engine": engine,
        "grid": {"input": 8, "output": 4, "batch": [1, 4]},
        "slo": {"tpot_ms": 15.5, "statistic": "mean"},
        "validity": LOOSE,
    }
    return write_sweep(path / "s.yaml", "", **{**sections, **changes})


def answer(run: Path) -> dict[str, Any]:
    (found,) = json.loads((run / "capacity.json").read_text())["searches"]
    return dict(found)


def asked(run: Path) -> list[tuple[float, int | None, int]]:
    events = RunDirectory(run).events()
    return [(event["load"], event["test"], event["rounds"]) for event in events if event["event"] == "probe"]


def test_the_answer_is_an_interval_and_every_probe_a_cell(tmp_path: Path, drawn: list[Pictures]) -> None:
    run = tmp_path / "run"
    result = bench("capacity", sweep_of(tmp_path), "--out", run)
    assert result.exit_code == 0, result.stderr
    found = answer(run)
    assert found["holds_at"] <= 2 < found["fails_at"]
    assert f"meets the SLO at batch {found['holds_at']}, not at batch {found['fails_at']} (95 % conf" in result.stdout
    assert "certain so far: holds at" in result.stderr
    rows = json.loads(bench("table", run, "--format", "json", "--include-invalid").stdout)
    assert {row["batch"] for row in rows} == {load for load, _, _ in asked(run)}
    assert sum(row["rounds"] for row in rows) == sum(rounds for _, _, rounds in asked(run))
    assert f"Plots:\n  {run}/plots/capacity.png\n" in result.stdout
    drawn[0].draw(["svg"])
    ends, svg = f"holds at {found['holds_at']}, fails at {found['fails_at']}", run / "plots" / "capacity.svg"
    texts = set(re.findall(">([^<>]+)<", svg.read_text()))
    assert {"TPOT, mean (ms)", "in=8 out=4", ends, "tested", "holds (95 %)"} <= texts
    shown = bench("table", run).stdout
    assert PROBES in shown
    assert run_title(open_run(run)).endswith(f" · {PROBES.partition('. ')[0]}")  # no answer below other figures
    assert f"not at batch {found['fails_at']} (95 % confidence)" in shown
    assert bench("capacity", run, "--plots", tmp_path / "drawn", "--json").stdout == (run / "capacity.json").read_text()
    folders = [(pictures.out, len(pictures.capacity)) for pictures in drawn]
    assert folders == [(run / "plots", 1), (tmp_path / "drawn", 1)]
    again = bench("capacity", run)
    assert again.stdout.split("Run:")[0].strip() == (run / "capacity.md").read_text().strip()
    other = bench("capacity", run, "--set", "slo.tpot_ms=12")  # which the answers shown would not be of
    assert (other.exit_code, other.stdout) == (2, "")
    assert other.stderr == f"bench capacity: --set is for a sweep's file, and {run} is a folder\n"
    nothing = bench("capacity", tmp_path / "s.yaml", "--out", run, "--resume")
    assert "nothing left to do" in nothing.stdout
    changed = bench("capacity", tmp_path / "s.yaml", "--out", run, "--resume", "--set", "slo.tpot_ms=12")
    assert (changed.exit_code, "slo or validity were others" in changed.stderr) == (2, True)


def test_the_report_of_a_search_begins_with_its_answer(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("benchbench.page.document.page_figures", lambda *_: [])
    run = tmp_path / "run"
    assert (
        bench("capacity", sweep_of(tmp_path, slo={"tpot_ms": 1000, "statistic": "mean"}), "--out", run).exit_code == 0
    )
    report = page_of([open_run(run)])
    assert '<a href="#capacity">Capacity</a>' in report
    section = report.index('<h2 id="capacity">How much it carries</h2>')
    sentence = "meets the SLO at batch 4, the largest asked for (95 % confidence)"
    assert report.index(sentence) < section < report.rindex(sentence)
    assert "meets the SLO up to" not in report  # nothing else stands beside the answer
    assert "What is limited, over the load, and the answer" in report


@pytest.mark.parametrize(
    ("limit", "ended", "text"),
    [
        (1000, "always", "meets the SLO at batch 2, the largest asked for (95 % confidence)"),
        (5, "never", "misses the SLO at batch 1, the smallest asked for (95 % confidence)"),
    ],
)
def test_an_slo_that_every_load_meets_or_none(tmp_path: Path, limit: float, ended: str, text: str) -> None:
    sweep = sweep_of(
        tmp_path, grid={"input": 8, "output": 4, "batch": [1, 2]}, slo={"tpot_ms": limit, "statistic": "mean"}
    )
    result = bench("capacity", sweep, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert answer(tmp_path / "run")["ended"] == ended
    assert text in result.stdout


def test_a_rate_is_searched_for_too(tmp_path: Path) -> None:
    load = {"kind": "open", "requests": 6, "arrival": "constant"}
    grid = {"input": 8, "output": 2, "rate": [20, 80]}
    sweep = sweep_of(tmp_path, load=load, grid=grid, slo={"e2el_ms": 5000, "statistic": "mean"})
    result = bench("capacity", sweep, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.stderr
    (found,) = json.loads(result.stdout)["searches"]
    assert (found["axis"], found["fails_at"]) == ("rate", None)
    assert found["holds_at"] == 80 or found["ended"] == "instrument"  # on a machine so busy that sends are late


def test_what_the_load_generator_cannot_tell_apart_certifies_nothing(tmp_path: Path) -> None:
    law = {"kind": "linear", "base_s": 0.000001}  # tokens that share a read
    sweep = sweep_of(tmp_path, law, grid={"input": 8, "output": 100, "batch": [16, 64]}, validity={})
    result = bench("capacity", sweep, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    found = answer(tmp_path / "run")
    assert (found["holds_at"], found["fails_at"], found["ended"]) == (None, None, "instrument")
    assert "nothing is certain of any load: the load generator is the limit at batch 16 (" in result.stdout
    assert " measured again" in result.stderr


def test_a_load_at_which_requests_are_preempted_fails(tmp_path: Path) -> None:
    engine = {"kind": "simulator", "profile": "tiny", "options": {"law": LAW, "kv_tokens": 100, "max_model_len": 60}}
    sweep = sweep_of(tmp_path, engine=engine, grid={"input": 30, "output": 8, "batch": [2, 3]}, slo={"e2el_ms": 60_000})
    result = bench("capacity", sweep, "--out", tmp_path / "run", "--set", "slo.statistic=mean")
    assert result.exit_code == 0, result.stderr
    found = answer(tmp_path / "run")
    assert (found["holds_at"], found["fails_at"]) == (2, 3)
    assert "not at batch 3 (95 % confidence), where preempted" in result.stdout


def test_killed_amid_a_probe_it_goes_on(tmp_path: Path) -> None:
    run, sweep = tmp_path / "run", sweep_of(tmp_path)
    with sweeping(sweep, "--out", run, command="capacity") as process:
        end = time.monotonic() + 60
        while not (run / "journal.jsonl").exists() or len(asked(run)) < 3:
            assert time.monotonic() < end
            time.sleep(0.005)
        process.process.send_signal(signal.SIGKILL)
    before = asked(run)
    result = bench("capacity", sweep, "--out", run, "--resume", "--budget-s", "100")
    assert result.exit_code == 0, result.stderr
    assert asked(run)[: len(before)] == before
    (state,) = searches_of(RunDirectory(run))
    assert all(made.ended for made in state.made)
    assert answer(run)["ended"] != ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slo": {}}, "slo: is what is searched for: name a limit (allowed: ttft_ms, tpot_ms, e2el_ms)"),
        (
            {"grid": {"input": 8, "output": 4, "batch": 3}},
            "grid: in=8 out=4 has one batch: a search needs the smallest",
        ),
    ],
)
def test_what_cannot_be_searched_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    result = bench("capacity", sweep_of(tmp_path, **changes), "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "run").exists()
    assert bench("capacity", sweep_of(tmp_path), "--width", "70%").exit_code == 2


# ---- Without a server -----------------------------------------------------------------------------------


def state_of(axis: str, high: float, budget_s: float = 1e9) -> SearchState:
    return SearchState(Target("", "in=8 out=4", 8, 4, axis, 1.0, high), None, 0.05, budget_s)


@settings(max_examples=40, phases=[Phase.generate], deadline=None)
@given(st.integers(0, 1000), st.floats(1.5, 200), st.floats(1, 300), st.sampled_from(["batch", "rate"]))
def test_a_search_below_what_the_instrument_can_send_ends(seed: int, limit: float, capacity: float, axis: str) -> None:
    state, rng = state_of(axis, 256.0), np.random.default_rng(seed)
    for _ in range(200):
        step = state.step()
        if not isinstance(step, Ask):
            break
        excess = tuple(((step.load / capacity) ** 2 * (1 + 0.01 * rng.standard_normal(step.rounds)) - 1).tolist())
        seen = Observed((), limited=("send_skew",)) if step.load >= limit else Observed(excess)
        state.made.append(
            Made(step.load, step.test, "", 0, step.rounds, VOID if step.load >= limit else COUNTED, 1, seen)
        )
        assert progress_text(state)
    assert isinstance(step, Answer)
    assert step.holds_at is None or step.holds_at < limit
    assert step.fails_at is None or step.fails_at < limit
    if limit < 0.9 * capacity:
        assert step.reason == "instrument"
        assert f"the load generator is the limit at {axis} " in sentence_of(state)
    if limit > 4 * capacity > 8:
        assert answer_record(state)["holds_at"] <= capacity < answer_record(state)["fails_at"]


def test_a_failed_request_is_an_end_of_the_interval_at_once() -> None:
    state = state_of("batch", 64.0)
    state.made = [Made(8.0, None, "", 0, 2, COUNTED, 1, Observed((FAILED,), failing=("request_failed",)))]
    assert answer_record(state)["fails_at"] == 8
    assert sentence_of(state).startswith(
        "in=8 out=4: misses the SLO at batch 8 (95 % confidence), where request_failed"
    )


def made(load: float, test: int | None, *excess: float, ended: str = COUNTED, **seen: Any) -> Made:
    return Made(load, test, "c", 0, len(excess), ended, 1, Observed(excess, **seen))


def test_the_picture_shows_each_load_the_fit_the_limit_and_the_answer() -> None:
    state = state_of("batch", 64.0)
    state.made = [made(4, None, -0.5, -0.4), made(16, None, FAILED, failing=("request_failed",))]
    state.made += [
        made(8, 0, -0.2, -0.21, -0.22),
        made(8, 0, -0.2, -0.19, suspect=("throttled",)),
        made(32, None, ended=VOID),
    ]
    cells: Any = {"c": SimpleNamespace(slo=Slo(tpot_ms=50, statistic="mean"))}
    (panel,) = shown([state, state_of("rate", 4.0)], cells)  # the other one has not begun
    assert (panel.what, panel.limit_ms, panel.ends) == ("TPOT, mean", 50, (8, 16))
    assert panel.title == "in=8 out=4\nholds at 8, fails at 16"
    (curve,) = panel.curves
    assert [(point.load, point.kind, point.suspect) for point in curve.seen] == [
        (4, "explored", False), (16, "failed", False), (8, "tested", True), (32, "void", False)
    ]  # fmt: skip
    tested = curve.seen[2]
    assert tested.mean == pytest.approx(0.796)
    assert tested.low < 0.796 < tested.high
    assert (curve.fit[0], curve.fit[-1]) == ((4, pytest.approx(0.55)), (8, pytest.approx(0.796)))  # not to what failed
    with mpl.rc_context(STYLE):
        ((name, figure),) = search_figures([panel], f"run · in=8 out=4: meets it · {PROBES[:-1]} · day")
        axes = figure.axes[0]
        verticals = [line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1]]
        texts = " ".join(text.get_text() for text in figure.findobj(mpl.text.Text))
    assert (name, verticals, axes.get_xlim()[0] < 4) == ("capacity", [8, 16], True)
    assert any(list(line.get_ydata()) == [50, 50] for line in axes.lines)  # the limit, in ms
    assert "run · day · bars: 95 % of a load's observations by themselves" in texts
    assert {"requests failed", "load generator's limit", "hollow: suspect"} <= set(legend_of(figure))


def legend_of(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_picture_of_several_starts_has_their_mean() -> None:
    states = [replace(state_of("batch", 64.0), block=block) for block in range(3)]
    for block, state in enumerate(states):
        state.made = [made(10, None, -0.2), made(11, None, 0.1 + block / 50)]
    cells: Any = {"c": SimpleNamespace(slo=Slo(ttft_ms=50, tpot_ms=5))}
    (panel,) = shown(states, cells)
    assert (panel.what, panel.limit_ms, panel.over_starts) == ("Worst of TTFT, TPOT, p99", None, True)
    assert panel.ends[0] < panel.capacity < panel.ends[1]
    with mpl.rc_context(STYLE):
        ((_, figure),) = search_figures([panel], "run")
    assert "capacity, mean over starts" in legend_of(figure)
    assert figure.axes[0].get_ylabel() == "Worst of TTFT, TPOT, p99 (% of limit)"


def test_a_budget_of_time_ends_it() -> None:
    state = state_of("batch", 64.0, budget_s=10)
    state.made = [Made(8.0, None, "", 0, 2, COUNTED, 11, Observed((-0.5, -0.4)))]
    assert state.step() == Answer(None, None, "time")
    assert "nothing is certain of any load: its time was used up" in sentence_of(state)


@given(st.integers(1, 400), st.sampled_from([0.5, 0.9, 0.99]))
def test_of_a_share_no_more_than_allowed_lie_beyond_on_average(n: int, share: float) -> None:
    ranks = (np.arange(n) + 1) / (n + 1)  # where the values of a uniform law lie on average
    excess = of_share(ranks, share)
    assert 1 + excess >= min(share, ranks[-1]) - 1e-9
    assert pooling(Slo(ttft_ms=1), n) * n >= 99.9
    assert pooling(Slo(ttft_ms=1, statistic="mean"), n) == 1


# ---- Several starts -------------------------------------------------------------------------------------

PAIR = {
    "variants": {"main": {}, "better": {"engine": {"options": {"law": {"per_seq_s": 0.0015}}}}},
    "blocks": 2,
    "grid": {"input": 8, "output": 3, "batch": [1, 8]},
}


def test_each_start_of_two_builds_has_a_capacity_and_they_are_compared(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = bench("capacity", sweep_of(tmp_path, **PAIR), "--out", run)
    assert result.exit_code == 0, result.stderr
    record = json.loads((run / "capacity.json").read_text())
    main, better = record["starts"]
    assert [main["variant"], better["variant"]] == ["main", "better"]
    assert len(main["capacities"]) == len(better["capacities"]) == 2
    assert 1 < main["mean"] < 4 < better["mean"] < 7  # 2.5 and 5
    (ratio,) = record["pairs"]
    assert ratio["ratio"]["point"] == pytest.approx(better["mean"] / main["mean"])
    assert "better carries " in result.stdout
    compared = bench("compare", run)
    assert compared.stdout.strip() in result.stdout
    assert json.loads(bench("compare", run, "--format", "json").stdout) == {"pairs": record["pairs"]}
    between = bench("compare", run, run, "--base", "better", "--candidate", "main")
    assert "main carries" in between.stdout
    assert bench("compare", run, "--fail-on", "slower").exit_code == 2
    assert bench("table", run).exit_code == 0


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("guess", [None, 30.0])
@given(capacity=st.floats(0.5, 600))
def test_the_capacity_of_a_start_is_where_its_figures_cross(whole: bool, guess: float | None, capacity: float) -> None:
    question, figures = Question(1, 256, whole=whole), dict[float, float]()
    while not isinstance(step := next_load(question, figures, guess), Estimate):
        assert step not in figures
        assert 1 <= step <= 256
        figures[step] = 2 * math.log(step / capacity)
    if capacity >= 256 or capacity < 1:
        assert step == Estimate(None, "always" if capacity >= 256 else "never")
    else:
        assert step.capacity == pytest.approx(capacity, rel=1e-6)


def test_a_start_without_a_capacity_leaves_its_shape_without_a_ratio() -> None:
    whole = Starts("a", "s", "batch", {0: 10.0, 1: 11.0, 2: 10.0}, {}, 10.3, 9.0, 12.0)
    cut = whole._replace(variant="b", capacities={0: 10.0, 1: 11.0}, censored={2: "all meet it"}, mean=None)
    pair = against([whole], [cut], ("a", "b"), paired=True)
    assert (pair.compared.cells, pair.left_out) == ((), {"s": "b, start 2: all meet it"})
    more = whole._replace(capacities={0: 11.0, 1: 12.1, 2: 11.1})
    (text,) = against([whole], [more], ("a", "b"), paired=True).sentences
    assert text.startswith("b carries 10.3 % more within the SLO than a (95 % CI ")
    (text,) = against([more], [whole], ("a", "b"), paired=True).sentences
    assert text.startswith("b carries 9.4 % less within the SLO than a (95 % CI ")
