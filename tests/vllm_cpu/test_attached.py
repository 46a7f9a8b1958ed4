"""A server that no sweep owns: the sweep of the other engines, chat, and two other opinions of how fast it is."""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from driving import bench, summary
from launching import ENVIRONMENT, GRID, PYTHON, Swept, assert_exact, carry_out, measured, serving, show


@pytest.fixture(scope="module")
def url(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(models / "tiny-llama", tmp_path_factory.mktemp("server") / "server.log") as found:
        yield found


def attached(url: str, sweep: Path, run: Path, *options: str) -> Path:
    swept = carry_out(sweep, run, "--set", "engine.kind=endpoint", "--set", f"engine.url={url}", *options)
    assert swept.code in (0, 3), swept.said
    return run


@pytest.fixture(scope="module")
def run(url: str, same_sweep: Path) -> Path:
    return attached(url, same_sweep, same_sweep.parent / "attached")


def test_one_sweep_by_three_engines_in_one_table(run: Path, served: Swept, in_process: Swept) -> None:
    assert_exact(run)
    folders = [run, served.run, in_process.run]
    table = bench("table", *folders, "--format", "csv", "--include-invalid", "--columns", "variant,input,output,batch")
    rows = [tuple(row.values())[:4] for row in csv.DictReader(table.stdout.splitlines())]
    cells = [tuple(map(str, cell)) for cell in product(GRID["input"], GRID["output"], GRID["batch"])]
    kinds = ("endpoint", "vllm_serve", "vllm_inprocess")
    assert sorted(rows) == sorted((kind, *cell) for kind in kinds for cell in cells)


def test_chat_with_texts_of_exact_length(url: str, same_sweep: Path, tmp_path: Path) -> None:
    run = attached(url, same_sweep, tmp_path / "chat", "--set", "engine.api=chat", "--set", "prompts.kind=text")
    assert_exact(run)
    assert "counted by POST /tokenize" in json.dumps(json.loads((run / "manifest.json").read_text())["notes"])


def test_our_times_beside_those_of_the_server(run: Path) -> None:
    """Ours begin before the request has left and end when a token has arrived, so they can't be the shorter ones.

    A server that takes all cores keeps its own HTTP part and this client waiting: only the best request is bounded.
    """
    ratios: dict[str, list[float]] = {"TTFT": [], "E2EL": [], "ITL": []}
    for row in measured(run):
        told = {name: value / 1e3 for name, value in json.loads(row["server_metrics"]).items() if name.endswith("_ms")}
        first, last = ((row["event_ns"][k] - row["sent_ns"]) / 1e9 for k in (0, -1))
        ratios["TTFT"].append(first / told["time_to_first_token_ms"])
        ratios["E2EL"].append(last / (told["time_to_first_token_ms"] + told["generation_time_ms"]))
        if len(set(row["event_ns"])) == row["output"]:  # each token came alone, so that gaps are known
            ratios["ITL"].append((last - first) / (row["output"] - 1) / told["mean_itl_ms"])
    for name, found in ratios.items():
        if found:
            show(f"{name}, ours / the server's: {_spread(found)} over {len(found)} requests")
    assert min(ratios["TTFT"]) > 0.99
    assert min(ratios["E2EL"]) > 0.99
    assert min(ratios["TTFT"]) < 10
    assert min(ratios["E2EL"]) < 2
    assert all(0.5 < ratio < 2 for ratio in [statistics.median(ratios["ITL"] or [1])])


def _spread(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}, median {statistics.median(values):.3f}"


def test_throughput_beside_that_of_vllm_bench_serve(url: str, models: Path, same_sweep: Path, tmp_path: Path) -> None:
    """The same load on the same server: 64 requests of 128 + 64 tokens, 4 in flight."""
    load = ["grid={input: 128, output: 64, batch: 4}", "load={kind: closed, requests: 64}"]
    ours = summary(attached(url, same_sweep, tmp_path / "ours", *(word for one in load for word in ("--set", one))))[0]
    theirs = _vllm_bench(url, models / "tiny-llama", tmp_path / "theirs.json")
    assert (theirs["completed"], theirs["failed"], theirs["total_output_tokens"]) == (64, 0, 64 * 64)
    assert (ours["requests"], ours["failed"]) == (2 * 64, 0)
    ratio = ours["run_tok_s"] / theirs["output_throughput"]
    show(f"output tok/s of the whole run, ours / vllm bench serve's: {ratio:.3f}, ours {ours['status']}")
    assert 0.2 < ratio < 5


def _vllm_bench(url: str, model: Path, result: Path) -> dict[str, Any]:
    command = [PYTHON, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai", "--base-url", url]
    lengths = ["--dataset-name", "random", "--random-input-len", 128, "--random-output-len", 64, "--ignore-eos"]
    load = ["--num-prompts", 64, "--max-concurrency", 4, "--model", "tiny", "--tokenizer", model]
    saved = ["--save-result", "--result-dir", result.parent, "--result-filename", result.name]
    words = [str(word) for word in (*command, *lengths, *load, *saved)]
    environment = {**os.environ, **{name: str(value) for name, value in ENVIRONMENT.items()}}
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    found: dict[str, Any] = json.loads(result.read_text())
    return found
