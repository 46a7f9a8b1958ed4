"""`bench export`: what other tools read of a run, and what `bench import` reads of it again."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import bench
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rounds_made import MS, Made, table_of
from runs_made import BRANCHES, FAILED, made_run

from benchbench import open_run
from benchbench.analysis.summary import COLUMNS
from benchbench.spec import make_plan, spec_from_mapping
from benchbench.store.run_directory import RunDirectory

DATA = Path(__file__).parent / "data"
PLAIN: dict[str, Any] = {
    "name": "plain",
    "model": "m",
    "engine": {"kind": "simulator"},
    "grid": {"input": 128, "output": 8, "batch": [1, 4]},
    "rounds": {"warmup": 0, "min": 2},
    "prompts": {"vocab": [1000, 30000]},
}
LOADS: dict[str, dict[str, Any]] = {
    "static": {},
    "closed": {"load": {"kind": "closed", "requests": 20}},
    "open": {"load": {"kind": "open", "arrival": "constant"}, "grid": {"input": 128, "output": 8, "rate": 3.5}},
}
# Of each tool's own definition, or of our instrument alone: no field of theirs.
OURS_ALONE = {"status", "reasons", "key", "tool", "rounds_needed", "warmup_rounds", "server_times", "variant"}


def random_run(path: Path, data: dict[str, Any], seed: int, *, several: bool = False) -> Path:
    """A run whose requests start, and whose tokens come, at random times; `several` tokens in some events."""
    spec, draw = spec_from_mapping({**PLAIN, **data}), np.random.default_rng(seed)
    plan, run = make_plan(spec), RunDirectory(path)
    run.open_for_writing(resume=False)
    for cell in plan.cells:
        for number in range(cell.rounds.min):
            ends: list[int] = [0] * (cell.batch or 1)
            requests = []
            for k in range(cell.requests):
                sent = int(draw.exponential(200 * MS)) * k if cell.batch is None else min(ends)
                sizes = [2, 1, 2, 3] if several else [1] * cell.output
                times = sent + np.cumsum(draw.integers(MS, 90 * MS, len(sizes)))
                if cell.batch is not None:
                    ends[ends.index(min(ends))] = int(times[-1]) + 1000
                events = list(zip(times.tolist(), sizes, strict=True))
                requests.append(
                    Made(events, sent=sent, scheduled=sent, end=int(times[-1]), told=sum(sizes), told_input=128)
                )
                requests[-1].asked_input = 128
            labels = {"cell": cell.key, "variant": "", "phase": "measured", "round": number}
            run.write_round(table_of(requests, {"clock_step_ns": 0}, **labels), cell.key, "measured", number)
    entries = [cell.info.to_entry() for cell in plan.cells]
    facts = {"starts": [], "devices": [], "host": {"name": "here"}, "caption": ["A note."], "instrument": None}
    run.write_manifest({"spec": spec.model_dump(mode="json"), "plan": entries, "created_ns": 1, **facts})
    run.close()
    return path


def exported(run: Path, form: str, out: Path, *words: str) -> list[Path]:
    result = bench("export", run, "--format", form, "--out", out, *words)
    assert result.exit_code == 0, result.stderr
    return [Path(line) for line in result.stdout.splitlines()]


def again(files: Path, out: Path) -> list[dict[str, Any]]:
    result = bench("import", files, "--out", out)
    assert result.exit_code == 0, result.stderr
    return open_run(out).rows


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.sampled_from(["static", "closed", "open"]), st.booleans())
def test_what_is_exported_is_imported_again(
    tmp_path_factory: pytest.TempPathFactory, seed: int, load: str, several: bool
) -> None:
    """Each number that both have is the same: means, intervals, percentiles, rates, counts, whatever the load."""
    folder = tmp_path_factory.mktemp("trip")
    run = random_run(folder / "run", LOADS[load], seed, several=several)
    rows = {(row["input"], row["output"], row["batch"], row["rate"]): row for row in open_run(run).rows}
    for form in ("vllm", "llm-d"):
        exported(run, form, folder / form, "--include-invalid")
        back = again(folder / form, folder / f"{form}-run")
        assert len(back) == len(rows)
        for row in back:
            first = rows[row["input"], row["output"], row["batch"], row["rate"]]
            assert (row["tool"], row["load"], row["rounds"]) == ("benchbench", first["load"], first["rounds"])
            assert set(row["reasons"].split(";")) == {*filter(None, first["reasons"].split(";")), "imported"}
            common = {name for name in row.keys() - OURS_ALONE if row[name] is not None}
            assert {"ttft_ms", "tpot_ms", "e2el_ms", "sys_tok_s", "run_tok_s", "ttft_ms_p99", "itl_ms_p50"} <= common
            assert {"ttft_ms_low", "sys_tok_s_high", "requests", "failed"} <= common
            for name in common:
                assert row[name] == (first[name] if isinstance(first[name], str) else pytest.approx(first[name])), name
    assert "A note." in open_run(folder / "vllm-run").caption
    assert "A note." in open_run(folder / "llm-d-run").caption


def test_intervals_of_several_starts_stay_over_starts(tmp_path: Path) -> None:
    data = {**BRANCHES, "blocks": 3, "grid": {"input": 128, "output": 8, "batch": 1}}
    run = made_run(
        tmp_path / "run", data, lambda _, start, k: (50.0 + 2.0 * start.block, 10.0 + start.block + 0.01 * k)
    )
    names = ("starts", "rounds", "sys_tok_s", "sys_tok_s_low", "sys_tok_s_high", "ttft_ms_low")
    expected = {row["variant"]: [row[name] for name in names] for row in open_run(run).rows}
    assert {row[0] for row in expected.values()} == {3}
    for form in ("vllm", "llm-d"):
        exported(run, form, tmp_path / form)
        back = {
            row["variant"]: [row[name] for name in names] for row in again(tmp_path / form, tmp_path / f"{form}-run")
        }
        assert back == {variant: pytest.approx(row) for variant, row in expected.items()}
        assert "over starts" in bench("table", tmp_path / f"{form}-run").stdout


def test_vllms_file_has_vllms_keys_and_its_own_formulas(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", LOADS["closed"], 1)
    files = exported(run, "vllm", tmp_path / "out", "--include-invalid")
    theirs = json.loads((DATA / "imports" / "vllm-python.json").read_text())
    (file,) = [path for path in files if "batch=4" in str(path) and path.name == "run=0.json"]
    result = json.loads(file.read_text())
    assert theirs.keys() <= result.keys()
    assert {name: type(value) for name, value in theirs.items() if isinstance(value, list)} == {
        name: type(result[name]) for name, value in theirs.items() if isinstance(value, list)
    }
    ttfts, latencies = np.array(result["ttfts"]), np.array(result["latencies"])
    outputs = np.array(result["output_lens"])
    assert result["mean_ttft_ms"] == pytest.approx(1e3 * ttfts.mean())  # all requests, not the steady ones
    assert result["mean_ttft_ms"] != pytest.approx(result["benchbench"]["figures"]["ttft_ms"])
    assert result["mean_tpot_ms"] == pytest.approx(1e3 * ((latencies - ttfts) / (outputs - 1)).mean())
    assert result["output_throughput"] == pytest.approx(outputs.sum() / result["duration"])
    assert (result["num_prompts"], result["max_concurrency"], result["request_rate"]) == (20, 4, "inf")
    assert latencies == pytest.approx(ttfts + [sum(gaps) for gaps in result["itls"]])
    (brief,) = [json.loads(path.read_text()) for path in files if path.parent == file.parent and "summary" in path.name]
    assert [entry["run_number"] for entry in brief] == [0, 1]
    assert {"status", "mean_ttft_ms", "max_concurrency"} <= brief[0].keys()
    assert not brief[0].keys() & {"ttfts", "itls", "benchbench"}


@pytest.mark.parametrize("load", sorted(LOADS))
def test_llm_ds_package_takes_the_reports(tmp_path: Path, load: str) -> None:
    core = pytest.importorskip("llmd_benchmark_report.core")
    run = random_run(tmp_path / "run", LOADS[load], 2)
    for file in exported(run, "llm-d", tmp_path / "reports", "--include-invalid"):
        report = core.import_benchmark_report(str(file))
        (row,) = [row for row in open_run(run).rows if row["key"] == report.scenario.load.metadata.cfg_id]
        aggregate = report.results.request_performance.aggregate
        assert report.version == "0.2"
        assert aggregate.latency.time_to_first_token.mean == row["ttft_ms"]
        assert aggregate.latency.inter_token_latency.p99 == row["itl_ms_p99"]
        assert aggregate.throughput.output_token_rate.mean == row["sys_tok_s"]
        assert aggregate.requests.total == row["requests"]
        assert report.run.keywords == [row["status"], *row["reasons"].split(";")]


def test_a_report_without_our_row_is_read_by_its_own_fields(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", {"grid": {"input": 128, "output": 8, "batch": 4}}, 3)
    (file,) = exported(run, "llm-d", tmp_path / "reports", "--include-invalid")
    report = json.loads(file.read_text())
    del report["scenario"]["load"]["native"]["config"]
    report["scenario"]["load"]["standardized"] |= {"tool": "guidellm", "concurrency": 2}
    ttft = report["results"]["request_performance"]["aggregate"]["latency"]["time_to_first_token"]
    ttft |= {name: value / 1e3 for name, value in ttft.items() if isinstance(value, float)} | {"units": "s"}
    file.write_text(json.dumps(report))
    (row,), (first,) = again(file, tmp_path / "again"), open_run(run).rows
    assert (row["tool"], row["load"], row["batch"]) == ("guidellm (llm-d report)", "closed", 2)
    assert (row["input"], row["output"], row["failed"]) == (128, 8, 0)
    assert (row["ttft_ms"], row["ttft_ms_p99"]) == pytest.approx((first["ttft_ms"], first["ttft_ms_p99"]))
    assert (row["itl_ms_p50"], row["e2el_ms"]) == pytest.approx((first["itl_ms_p50"], first["e2el_ms"]))
    assert (row["run_tok_s"], row["sys_tok_s"]) == (first["sys_tok_s"], None)  # what theirs is of, nobody knows
    ttft["units"] = "minutes"
    file.write_text(json.dumps(report))
    assert "latency.time_to_first_token.units: 'minutes' (allowed: ms, s, " in bench("import", file).stderr


def test_prompts_of_a_file_have_the_length_that_the_server_counted(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", {"grid": {"input": 128, "output": 8, "batch": 4}}, 4)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["plan"][0] |= {"input": None, "prompts": "file mine.jsonl 0123456789ab"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    for form in ("vllm", "llm-d"):
        exported(run, form, tmp_path / form, "--include-invalid")
        (row,) = again(tmp_path / form, tmp_path / f"{form}-run")
        assert (row["input"], row["output"]) == (128, 8)
    (file,) = (tmp_path / "llm-d").iterdir()
    report = json.loads(file.read_text())
    load = report["scenario"]["load"]["standardized"]
    assert (load["source"], load["input_seq_len"]["value"]) == ("sampled", 128)
    lengths = report["results"]["request_performance"]["aggregate"]["requests"]
    assert (lengths["input_length"]["mean"], lengths["output_length"]["max"]) == (128, 8)


def test_an_invalid_cell_is_left_out_and_said(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", PLAIN, lambda cell, _start, _k: FAILED if cell.batch == 4 else (50.0, 10.0))
    for form in ("vllm", "llm-d", "csv"):
        result = bench("export", run, "--format", form, "--out", tmp_path / form)
        assert result.exit_code == 0
        assert "in=128, out=8, batch=4: invalid (request_failed): left out" in result.stderr
        assert "batch=4" not in result.stdout
        whole = tmp_path / f"{form}-whole"
        files = exported(run, form, whole, "--include-invalid")
        text = "".join(file.read_text() for file in files)
        assert "request_failed" in text
    (row,) = [row for row in again(tmp_path / "vllm-whole", tmp_path / "back") if row["batch"] == 4]
    assert (row["status"], row["failed"], row["requests"]) == ("invalid", 2, 8)
    lines = list(csv.DictReader((tmp_path / "csv-whole" / "requests.csv").read_text().splitlines()))
    assert len(lines) == 2 * 5
    assert {(line["status"], line["cell_status"]) for line in lines} == {
        ("ok", "valid"),
        ("ok", "invalid"),
        ("failed", "invalid"),
    }
    assert [line["ttft_ms"] for line in lines if line["status"] == "failed"] == ["", ""]
    rows = list(csv.DictReader((tmp_path / "csv-whole" / "rows.csv").read_text().splitlines()))
    assert list(rows[0]) == list(COLUMNS)
    everything = made_run(tmp_path / "bad", PLAIN, lambda *_: FAILED)
    refused = bench("export", everything, "--format", "vllm")
    assert refused.exit_code == 2
    assert "no cell that can be exported: in=128, out=8, batch=1: invalid (request_failed" in refused.stderr


def test_where_it_is_written(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", PLAIN, lambda *_: (50.0, 10.0))
    result = open_run(run).export("llm-d")
    assert result.notes == ()
    assert {file.parent for file in result.files} == {run / "export" / "llm-d"}
    refused = bench("export", run, "--format", "llm-d")
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    assert "the folder is not empty: choose another --out" in refused.stderr
    with pytest.raises(ValueError, match=r"unknown \(allowed: vllm, llm-d, csv\)"):
        open_run(run).export("xml")  # type: ignore[arg-type] # the mistake
    again(DATA / "imports" / "vllm-rust.json", tmp_path / "imported")
    assert "has no records of requests" in bench("export", tmp_path / "imported", "--format", "vllm").stderr
    only = bench("export", tmp_path / "imported", "--format", "csv", "--out", tmp_path / "csv")
    assert [Path(line).name for line in only.stdout.splitlines()] == ["rows.csv"]
    assert "requests.csv: not written" in only.stderr


def test_what_the_server_says_goes_both_ways(tmp_path: Path) -> None:
    times = json.dumps({"queue_time_ms": 2.5, "time_to_first_token_ms": 40.0, "mean_itl_ms": 10.0})
    spec = spec_from_mapping(
        {**PLAIN, "grid": {"input": 128, "output": 8, "batch": 1}, "rounds": {"warmup": 0, "min": 1}}
    )
    (cell,), run = make_plan(spec).cells, RunDirectory(tmp_path / "run")
    run.open_for_writing(resume=False)
    events = [((50 + 10 * k) * MS, 1) for k in range(8)]
    made = Made(events, told=8, told_input=128, asked_input=128, metrics=times)
    drafts = {"spec_drafts": 7, "spec_draft_tokens": 14, "spec_accepted_tokens": 7, "spec_accepted_at_0": 7}
    run.write_round(
        table_of([made], {"server": drafts}, cell=cell.key, phase="measured", round=0), cell.key, "measured", 0
    )
    run.write_manifest({"spec": spec.model_dump(mode="json"), "plan": [cell.info.to_entry()], "devices": []})
    run.close()
    files = exported(tmp_path / "run", "vllm", tmp_path / "out", "--include-invalid")
    result = json.loads(files[0].read_text())
    assert (result["server_queue_times"], result["server_ttfts"]) == ([0.0025], [0.04])
    (row,), (first,) = again(tmp_path / "out", tmp_path / "back"), open_run(tmp_path / "run").rows
    assert (result["spec_decode_acceptance_rate"], result["spec_decode_acceptance_length"]) == (50.0, 2.0)
    assert result["spec_decode_per_position_acceptance_rates"] == [1.0]
    names = ("server_ttft_ms", "server_queue_ms", "outside_ttft_ms", "acceptance_rate", "acceptance_length")
    assert [row[name] for name in names] == pytest.approx([first[name] for name in names])
    assert row["server_ttft_ms"] == pytest.approx(42.5)
