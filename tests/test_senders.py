"""Several processes that send one round: every request once, records as of one process, and what a death costs."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from driving import bench, records, run_well, summary, sweeping, write_sweep
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds_made import Made, columns_of, table_of

from benchbench import open_run
from benchbench.analysis.metrics import round_metrics
from benchbench.engines.simulator import SimulatorProcess
from benchbench.errors import WorkerDiedError
from benchbench.loadgen.job import CLOSE, Job
from benchbench.openai.target import Access, make_target
from benchbench.prompts.round_job import make_job
from benchbench.refills.quota import SERVED, Quota
from benchbench.senders import http_worker, sizing
from benchbench.senders.group import WorkerGroup
from benchbench.senders.http_worker import HttpWorker, new_worker, worker_ahead
from benchbench.senders.shares import lost, merged, split
from benchbench.spec import Cell, SpecError, make_plan, spec_from_mapping

VOCAB = (1000, 30000)
FAST = {"kind": "fixed", "ttft_s": 0.02, "itl_s": 0.001}
FACTS = {
    **dict.fromkeys(("cpu_ns", "worker_cpu_ns", "connects", "resent", "spare_sent", "held_max_bytes"), 1),
    **dict.fromkeys(("spooled_bytes", "turn_max_ns", "clock_step_ns", "wall_ns", "started_ns"), 2),
    "kernel_stamps": True,
    "peers": {"10.0.0.1:80": 2},
    "cancelled": False,
    "priority": "",
}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def spec_of(url: str = "http://127.0.0.1:1", **changes: Any) -> Any:
    base = {
        "name": "s",
        "model": "sim",
        "engine": {"kind": "endpoint", "url": url},
        "grid": {"input": 8, "output": 6, "batch": 7},
        "prompts": {"kind": "token_ids", "vocab": list(VOCAB)},
    }
    return spec_from_mapping(base | changes)


def cell_of(url: str, **changes: Any) -> Cell:
    return make_plan(spec_of(url, **changes)).cells[0]


def job_of(url: str, number: int = 0, **changes: Any) -> Job:
    target = make_target(url, "completions", Access())
    return make_job(cell_of(url, **changes), target, VOCAB, "measured", number, 0)


OPEN = {"grid": {"input": 8, "output": 6}, "load": {"kind": "open", "rate": 200.0, "requests": 21}}
LOADS: dict[str, dict[str, Any]] = {
    "static": {},
    "closed": {"load": {"kind": "closed"}},
    "short": {"load": {"kind": "closed", "requests": 9}},
    "open": OPEN,
    "as served": {"load": {"kind": "closed", "requests": 70}, "output": "as_served"},
}


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess("fixed", options={"law": FAST, "mean_output_tokens": 4}) as process:
        yield process


@pytest.fixture(scope="module")
def pair() -> Iterator[WorkerGroup]:
    with WorkerGroup(2, lambda _job: 2) as group:
        group.ready()
        yield group


# -- how a round is dealt out


@given(
    batch=st.integers(1, 12),
    planned=st.integers(1, 70),
    spare=st.integers(0, 30),
    workers=st.integers(1, 9),
    paced=st.booleans(),
)
def test_every_request_is_dealt_to_one_worker_with_its_prompt_its_length_and_its_time(
    batch: int, planned: int, spare: int, workers: int, paced: bool
) -> None:
    spare = 0 if paced else spare
    planned, count = max(planned, batch), max(planned, batch) + spare
    job = Job(
        payloads=[b"%d" % k for k in range(count)],
        due_ns=[k * 10 if paced else 0 for k in range(count)],
        in_flight=count if paced else batch,
        asked_input=list(range(count)),
        asked_output=[k + 1 for k in range(count)],
        first_token_s=1.0,
        stall_s=1.0,
        paced=paced,
        spare=spare,
    )
    shares = split(job, workers)
    dealt = np.sort(np.concatenate([share.indices for share in shares]))
    assert dealt.tolist() == list(range(count))
    assert 1 <= len(shares) <= workers
    assert sum(share.job.in_flight for share in shares) == job.in_flight
    assert sum(share.planned for share in shares) == planned
    for share in shares:
        places = share.indices.tolist()
        assert places == sorted(places)
        assert share.job.payloads == [job.payloads[k] for k in places]
        assert share.job.due_ns == [job.due_ns[k] for k in places]
        assert share.job.asked_input == [job.asked_input[k] for k in places]
        assert share.job.asked_output == [job.asked_output[k] for k in places]
        assert 1 <= share.job.in_flight <= share.planned
        assert share.job.together == (len(shares) > 1)
        # The first wave, the first B requests, is the share's first, too; and each place is refilled as often.
        assert (share.indices[: share.job.in_flight] < job.in_flight).all()
        assert not paced or share.job.in_flight >= share.planned
        waves = share.planned / share.job.in_flight
        assert abs(waves - planned / job.in_flight) < 1 + 1e-9


def test_an_open_load_that_limits_what_is_in_flight_has_one_sender() -> None:
    job = job_of("http://127.0.0.1:1", **{**OPEN, "load": {**OPEN["load"], "max_concurrency": 5}})
    assert [share.job for share in split(job, 4)] == [job]


@settings(max_examples=50)
@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=40), batch=st.integers(1, 9), workers=st.integers(1, 5))
def test_what_the_workers_hand_back_is_the_round_that_one_would_have(
    counts: list[int], batch: int, workers: int
) -> None:
    everything = [
        Made(
            events=[(1000 * k + at, 1) for at in range(count)],
            status="ok" if count else "failed",
            sent=k,
            end=2000 * k,
            told_input=k,
            lag=[10 * k + at for at in range(count)],
            metrics=str(k),
        )
        for k, count in enumerate(counts)
    ]
    job = job_of("http://127.0.0.1:1", load={"kind": "closed", "requests": len(counts)}, grid=grid_of(batch, counts))
    shares = split(job, workers)
    replies: Any = [(columns_of([everything[k] for k in share.indices]), dict(FACTS)) for share in shares]
    columns, facts = merged(shares, replies)
    whole: Any = columns_of(everything)
    assert columns is not None
    assert list(columns) == list(whole)
    for name, values in whole.items():
        got = columns[name]  # type: ignore[literal-required]
        assert type(got) is type(values)
        if isinstance(values, np.ndarray):
            assert got.dtype == values.dtype
        assert list(got) == list(values), name
    assert facts["workers"] == len(shares)
    assert [sender["requests"] for sender in facts["senders"]] == [len(share.indices) for share in shares]


def grid_of(batch: int, counts: list[int]) -> dict[str, Any]:
    return {"input": 8, "output": 6, "batch": min(batch, len(counts))}


def test_a_dead_workers_requests_have_failed_and_the_others_are_kept() -> None:
    shares = split(job_of("http://127.0.0.1:1"), 2)
    kept: Any = (columns_of([Made(events=[(5, 1)]) for _ in shares[0].indices]), dict(FACTS))
    columns, facts = merged(shares, [kept, lost(shares[1], "it ended (exit -9)")])
    assert columns is not None
    assert columns["index"].tolist() == list(range(7))
    assert columns["status"] == ["ok", "failed"] * 3 + ["ok"]
    assert columns["error_kind"] == ["", "client"] * 3 + [""]
    assert columns["error_detail"][1] == "it ended (exit -9)"
    assert columns["sent_ns"][1] == -1
    assert [sender.get("died") for sender in facts["senders"]] == [None, "it ended (exit -9)"]


def test_spare_requests_of_a_share_go_on_until_all_shares_are_served() -> None:
    (share, _) = split(job_of("http://127.0.0.1:1", **LOADS["as served"]), 2)
    messages: list[str] = []
    quota = Quota(share.job, messages.append)
    for index in range(share.planned - share.job.in_flight - 1):
        assert (messages, quota.sendable) == ([], len(share.indices))
        quota.ended(index)
    assert (messages, quota.sendable) == ([SERVED], len(share.indices))
    quota.close()
    assert (messages, quota.sendable) == ([SERVED], share.planned)
    alone = Quota(replace(share.job, together=False), messages.append)
    alone.close()
    assert (messages, alone.sendable) == ([SERVED], share.planned)
    assert CLOSE == 0


def test_a_closed_load_is_full_until_the_first_end_that_a_worker_cannot_refill() -> None:
    shares = split(job_of("http://127.0.0.1:1", load={"kind": "closed"}, grid=grid_of(4, [1] * 20)), 2)
    made = [[Made(events=[(step * (k // 2 + 1), 1)], end=None) for k in range(10)] for step in (10, 11)]
    replies: Any = [(columns_of(requests), dict(FACTS)) for requests in made]
    # The first has ended two of its ten at 10, 20 ... 50; of the last two none is replaced.
    assert merged(shares, replies)[1]["full_until_ns"] == columns_of(made[0])["event_ns"][8]
    (alone,) = split(shares[0].job, 1)
    assert "full_until_ns" not in merged([replace(alone, job=replace(alone.job, paced=True))], replies[:1])[1]


def test_a_closed_loads_window_ends_where_a_worker_has_no_more_to_send() -> None:
    """4 B requests of 10 ns, B = 2: the batch is full until the last sends, at 30."""
    made = [Made(events=[(10 * (k // 2) + 10, 1)], sent=10 * (k // 2), end=10 * (k // 2) + 10) for k in range(8)]
    whole = round_metrics(table_of(made), load="closed", in_flight=2)
    t0 = int(columns_of(made)["sent_ns"][0])
    short = round_metrics(table_of(made, {"full_until_ns": t0 + 20}), load="closed", in_flight=2)
    assert whole.sys_tok_s == pytest.approx(4 / 20e-9)
    assert short.sys_tok_s == pytest.approx(2 / 10e-9)


# -- against the simulator, which knows the truth


def truth_of(url: str) -> dict[str, Any]:
    with urlopen(f"{url}/truth?clear=1") as answer:  # noqa: S310 - the simulator's
        return {row["id"]: row for row in json.loads(answer.read())["requests"]}


@pytest.mark.parametrize("load", LOADS)
def test_records_of_two_workers_are_those_of_one(load: str, pair: WorkerGroup, simulator: SimulatorProcess) -> None:
    url = simulator.url
    with HttpWorker() as worker:
        worker.ready()
        alone, facts_alone = worker.run(job_of(url, **LOADS[load]))
    truth_of(url)
    together, facts = pair.run(job_of(url, **LOADS[load]))
    truth = truth_of(url)
    assert facts_alone.keys() <= facts.keys()
    assert (facts["workers"], len(facts["senders"])) == (2, 2)
    assert list(alone) == list(together)
    for name, values in alone.items():
        got = together[name]  # type: ignore[literal-required]
        assert type(got) is type(values), name
        if isinstance(values, np.ndarray):
            assert got.dtype == values.dtype, name
    planned = len(together["index"]) - facts["spare_sent"]
    for name in ("index", "asked_output_tokens", "input_tokens", "output_tokens", "status", "finish_reason"):
        # The same prompt has the same answer, whoever asks.
        mine, theirs = (list(columns[name])[:planned] for columns in (together, alone))
        assert mine == theirs, name
    assert together["index"].tolist()[:planned] == list(range(planned))
    assert set(together["status"]) == {"ok"}
    ends = together["event_offsets"].tolist()
    for k, (low, high) in enumerate(pairwise(ends)):
        row = truth[together["response_id"][k]]
        events = together["event_ns"][low:high]
        assert together["sent_ns"][k] <= row["received_ns"]
        assert len(events) == len(row["writes_ns"])
        assert (events >= np.array(row["writes_ns"])).all()


def test_never_more_than_the_batch_is_in_flight(pair: WorkerGroup, simulator: SimulatorProcess) -> None:
    for number, load in enumerate(("as served", "closed", "short")):
        job = job_of(simulator.url, number, **LOADS[load])
        columns, _ = pair.run(job)
        steps = [(int(t), 1) for t in columns["sent_ns"]] + [(int(t), -1) for t in columns["end_ns"]]
        assert np.cumsum([step for _, step in sorted(steps)]).max() <= job.in_flight


# -- deaths


def pids_of(parent: int | None = None) -> list[int]:
    children = psutil.Process(parent).children(recursive=True)
    found = []
    for child in children:
        try:
            if "benchbench.senders.sending_process" in child.cmdline():
                found.append(child.pid)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def slow() -> Iterator[SimulatorProcess]:
    with SimulatorProcess("fixed", options={"law": {"kind": "fixed", "ttft_s": 0.5, "itl_s": 0.05}}) as process:
        yield process


def test_a_killed_workers_requests_fail_and_the_next_round_has_another(slow: SimulatorProcess) -> None:
    others = set(pids_of())

    def ours() -> list[int]:
        return [pid for pid in pids_of() if pid not in others]

    with WorkerGroup(2, lambda _job: 2) as group:
        group.ready()
        before = ours()
        assert len(before) == 2
        threading.Timer(0.4, os.kill, (before[1], signal.SIGKILL)).start()
        columns, facts = group.run(job_of(slow.url))
        assert columns["status"] == ["ok", "failed"] * 3 + ["ok"]
        assert set(columns["error_kind"]) == {"", "client"}
        assert "exit -9" in columns["error_detail"][1]
        assert "died" in facts["senders"][1]
        columns, facts = group.run(job_of(slow.url, 1))
        assert set(columns["status"]) == {"ok"}
        assert before[0] in ours()
        assert before[1] not in ours()
        assert len(ours()) == 2
        for pid in ours():
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match="exit -9"):
            group.run(job_of(slow.url, 2))
    assert ours() == []


def test_a_round_is_cancelled_in_all_workers(slow: SimulatorProcess) -> None:
    ready, fire = os.pipe()
    with WorkerGroup(2, lambda _job: 2) as group:
        group.ready()
        threading.Timer(0.3, os.write, (fire, b"x")).start()
        columns, facts = group.run(job_of(slow.url), ready)
        assert columns is None
        assert facts["cancelled"]
        columns, facts = group.run(job_of(slow.url, 1))
        assert not facts["cancelled"]
        assert set(columns["status"]) == {"ok"}
        group.watch = (ready, lambda: "the engine is gone")
        columns, facts = group.run(job_of(slow.url, 2))
        assert columns["status"] == ["failed"] * 7
        assert set(columns["error_detail"]) == {"the engine is gone"}
    for fd in (ready, fire):
        os.close(fd)


def test_a_sweep_whose_worker_is_killed_publishes_nothing_of_that_round(slow: SimulatorProcess) -> None:
    write_sweep(
        Path("s.yaml"),
        slow.url,
        grid={"input": 8, "output": 6, "batch": 4},
        rounds={"warmup": 0, "min": 3, "max": 3},
        loadgen={"workers": 2},
    )
    with sweeping("s.yaml", "--out", "run", "--no-plots") as sweep:
        journal = Path("run/journal.jsonl")
        while not journal.exists() or '"round":1' not in journal.read_text():
            assert sweep.process.poll() is None, sweep.end()
            time.sleep(0.02)
        os.kill(pids_of(sweep.process.pid)[0], signal.SIGKILL)
        code, _, err = sweep.end()
        assert sweep.descendants() == []
    assert code == 3  # the one cell is invalid
    assert "2 of 4 requests failed, first: client" in err
    (row,) = summary(Path("run"))
    assert (row["status"], row["rounds"], row["failed"]) == ("invalid", 3, 2)
    assert "request_failed" in row["reasons"]
    rows = records(Path("run"))
    assert [r["status"] for r in rows].count("failed") == 2
    assert {r["round"] for r in rows if r["status"] == "failed"} == {1}
    shown = " ".join(bench("explain", "run").stdout.split())
    assert "; sent by 2 processes, the slowest with a lag p99 of " in shown
    assert "; 1 of them died" in shown
    result = bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume", "--retry", "request_failed")
    assert result.exit_code == 0, result.stderr
    assert [r["status"] for r in records(Path("run"))] == ["ok"] * 12


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_sweep_that_is_stopped_in_a_round_of_two_workers_leaves_no_process(
    slow: SimulatorProcess, number: int, code: int
) -> None:
    write_sweep(
        Path("s.yaml"), slow.url, grid={"input": 8, "output": 60, "batch": 4}, loadgen={"workers": 2, "cpus": "0,0-1"}
    )
    with sweeping("s.yaml", "--out", "run", "--no-plots") as sweep:
        journal = Path("run/journal.jsonl")
        while not journal.exists() or "round_begun" not in journal.read_text():
            assert sweep.process.poll() is None, sweep.end()
            time.sleep(0.02)
        pids = pids_of(sweep.process.pid)
        assert sorted(psutil.Process(pid).cpu_affinity() for pid in pids) == [[0], [1]]
        sweep.process.send_signal(number)
        assert sweep.end()[0] == code
        while sweep.descendants():  # after SIGKILL the kernel ends them, some moments later
            assert number == signal.SIGKILL
            time.sleep(0.02)
    assert not list(Path("run").glob("records/*"))


# -- in a sweep


def test_a_rounds_file_says_how_many_sent_it(simulator: SimulatorProcess) -> None:
    changes: dict[str, Any] = {"grid": {"input": 8, "output": 6, "batch": [1, 4]}}
    alone = run_well(simulator.url, **changes)
    two = run_well(simulator.url, out="two", loadgen={"workers": 2}, **changes)
    assert "2 processes send" in two.stderr
    assert "processes" not in alone.stderr
    notes = json.loads(Path("two/manifest.json").read_text())["notes"]
    assert any(note.startswith("2 processes send (loadgen.workers)") for note in notes)
    files = sorted(Path("run/records").iterdir()), sorted(Path("two/records").iterdir())
    assert [path.name for path in files[0]] == [path.name for path in files[1]], "workers are no part of the key"
    said = set()
    for one, other in zip(*files, strict=True):
        assert pq.read_schema(one).equals(pq.read_schema(other))
        facts = json.loads(pq.read_schema(other).metadata[b"benchbench"])
        said.add((pq.read_metadata(other).num_rows, facts.get("workers")))
    assert said == {(1, None), (4, 2)}


def test_a_run_that_goes_on_with_more_workers_says_so(simulator: SimulatorProcess) -> None:
    changes: dict[str, Any] = {"grid": {"input": 8, "output": 6, "batch": 4}}
    run_well(simulator.url, rounds={"warmup": 0, "min": 1, "max": 1}, **changes)
    more = {"rounds": {"warmup": 0, "min": 2, "max": 2}, "loadgen": {"workers": 2}}
    resumed = run_well(simulator.url, "--resume", **more, **changes)
    assert "loadgen.workers: auto -> 2; each round's facts say how many processes sent it" in resumed.stderr
    assert open_run("run").rounds()["workers"].to_list()[1:] == [2]
    assert "; sent by 1 or 2 processes, " in " ".join(bench("explain", "run").stdout.split())


# -- how many


def test_by_default_an_ordinary_sweep_has_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "cores_for", lambda _plan: 64)

    def size(**changes: Any) -> int:
        return sizing.size_of(make_plan(spec_of(**changes)))[0]

    def batch(number: int) -> dict[str, Any]:
        return {"input": 8, "output": 100, "batch": [1, number]}

    assert size(grid=batch(1024)) == 1
    assert size(grid=batch(1025)) == 2
    assert size(grid=batch(8192), load={"kind": "closed"}) == 8
    assert size(grid=batch(8192), loadgen={"workers": 3}) == 3
    assert size(grid=batch(1), loadgen={"workers": 3}) == 3
    fast = {"grid": {"input": 8, "output": 1000}, "load": {"kind": "open", "rate": 300.0, "requests": 50}}
    assert size(**fast) == 3
    assert size(**{**fast, "load": {**fast["load"], "max_concurrency": 10}}) == 1
    job = job_of("http://127.0.0.1:1", **fast)
    assert sizing.needed_by_job(job) >= 2
    assert sizing.needed_by_job(job_of("http://127.0.0.1:1")) == 1


def test_auto_leaves_cores_to_an_engine_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def note(cores: int, url: str = "http://127.0.0.1:1", **changes: Any) -> tuple[int, str]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)), raising=False)
        grid = {"input": 8, "output": 100, "batch": 4096}
        return sizing.size_of(make_plan(spec_of(url, grid=grid, **changes)))

    assert [note(cores)[0] for cores in (1, 2, 4, 6, 64)] == [1, 1, 2, 3, 4]
    assert [note(cores, "http://10.0.0.1:1")[0] for cores in (1, 2, 4, 64)] == [1, 1, 3, 4]
    assert note(64, loadgen={"cpus": "3,5"})[0] == 2
    assert note(2)[1] == (
        "1 process may send (loadgen.workers: auto): the largest cells ask for 4, one for each 1,024 streams; "
        "cores are left for 1: set loadgen.workers to have more"
    )
    assert note(64)[1].startswith("4 processes may send")
    assert note(4, loadgen={"workers": 2}) == (2, "2 processes send (loadgen.workers)")
    assert note(2, loadgen={"workers": 2})[1].endswith(
        ", more than the 1 CPU left for them: they take CPU from what else runs here"
    )
    assert note(1, loadgen={"workers": 1}) == (1, "")


@pytest.mark.parametrize(
    ("loadgen", "message"),
    [
        ({"workers": 0}, "auto, or a whole number from 1"),
        ({"workers": "two"}, "auto, or a whole number from 1"),
        ({"cpus": "3-1"}, "fewer CPUs"),
        ({"cpus": ""}, "must be numbers of CPUs"),
        ({"cpus": [1]}, "must be text"),
        ({"workers": 3, "cpus": "0-1"}, "fewer CPUs"),
    ],
)
def test_what_loadgen_may_say(loadgen: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec_of(loadgen=loadgen)
    assert spec_of(loadgen={"cpus": 8}).loadgen.cpu_numbers == [8]
    assert spec_of(loadgen={"cpus": "0-2,8, 1"}).loadgen.cpu_numbers == [0, 1, 2, 8]


def test_the_in_process_engine_has_no_workers() -> None:
    engine = {"kind": "vllm_inprocess"}
    with pytest.raises(SpecError, match="one process, which sends by itself"):
        spec_of(engine=engine, loadgen={"workers": 2})
    spec_of(engine=engine, loadgen={"workers": 1})


def test_a_cpu_that_is_not_there_is_a_mistake_of_the_sweep(simulator: SimulatorProcess) -> None:
    write_sweep(Path("s.yaml"), simulator.url, loadgen={"cpus": 1023})
    result = bench("sweep", "s.yaml", "--out", "run", "--no-plots")
    assert result.exit_code == 2
    assert "loadgen.cpus: the load generator cannot be pinned there: " in result.stderr


def test_a_worker_is_one_thread() -> None:
    with HttpWorker() as worker:
        worker.ready()
        assert psutil.Process(worker.pid).num_threads() == 1  # numpy's BLAS has none


def test_a_worker_started_ahead_is_the_first_that_is_taken_or_ends_with_the_block() -> None:
    with worker_ahead():
        (ahead,) = http_worker._ahead
        with new_worker() as first, new_worker() as second:
            assert first is ahead is not second
            first.ready()
    with worker_ahead():
        (ahead,) = http_worker._ahead
    assert ahead._process.returncode == -signal.SIGKILL
    assert not http_worker._ahead
