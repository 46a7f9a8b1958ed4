"""What `bench sweep` prints: the table, one JSON object, or as good as nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from answers import Script, whole
from driving import CARRIED_OUT, bench, write_sweep
from servers import ScriptedServer

SIMULATOR = {"kind": "simulator", "profile": "tiny"}
FAILING: Script = (whole(500, {"error": {"message": "out of memory"}}),)


def swept(tmp_path: Path, *options: str, **changes: Any) -> Any:
    path = write_sweep(tmp_path / "s.yaml", "", engine=SIMULATOR, **changes)
    return bench("sweep", str(path), "--no-plots", "--out", str(tmp_path / "run"), *options)


def test_json_is_one_object_and_all_rows(tmp_path: Path) -> None:
    result = swept(tmp_path, "--json", grid={"input": 8, "output": 6, "batch": [1, 2]})
    assert result.exit_code in CARRIED_OUT
    printed = json.loads(result.stdout)
    assert list(printed) == ["path", "state", "message", "rows"]
    assert (printed["path"], printed["state"]) == (str(tmp_path / "run"), "complete")
    assert [row["batch"] for row in printed["rows"]] == [1, 2]
    assert all({"status", "reasons", "ttft_ms", "key"} <= row.keys() for row in printed["rows"])
    assert "2 of 2 cells to measure" in result.stderr


def test_json_of_a_sweep_that_stops_says_so(tmp_path: Path) -> None:
    path = write_sweep(tmp_path / "s.yaml", "http://127.0.0.1:9")
    result = bench("sweep", str(path), "--json", "--no-plots", "--out", str(tmp_path / "run"))
    printed = json.loads(result.stdout)
    assert (result.exit_code, printed["state"]) == (1, "stopped")
    assert printed["message"] in result.stderr
    assert {row["rounds"] for row in printed["rows"]} == {0}
    assert (tmp_path / "run").exists() == (printed["path"] is not None)


def test_quiet_prints_the_runs_directory_alone(tmp_path: Path) -> None:
    result = swept(tmp_path, "--quiet")
    assert result.exit_code in CARRIED_OUT
    assert result.stdout == f"{tmp_path / 'run'}\n"
    assert all(line.startswith("bench: no cell is valid") for line in result.stderr.splitlines())


def test_quiet_still_tells_errors(tmp_path: Path) -> None:
    result = swept(tmp_path, "-q", grid={"input": 0, "output": 6, "batch": 1})
    assert (result.exit_code, result.stdout) == (2, "")
    assert "grid.input" in result.stderr


def test_quiet_and_json_print_the_object_and_no_progress(tmp_path: Path) -> None:
    result = swept(tmp_path, "-q", "--json")
    assert json.loads(result.stdout)["state"] == "complete"
    assert "cells to measure" not in result.stderr
    assert swept(tmp_path, "-q", "--dry-run").exit_code == 2


def test_the_price_of_rounds_is_for_those_who_ask(tmp_path: Path) -> None:
    rounds = {"warmup": 0, "min": 2, "max": 3}
    assert "a fixed 10 would take" not in swept(tmp_path, rounds=rounds).stdout
    assert "a fixed 10 would take" in swept(tmp_path, "-v", "--overwrite", rounds=rounds).stdout


def test_where_every_request_failed_rounds_are_not_spoken_of(tmp_path: Path) -> None:
    with ScriptedServer(lambda _: FAILING) as server:
        path = write_sweep(tmp_path / "s.yaml", server.url, rounds={"warmup": 0, "min": 2, "max": 5})
        result = bench("sweep", str(path), "-v", "--no-plots", "--out", str(tmp_path / "run"))
    assert result.exit_code == 3
    assert "request_failed" in result.stdout
    assert "a fixed 10 would take" not in result.stdout
    assert "rounds.max" not in result.stdout
