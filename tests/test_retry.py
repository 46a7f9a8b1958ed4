"""`bench sweep --resume --retry`: what a transient failure spoiled is measured again, and stays on record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from answers import CLOSE, Ask, Script, completion, error
from driving import CARRIED_OUT, bench, summary, write_sweep
from runs_made import BRANCHES, FAILED, made_run
from servers import ScriptedServer

from benchbench import open_run
from benchbench.measure.retry import set_aside
from benchbench.spec import make_plan, spec_from_mapping
from benchbench.store.run_directory import RunDirectory

SWEEP = ("sweep", "s.yaml", "--out", "run", "--no-plots")
PLAIN: dict[str, Any] = {
    "name": "plain",
    "model": "m",
    "engine": {"kind": "simulator"},
    "grid": {"input": 128, "output": 8, "batch": [1, 4]},
    "rounds": {"warmup": 0, "min": 3, "max": 3},
    "prompts": {"vocab": [1000, 30000]},
    "order": "as_written",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def writable(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    run.open_for_writing(resume=True)
    return run


def test_a_round_that_failed_once_is_measured_again_and_counted_in_its_row() -> None:
    def answer(ask: Ask) -> Script:
        return [error(500, "boom")] if ask.number == 2 else completion(ask)

    with ScriptedServer(answer) as server:
        grid = {"input": 8, "output": 6, "batch": 2}
        write_sweep(Path("s.yaml"), server.url, grid=grid, rounds={"warmup": 0, "min": 3, "max": 3})
        assert bench(*SWEEP).exit_code == 3
        assert "request_failed" in summary(Path("run"))[0]["reasons"]
        first = {path.name: path.read_bytes() for path in Path("run/records").iterdir()}
        assert "nothing left to do" in bench(*SWEEP, "--resume").stdout
        asked = len(server.asks)
        again = bench(*SWEEP, "--resume", "--retry", "request_failed")
        assert again.exit_code in CARRIED_OUT
        assert "1 of 3 rounds set aside, to be measured again" in again.stderr
        assert len(server.asks) == asked + 2
        prompts = [tuple(ask.json["prompt"]) for ask in server.asks]
        assert len(set(prompts)) == len(prompts)
    (row,) = summary(Path("run"))
    assert (row["rounds"], row["failed"], row["spoiled"]) == (3, 0, 1)
    assert "request_failed" not in (row["reasons"] or "")
    (kept,) = Path("run/spoiled").iterdir()
    (name,) = (name for name in first if kept.name.startswith(name.removesuffix(".parquet")))
    assert kept.read_bytes() == first[name]
    assert {file: data for file, data in first.items() if file != name}.items() <= {
        path.name: path.read_bytes() for path in Path("run/records").iterdir()
    }.items()
    assert "1 more were spoiled, are set aside and were measured again" in bench("explain", "run").stdout
    table = bench("table", "run", "--include-invalid").stdout
    assert "3 rounds per cell, 1 spoiled round set aside and measured again" in table or row["status"] == "invalid"


def test_a_cell_that_was_given_up_is_tried_again() -> None:
    broken = [True]
    with ScriptedServer(lambda ask: [CLOSE] if broken else completion(ask)) as server:
        write_sweep(Path("s.yaml"), server.url)
        assert bench(*SWEEP).exit_code == 3
        broken.clear()
        assert bench(*SWEEP, "--resume").exit_code == 3  # given up once and for all
        assert bench(*SWEEP, "--resume", "--retry", "invalid").exit_code in CARRIED_OUT
    (row,) = summary(Path("run"))
    assert (row["failed"], row["spoiled"]) == (0, 1)


def test_of_variants_all_rounds_of_the_cell_in_that_start_are_set_aside() -> None:
    data = {**BRANCHES, "blocks": 3, "grid": {"input": 128, "output": 8, "batch": [1, 4]}}
    spoiled, good = ("main", 4, 1, 0), (50.0, 10.0)
    path = made_run(
        Path("run"),
        data,
        lambda cell, start, k: FAILED if (cell.variant, cell.batch, start.block, k) == spoiled else good,
    )
    run = writable(path)
    notes = set_aside(run, make_plan(spec_from_mapping(data)), "invalid")
    run.close()
    (note,) = notes
    assert "2 of 6 rounds set aside" in note
    rows = {(row["variant"], row["batch"]): row for row in open_run(path).rows}
    assert {place: (row["rounds"], row["spoiled"]) for place, row in rows.items() if row["spoiled"]} == {
        ("main", 4): (4, 2)
    }
    assert rows["main", 4]["starts"] == 2


def test_a_reason_of_all_rounds_together_sets_all_aside_and_one_that_no_cell_has_none() -> None:
    data = {**PLAIN, "rounds": {"warmup": 0, "min": 6, "max": 6}}
    path = made_run(Path("run"), data, lambda cell, _, k: (50.0, 10.0 + k * (cell.batch == 4)))
    plan, run = make_plan(spec_from_mapping(data)), writable(path)
    before = open_run(path).rows
    assert ["drift" in row["reasons"] for row in before] == [False, True]
    assert set_aside(run, plan, "cached_prefix") == ["--retry cached_prefix: no cell has it"]
    assert open_run(path).rows == before
    set_aside(run, plan, "drift")
    run.close()
    assert [(row["rounds"], row["spoiled"]) for row in open_run(path).rows] == [(6, 0), (0, 6)]


def test_a_word_that_is_no_reason_is_refused() -> None:
    with ScriptedServer() as server:
        write_sweep(Path("s.yaml"), server.url)
        absent = bench(*SWEEP, "--resume", "--retry", "invalid")
        assert (absent.exit_code, Path("run").exists()) == (2, False)
        assert absent.stderr == "bench sweep: run: there is no run of which --retry could measure anything again\n"
        assert bench(*SWEEP).exit_code in CARRIED_OUT
        wrong = bench(*SWEEP, "--resume", "--retry", "bad")
        assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)
        assert "--retry bad: unknown (allowed: invalid, no_data, request_failed, " in wrong.stderr
        assert "--retry needs --resume" in bench(*SWEEP, "--retry", "invalid").stderr
        assert len(server.asks) == 1
