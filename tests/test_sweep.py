"""`bench sweep`, start to end: what was asked of the server, what was recorded of its answers, what follows from it.

Nothing here asserts how long something takes. Against the simulator, whose truth has the clock before each write,
the order of stamps is asserted: a kernel stamp lies after its write and before the next one.
"""

from __future__ import annotations

import csv
import json
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from answers import CHUNKED, completion
from driving import CARRIED_OUT, bench, records, summary, write_sweep
from driving import run_well as run
from servers import ScriptedServer

import benchbench
from benchbench.engines.simulator import SimulatorProcess

CONTRACT = (
    "variant,input,output,batch,load,status,reasons,rounds,requests,failed,ttft_ms,ttft_ms_low,ttft_ms_high,"
    "ttft_ms_p50,ttft_ms_p90,ttft_ms_p99,tpot_ms,itl_ms_p50,itl_ms_p99,e2el_ms,sys_tok_s,sys_tok_s_low,"
    "sys_tok_s_high,total_tok_s,req_s,lag_ms_p99"
)
FAST = {"law": {"kind": "fixed", "ttft_s": 0.02, "itl_s": 0.004}}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# -- against the simulator's truth


def truth_of(url: str) -> dict[str, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/truth", timeout=20) as answer:
        return {entry["id"]: entry for entry in json.load(answer)["requests"]}


TEXT = {"kind": "text"}
SIMULATED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "static": ({}, {}),
    "static, text": ({"prompts": TEXT}, {}),
    "static, chat": ({"prompts": TEXT, "api": "chat"}, {}),
    "static, chat, role first and early": ({"prompts": TEXT, "api": "chat"}, {"faults": {"role_early": True}}),
    "static, several tokens an event": ({}, {"tokens_per_event": 3}),
    "static, closing server": ({}, {"close_after_response": True}),
    "closed": ({"load": {"kind": "closed", "requests": 13}}, {}),
    "closed, closing server": ({"load": {"kind": "closed", "requests": 13}}, {"close_after_response": True}),
    "open": ({"load": {"kind": "open", "rate": 100, "arrival": "constant", "requests": 12}}, {}),
    "open, few in flight": ({"load": {"kind": "open", "rate": 300, "requests": 12, "max_concurrency": 3}}, {}),
}


@pytest.mark.parametrize(("changes", "options"), SIMULATED.values(), ids=SIMULATED.keys())
def test_records_agree_with_the_simulators_truth(changes: dict[str, Any], options: dict[str, Any]) -> None:
    changes = dict(changes)
    grid = {"input": 24, "output": 7, **({} if changes.get("load", {}).get("kind") == "open" else {"batch": 3})}
    with SimulatorProcess("fixed", options={**FAST, **options}) as simulator:
        engine = {"kind": "endpoint", "url": simulator.url, "api": changes.pop("api", "completions")}
        run(simulator.url, engine=engine, grid=grid, rounds={"warmup": 1, "min": 2, "max": 2}, **changes)
        truth = truth_of(simulator.url)
    rows = records(Path("run"))
    assert sorted(row["response_id"] for row in rows) == sorted(truth)
    for row in rows:
        _agrees(row, truth[row["response_id"]])
    load = changes.get("load", {"kind": "static"})
    spread = [7, 5, 3] if load["kind"] == "closed" else []  # the first wave of a batch of 3
    lengths = [row["asked_output_tokens"] for row in rows if row["phase"] == "measured" and row["round"] == 0]
    assert lengths == spread + [7] * (len(lengths) - len(spread))
    count = load.get("requests", 3)
    assert Counter((row["phase"], row["round"]) for row in rows) == {
        ("warmup", 0): count,
        ("measured", 0): count,
        ("measured", 1): count,
    }
    for place in (("warmup", 0), ("measured", 0), ("measured", 1)):
        of_round = [row for row in rows if (row["phase"], row["round"]) == place]
        _in_order(of_round, truth, load.get("max_concurrency", 3 if load["kind"] != "open" else count))
        if load["kind"] == "static":
            assert of_round == sorted(of_round, key=lambda row: row["sent_ns"])
    if load["kind"] == "open":
        _due(of_round, load)


def test_a_closed_load_stays_full_until_the_longest_of_its_steady_answers_has_ended() -> None:
    """Twenty requests, four in flight: steady are the eighth to the fifteenth. Lengths follow from the prompts."""
    options = {**FAST, "mean_output_tokens": 8.0}
    with SimulatorProcess("fixed", options=options) as simulator:
        changes: dict[str, Any] = {"output": "as_served", "grid": {"input": 24, "output": 60, "batch": 4}}
        rounds = {"warmup": 0, "min": 2, "max": 2}
        run(simulator.url, load={"kind": "closed"}, rounds=rounds, **changes)
    sent = [found.requests for found in benchbench.open_run("run").summaries[0].rounds]
    rows = records(Path("run"))
    for number, count in enumerate(sent):
        of_round = [row for row in rows if row["round"] == number]
        assert len(of_round) == count >= 20
        last_ns = max(row["end_ns"] for row in of_round[7:15])
        assert sum(row["end_ns"] > last_ns for row in of_round) >= 3, "the others were in flight"
        assert all(row["sent_ns"] < last_ns for row in of_round[20:]), "a spare request was sent when they had ended"
    assert max(sent) > 20, "no answer was so long that it took a spare request"


def _agrees(row: dict[str, Any], true: dict[str, Any]) -> None:
    """Counts exactly, and times as far as causes go before effects."""
    assert (row["status"], row["http_status"], row["finish_reason"]) == ("ok", 200, "length"), row
    assert row["event_tokens"] == true["tokens"]
    assert row["output_tokens"] == sum(row["event_tokens"]) == row["asked_output_tokens"]
    assert row["input_tokens"] == true["prompt_tokens"]
    stamps, writes = row["event_ns"], true["writes_ns"]
    assert len(stamps) == len(writes) == len(row["lag_ns"])
    assert row["scheduled_ns"] <= row["sent_ns"] <= true["received_ns"] <= row["headers_ns"] <= stamps[0]
    assert row["connect_ns"] <= row["connected_ns"] <= row["sent_ns"]
    assert row["end_ns"] >= stamps[-1]
    assert min(row["lag_ns"]) > 0
    for k, (stamp, write) in enumerate(zip(stamps, writes, strict=True)):
        assert stamp >= write, "received before it was written"
        alone = k + 1 == len(stamps) or stamps[k + 1] != stamp  # else the stamp is a later event's
        if alone and k + 1 < len(writes):
            assert stamp <= writes[k + 1], f"event {k} has the time of a later one"
    assert stamps[0] - row["sent_ns"] >= writes[0] - true["received_ns"]  # TTFT holds the server's part


def _in_order(rows: list[dict[str, Any]], truth: dict[str, Any], in_flight: int) -> None:
    """Each index once, sent in the order in which the server received them, never more in flight than asked."""
    assert [row["index"] for row in rows] == list(range(len(rows)))
    rows = sorted(rows, key=lambda row: row["sent_ns"])
    received = [truth[row["response_id"]]["received_ns"] for row in rows]
    assert received == sorted(received)
    for k, row in enumerate(rows):
        over = sum(before["event_ns"][-1] <= row["sent_ns"] for before in rows[:k])
        assert k + 1 - over <= in_flight, f"the request sent as number {k} was one too many"


def _due(rows: list[dict[str, Any]], load: dict[str, Any]) -> None:
    due = [row["scheduled_ns"] - rows[0]["scheduled_ns"] for row in rows]
    assert due == sorted(due)
    if load.get("arrival") == "constant":
        assert due == [pytest.approx(k * 1e9 / load["rate"], abs=1) for k in range(len(rows))]


@pytest.mark.usefixtures("drawn_here")
def test_one_sweep_of_its_own_simulator_and_all_that_is_made_of_it() -> None:
    spec = {
        "name": "whole",
        "model": "any/name",
        "engine": {"kind": "simulator", "options": {"law": {"itl_s": 0.05}}},  # slow: a busy client still keeps up
        "grid": {"input": [16, 32], "output": 8, "batch": [1, 2]},
        "rounds": {"warmup": 0, "min": 3, "max": 3},
    }
    Path("s.yaml").write_text(yaml.safe_dump(spec))
    result = bench("sweep", "s.yaml", "--out", "run")
    assert result.exit_code in CARRIED_OUT, result.stderr
    made = {str(path.relative_to("run")) for path in Path("run").rglob("*") if path.is_file()}
    assert {"manifest.json", "journal.jsonl", "summary.parquet", "summary.csv", "table.md"} <= made
    plots = {name for name in made if name.startswith("plots/")}
    assert {Path(name).suffix for name in plots} == {".png", ".svg"}
    assert len([name for name in made if name.startswith("records/")]) == 4 * 3
    assert result.stdout.startswith(Path("run/table.md").read_text())
    assert result.stdout.endswith("Run: run\n")
    with Path("run/summary.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert ",".join(header).startswith(CONTRACT + ",")
    assert [line[1:5] for line in lines] == [
        ["16", "8", "1", "static"],
        ["16", "8", "2", "static"],
        ["32", "8", "1", "static"],
        ["32", "8", "2", "static"],
    ]
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["spec"]["name"] == "whole"
    assert [entry["label"] for entry in sorted(manifest["plan"], key=lambda entry: entry["index"])] == [
        f"in={i} out=8 batch={b}" for i in (16, 32) for b in (1, 2)
    ]
    _recomputes(header, lines)


def _recomputes(header: list[str], lines: list[list[str]]) -> None:
    """The same numbers from the records alone, by every way to ask for them."""
    told = bench("table", "run").stdout
    assert told == Path("run/table.md").read_text()
    stored = summary(Path("run"))
    for name in ("summary.csv", "summary.parquet", "table.md"):
        Path("run", name).unlink()
    assert bench("table", "run").stdout == told
    as_json = json.loads(bench("table", "run", "--format", "json", "--include-invalid").stdout)
    assert as_json == [
        {k: pytest.approx(v, abs=1e-6) if isinstance(v, float) else v for k, v in row.items()} for row in stored
    ]
    few = bench("table", "run", "--format", "csv", "--include-invalid", "--columns", "batch,ttft_ms").stdout
    at = header.index("ttft_ms")
    expected = [(line[3], float(line[at])) for line in lines]
    assert [(row["batch"], float(row["ttft_ms"])) for row in csv.DictReader(few.splitlines())] == [
        (batch, pytest.approx(ttft, abs=1e-6)) for batch, ttft in expected
    ]
    opened = benchbench.open_run("run")
    frame, requests = opened.summary(), opened.requests("all", events=True)
    assert list(frame.columns) == header
    assert frame["sys_tok_s"].tolist() == [row["sys_tok_s"] for row in stored]
    assert len(requests) == 2 * 3 * (1 + 2)
    for row in stored:
        mine = requests[requests["cell"] == row["key"]]
        ttft = [(e[0] - s) / 1e6 for e, s in zip(mine["event_ns"], mine["sent_ns"], strict=True)]
        assert row["ttft_ms"] == pytest.approx(sum(ttft) / len(ttft))
    unknown = bench("table", "run", "--columns", "nope")
    assert unknown.exit_code == 2
    assert unknown.stderr.startswith("bench table: unknown column 'nope' (allowed: variant, input, ")


def test_the_python_interface_does_what_the_command_does() -> None:
    with ScriptedServer() as server:
        spec = benchbench.load_spec(write_sweep(Path("s.yaml"), server.url), ["rounds.max=2", "rounds.min=2"])
        outcome = benchbench.sweep(spec, out="run", plots=False)
        assert (outcome.state, outcome.path, len(server.asks)) == ("complete", Path("run"), 2)
        assert [row["rounds"] for row in outcome.rows] == [2]
        with pytest.raises(Exception, match="a run is there"):
            benchbench.sweep(spec, out="run")


# -- commands that ask no server


def test_dry_run_prints_the_plan_and_asks_nobody() -> None:
    with ScriptedServer() as server:
        grid = {"input": [8, 9], "output": 6, "batch": [1, 2]}
        rounds = {"warmup": 1, "min": 2, "max": 2}
        result = run(server.url, "--dry-run", "--only", "input=9", grid=grid, rounds=rounds)
        assert server.connections == 0
    assert not Path("run").exists()
    first, second, total = result.stdout.splitlines()
    assert first.split("[")[0].strip() == "1 in=9 out=6 batch=1 static: 1 warm-up, 2 rounds of 1 request"
    assert second.split("[")[0].strip() == "2 in=9 out=6 batch=2 static: 1 warm-up, 2 rounds of 2 requests"
    assert total.startswith("2 cells, 9 requests, 81 input tokens, 54 output tokens; time: unknown for this engine: ")
    write_sweep(Path("sim.yaml"), "http://x", engine={"kind": "simulator", "profile": "tiny"})
    assert "time: about 0:00" in bench("sweep", "sim.yaml", "--dry-run").stdout


def test_validate_checks_every_file_and_tells_every_problem() -> None:
    write_sweep(Path("good.yaml"), "http://127.0.0.1:1", grid={"input": [8, 9], "output": 6, "batch": [1, 2]})
    good = bench("validate", "good.yaml")
    assert (good.exit_code, good.stdout, good.stderr) == (0, "good.yaml: 4 cells\n", "")
    write_sweep(Path("bad.yaml"), "ftp://127.0.0.1:1", grid={"input": 0, "output": 6, "batch": 1})
    both = bench("validate", "bad.yaml", "good.yaml", "none.yaml")
    assert (both.exit_code, both.stdout) == (2, "good.yaml: 4 cells\n")
    assert both.stderr.splitlines() == [
        "bad.yaml:5: engine.url: has the scheme 'ftp' (allowed: http, https)",
        "bad.yaml:7: grid.input: must be at least 1, is 0",
        "none.yaml: no such file",
    ]


def test_strict_is_content_when_no_cell_is_invalid() -> None:
    generous = {"shared_suspect": 1.0, "shared_invalid": 1.0}
    with ScriptedServer(lambda ask: [CHUNKED, 0.03, *completion(ask)[1:]]) as server:
        run(server.url, "--strict", validity=generous)


def test_schema_is_the_one_that_the_shipped_sweeps_name() -> None:
    shipped = Path(__file__).parents[1] / "sweeps"
    assert json.loads(bench("schema").stdout) == json.loads((shipped / "sweep.schema.json").read_text())
    for sweep in shipped.glob("*.yaml"):
        assert sweep.read_text().startswith("# yaml-language-server: $schema=./sweep.schema.json\n")
