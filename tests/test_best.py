"""`bench best`: which setting is best, what cannot be told from it, and which starts are still made."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import pytest
from driving import bench, sweeping, write_sweep
from hypothesis import given
from hypothesis import strategies as st
from runs_made import FAILED, Tell, made_run

from benchbench import open_run
from benchbench.api.measuring import final_pictures
from benchbench.choice.answer import Answer, answer
from benchbench.choice.elimination import Levels, fitted, gap, limits_met, noise_of
from benchbench.choice.from_run import excess_of, trial_of
from benchbench.choice.pareto import dots_of, front
from benchbench.choice.sets import DEFAULT, CellStarts, sets_of
from benchbench.comparison.pairs import STARTS_CHOSEN
from benchbench.measure.run import Outcome
from benchbench.page import document
from benchbench.slo.attainment import meets
from benchbench.spec import Cell, Session

SPEED = {"a": 1.0, "b": 1.0, "c": 1.1, "d": 0.9}
SWEEP: dict[str, Any] = {
    "name": "settings",
    "model": "m",
    "engine": {"kind": "simulator"},
    "variants": {name: {} for name in SPEED},
    "blocks": 4,
    "grid": {"input": 128, "output": 8, "batch": [1, 4]},
    "rounds": {"warmup": 0, "min": 2},
    "prompts": {"vocab": [1000, 30000]},
    "order": "as_written",
}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def times(speed: dict[str, float], noise: float = 0.003) -> Tell:
    def tell(cell: Cell, start: Session, k: int) -> tuple[float, float]:
        luck = random.Random(f"{start.variant} {start.block}").gauss(1, noise) + 0 * k
        return 50 * luck, (10 + (cell.batch or 0)) * luck / speed[cell.variant]

    return tell


def answered(tell: Tell, metric: str = "sys_tok_s", **changes: Any) -> Answer:
    path = made_run(Path(f"run-{random.random()}"), SWEEP | changes, tell)
    return answer(trial_of(open_run(path), metric), metric)


def test_the_best_of_a_run_stands_alone_where_it_is_clearly_ahead() -> None:
    result = answered(times(SPEED))
    assert [(cell.best, cell.kept) for cell in (*result.cells, result.default)] == [("c", ("c",))] * 3
    places = {s.setting: (s.place, s.text) for s in result.default.standings}
    assert places == {"c": ("best", ""), "a": ("beaten", "c"), "b": ("beaten", "c"), "d": ("beaten", "c")}
    ratio = next(s for s in result.cells[0].standings if s.setting == "d")
    assert ratio.low
    assert ratio.ratio
    assert ratio.high
    assert ratio.low < ratio.ratio < ratio.high < 1


def test_ties_stay_in_the_set() -> None:
    result = answered(times({"a": 1.1, "b": 1.1, "c": 1.1, "d": 0.8}))
    assert {frozenset(cell.kept) for cell in result.cells} == {frozenset("abc")}


def test_a_setting_that_misses_the_slo_is_out_and_one_at_its_edge_beats_nobody() -> None:
    quick = {"a": 1.0, "b": 1.0, "c": 3.0, "d": 3.0}

    def tell(cell: Cell, start: Session, k: int) -> tuple[float, float]:
        _, itl = times(quick)(cell, start, k)
        luck = random.Random(f"{start.variant} {start.block}").gauss(1, 0.02)
        return {"c": 200.0, "d": 100.2}.get(cell.variant, 50.0) * luck, itl

    result = answered(tell, slo={"ttft_ms": 100})
    for cell in result.cells:
        places = {s.setting: (s.place, s.met) for s in cell.standings}
        assert places["c"] == ("misses the SLO", False)
        assert places["d"] == ("in the set", None)
        assert {places["a"], places["b"]} == {("best", True), ("in the set", True)}


def test_where_no_setting_meets_the_slo_there_is_no_best() -> None:
    made_run(Path("run"), SWEEP | {"slo": {"ttft_ms": 5}}, times(SPEED))
    result = bench("best", "run")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("no setting meets the SLO") == 3


def test_what_is_invalid_is_named_and_beats_nobody() -> None:
    def tell(cell: Cell, start: Session, k: int) -> tuple[float, float] | str:
        if cell.variant == "c" and cell.batch == 1:
            return "cached_prefix"
        if cell.variant == "a" and start.block == 2:
            return FAILED
        return times(SPEED)(cell, start, k)

    result = answered(tell)
    first, second = result.cells
    assert set(first.kept) == {"a", "b"}
    assert second.kept == ("c",)
    assert {s.setting: s.text for s in first.standings}["c"] == "cached_prefix"
    assert {s.setting: s.starts for s in second.standings} == {"c": 4, "a": 3, "b": 4, "d": 4}
    assert result.default.best in {"a", "b"}
    assert {s.setting: s.place for s in result.default.standings}["c"] == "invalid"


def test_the_command_says_it_in_each_form() -> None:
    made_run(Path("run"), SWEEP, times(SPEED))
    table = bench("best", "run").stdout
    assert "| 128 | 8 | 1 | c |" in table
    assert "Default for all 2 cells: c, 100.0 % of each cell's best in the mean" in table
    facts = json.loads(bench("best", "run", "--format", "json").stdout)
    assert [cell["set"] for cell in facts["cells"]] == [["c"]] * 3
    assert (facts["starts"], facts["full_design"]) == (16, 16)
    assert bench("best", "run", "--format", "csv").stdout.count("\n") >= 1 + 3 * 4
    metrics = ("ttft", "tpot", "goodput_req_s")
    assert [bench("best", "run", "--metric", metric).exit_code for metric in metrics] == [0, 0, 2]
    assert json.loads(bench("best", "run", "--json").stdout) == facts


def test_one_setting_is_no_choice() -> None:
    made_run(Path("run"), SWEEP | {"variants": {"a": {}}}, times(SPEED))
    result = bench("best", "run")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "has one setting only" in result.stderr


# ---- Starts where they decide ---------------------------------------------------------------------------


def chosen(run: Path) -> dict[int, list[str]]:
    """Block -> settings that went on, each decided once."""
    lines = map(json.loads, (run / "journal.jsonl").read_text().splitlines())
    looks = [(event["block"], event["settings"]) for event in lines if event["event"] == STARTS_CHOSEN]
    assert len(dict(looks)) == len(looks)
    return dict(looks)


def fixed(itl_s: float) -> dict[str, Any]:
    return {"engine": {"options": {"law": {"itl_s": itl_s}}}}


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_leaves_out_what_is_beaten_and_goes_on_when_it_was_killed() -> None:
    """Two settings alike, one four times as slow; the process dies after the first look."""
    engine = {"kind": "simulator", "options": {"law": {"ttft_s": 0.01}, "faults": {"start_noise": 0.01}}}
    itl_s = {"a": 0.01, "b": 0.01, "d": 0.04}
    settings = {name: fixed(each) for name, each in itl_s.items()}
    grid = {"input": 8, "output": 6, "batch": 1}
    file = write_sweep(Path("s.yaml"), "", engine=engine, variants=settings, blocks=3, grid=grid)
    run, path = Path("run"), Path("run/journal.jsonl")
    with sweeping(file, "--out", "run", "--margin", "0.01%", command="best") as running:
        while not path.exists() or STARTS_CHOSEN not in path.read_text():
            assert running.process.poll() is None, running.end()
            time.sleep(0.02)
    first = chosen(run)
    result = bench("best", file, "--out", "run", "--margin", "0.01%", "--resume")
    assert result.exit_code == 0, result.stderr
    looks = chosen(run)
    assert {block: looks[block] for block in first} == first
    assert set(looks) == {2}
    starts = [(s["block"], s["variant"]) for s in json.loads((run / "manifest.json").read_text())["starts"]]
    assert {v for block, v in starts if block < 2} == {*itl_s}
    assert all({v for b, v in starts if b == block} <= {*looks[block]} for block in looks)
    assert "starts (3 settings, 3 blocks), left out where they could decide nothing" in result.stdout
    if "shared" not in result.stdout and "invalid" not in result.stdout:  # a machine at rest
        assert {*looks[2]} <= {"a", "b"}
    assert bench("table", "run").exit_code == 0
    compared = bench("compare", "run", "--base", "a", "--candidate", "d")
    assert "starts were left out where bench best could decide nothing by them" in compared.stdout
    asked = bench("best", "run", "--resume")
    assert (asked.exit_code, asked.stderr) == (2, "bench best: --resume is for a sweep's file, and run is a folder\n")


def test_what_cannot_be_chosen_is_refused_before_anything_runs() -> None:
    file = write_sweep(Path("s.yaml"), "", engine={"kind": "simulator"}, variants={"a": {}, "b": {}})
    for option, said in (
        (("--only", "variant=a"), "one setting only"),
        (("--metric", "goodput_req_s"), "needs an `slo`"),
        (("--metric", "speed"), "unknown (allowed: sys_tok_s, ttft, tpot, goodput_req_s)"),
        (("--margin", "x"), "must be percent above 0"),
    ):
        result = bench("best", file, "--out", "run", *option)
        assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
    assert not Path("run").exists()


# ---- Statistics -----------------------------------------------------------------------------------------

Y = st.floats(-0.2, 0.2)


@given(st.lists(st.tuples(Y, Y, Y), min_size=2, max_size=6), Y, st.lists(Y, min_size=6, max_size=6))
def test_what_a_block_does_to_all_settings_changes_nothing(
    ys: list[tuple[float, ...]], level: float, drift: list[float]
) -> None:
    plain = {v: {b: y[k] for b, y in enumerate(ys)} for k, v in enumerate("abc")}
    moved = {v: {b: y + level + drift[b] for b, y in own.items()} for v, own in plain.items()}
    both = [noise_of(starts) for starts in (plain, moved)]
    for noise in both:
        assert (noise is None) == (both[0] is None)
    if both[0] and both[1]:
        assert both[1].sd == pytest.approx(both[0].sd, rel=1e-6, abs=1e-9)
        assert both[0].degrees == both[1].degrees == 2 * (len(ys) - 1)
    gaps = [gap(starts["a"], starts["b"], None, 0.01) for starts in (plain, moved)]
    assert gaps[0]
    assert gaps[1]
    assert gaps[1].mean == pytest.approx(gaps[0].mean, abs=1e-9)


def test_levels_of_settings_with_unlike_blocks_are_those_of_the_mean_block() -> None:
    drift = [0.0, 0.3, -0.2, 0.5]
    true = {"a": 1.0, "b": 1.1, "c": 0.7}
    starts = {v: {b: y + drift[b] for b in (range(2) if v == "c" else range(4))} for v, y in true.items()}
    levels = fitted(starts).levels
    assert {v: levels[v] - levels["a"] for v in true} == pytest.approx({"a": 0.0, "b": 0.1, "c": -0.3})
    assert noise_of(starts) is None  # a fit without a rest says nothing of noise


def test_without_noise_known_nothing_is_out() -> None:
    cells = {"x": CellStarts({v: {0: float(k)} for k, v in enumerate("abc")})}
    assert sets_of(cells, "abc", Levels(3, 1, 1), [1]).kept["x"] == ["a", "b", "c"]
    copies = {"x": CellStarts({v: dict.fromkeys(range(4), float(k)) for k, v in enumerate("abc")})}
    assert sets_of(copies, "abc", Levels(3, 1, 1), [4]).kept["x"] == ["a", "b", "c"]


def test_limits_are_judged_with_what_a_block_does_to_all() -> None:
    """Settings that share large block effects know little of their limit, though they are many."""
    rng = random.Random(3)
    drift = [rng.gauss(0, 0.1) for _ in range(4)]
    shared = {f"s{k}": {b: -0.15 + drift[b] + rng.gauss(0, 0.001) for b in range(4)} for k in range(12)}
    alone = {f"s{k}": {b: -0.15 + rng.gauss(0, 0.1 / 3) for b in range(4)} for k in range(12)}
    assert set(limits_met(shared, 1e-3).values()) == {None}
    assert True in limits_met(alone, 1e-3).values()


def test_a_cell_without_a_limit_is_decided_beside_one_with_a_limit() -> None:
    rng = random.Random(5)
    starts = {v: {b: rng.gauss(0, 0.002) - 0.2 * k for b in range(4)} for k, v in enumerate("abc")}
    excess = {v: {b: rng.gauss(-0.5, 0.002) for b in range(4)} for v in "abc"}
    levels = Levels(3, 2, 3, limited=True)
    sets = sets_of({"x": CellStarts(starts, excess), "y": CellStarts(starts)}, "abc", levels, [2, 3, 4])
    assert sets.kept == {"x": ["a"], "y": ["a"], DEFAULT: ["a"]}
    assert sets.needed(levels, 0.01) == set()
    alike = {v: {b: rng.gauss(0, 0.002) for b in range(4)} for v in "abc"}
    sets = sets_of({"x": CellStarts(alike)}, "abc", Levels(3, 1, 3), [2, 3, 4])
    assert sets.needed(Levels(3, 1, 3), 0.0001) == {*"abc"}
    assert sets.needed(Levels(3, 1, 3), 0.1) == set()  # surely within the margin of each other


def simulated(rng: random.Random, blocks: int = 6, count: int = 12) -> tuple[bool, int]:
    """Whether the true best, s0, is in every set, and the starts made, when others are dropped as they are beaten."""
    names = [f"s{k}" for k in range(count)]
    luck = {(v, b): rng.gauss(0, 0.007) for v in names for b in range(blocks)}
    drift = [rng.gauss(0, 0.02) for _ in range(blocks)]
    y = {key: luck[key] + drift[key[1]] - 0.015 * names.index(key[0]) for key in luck}
    levels, wanted = Levels(count, 1, blocks - 1), set(names)
    have: dict[str, dict[int, float]] = {v: {} for v in names}
    for block in range(blocks):
        if block >= 2:
            sets = sets_of({"x": CellStarts(have)}, names, levels, range(2, block + 1))
            wanted = sets.needed(levels, 0.01)
        for v in wanted:
            have[v][block] = y[v, block]
    sets = sets_of({"x": CellStarts(have)}, names, levels, range(2, blocks + 1))
    return "s0" in sets.kept["x"] and "s0" in sets.kept[DEFAULT], sum(map(len, have.values()))


def test_the_true_best_is_in_the_set_for_half_of_the_starts() -> None:
    rng = random.Random(1)
    runs = [simulated(rng) for _ in range(12)]
    assert all(held for held, _ in runs)
    assert math.fsum(starts for _, starts in runs) / len(runs) <= 0.55 * 72


@pytest.mark.parametrize("statistic", ["p50", "p99", "mean"])
@pytest.mark.parametrize("limits", [{"ttft_ms": 50.1}, {"tpot_ms": 11.0, "ttft_ms": 50.0}, {"e2el_ms": 130.0}])
def test_a_start_is_above_its_limit_just_where_the_table_says_that_it_misses_the_slo(
    statistic: str, limits: dict[str, float]
) -> None:
    path = made_run(Path("run"), SWEEP | {"slo": {**limits, "statistic": statistic}, "blocks": 1}, times(SPEED, 0.1))
    run = open_run(path)
    for summary in run.summaries:
        excess = excess_of(summary.rounds, summary.cell)
        assert excess is not None
        assert (excess <= 0) == meets(summary.cell.slo, summary.estimate)


@pytest.mark.usefixtures("drawn_here")
def test_the_picture_and_the_page_name_the_best_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made_run(Path("run"), SWEEP | {"variants": {"a": {}, "c": {}, "d": {}}}, times(SPEED))
    run = open_run(Path("run"))
    chosen = answer(trial_of(run), "sys_tok_s")
    dots = dots_of(chosen, chosen.cells[0], "tpot")
    assert {dot.setting for dot in dots} == {*"acd"}
    assert all(dot.x_ends[0] < dot.x < dot.x_ends[1] and dot.y_ends[0] < dot.y < dot.y_ends[1] for dot in dots)
    assert [dot.setting for dot in front(dots)] == ["c"]  # the fastest in both
    pictures = final_pictures(Outcome(Path("run"), "complete", "", run.rows))
    assert pictures is not None
    assert pictures.best == chosen  # at the end of bench sweep too
    assert bench("best", "run", "--plots", "plots").exit_code == 0
    svg = Path("plots/best_pareto.svg").read_text()
    assert all(words in svg for words in ("1 c", "at batch 4", "TPOT (ms)", "Sys tok/s"))
    for others in ("page_figures", "comparison_page_figures"):  # test_page.py looks at these
        monkeypatch.setattr(document, others, lambda *_: ())
    assert bench("report", "run").exit_code == 0
    page = Path("report.html").read_text()
    assert '<h2 id="best">Which setting is best</h2>' in page
    assert "Default for all 2 cells: c" in page


def test_throughput_is_of_one_gpu_where_flags_tell_how_many_there_are() -> None:
    args = {"a": {"tensor-parallel-size": 2}, "b": {"tensor-parallel-size": 8}, "c": {"tp": 2, "pp": 2}, "d": {}}
    variants = {name: {"engine": {"args": given}} for name, given in args.items()}
    changes = {"engine": {"kind": "vllm_serve"}, "variants": variants}
    result = answered(times(dict.fromkeys(SPEED, 1.0)), **changes)
    assert result.trial.gpus == {"a": 2, "b": 8, "c": 4, "d": 1}
    speeds = {dot.setting: dot.y for dot in dots_of(result, result.cells[0], "tpot")}
    assert speeds["a"] / speeds["b"] == pytest.approx(4, rel=0.05)
