"""`bench import` on result files that the tools themselves wrote, and on anything that could be one of them.

The files of tests/data/imports are real (texts and what no reader looks at are cut out). All but vllm-python.json and
the sweep's are of one server whose truth is known: TTFT 100 ms, then 10 ms a token, 16 requests, 4 in flight, or at the
rates that the file's name tells (vLLM 0.33's Rust client; the ramp was of 2 to 20 req/s).
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import bench
from hypothesis import given, settings
from hypothesis import strategies as st
from runs_made import BRANCHES, made_run

from benchbench import open_run
from benchbench.importers.read import read
from benchbench.importers.result import ImportedResult

DATA = Path(__file__).parent / "data" / "imports"
FILES = {name: DATA / f"{name}.json" for name in ("vllm-python", "vllm-rust", "aiperf", "guidellm")}
PLAIN = {name: value for name, value in BRANCHES.items() if name not in {"variants", "blocks"}}
CARD = """# A model

| Input | Output | Batch | TTFT (ms) | Sys tok/s |
|---|---|---|---|---|
| 128 | 128 | 1 | 68.5 | 24.1 |
| 1,024 | 256 | 32 | 170.8\\* | ~~508.6~~ |

| Benchmark | BF16 |
|---|---|
| MMLU | 86.2% |
"""


def whole(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(FILES[name].read_text())
    return data


def only(data: dict[str, Any]) -> ImportedResult:
    (result,) = read(json.dumps(data).encode())
    return result


def imported(tmp_path: Path, *files: object, name: str = "run") -> list[dict[str, Any]]:
    result = bench("import", *files, "--out", tmp_path / name)
    assert result.exit_code == 0, result.stderr
    return open_run(tmp_path / name).rows


def refusal(*arguments: object) -> str:
    result = bench("import", *arguments)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


# ---- Each tool's own file


@pytest.mark.parametrize(
    ("name", "tool", "version", "ttft_ms", "tpot_ms", "run_tok_s"),
    [
        ("vllm-rust", "vllm bench serve (Rust)", "", 100.46, 9.9986, 350.41),
        ("aiperf", "AIPerf", "0.13.0", 102.69, 10.0506, 341.14),
        ("guidellm", "GuideLLM", "0.8.1", 111.63, 10.0028, 336.37),
    ],
)
def test_each_tools_figures_are_its_own(
    name: str, tool: str, version: str, ttft_ms: float, tpot_ms: float, run_tok_s: float
) -> None:
    (result,) = read(FILES[name].read_bytes())
    assert (result.tool, result.version, result.model) == (tool, version, "m")
    assert (result.load, result.input, result.output, result.batch) == ("closed", 128, 64, 4)
    assert (result.requests, result.failed) == (16, 0)
    assert result.values["ttft_ms"] == pytest.approx(ttft_ms, rel=1e-3)
    assert result.values["tpot_ms"] == pytest.approx(tpot_ms, rel=1e-4)
    assert result.values["run_tok_s"] == pytest.approx(run_tok_s, rel=1e-4)
    assert 725 < result.values["e2el_ms"] < 745
    assert result.values["run_tok_s"] * result.values["round_s"] == pytest.approx(16 * 64, rel=0.01)


def test_details_agree_with_what_vllm_made_of_them(tmp_path: Path) -> None:
    (row,) = imported(tmp_path, FILES["vllm-python"])
    data = whole("vllm-python")
    for metric in ("ttft", "itl", "e2el"):
        for q in (50, 99):
            assert row[f"{metric}_ms_p{q}"] == pytest.approx(data[f"p{q}_{metric}_ms"], rel=1e-6)
    (result,) = read(FILES["vllm-python"].read_bytes())
    means = {metric: np.mean(pool) for metric, pool in result.pools.items()}
    assert means["ttft"] == pytest.approx(data["mean_ttft_ms"], rel=1e-6)
    assert means["e2el"] == pytest.approx(data["mean_e2el_ms"], rel=1e-6)
    assert row["run_tok_s"] == data["output_throughput"]


def test_sys_tok_s_is_that_of_the_full_batch_where_each_tokens_time_is_known() -> None:
    result = only(whole("vllm-rust"))
    # 4 in flight, 64 tokens each, which take 100 + 63 * 10 ms: between the edges of waves, 64 * 4 in 730 ms
    assert result.values["sys_tok_s"] == pytest.approx(4 * 64 / 0.7303, rel=0.005)
    data = whole("vllm-rust")
    data["itls"][3].pop()  # two tokens came in one event: when is not known
    assert "sys_tok_s" not in only(data).values
    brief = {name: value for name, value in whole("vllm-rust").items() if not isinstance(value, list)}
    assert "sys_tok_s" not in only(brief).values
    assert only(brief).pools == {}
    one_wave = only(brief | {"max_concurrency": None, "duration": 0.74})
    assert (one_wave.load, one_wave.batch) == ("static", 16)
    assert one_wave.values["sys_tok_s"] == one_wave.values["run_tok_s"]
    paced = only(brief | {"request_rate": 5.0})
    assert (paced.load, paced.batch, paced.rate) == ("open", None, 5.0)


def test_a_sweeps_folder_is_its_runs_by_server(tmp_path: Path) -> None:
    rows = imported(tmp_path, DATA / "vllm-sweep")
    shapes = {(row["variant"], row["batch"]) for row in rows}
    assert shapes == {(f"max_num_seqs={seqs}", batch) for seqs in (2, 8) for batch in (2, 8)}
    assert {row["rounds"] for row in rows} == {1}
    assert all(row["ttft_ms_low"] is None and row["e2el_ms_p99"] is not None for row in rows)


def test_several_runs_of_a_shape_are_rounds(tmp_path: Path) -> None:
    files = []
    for k in range(3):
        data = whole("vllm-python")
        data |= {"date": f"20261123-09150{k}", "mean_tpot_ms": 5.0 + k / 10}
        files.append(tmp_path / f"run={k}.json")
        files[-1].write_text(json.dumps(data))
    (row,) = imported(tmp_path, *files)
    assert (row["rounds"], row["requests"]) == (3, 96)
    half = 4.302652729749464 * 0.1 / 3**0.5
    assert [row[name] for name in ("tpot_ms", "tpot_ms_low", "tpot_ms_high")] == pytest.approx(
        [5.1, 5.1 - half, 5.1 + half]
    )
    assert "the same as run=0.json" in refusal(files[0], shutil.copy(files[0], tmp_path / "copy.json"))


@pytest.mark.parametrize(
    ("changes", "variants"),
    [
        ({"request_rate": 4.0, "burstiness": 0.25}, ["burstiness=1.0", "burstiness=0.25"]),
        ({"request_rate": 4.0, "model_id": "other"}, ["model=m", "model=other"]),
        ({"request_rate": 4.0, "backend": "openai-chat"}, ["backend=openai", "backend=openai-chat"]),
    ],
)
def test_runs_under_different_conditions_are_no_rounds(
    tmp_path: Path, changes: dict[str, Any], variants: list[str]
) -> None:
    data = whole("vllm-python") | {"request_rate": 4.0, "max_concurrency": None, "model_id": "m", "backend": "openai"}
    for name, more in (("a.json", {}), ("b.json", changes)):
        (tmp_path / name).write_text(json.dumps(data | more | {"label": None}))
    rows = imported(tmp_path, tmp_path / "a.json", tmp_path / "b.json")
    assert [(row["variant"], row["rounds"]) for row in rows] == [(name, 1) for name in variants]


def test_a_rate_that_changes_within_a_run_is_no_load_of_ours(tmp_path: Path) -> None:
    """Nor where the file does not tell it: vLLM's Rust client leaves its ramp-up out."""
    told = {"ramp_up_strategy": "linear", "ramp_up_start_rps": 2, "ramp_up_end_rps": 20, "max_concurrency": None}
    (tmp_path / "ramp.json").write_text(json.dumps(whole("vllm-python") | told))
    rows = imported(tmp_path, tmp_path / "ramp.json", DATA / "vllm-rust-ramp.json")
    names = {row["tool"]: row["variant"] for row in rows}
    assert "ramp-up: linear 2 to 20 req/s" in names["vllm bench serve"]
    assert "ramp-up: unknown, 3.69 of 16 in flight" in names["vllm bench serve (Rust)"]
    assert {(row["load"], row["batch"], row["rate"], row["sys_tok_s"]) for row in rows} == {("ramp", None, None, None)}
    assert any(line.startswith("ramp-up: the rate changed") for line in open_run(tmp_path / "run").caption)
    kept = only(whole("vllm-rust"))  # 4 in flight, of requests of one length
    assert (kept.load, kept.batch) == ("closed", 4)


def test_burstiness_and_limits_are_conditions(tmp_path: Path) -> None:
    burst = json.loads((DATA / "vllm-rust-burst.json").read_text())
    result = only(burst)
    assert (result.load, result.rate, result.conditions["burstiness"]) == ("open", 10.0, 0.5)
    (tmp_path / "a.json").write_text(json.dumps(burst))
    (tmp_path / "b.json").write_text(json.dumps(burst | {"max_concurrency": 8}))
    rows = imported(tmp_path, tmp_path / "a.json", tmp_path / "b.json")
    assert [row["variant"] for row in rows] == ["max_concurrency=unlimited", "max_concurrency=8"]


def test_sglangs_lines_are_runs(tmp_path: Path) -> None:
    """Two runs of one shape, of 0.5.23 itself: TTFT 100 ms and 10 ms a token, so 347 tok/s with 4 in flight."""
    (row,) = imported(tmp_path, DATA / "sglang.jsonl")
    lines = [json.loads(line) for line in (DATA / "sglang.jsonl").read_text().splitlines()]
    assert (row["tool"], row["load"], row["input"], row["output"]) == ("SGLang bench_serving", "closed", 128, 64)
    assert (row["batch"], row["rounds"], row["requests"], row["failed"]) == (4, 2, 32, 0)
    assert row["ttft_ms"] == pytest.approx(np.mean([line["mean_ttft_ms"] for line in lines]))
    assert row["ttft_ms_p99"] == pytest.approx(np.percentile([1e3 * t for line in lines for t in line["ttfts"]], 99))
    assert (row["sys_tok_s"], row["e2el_ms_p99"]) == (None, None)  # of two runs there is no percentile
    assert 340 < row["run_tok_s"] < 351
    bare = {name: value for name, value in lines[0].items() if not isinstance(value, list)}
    (result,) = read(json.dumps(bare).encode())
    assert (result.failed, result.pools, result.values["e2el_ms_p99"]) == (None, {}, bare["p99_e2e_latency_ms"])
    (traced,) = read(json.dumps(bare | {"request_rate": "trace"}).encode())
    assert (traced.load, traced.batch, traced.rate, traced.variant) == ("ramp", None, None, "rate: trace")
    broken = (DATA / "sglang.jsonl").read_text()[:-40]
    with pytest.raises(ValueError, match="not whole JSON"):
        read(broken.encode())


def test_vllm_033s_server_times() -> None:
    data = whole("vllm-python")
    count = len(data["ttfts"])
    data |= {"server_queue_times": [0.002] * count, "server_ttfts": [0.01, None, *[0.01] * (count - 2)]}
    values = only(data).values
    told = [1e3 * ttft for k, ttft in enumerate(data["ttfts"]) if k != 1]
    assert (values["server_queue_ms"], values["server_ttft_ms"]) == pytest.approx((2.0, 12.0))
    assert values["outside_ttft_ms"] == pytest.approx(np.mean(told) - 12.0)


def test_lengths_that_were_not_reached_and_failures_make_it_invalid(tmp_path: Path) -> None:
    rows = imported(tmp_path, *FILES.values())
    verdicts = {row["tool"]: (row["status"], row["reasons"]) for row in rows}
    assert verdicts["vllm bench serve"] == ("suspect", "imported")
    assert (
        verdicts["AIPerf"] == verdicts["GuideLLM"] == ("invalid", "input_length;imported")
    )  # they sent 76 and 65 of 128
    broken = whole("vllm-python")
    broken["errors"][5], broken["ttfts"][5], broken["latencies"][5] = "refused", 0.0, 0.0
    broken |= {"completed": 31, "failed": 1}
    (tmp_path / "failed.json").write_text(json.dumps(broken))
    (row,) = imported(tmp_path, tmp_path / "failed.json", name="failed")
    assert (row["status"], row["reasons"], row["failed"]) == ("invalid", "request_failed;imported", 1)
    assert row["ttft_ms_p50"] > 10  # without the failed request's 0
    nothing = broken | {"completed": 0, "failed": 32, "mean_ttft_ms": 0.0, "output_throughput": 0.0}
    (tmp_path / "nothing.json").write_text(json.dumps(nothing))
    (row,) = imported(tmp_path, tmp_path / "nothing.json", name="nothing")
    assert (row["ttft_ms"], row["run_tok_s"]) == (None, None)


# ---- Tables


@pytest.mark.usefixtures("drawn_here")
def test_a_card_and_our_own_table_are_read_back(tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text(CARD)
    rows = imported(tmp_path, card)
    assert [(r["input"], r["output"], r["batch"], r["ttft_ms"], r["sys_tok_s"]) for r in rows] == [
        (128, 128, 1, 68.5, 24.1),
        (1024, 256, 32, 170.8, None),
    ]
    assert {(r["tool"], r["load"], r["rounds"]) for r in rows} == {("Markdown table", "", None)}
    assert bench("plot", tmp_path / "run", "--format", "svg").exit_code == 0
    again = imported(tmp_path, tmp_path / "run" / "table.md", name="again")
    assert [{**r, "key": ""} for r in again] == [{**r, "key": ""} for r in rows]
    card.write_text(CARD.replace("170.8", "about 170"))
    assert "card.md: Markdown table: line 6: TTFT (ms): 'about 170' is not a number" in refusal(card)


def test_imported_rows_stand_beside_ours(tmp_path: Path) -> None:
    plain = PLAIN | {"grid": {"input": 128, "output": 64, "batch": 4}, "load": {"kind": "closed", "requests": 16}}
    ours = made_run(tmp_path / "ours", plain, lambda _cell, _start, _k: (100.0, 10.0))
    imported(tmp_path, FILES["vllm-rust"], name="rust")
    result = bench("table", ours, tmp_path / "rust", "--include-invalid")
    lines = result.stdout.splitlines()
    assert lines[0] == "| Variant | Tool | Input | Output | Batch | TTFT (ms) | Sys tok/s |"
    assert [line.split(" | ")[1] for line in lines[2:4]] == ["benchbench", "vllm bench serve (Rust)"]
    assert "Imported from vllm bench serve (Rust)" in result.stdout
    compared = bench("compare", ours, tmp_path / "rust")
    assert (compared.exit_code, compared.stdout, len(compared.stderr.splitlines())) == (2, "", 1)
    assert f"rust: has no records of requests, so no comparison (bench table {ours} " in compared.stderr


# ---- The folder


def test_the_manifest_says_where_it_comes_from(tmp_path: Path) -> None:
    imported(tmp_path, FILES["aiperf"])
    run = open_run(tmp_path / "run")
    assert not (run.path / "records").exists()
    assert run.imported == {
        "files": [
            {
                "name": "aiperf.json",
                "sha256": hashlib.sha256(FILES["aiperf"].read_bytes()).hexdigest(),
                "tool": "AIPerf",
                "version": "0.13.0",
                "date": "2026-11-23T09:25:00.040666",
            }
        ]
    }
    assert run.caption[0].startswith("Imported from AIPerf 0.13.0")
    assert not any("Instrument error" in line for line in run.caption)
    assert "it was imported" in bench("explain", run.path).stderr
    assert "not empty" in refusal(FILES["aiperf"], "--out", run.path)


# ---- What is no result


def test_what_is_no_result_is_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "x"
    for content, words in (
        (b"", "no result that can be imported (allowed: JSON of vllm bench serve"),
        (b"\xff\xfe", "not text"),
        (b'{"a": 1}', "JSON, but no result"),
        (FILES["guidellm"].read_bytes()[:5000], "not whole JSON"),
        (b'{"a":' * 100_000, "not whole JSON"),
        (b'{"aiperf_version": "1"}', "AIPerf: input_config.phases: field required"),
        (b'{"metadata": {"guidellm_version": "1"}, "benchmarks": []}', "GuideLLM: benchmarks: list should have"),
        (b'{"duration": 0, "total_output_tokens": 1, "output_throughput": NaN}', "vllm bench serve: num_prompts: fi"),
        (b"| Input | Output | Batch | TTFT (ms) |\n|---|---|---|---|\n| a | 1 | 1 | 2 |", "line 3: Input: 'a' is not"),
    ):
        file.write_bytes(content)
        message = refusal(file)
        assert message.startswith(f"bench import: {file}: ")
        assert words in message
    assert "No such file" in refusal(tmp_path / "none.json")
    assert "holds no result" in refusal(_empty(tmp_path / "folder"))
    assert "--name ../x" in refusal(file, "--name", "../x")
    details = whole("vllm-python")
    details["itls"].pop()
    file.write_text(json.dumps(details))
    assert "must have the same length" in refusal(file)


def _empty(path: Path) -> Path:
    path.mkdir()
    return path


def test_nan_and_null_are_not_there() -> None:
    data = whole("vllm-python") | {"mean_ttft_ms": math.nan, "median_ttft_ms": None, "p50_ttft_ms": None}
    result = only(data)
    assert not {"ttft_ms", "ttft_ms_p50"} & result.values.keys()
    profile = whole("aiperf")
    profile["time_to_first_token"]["avg"] = None
    del profile["inter_token_latency"]
    assert not {"ttft_ms", "tpot_ms"} & only(profile).values.keys()


@pytest.mark.parametrize(
    ("name", "key", "factor", "said"),
    [
        ("vllm-python", "duration", 1000, "tokens / duration is far from its throughput"),
        ("vllm-python", "mean_e2el_ms", 0.001, "mean TTFT is above mean E2EL"),
        ("vllm-python", "mean_ttft_ms", 1000, "mean TTFT is above mean E2EL"),
        ("vllm-python", "mean_tpot_ms", 1000, "mean E2EL is far from TTFT"),
        ("vllm-python", "mean_e2el_ms", 1000, "mean E2EL is longer than twice the whole run"),
        ("vllm-rust", "output_throughput", 0.001, "tokens / duration is far from its throughput"),
    ],
)
def test_figures_that_cannot_stand_together_are_refused(name: str, key: str, factor: float, said: str) -> None:
    data = {key: value for key, value in whole(name).items() if not isinstance(value, list)}
    only(data)
    with pytest.raises(ValueError, match=f"{said}.*a unit is another one, or the file is wrong"):
        only(data | {key: data[key] * factor})


def test_a_zero_that_no_run_has_is_not_there() -> None:
    """As a tool writes the TTFT of answers that it did not stream; no request within the SLO is a number."""
    result = only(whole("vllm-python") | {"mean_ttft_ms": 0.0, "output_throughput": 0.0, "request_goodput": 0.0})
    assert not {"ttft_ms", "run_tok_s"} & result.values.keys()
    assert result.values["goodput_req_s"] == 0.0
    for rate in (0, -1):
        with pytest.raises(ValueError, match="request_rate"):
            only(whole("vllm-python") | {"request_rate": rate})


def test_a_latency_in_another_unit_is_refused() -> None:
    profile = whole("aiperf")
    profile["time_to_first_token"] |= {"unit": "sec", "avg": 0.1}
    with pytest.raises(ValueError, match=r"time_to_first_token\.unit: 'sec' \(allowed: ms\)"):
        only(profile)


LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner), max_leaves=5
)


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    return [at] * bool(at) + [path for key, item in inner for path in _paths(item, (*at, key))]


WHOLE = {name: whole(name) for name in FILES}
WHOLE["sglang"] = json.loads((DATA / "sglang.jsonl").read_text().splitlines()[0])
PATHS = {name: _paths(data) for name, data in WHOLE.items()}


@settings(max_examples=150)
@given(st.data())
def test_any_change_of_a_file_is_read_or_refused_in_words(data: st.DataObject) -> None:
    """One field anywhere replaced by anything, or taken out: sound rows or a ValueError, nothing else."""
    name = data.draw(st.sampled_from(sorted(WHOLE)))
    changed = json.loads(json.dumps(WHOLE[name]))
    *path, last = data.draw(st.sampled_from(PATHS[name]))
    inside = changed
    for key in path:
        inside = inside[key]
    if data.draw(st.booleans()) and isinstance(inside, dict):
        del inside[last]
    else:
        inside[last] = data.draw(JSON)
    try:
        results = read(json.dumps(changed).encode())
    except ValueError:
        return
    for result in results:
        assert result.load in {"static", "closed", "open", "ramp"}
        assert min(result.input, result.output, result.requests or 0, result.failed or 0) >= 0
        assert (result.batch is not None) + (result.rate is not None) == (result.load != "ramp")
        assert all(math.isfinite(value) and value >= 0 for value in result.values.values())
        assert all(math.isfinite(value) for pool in result.pools.values() for value in pool)


@given(st.text(alphabet="|-:InputOutputBatchTTFT (ms)12.5~*\\\n ", max_size=200) | st.text(max_size=50))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    for head in ("", CARD):
        try:
            results = read((head + text).encode("utf-8", "replace"))
        except ValueError:
            continue
        else:
            assert results
