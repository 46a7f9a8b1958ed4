"""Several servers for one sweep: who gets which request, what each counted, and when they are not one engine."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from answers import models, whole
from driving import bench, records, summary, write_sweep
from hypothesis import given
from hypothesis import strategies as st
from servers import ScriptedServer

import benchbench
from benchbench import load_spec, open_run
from benchbench.api import by_replica
from benchbench.counters.server_counters import as_one, of_server
from benchbench.engines.simulator import SimulatorProcess
from benchbench.loadgen.job import Job
from benchbench.measure.observer import Observer
from benchbench.replicas.dealing import Places, in_turn
from benchbench.replicas.server_figures import ONE_SERVER, ServerRound, by_server
from benchbench.senders.shares import split
from benchbench.spec import SpecError, spec_from_mapping

LAW = {"kind": "fixed", "ttft_s": 0.03, "itl_s": 0.01}
LOOSE = {"shared_suspect": 1.0, "shared_invalid": 1.0, "send_skew": 1.0, "late_send": 1.0, "client_lag": 1.0}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[SimulatorProcess, SimulatorProcess]]:
    """Two servers that are alike."""
    with SimulatorProcess(options={"law": LAW}) as a, SimulatorProcess(options={"law": LAW}) as b:
        yield a, b


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def swept(urls: list[str], engine: dict[str, Any] | None = None, **changes: Any) -> Any:
    """`bench sweep` of several servers, into run/."""
    kind = {"kind": "endpoint", "url": urls, **(engine or {})}
    shape = {"grid": {"input": 8, "output": 6, "batch": 4}, "validity": LOOSE}
    return bench(
        "sweep", write_sweep(Path("s.yaml"), "", **{"engine": kind, **shape, **changes}), "--out", "run", "--no-plots"
    )


def served(server: SimulatorProcess) -> set[str]:
    """The ids of the requests that a server knows of."""
    with urlopen(f"{server.url}/truth") as answer:  # noqa: S310 - our own server
        return {entry["id"] for entry in json.load(answer)["requests"]}


def job(count: int, in_flight: int, servers: int, **more: Any) -> Job:
    lists = {name: [1] * count for name in ("asked_input", "asked_output", "due_ns")}
    payloads = [b"head\r\n\r\n%d" % k for k in range(count)]
    own = in_turn(count, servers)
    return Job(payloads=payloads, in_flight=in_flight, first_token_s=1, stall_s=1, target_of=own, **lists, **more)


class Named:
    """A server whose requests begin with its name."""

    def __init__(self, name: int) -> None:
        self.name = name

    def request(self, body: bytes) -> bytes:
        return b"%d\r\n\r\n%s" % (self.name, body)


@given(st.integers(1, 6), st.integers(1, 4), st.booleans(), st.data())
def test_a_pinned_place_keeps_its_server_and_requests_in_turn_their_own(
    in_flight: int, servers: int, pinned: bool, data: st.DataObject
) -> None:
    count = 4 * in_flight
    places = Places(job(count, in_flight, servers, pinned=pinned), [Named(k) for k in range(servers)])
    flying: dict[int, tuple[int, int]] = {}  # index -> place, server
    for index in range(count):
        place = index
        if index >= in_flight:
            ended = data.draw(st.sampled_from(sorted(flying)))
            place, server = flying.pop(ended)
            places.leave(server)
        server, payload = places.take(index)
        assert server == (place if pinned else index) % servers
        assert payload.endswith(b"\r\n\r\n%d" % index)
        if server != index % servers:
            assert payload == Named(server).request(b"%d" % index)
        flying[index] = (place, server)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.integers(1, 5))
def test_several_workers_send_to_the_same_servers_as_one(
    count: int, in_flight: int, servers: int, workers: int
) -> None:
    whole = job(count, in_flight, servers)
    shares = split(whole, workers)
    sent = sorted(pair for share in shares for pair in zip(share.indices.tolist(), share.job.payloads, strict=True))
    assert sent == list(enumerate(whole.payloads))
    for share in shares:
        if servers > 1:
            assert share.job.target_of == [k % servers for k in share.indices]
        if len(shares) > 1 and in_flight % (servers * workers) == 0 and count >= in_flight:
            assert len({*share.job.target_of}) == servers or servers == 1, "each worker sends to each server"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("routing", ["round_robin", "pinned"])
def test_each_server_gets_what_the_records_say(
    routing: str, workers: int, pair: tuple[SimulatorProcess, SimulatorProcess]
) -> None:
    before = [served(server) for server in pair]
    loads = {"load": {"kind": "closed", "requests": 20}, "loadgen": {"workers": workers}}
    result = swept([server.url for server in pair], {"routing": routing}, **loads)
    assert f"2 servers share the load, {'a place' if routing == 'pinned' else 'requests'}" in result.output
    rows = records(Path("run"))
    for number, server in enumerate(pair):
        ours = {row["response_id"] for row in rows if row["target"] == number}
        assert ours == served(server) - before[number]
    if routing == "round_robin":
        assert all(row["target"] == row["index"] % 2 for row in rows)
    (row,) = summary(Path("run"))
    assert (row["failed"], row["foreign_tokens"]) == (0, 0), "counts of both were read, and agree"


def test_another_clients_tokens_on_one_of_them_are_foreign(pair: tuple[SimulatorProcess, SimulatorProcess]) -> None:
    over = threading.Event()

    def ask() -> None:
        body = json.dumps({"prompt": [5] * 4, "max_tokens": 2, "ignore_eos": True}).encode()
        while not over.is_set():
            with urlopen(Request(f"{pair[1].url}/v1/completions", body)) as answer:  # noqa: S310 - our own server
                answer.read()

    other = threading.Thread(target=ask)
    other.start()
    try:
        swept([server.url for server in pair], grid={"input": 8, "output": 20, "batch": 2})
    finally:
        over.set()
        other.join()
    (row,) = summary(Path("run"))
    assert (row["status"], row["reasons"]) == ("invalid", "foreign_load")


def test_a_slower_server_makes_its_cells_suspect_and_is_named(pair: tuple[SimulatorProcess, SimulatorProcess]) -> None:
    slow = {"law": {"kind": "fixed", "ttft_s": 0.06, "itl_s": 0.02}}
    rounds = {"warmup": 0, "min": 3, "max": 3, "rel_ci": 0.9}
    with SimulatorProcess(options=slow) as other:
        urls = [pair[0].url, other.url]
        result = swept(urls, grid={"input": 8, "output": 6, "batch": 3}, rounds=rounds)
    assert "note: batch 3: no multiple of 2" in result.stderr
    (row,) = summary(Path("run"))
    assert "uneven_replicas" in row["reasons"].split(";")
    run = open_run("run")
    (text,) = (line for line in run.explain().splitlines() if "uneven_replicas" in line)
    where = other.url.removeprefix("http://")
    assert re.search(rf"\({where}: its TTFT is [12]\.\d\d x the others'; {where}: its TPOT is [12]\.\d\d x", text)

    requests, frame = run.requests(), run.replicas()
    assert requests["target"].tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0], "rounds take turns in who has more"
    assert frame["url"].tolist() == urls
    assert frame["slow"].tolist() == [False, True]
    for name in ("ttft_ms", "tpot_ms"):
        means = requests.groupby("target")[name].mean()
        assert frame[name].tolist() == pytest.approx(means.tolist())
    assert frame["requests"].tolist() == requests.groupby("target").size().tolist() == [5, 4]
    assert frame["tok_s"].sum() == pytest.approx(row["sys_tok_s"])
    assert frame["share"].sum() == pytest.approx(1)

    table = bench("table", "run", "--by-replica")
    line = next(line for line in table.output.splitlines() if where in line)
    assert re.match(rf"\| 8 \| 6 \| 3 \| {where} \| 4 \| 0 \| [\d.]+\* \| [\d.]+\* \| [\d.]+\* \|", line)
    assert f"http://{where}: slower than the others in some cells (uneven_replicas)." in table.output
    head, *rows = bench("table", "run", "--by-replica", "--format", "csv").output.splitlines()
    assert head.startswith("variant,load,input,output,batch,rate,replica,url,requests,failed,ttft_ms")
    assert len(rows) == 2
    refused = bench("table", "run", "--by-replica", "--columns", "batch")
    assert (refused.exit_code, "--by-replica: of one RUN" in refused.stderr) == (2, True)


def test_a_server_whose_requests_fail_is_named_and_has_no_number(
    pair: tuple[SimulatorProcess, SimulatorProcess],
) -> None:
    with SimulatorProcess(options={"law": LAW, "faults": {"error_in_stream_share": 1.0}}) as other:
        swept([pair[0].url, other.url])
    (row,) = summary(Path("run"))
    assert (row["status"], row["failed"]) == ("invalid", 2)
    where = other.url.removeprefix("http://")
    text = open_run("run").explain()
    assert f"{where}: 2 requests, 2 failed" in text
    line = next(line for line in bench("table", "run", "--by-replica").output.splitlines() if where in line)
    assert line == f"| 8 | 6 | 4 | {where} | 2 | 2 |" + 5 * " \N{EN DASH} |"


class Ending(Observer):
    """Ends a server before the second round."""

    def __init__(self, server: SimulatorProcess) -> None:
        self.server = server

    def round(self, cell: object, phase: str, number: int, left_s: float | None) -> None:  # noqa: ARG002 - an observer
        if number == 1:
            self.server.close()


def test_a_server_that_dies_stops_the_sweep_and_is_named(pair: tuple[SimulatorProcess, SimulatorProcess]) -> None:
    with SimulatorProcess(options={"law": LAW}) as other:
        engine = {"kind": "endpoint", "url": [pair[0].url, other.url]}
        path = write_sweep(Path("s.yaml"), "", engine=engine, rounds={"warmup": 0, "min": 2, "max": 2})
        outcome = benchbench.sweep(load_spec(path), out="run", plots=False, observer=Ending(other))
    where = other.url.removeprefix("http://")
    assert outcome.state == "stopped"
    assert outcome.message.startswith(f"the server at {where} is gone: connect: Connection refused")
    assert len(list(Path("run/records").glob("*.parquet"))) == 1, "the round that it spoiled is not stored"


def means(*rounds: tuple[float, ...]) -> list[tuple[ServerRound, ...]]:
    """Rounds in which each server's requests took so long, each in TTFT and TPOT."""
    return [
        tuple(ServerRound(2, 0, np.array([s, s]), np.array([s, s]), 100 / s) if s else NOTHING for s in values)
        for values in rounds
    ]


NOTHING = ServerRound(0, 0, np.array([]), np.array([]), 0.0)


@pytest.mark.parametrize(
    ("rounds", "slow"),
    [
        (means((1.0, 2.0)), set()),  # one round shows no spread
        (means((1.0, 2.0), (1.0, 2.0)), {1}),
        (means((1.0, 1.25), (1.0, 1.25)), set()),
        (means((1.0, 1.3), (1.0, 1.29), (1.01, 1.3)), {1}),
        (means((1.0, 2.0), (2.0, 1.0), (1.0, 2.0)), set()),  # each is slow in turn
        (means((1.0, 0.0), (0.0, 2.0), (1.0, 0.0), (0.0, 2.0)), {1}),  # batches of one
        (means((1.0, 1.0, 3.0), (1.1, 1.0, 3.1), (1.0, 1.1, 3.0)), {2}),
        (means((0.0, 0.0), (0.0, 0.0)), set()),
    ],
)
def test_when_a_server_is_surely_slower(rounds: list[tuple[ServerRound, ...]], slow: set[int]) -> None:
    assert {server for server, _ in by_server(rounds).apart} == slow


def test_equal_servers_are_hardly_ever_apart() -> None:
    """Of cells whose rounds vary by 20 % and servers by nothing; 25 % more is asked for, at 95 %."""
    generator = np.random.default_rng(17)
    cells = [means(*generator.lognormal(0, 0.2, (5, 2)).tolist()) for _ in range(400)]
    assert sum(bool(by_server(cell).apart) for cell in cells) <= 4


def test_of_one_server_there_is_nothing_to_tell_apart() -> None:
    assert by_server([(), ()]) == ONE_SERVER
    stored = Path(__file__).parent / "data" / "stored-run"
    assert open_run(stored).replicas().empty, "its records have no column target"
    assert bench("table", stored, "--by-replica").output.startswith("One server: ")


def test_servers_of_other_models_or_versions_are_refused(pair: tuple[SimulatorProcess, SimulatorProcess]) -> None:
    ours = pair[0].url
    with SimulatorProcess(models=["other"]) as other:
        result = swept([ours, other.url])
        assert result.exit_code == 2
        assert f"s.yaml:2: model: {other.url}: the server does not serve 'sim' (allowed: other)" in result.stderr
    version = {"/version": (whole(200, {"version": "12"}),)}
    with ScriptedServer(listed=(models("sim", owner="benchbench"),), routes=version) as other:
        result = swept([ours, other.url])
        assert result.exit_code == 2
        different = (
            f"{ours} and {other.url} are different engines (version: simulator-1 and 12; max_model_len: 131072 and"
        )
        assert f"s.yaml:5: engine.url: {different} not told; " in result.stderr
    assert not Path("run/records").exists()


def test_a_dead_server_is_named(pair: tuple[SimulatorProcess, SimulatorProcess]) -> None:
    result = swept([pair[0].url, "http://127.0.0.1:1"])
    assert "nobody answers at 127.0.0.1:1" in result.stderr
    assert result.exit_code != 0


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (["http://a", "http://a/"], "names an address twice"),
        ([], "must not be empty"),
        (["http://a", 5], "must be text, is 5"),
        (["http://a", "b:8000"], "needs a scheme"),
    ],
)
def test_addresses_that_cannot_be(url: list[Any], message: str) -> None:
    base = {"name": "s", "model": "m", "grid": {"input": 1, "output": 1, "batch": 1}}
    with pytest.raises(SpecError, match=message):
        spec_from_mapping({**base, "engine": {"kind": "endpoint", "url": url}})


def test_a_list_of_one_address_is_that_address() -> None:
    base = {"name": "s", "model": "m", "grid": {"input": 1, "output": 1, "batch": 1}}
    one, listed = (
        spec_from_mapping({**base, "engine": {"kind": "endpoint", "url": u}}) for u in ("http://a", ["http://a"])
    )
    assert one == listed


def test_counts_are_summed_where_every_server_tells() -> None:
    a = {"replicas": False, "prompt_tokens": 3, "preemptions": 1, "foreign_tokens": 0}
    b = {"replicas": False, "prompt_tokens": 4, "foreign_tokens": 2}
    both = {"replicas": False, "prompt_tokens": 7, "foreign_tokens": 2}
    assert as_one([a, b]) == {**both, "servers": [a, b]}
    assert as_one([a, {"replicas": True}]) == {"replicas": True, "servers": [a, {"replicas": True}]}
    assert as_one([a]) is a


def test_the_requests_of_one_server_with_their_tokens() -> None:
    columns: Any = {
        "target": np.array([0, 1, 0]),
        "status": ["ok", "failed", "ok"],
        "input_tokens": np.array([5, 6, 7]),
        "event_offsets": np.array([0, 2, 2, 3]),
        "event_tokens": np.array([1, 2, 4]),
        "event_ns": np.array([1, 2, 3]),
    }
    part = of_server(columns, 0)
    assert part["status"] == ["ok", "ok"]
    assert part["input_tokens"].tolist() == [5, 7]
    assert part["event_tokens"].tolist() == [3, 4]
    assert part["event_offsets"].tolist() == [0, 1, 2]
    assert Counter(of_server(columns, 1)["status"]) == {"failed": 1}


def test_a_length_that_follows_a_law_is_about_its_mean_as_in_the_run_s_table(monkeypatch: Any) -> None:
    row: dict[str, Any] = {"variant": "", "input": 64, "output": 8, "batch": 3, "rate": None}
    row |= {
        "lengths": "input lognormal",
        "replica": 0,
        "url": "http://h:1",
        "requests": 4,
        "failed": 0,
        "status": "valid",
        "slow": False,
    }
    row |= dict.fromkeys(("ttft_ms", "ttft_ms_p99", "tpot_ms", "tok_s", "share"), 1.0)
    monkeypatch.setattr(by_replica, "replica_rows", lambda _: [row])
    run: Any = None
    assert "\n| ≈64 | 8 | 3 | h:1 | 4 | 0 |" in by_replica.replica_table(run)
