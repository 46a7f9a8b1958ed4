"""Sweeps with variants: starts in blocks, each with all cells; a variant that fails leaves the others whole."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from driving import CARRIED_OUT, bench, records, summary, sweeping, write_sweep
from hypothesis import given
from hypothesis import strategies as st

from benchbench.host.rest import SLACK_BYTES, holding, hotter

STANDIN = [sys.executable, str(Path(__file__).with_name("standin_vllm.py"))]
ROUNDS = {"warmup": 1, "min": 2}
GRID = {"input": 8, "output": 6, "batch": [1, 2]}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sweep_of(variants: dict[str, Any], engine: dict[str, Any], **changes: Any) -> Path:
    defaults = {"rounds": ROUNDS, "grid": GRID, "blocks": 3, "variants": variants, "engine": engine}
    return write_sweep(Path("s.yaml"), "", **{**defaults, **changes})


def events(name: str) -> list[dict[str, Any]]:
    lines = map(json.loads, Path("run/journal.jsonl").read_text().splitlines())
    return [event for event in lines if event["event"] == name]


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # gone meanwhile
        return ""


def test_each_block_starts_each_variant_and_measures_every_cell() -> None:
    slow = {"engine": {"options": {"law": {"itl_s": 0.02}}}}
    sweep = sweep_of({"a": {}, "b": slow}, {"kind": "simulator"}, blocks=2)
    result = bench("sweep", sweep, "--out", "run", "--no-plots")
    assert result.exit_code in CARRIED_OUT, result.stderr
    starts = json.loads(Path("run/manifest.json").read_text())["starts"]
    assert [(one["block"], one["variant"]) for one in starts] == [
        (0, "a"),
        (0, "b"),
        (1, "b"),
        (1, "a"),
    ]
    rows = summary(Path("run"))
    assert [(row["variant"], row["batch"], row["rounds"]) for row in rows] == [
        (variant, batch, 4) for variant in "ab" for batch in (1, 2)
    ]
    measured = [row for row in records(Path("run")) if row["phase"] == "measured"]
    assert {(row["round"], row["block"]) for row in measured} == {(number, number // 2) for number in range(4)}
    asked = {variant: [row["response_id"] != "" for row in measured if row["variant"] == variant] for variant in "ab"}
    assert asked["a"] == asked["b"] == [True] * 12
    nothing = bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume")
    assert "nothing left to do" in nothing.stdout


def test_a_variant_that_cannot_start_is_said_once_and_the_other_is_measured() -> None:
    variants = {"main": {"engine": {"args": {"broken": "ValueError: no such layer"}}}, "new": {}}
    engine = {"kind": "vllm_serve", "command": STANDIN, "ready": {"timeout_s": 60}}
    result = bench("sweep", sweep_of(variants, engine, blocks=2), "--out", "run", "--no-plots")
    assert result.exit_code == 3, result.stderr
    assert result.stderr.endswith("bench: no cell of variant main is valid (see bench explain run)\n")
    assert result.stderr.count("variant main cannot start, and is left out") == 1
    assert "no such layer" in result.stderr
    assert [(one["variant"], one["block"]) for one in events("start_failed")] == [("main", 0)]
    assert {row["variant"]: row["rounds"] for row in summary(Path("run"))} == {"main": 0, "new": 4}


@pytest.mark.slow
def test_a_variant_that_dies_in_a_block_leaves_the_blocks_before_and_after() -> None:
    engine = {"kind": "vllm_serve", "command": STANDIN, "ready": {"timeout_s": 60}, "restarts": 0}
    sweep = sweep_of({"a": {}, "b": {}}, engine, grid={**GRID, "output": 20})
    with sweeping(sweep, "--out", "run", "--no-plots") as running:
        path = Path("run/journal.jsonl")
        while not path.exists() or path.read_text().count('"event":"cell_done"') < 6:  # block 1: b, then a begins
            assert running.process.poll() is None, running.end()
            time.sleep(0.02)
        while True:
            begun = path.read_text().splitlines()[-1]
            servers = [one for one in running.descendants() if "standin_vllm" in command(one)]
            if servers and '"event":"round_begun"' in begun:
                servers[0].kill()
                break
            time.sleep(0.02)
        code, _, err = running.end()
        assert code in CARRIED_OUT, err
        assert running.descendants() == []
    assert "variant a failed in block 1" in err
    rounds = {(row["variant"], row["batch"]): row["rounds"] for row in summary(Path("run"))}
    assert [rounds["b", batch] for batch in (1, 2)] == [6, 6]
    assert all(rounds["a", batch] < 6 for batch in (1, 2))
    blocks = {row["block"] for row in records(Path("run")) if row["variant"] == "a" and row["phase"] == "measured"}
    assert {0, 2} <= blocks


GPUS = st.dictionaries(st.sampled_from(["gpu0", "gpu1", "gpu2"]), st.integers(0, 1 << 36))


@given(GPUS, GPUS)
def test_gpus_are_free_when_none_holds_more_than_before(used: dict[str, float], before: dict[str, float]) -> None:
    more = {gpu for gpu in before.keys() & used.keys() if used[gpu] > before[gpu] + SLACK_BYTES}
    assert {text.split()[0] for text in holding(used, before)} == more
    assert holding(before, before) == hotter(before, before, 1.0) == []
    assert {text.split()[0] for text in hotter(used, before, 5)} == {
        gpu for gpu in before.keys() & used.keys() if used[gpu] > before[gpu] + 5
    }
