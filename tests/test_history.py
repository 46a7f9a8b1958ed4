"""`bench history`: steps over stored runs, what is no step, and what is never held against each other."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driving import bench
from runs_made import BRANCHES, made_run

from benchbench import BenchError, History, history_of, open_run
from benchbench.analysis.summary import UNITS
from benchbench.levels.changes import LEAST, Value, changes_of
from benchbench.store.run_directory import RunDirectory

DAY_NS = 86_400 * 10**9
BEGIN_NS = 20_454 * DAY_NS  # 2026-01-01
SPEEDS = ("sys_tok_s", "total_tok_s", "run_tok_s")
TIMES = ("ttft_ms", "tpot_ms", "e2el_ms")
Nights = Callable[..., Path]


@pytest.fixture(scope="module")
def kept() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Manifest and rows of a stored run."""
    run = open_run(Path(__file__).parent / "data" / "stored-run")
    return json.loads((run.path / "manifest.json").read_bytes()), run.rows


@pytest.fixture
def night(tmp_path: Path, kept: tuple[dict[str, Any], list[dict[str, Any]]]) -> Nights:
    """A run kept small, of a day after 2026-01-01, all of whose cells are so many times as fast as the stored run's."""

    def make(day: int, speed: float, *, status: str = "valid", commit: bool = True, **changes: Any) -> Path:
        manifest, rows = copy.deepcopy(kept)
        own = random.Random(f"night {day}").gauss(0, 0.011)  # of all its cells
        for row in rows:
            factor = speed * math.exp(own)
            row.update({name: row[name] * factor for name in SPEEDS} | {name: row[name] / factor for name in TIMES})
            row.update(status=status, reasons="foreign_load" if status == "invalid" else "")
        manifest |= {"created_ns": BEGIN_NS + day * DAY_NS}
        source = {"commit": f"{day:012d}", "committed_ns": BEGIN_NS + day * DAY_NS - 3600 * 10**9, "dirty": False}
        manifest["engine_environment"] = {"sources": {"vllm": source}} if commit else {}
        for path, value in changes.items():
            place = manifest
            *parts, last = path.split("__")
            for part in parts:
                place = place[part]
            place[last] = value
        folder = tmp_path / "nightly" / f"run-{random.Random(day).getrandbits(32):08x}"  # names do not order them
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        RunDirectory(folder).write_summary(rows, UNITS)
        return folder

    return make


@pytest.fixture
def month(night: Nights) -> Path:
    """30 nights, 5 % slower from the 19th on."""
    for day in range(30):
        folder = night(day, 1.0 if day < 18 else 0.95)
    return folder.parent


# ---- Steps of numbers ------------------------------------------------------------------------------------


def values(speeds: list[float], noise: float = 0.011, seed: int = 0, starts: int = 1) -> list[Value]:
    draw = random.Random(seed)
    return [Value(math.log(speed) + draw.gauss(0, noise), starts) for speed in speeds]


def test_a_step_is_placed_between_the_nights_that_it_lies_between() -> None:
    changes = changes_of(values([1.0] * 30 + [0.95] * 30))
    (step,) = changes.steps
    assert step.low <= 30 <= step.high
    assert step.high - step.low <= 2
    assert 30 < step.seen <= 34
    assert step.ends[0] < math.log(0.95) < step.ends[1]
    assert (sum(step.nights), step.gradual) == (60, False)
    assert changes.noise == pytest.approx(0.011, rel=0.3)


@pytest.mark.parametrize("seed", range(6))
def test_one_bad_night_is_no_step_wherever_it_is_and_moves_no_level(seed: int) -> None:
    for place in (3, 12, 29):
        speeds = [1.0] * 30
        quiet = changes_of(values(speeds, seed=seed))
        speeds[place] = 0.8
        changes = changes_of(values(speeds, seed=seed))
        assert len(changes.steps) <= len(quiet.steps)
        if place < 29:  # of the last night nobody knows yet
            assert changes.bad == {place} | quiet.bad
            assert changes.noise == pytest.approx(quiet.noise, rel=0.25)


def test_a_step_that_goes_away_is_two_steps_and_small_noise_is_none() -> None:
    back = changes_of(values([1.0] * 20 + [0.9] * 8 + [1.0] * 20)).steps
    assert [math.copysign(1, step.shift) for step in back] == [-1, 1]
    assert [step.at for step in back] == [20, 28]
    assert changes_of([Value(0.0)] * 20 + [Value(-0.1)] * 20).steps == ()  # copies: no noise is known


def test_before_enough_nights_nothing_is_told() -> None:
    few = changes_of(values([1.0] * 3 + [0.5] * 4))
    assert (few.steps, few.noise) == ((), None)


def test_a_drift_is_called_gradual() -> None:
    steps = changes_of(values([1 - 0.002 * night for night in range(60)], noise=0.006)).steps
    assert steps
    assert any(step.gradual for step in steps)


def test_nights_of_several_starts_weigh_more() -> None:
    draw = random.Random(4)
    nights = [Value(draw.gauss(0, 0.02 / math.sqrt(k)), k, 0.02**2 if k > 1 else None) for k in (1, 6) * 20]
    nights += [Value(-0.02 + draw.gauss(0, 0.02 / math.sqrt(k)), k, 0.02**2 if k > 1 else None) for k in (1, 6) * 8]
    (step,) = changes_of(nights).steps
    plain = changes_of([Value(night.log) for night in nights])
    assert step.ends[1] - step.ends[0] < 0.016
    assert not plain.steps or plain.steps[0].ends[1] - plain.steps[0].ends[0] > step.ends[1] - step.ends[0]


def test_false_alarms_and_delay_on_seeded_series() -> None:
    alarms = sum(len(changes_of(values([1.0] * 365, seed=seed)).steps) for seed in range(6))
    assert alarms <= 6  # benchmarks/history.py counts thousands
    found = [changes_of(values([1.0] * 30 + [0.98] * 8, seed=seed)).steps for seed in range(40)]
    assert sum(bool(steps) and abs(steps[0].at - 30) <= 5 for steps in found) >= 30


def test_nights_related_to_the_one_before_are_allowed_for() -> None:
    """By 0.3. Taken for unrelated, these six have 7 steps that stay."""
    count = 0
    for seed in range(6):
        draw, log, nights = random.Random(seed), 0.0, []
        for _ in range(365):
            log = 0.3 * log + draw.gauss(0, 0.0105)
            nights.append(Value(log))
        count += len(changes_of(nights).steps)
    assert count <= 5


# ---- Stored runs -----------------------------------------------------------------------------------------


def test_a_month_of_nights_shows_its_step_with_commits(month: Path) -> None:
    result = bench("history", month, "--metric", "sys_tok_s", "--only", "batch=4")
    assert result.exit_code == 0, result.stderr
    assert (
        "1 step in 1 series, 1 for the worse that still stands; 30 nights from 2025-12-31 to 2026-01-29"
        in result.stdout
    )
    assert "000000000017 | 000000000018" in result.stdout.replace("\xa0", " ")
    told = history_of(month, metrics=["sys_tok_s"], only="batch=4")
    assert isinstance(told, History)
    (step,) = told.steps().to_dict("records")
    assert (step["last_commit"], step["first_commit"], step["nights"]) == ("000000000017", "000000000018", 12)
    assert step["ratio_low"] < 0.95 < step["ratio_high"]
    assert step["after"] < step["before"]
    nights = told.nights()
    assert list(nights["commit"]) == sorted(nights["commit"])  # by date, not by folder
    assert nights["step"].notna().sum() == 1
    assert "1 step" in repr(told)
    assert "<table>" in told._repr_html_()


def test_forms_for_programs_hold_every_night(month: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(bench("history", month, "--format", "csv").stdout)))
    assert len(rows) == 30 * 3 * 3  # cells x metrics
    assert {row["use"] for row in rows} == {"used"}
    data = json.loads(bench("history", month, "--json", "--metric", "ttft").stdout)
    assert {step["metric"] for step in data["steps"]} == {"ttft"}
    assert [len(one["nights"]) for one in data["series"]] == [30] * 3
    assert all(step["ratio"] < 1 < step["after"] / step["before"] for step in data["steps"])  # longer is worse


def test_other_conditions_are_other_segments_never_joined(night: Nights) -> None:
    for day in range(12):
        night(day, 1.0)
    for day in range(12, 24):
        folder = night(day, 0.9, host__drivers={"amdgpu": "6.12"})
    result = bench("history", folder.parent, "--metric", "sys_tok_s", "--fail-on", "step")
    assert result.exit_code == 0, result.stderr
    assert "No step in 3 series" in result.stdout
    assert "drivers: unknown against amdgpu 6.12" in result.stdout.replace("\\", "")
    joined = bench("history", folder.parent, "--metric", "sys_tok_s", "--join", "drivers", "--fail-on", "step")
    assert joined.exit_code == 4
    assert "3 steps in 3 series" in joined.stdout
    again = night(24, 1.0)  # back at the first drivers: it goes on with the first nights
    segments = json.loads(bench("history", again.parent, "--json", "--only", "batch=4").stdout)["series"][0]["segments"]
    assert [segment["nights"] for segment in segments] == [12, 13]
    assert [bool(segment["ended"]) for segment in segments] == [True, False]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"spec__model": "other"}, "model"),
        ({"host__name": "elsewhere"}, "host"),
        ({"tool__version": "9.9"}, "tool"),
        ({"spec__engine__scale": 0.2}, "flags"),
        ({"devices": [{"name": "MI300X", "power_limit_w": 750.0, "driver": "6.1"}]}, "GPUs"),
        ({"spec__prompts__kind": "text"}, "prompts"),
    ],
)
def test_each_condition_ends_a_segment_and_is_named(night: Nights, change: dict[str, Any], name: str) -> None:
    night(0, 1.0)
    folder = night(1, 1.0, **change)
    ended = json.loads(bench("history", folder.parent, "--json").stdout)["series"][0]["segments"][0]["ended"]
    assert f"{name}: " in ended


def test_a_bad_night_and_an_invalid_cell_are_shown_and_not_used(night: Nights) -> None:
    for day in range(30):
        folder = night(day, 0.7 if day == 14 else 1.0, status="invalid" if day == 20 else "valid")
    result = bench("history", folder.parent, "--metric", "sys_tok_s", "--fail-on", "step")
    assert result.exit_code == 0, result.stderr
    assert "No step" in result.stdout
    assert "a bad night (far off, and the next night was not)" in result.stdout
    assert "invalid (foreign_load): Sys tok/s of in=128 out=16 batch=1 and 2 more" in result.stdout
    frame = history_of(folder.parent, metrics=["sys_tok_s"]).nights()
    assert list(frame[frame["use"] != "used"]["use"].unique()) == ["bad", "invalid"]


def test_what_is_no_run_is_a_note_and_never_a_crash(month: Path) -> None:
    (month / "broken").mkdir()
    (month / "broken" / "manifest.json").write_text("{")
    (month / "torn" / "records").mkdir(parents=True)
    (month / "notes").mkdir()
    (month / "notes" / "readme.txt").write_text("nothing of ours")
    result = bench("history", month, "--metric", "sys_tok_s")
    assert result.exit_code == 0, result.stderr
    notes = [line for line in result.stdout.splitlines() if "not read" in line]
    assert len(notes) == 2
    assert "broken/manifest.json: damaged" in notes[0] + notes[1]
    assert "30 nights" in result.stdout
    named = bench("history", month, month / "broken", "--fail-on", "step")  # named, and to be judged
    assert (named.exit_code, len(named.stderr.splitlines())) == (2, 1)
    empty = bench("history", month / "notes")
    assert (empty.exit_code, len(empty.stderr.splitlines())) == (2, 1)


def test_a_run_counts_once_wherever_its_copies_are(night: Nights, tmp_path: Path) -> None:
    folder = night(1, 1.0)
    night(2, 1.0)
    shutil.copytree(folder, tmp_path / "copy")
    history = history_of([folder.parent, folder, tmp_path / "copy"], metrics=["ttft"])
    assert set(history.nights()["run"].value_counts()) == {history.nights()["run"].size // 2}
    assert history.notes == (f"not read: {tmp_path / 'copy'}: a copy of {folder}",)
    (tmp_path / "empty").mkdir()
    nothing = bench("history", tmp_path / "empty")
    assert (nothing.exit_code, nothing.stderr) == (2, f"bench history: {tmp_path / 'empty'}: no run was found\n")


def test_a_gate_fails_on_a_step_that_stands_and_on_what_it_cannot_judge(month: Path, night: Nights) -> None:
    def gated(*words: object) -> tuple[int, str]:
        result = bench("history", month, "--metric", "sys_tok_s", *words)
        return result.exit_code, result.stderr

    code, err = gated("--fail-on", "step")
    assert code == 4
    assert "bench history: step: Sys tok/s of in=128, out=16, batch=1: " in err
    assert "% slower since 000000000018, over 12 nights" in err
    assert gated("--fail-on", "step>20%") == (0, "")
    assert gated("--fail-on", "step", "--since", "2026-01-25") == (0, "")
    assert "<failure" in bench("history", month, "--fail-on", "step", "--format", "junit").stdout
    night(30, 0.95, status="invalid")
    assert "is invalid (foreign_load)" in gated("--fail-on", "step>20%")[1]
    for day in range(31, 40):
        night(day, 1.0)
    assert gated("--fail-on", "step") == (0, "")  # undone


def test_a_gate_does_not_pass_where_no_night_has_a_valid_number(night: Nights) -> None:
    folders = [night(day, 1.0, status="invalid") for day in range(9)]
    result = bench("history", *folders, "--fail-on", "step")
    assert result.exit_code == 4
    one = bench("history", *folders, "--fail-on", "step", "--only", "batch=4")
    assert "in=128, out=16, batch=4: cannot be judged: has never had a valid number (foreign_load)" in one.stderr


def test_a_gate_needs_nights(night: Nights) -> None:
    for day in range(LEAST - 1):
        folder = night(day, 1.0)
    result = bench("history", folder.parent, "--fail-on", "step", "--metric", "ttft")
    assert result.exit_code == 4
    assert f"cannot be judged: {LEAST - 1} of {LEAST} nights" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "speed"], "--metric speed: unknown (allowed: sys_tok_s, "),
        (["--only", "batch=7"], "--only batch=7: selects no cell"),
        (["--only", "batch~7"], "cannot read 'batch~7'"),
        (["--join", "weather"], "--join weather: unknown (allowed: model, hardware"),
        (["--fail-on", "slower"], "--fail-on slower: unknown (allowed: step, 'step>2%')"),
        (["--fail-on", "step>0%"], "must be percent above 0"),
        (["--since", "yesterday"], "--since yesterday: must be a day (allowed: as 2026-01-31)"),
    ],
)
def test_what_cannot_be_asked_is_one_line(night: Nights, words: list[str], message: str) -> None:
    result = bench("history", night(0, 1.0), *words)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert message in result.stderr


def test_records_give_the_starts_of_a_night_and_variants_are_series(tmp_path: Path) -> None:
    for day in range(3):
        made_run(
            tmp_path / f"n{day}",
            {**BRANCHES, "blocks": 3, "grid": {"input": 128, "output": 8, "batch": 1}},
            lambda _, start, k: (50.0 + start.block, 10.0 + 0.1 * start.block + 0.01 * k),
            created_ns=BEGIN_NS + day * DAY_NS,
            variants={"main": {"commit": "a" * 40, "committed_ns": BEGIN_NS - (3 - day) * DAY_NS}},
        )
    frame = history_of([tmp_path / f"n{day}" for day in (2, 0, 1)], metrics=["tpot"]).nights()
    assert sorted(set(frame["variant"])) == ["int8-moe", "main"]
    main = frame[frame["variant"] == "main"]
    assert list(main["run"]) == ["n0", "n1", "n2"]
    assert (list(main["dated"]), set(main["commit"]), set(main["starts"])) == (["commit"] * 3, {"a" * 12}, {3})
    assert list(main["date"]) == ["2025-12-29", "2025-12-30", "2025-12-31"]
    assert (main["low"] < main["value"]).all()
    assert (main["value"] < main["high"]).all()
    assert set(frame[frame["variant"] == "int8-moe"]["dated"]) == {"run"}


def test_figures_have_a_panel_a_cell_and_name_the_commit(month: Path, tmp_path: Path) -> None:
    result = bench("history", month, "--metric", "sys_tok_s", "--plots", tmp_path / "figures")
    assert result.exit_code == 0, result.stderr
    svg = (tmp_path / "figures" / "history_sys_tok_s.svg").read_text()
    assert (tmp_path / "figures" / "history_sys_tok_s.png").stat().st_size > 10_000
    assert svg.count("in=128, out=16, batch=4") == 1
    assert "\N{MINUS SIGN}" in svg  # commit, and by how much
    assert "prefers-color-scheme: dark" in svg
    assert bench("history", month, "--metric", "ttft", "--plots", tmp_path / "figures").exit_code == 0
    assert re.search(r"> ?\w{9} \+\d\.\d %<", (tmp_path / "figures" / "history_ttft.svg").read_text())  # it grew


def test_imported_runs_have_no_history(night: Nights) -> None:
    folder = night(0, 1.0, imported={"files": []})
    with pytest.raises(BenchError, match="is imported"):
        history_of(folder.parent)
