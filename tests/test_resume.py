"""A sweep killed, interrupted or asked again: nothing finished is lost or repeated, and nobody is left behind."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from answers import CHUNKED, HANG, Ask, Script, chunk, completion, events
from driving import CARRIED_OUT, Sweeping, bench, records, summary, sweeping, write_sweep
from servers import ScriptedServer
from test_server_metrics import made

from benchbench import open_run
from benchbench.counters import server_counters, server_metrics
from benchbench.counters.server_counters import SILENT, ServerView
from benchbench.errors import InterruptedSweep
from benchbench.openai import client
from benchbench.openai.target import Access

KILLS = 10
ROUNDS = 5  # so many that some are left for each kill, also on a busy machine
SIMULATED = {
    "name": "t",
    "model": "sim",
    "engine": {"kind": "simulator", "profile": "tiny", "scale": 0.5},
    "grid": [{"input": [64, 128], "output": [10, 20], "batch": 2}, {"input": 32, "output": 8, "batch": [1, 4]}],
    "rounds": {"warmup": 1, "min": ROUNDS, "max": ROUNDS},
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def until(holds: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Wait for something that must come; the limit is there to fail, not to measure."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.005)


def finished() -> dict[str, bytes]:
    """The finished measured rounds of the run: file name and content."""
    return {path.name: path.read_bytes() for path in Path("run/records").glob("*-measured-*.parquet")}


def journal() -> list[Any]:
    from benchbench.store.run_directory import RunDirectory

    return list(RunDirectory(Path("run")).events())


def begun() -> Counter[str]:
    """How often each measured round was begun, by the name of its file."""
    events = (event for event in journal() if event["event"] == "round_begun" and event["phase"] == "measured")
    return Counter(f"{event['cell']}-measured-{event['round']:04d}.parquet" for event in events)


def rounds_of(count: int) -> str:
    """For --set: so many rounds, neither fewer nor more."""
    return f"rounds={{warmup: 0, min: {count}, max: {count}}}"


def nobody_left(sweep: Sweeping) -> None:
    until(lambda: not sweep.descendants(), "the worker and the simulator are gone")


@pytest.mark.slow
def test_killed_at_ten_moments_it_resumes_to_a_complete_run() -> None:
    Path("s.yaml").write_text(yaml.safe_dump(SIMULATED))
    chance = random.Random(2026)
    kept: dict[str, bytes] = {}
    interrupted: list[psutil.Process] = []
    for kill in range(KILLS):
        before = len(journal())
        with sweeping("s.yaml", "--out", "run", "--resume", "--no-plots") as sweep:
            if kill % 4 == 0:  # while it starts
                time.sleep(chance.uniform(0.05, 0.8))
            else:  # while it measures: some events on, and somewhere in what follows
                more = chance.randint(1, 3)  # a warm-up, a measured round, and the next: by then one is finished
                until(lambda at=before + more: len(journal()) >= at, "the journal grows")  # type: ignore[misc]
                time.sleep(chance.uniform(0, 0.06))
            assert sweep.process.poll() is None, sweep.process.communicate()
            interrupted += sweep.descendants()
            sweep.process.send_signal(signal.SIGKILL)
            nobody_left(sweep)
        now = finished()
        assert {name: now.get(name) for name in kept} == kept, "a finished round was lost or written again"
        kept = now
    assert len(kept) < 6 * ROUNDS  # or there was nothing left to kill
    assert interrupted
    with sweeping("s.yaml", "--out", "run", "--resume", "--no-plots") as sweep:
        code, _, err = sweep.end()
        nobody_left(sweep)
    assert code in CARRIED_OUT, err
    assert {name: data for name, data in finished().items() if name in kept} == kept
    _check_complete(kept)


def _check_complete(kept: dict[str, bytes]) -> None:
    """Six cells of ROUNDS rounds, each round once, each request once, and no round begun after it was finished."""
    assert len(finished()) == 6 * ROUNDS
    assert not list(Path("run").rglob("*.tmp"))
    rows = records(Path("run"))
    places = [(row["cell"], row["phase"], row["round"], row["index"]) for row in rows]
    assert len(set(places)) == len(places)
    measured = [row for row in rows if row["phase"] == "measured"]
    assert Counter((row["input"], row["output"], row["batch"]) for row in measured) == {
        **{(i, o, 2): 2 * ROUNDS for i in (64, 128) for o in (10, 20)},
        **{(32, 8, batch): batch * ROUNDS for batch in (1, 4)},
    }
    assert {row["status"] for row in rows} == {"ok"}
    times = begun()
    for path in Path("run/records").glob("*-measured-*.parquet"):
        (attempt,) = set(pq.read_table(path)["attempt"].to_pylist())
        assert attempt == times[path.name] - 1, "the round on disk is the last that was begun"
    assert max(times.values()) > 1, "some kill fell into a round"
    assert kept
    assert [(row["rounds"], row["failed"]) for row in summary(Path("run"))] == [(ROUNDS, 0)] * 6
    assert len(open_run("run").requests("all")) == len(rows)


def prompts(server: ScriptedServer) -> list[tuple[int, ...]]:
    return [tuple(ask.json["prompt"]) for ask in server.asks]


def test_a_round_that_is_repeated_asks_for_fresh_prompts() -> None:
    """Those of the killed attempt may be in the server's prefix cache."""

    def third_hangs(ask: Ask) -> Script:
        return [CHUNKED, *map(chunk, events(ask)[:2]), HANG] if ask.number == 2 else completion(ask)

    with ScriptedServer(third_hangs) as server:
        write_sweep(Path("s.yaml"), server.url, rounds={"warmup": 1, "min": 2, "max": 2})
        with sweeping("s.yaml", "--out", "run", "--no-plots") as sweep:
            until(lambda: len(server.asks) == 3, "the second round is under way")
            sweep.process.send_signal(signal.SIGKILL)
            nobody_left(sweep)
        assert bench("sweep", "s.yaml", "--out", "run", "--resume", "--no-plots").exit_code in CARRIED_OUT
        assert len(server.asks) == 5  # warm-up, first, second (killed); warm-up, second
        assert len(set(prompts(server))) == 5
    rounds = [(row["phase"], row["round"], row["attempt"]) for row in records(Path("run"))]
    assert sorted(rounds) == [("measured", 0, 0), ("measured", 1, 1), ("warmup", 0, 0), ("warmup", 1, 0)]


@pytest.mark.parametrize(
    ("signals", "code"), [([signal.SIGINT], 130), ([signal.SIGTERM], 143), ([signal.SIGINT, signal.SIGINT], 130)]
)
def test_a_signal_ends_it_cleanly_and_resumably(signals: list[signal.Signals], code: int) -> None:
    with ScriptedServer(lambda ask: [HANG] if ask.number == 1 else completion(ask)) as server:
        write_sweep(Path("s.yaml"), server.url, rounds={"warmup": 0, "min": 2, "max": 2})
        with sweeping("s.yaml", "--out", "run", "--no-plots", start_new_session=True) as sweep:
            until(lambda: len(server.asks) == 2, "the second round is under way")
            for number in signals:
                os.killpg(sweep.process.pid, number)  # as a terminal does
            ended, _, err = sweep.end()
            nobody_left(sweep)
        assert ended == code
        assert "Traceback" not in err
        said = "bench: interrupted"
        if len(signals) == 1:  # the second may fall anywhere, so it promises less
            said += "; continue with: bench sweep s.yaml --resume --out run"
            assert [row["round"] for row in records(Path("run"))] == [0]
            assert "too_few_rounds" in summary(Path("run"))[0]["reasons"]
        assert err.splitlines()[-1].startswith(said)
        assert bench("sweep", "s.yaml", "--out", "run", "--resume", "--no-plots").exit_code in CARRIED_OUT
        assert [row["round"] for row in records(Path("run"))] == [0, 1]


def test_a_changed_spec_reuses_no_other_cells_rounds_and_more_rounds_reuse_the_old() -> None:
    def asked_by(*changes: str) -> int:
        before = len(server.asks)
        sets = itertools.chain.from_iterable(("--set", change) for change in changes)
        result = bench("sweep", "s.yaml", "--out", "run", "--resume", "--no-plots", *sets)
        assert result.exit_code in CARRIED_OUT, result.stderr
        return len(server.asks) - before

    with ScriptedServer() as server:
        write_sweep(Path("s.yaml"), server.url, rounds={"warmup": 0, "min": 2, "max": 2})
        assert asked_by() == 2
        first = finished()
        assert asked_by(rounds_of(5)) == 3
        assert asked_by(rounds_of(5), "timeouts.stall_s=9", "validity.cached_tokens=5") == 0
        assert summary(Path("run"))[0]["rounds"] == 5
        for change in ("seed=1", "grid.input=9", "output=as_served", "engine.extra_body={top_k: 1}"):
            assert asked_by(rounds_of(2), change) == 2
            (row,) = summary(Path("run"))
            assert (row["rounds"], row["requests"]) == (2, 2)
            assert len(records(Path("run"))) == len(server.asks)
        assert len(set(prompts(server))) == len(server.asks) - 4  # output mode and body change no prompt
        assert {name: finished()[name] for name in first} == first
        assert len({name.split("-")[0] for name in finished()}) == 5
        as_before = ("seed=0", "grid.input=8", "output=exact", "engine.extra_body={}")
        assert asked_by(rounds_of(5), *as_before) == 0  # the first cell's rounds are still its own
        assert summary(Path("run"))[0]["rounds"] == 5


def test_resume_of_a_finished_run_does_nothing_and_of_a_missing_one_starts() -> None:
    with ScriptedServer() as server:
        write_sweep(Path("s.yaml"), server.url)
        started = bench("sweep", "s.yaml", "--out", "run", "--resume")
        assert (started.exit_code in CARRIED_OUT, len(server.asks)) == (True, 1)
        assert "note: nothing to resume: this is a new run\n" in started.stderr
        connections = server.connections
        before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()}
        again = bench("sweep", "s.yaml", "--out", "run", "--resume")
        assert "nothing to resume" not in again.stderr
        assert (again.exit_code, server.connections) == (started.exit_code, connections)
        assert again.stdout.endswith("Run: run (nothing left to do)\n")
        assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()} == before
    table = started.stdout.split("Run:")[0]  # of one request nothing is drawn
    assert again.stdout.startswith(table)
    gone = bench("sweep", "s.yaml", "--out", "run", "--resume")  # nor does it need the server
    assert gone.exit_code in CARRIED_OUT


def test_resume_without_a_folder_takes_the_latest_run_of_that_name() -> None:
    with ScriptedServer() as server:
        write_sweep(Path("s.yaml"), server.url, rounds={"warmup": 0, "min": 1, "max": 1})
        assert bench("sweep", "s.yaml", "--resume", "--no-plots").exit_code in CARRIED_OUT
        (run,) = Path("runs").glob("t-*")
        assert bench("sweep", "s.yaml", "--resume", "--no-plots", "--set", rounds_of(3)).exit_code in CARRIED_OUT
        assert len(server.asks) == 3
    assert list(Path("runs").iterdir()) == [run]


def test_a_torn_journal_line_is_skipped_and_not_lengthened() -> None:
    with ScriptedServer() as server:
        write_sweep(Path("s.yaml"), server.url, rounds={"warmup": 0, "min": 1, "max": 1})
        assert bench("sweep", "s.yaml", "--out", "run", "--no-plots").exit_code in CARRIED_OUT
        path = Path("run/journal.jsonl")
        whole = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(whole[:-1]) + whole[-1][:-5])  # its last write did not come through
        again = bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume", "--set", rounds_of(2))
        assert (again.exit_code in CARRIED_OUT, len(server.asks)) == (True, 2)
    kinds = [event["event"] for event in journal()]
    assert kinds == [
        *("round_begun", "cell_done"),
        *("round_begun", "cell_done", "complete"),
    ]


# ---- A server that does not answer, a signal that comes early ---------------------------------------------


def interrupted_while(work: Callable[[int], object], asked: Callable[[], object]) -> None:
    """`work` has a descriptor to be stopped by: it must end by InterruptedSweep once it waits and that is readable."""
    read, write = os.pipe()
    ends: list[BaseException] = []

    def run() -> None:
        try:
            work(read)
        except InterruptedSweep as end:
            ends.append(end)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until(asked, "the page was asked for")
    os.write(write, b"x")
    thread.join(20)
    os.close(read)
    os.close(write)
    assert len(ends) == 1


def test_a_page_that_hangs_holds_up_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_metrics, "LOOK_S", 1e6)
    monkeypatch.setattr(client, "ANSWER_S", 1e6)
    with ScriptedServer(routes={"/metrics": (HANG,)}) as server:
        interrupted_while(
            lambda stop: ServerView([server.url], Access(), has_metrics=True, stop=stop).before(), lambda: server.gets
        )
    with ScriptedServer(routes={"/metrics": (HANG,)}) as server:
        asked = lambda: [get for get in server.gets if get.path == "/metrics"]  # noqa: E731
        interrupted_while(lambda stop: client.attach(server.url, "sim", Access(), stop), asked)


def test_a_page_that_hangs_costs_one_look_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (server_metrics, server_counters):
        monkeypatch.setattr(module, "LOOK_S", 0.2)
    with ScriptedServer(routes={"/metrics": (HANG,)}) as server:
        view = ServerView([server.url], Access(), has_metrics=True)
        assert view.after([{"generation_tokens": 0.0}], made(8, 4)) == SILENT
        assert len(server.gets) == 1


EARLY = """
import importlib.abc, os, signal, sys, time

MODULE = sys.argv[1]

class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == MODULE:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)
            except KeyboardInterrupt:  # as an interrupt in a callback is ignored, amid imports
                pass

sys.meta_path.insert(0, Interrupting())
from benchbench.cli.entry import run
sys.argv[:2] = ["bench"]
run()
"""


@pytest.mark.parametrize(
    ("module", "codes", "said"),
    [
        ("benchbench.cli.main", {-signal.SIGINT}, ""),
        ("benchbench.measure.run", {130}, "bench: interrupted"),
    ],
)
def test_an_interrupt_amid_imports_ends_it_without_a_traceback(module: str, codes: set[int], said: str) -> None:
    Path("s.yaml").write_text(yaml.safe_dump(SIMULATED))
    words = [sys.executable, "-c", EARLY, module, "sweep", "s.yaml", "--out", "run", "--no-plots"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode in codes, done.stderr.strip()) == (True, said)
    assert not Path("run").exists()
