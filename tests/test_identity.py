"""A run holds one engine a variant: what was measured with another is refused, and never stands in one cell with it."""

from __future__ import annotations

import contextlib
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from answers import CHUNKED, DONE, HANG, LAST_CHUNK, Ask, Script, chunk, event, events, whole
from driving import BENCH, CARRIED_OUT, bench, records, summary, sweeping
from hypothesis import given
from hypothesis import strategies as st
from servers import ScriptedServer

from benchbench.identity.identity import changes, known, rebuilt, requested, served
from benchbench.store.requests import round_facts
from benchbench.store.run_directory import RunDirectory

SWEEP: dict[str, Any] = {
    "name": "t",
    "model": "sim",
    "engine": {"kind": "simulator", "profile": "tiny", "scale": 0.5},
    "grid": {"input": 32, "output": 8, "batch": [1, 2]},
    "rounds": {"warmup": 0, "min": 2, "max": 2},
    "prompts": {"kind": "token_ids", "vocab": [1000, 30000]},
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(**changed: Any) -> None:
    Path("s.yaml").write_text(yaml.safe_dump({**SWEEP, **changed}))


def files() -> dict[str, bytes]:
    """What a refused sweep must leave as it is."""
    return {str(path): path.read_bytes() for path in Path("run").rglob("*") if path.is_file() and path.name != ".lock"}


OTHERS: dict[str, dict[str, Any]] = {
    "model: sim -> another": {"model": "another"},
    "engine.scale: 0.5 -> 0.1": {"engine": {**SWEEP["engine"], "scale": 0.1}},
    "engine.options.seed: not set -> 7": {"engine": {**SWEEP["engine"], "options": {"seed": 7}}},
    "engine.kind: simulator -> endpoint": {"engine": {"kind": "endpoint", "url": "http://127.0.0.1:9"}},
}


def test_another_engine_is_refused_before_anything_is_started() -> None:
    write()
    assert bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--only", "batch=1").exit_code in CARRIED_OUT
    before = files()
    for words, changed in OTHERS.items():
        write(**changed)
        refused = bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume", "--only", "batch=2")
        assert refused.exit_code == 2
        assert f"this run was measured with another engine ({words})" in " ".join(refused.stderr.split())
        assert files() == before
    write()
    assert bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume").exit_code in CARRIED_OUT
    assert [row["rounds"] for row in summary(Path("run"))] == [2, 2]


def test_a_new_variant_joins_by_its_name_and_one_that_changed_is_refused() -> None:
    slow = {"engine": {"scale": 1.0}}
    more = {"blocks": 2, "rounds": {"warmup": 0, "min": 1, "max": 1}}
    write(variants={"a": {}, "b": slow}, **more)
    assert bench("sweep", "s.yaml", "--out", "run", "--no-plots").exit_code in CARRIED_OUT
    write(variants={"a": {}, "b": slow, "c": slow}, **more)
    assert bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume").exit_code in CARRIED_OUT
    assert {row["variant"] for row in summary(Path("run"))} == {"a", "b", "c"}
    write(variants={"a": {}, "b": {"engine": {"scale": 0.7}}, "c": slow}, **more)
    refused = bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume", "--set", "blocks=3")
    assert refused.exit_code == 2
    assert "variant b of this run was measured with another engine (engine.scale: 1.0 -> 0.7)" in refused.stderr


def test_another_engine_is_refused_though_the_cells_of_the_first_have_left_the_plan() -> None:
    write(grid={"input": 32, "output": 8, "batch": 1})
    assert bench("sweep", "s.yaml", "--out", "run", "--no-plots").exit_code in CARRIED_OUT
    path = Path("run/manifest.json")
    manifest = orjson.loads(path.read_bytes())
    path.write_bytes(orjson.dumps({**manifest, "plan": []}))  # as left by a resumed sweep that ended before any round
    write(grid={"input": 32, "output": 8, "batch": 2}, engine={**SWEEP["engine"], "scale": 0.1})
    refused = bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume")
    assert refused.exit_code == 2
    assert "engine.scale: 0.5 -> 0.1" in refused.stderr


def test_rows_of_engines_that_the_sweep_names_no_more_leave_the_table_and_that_is_noted() -> None:
    write()
    assert bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--only", "batch=1").exit_code in CARRIED_OUT
    builds = {"a": {}, "b": {"engine": {"scale": 0.1}}}
    write(variants=builds, blocks=2, rounds={"warmup": 0, "min": 1, "max": 1})
    resumed = bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume", "--only", "batch=2")
    assert resumed.exit_code in CARRIED_OUT
    assert "1 measured cells are not in the sweep any more" in resumed.stderr
    assert {row["variant"] for row in summary(Path("run"))} == {"a", "b"}


def test_a_run_that_does_not_say_what_it_measured_is_resumed_with_a_note() -> None:
    write()
    assert bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--only", "batch=1").exit_code in CARRIED_OUT
    path = Path("run/manifest.json")
    manifest = orjson.loads(path.read_bytes())
    starts = [{key: start[key] for key in ("block", "variant", "time_ns")} for start in manifest["starts"]]
    path.write_bytes(orjson.dumps({**manifest, "starts": starts}))
    resumed = bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume")
    assert resumed.exit_code in CARRIED_OUT
    assert "earlier rounds do not say what server" in " ".join(resumed.stderr.split())
    assert [row["rounds"] for row in summary(Path("run"))] == [2, 2]
    write(engine={**SWEEP["engine"], "scale": 0.1})
    assert bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume").exit_code == 2


def test_what_any_start_told_is_held_against_the_next() -> None:
    starts = [
        {"variant": "", "identity": {"command": "serve -a"}, "identity_digest": "1"},
        {"variant": "b", "identity": {"command": "serve -b"}, "identity_digest": "2"},
        {"variant": "", "identity": {"driver": "6"}, "identity_digest": "1"},
    ]
    before, digest = known(starts, "")
    assert (before, digest) == ({"command": "serve -a", "driver": "6"}, "1")
    assert changes(before, {"command": "serve -c"}) == ["command: serve -a -> serve -c"]
    assert known(starts, "c") == ({}, "")


def test_code_that_was_built_anew_is_named_and_caches_and_results_are_not() -> None:
    before = {
        "libraries": {"/p/vllm/_C.so": "1", "/p/torch/a.so": "1", "/home/u/.triton/cache/k.so": "1", "/p/old.so": "1"},
        "python": {"vllm": "1", "torch": "1", "server.py": "1"},
    }
    now = {
        "libraries": {"/p/vllm/_C.so": "2", "/p/torch/a.so": "1", "/home/u/.triton/cache/k.so": "2", "/p/new.so": "1"},
        "python": {"vllm": "2", "torch": "1", "server.py": "2"},
    }
    assert rebuilt(before, now) == ["/p/vllm/_C.so: changed", "Python of vllm: changed"]
    assert rebuilt({}, now) == rebuilt(before, {}) == []


@contextlib.contextmanager
def simulator(port: int, *flags: str) -> Iterator[None]:
    words = [*BENCH, "sim", "--port", str(port), "--profile", "tiny", *flags]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            assert "http://" in process.stdout.readline()
            yield
        finally:
            process.send_signal(signal.SIGINT)


def test_a_server_started_again_goes_on_and_with_other_flags_is_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    resume = ("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume", "--only")
    write(engine={"kind": "endpoint", "url": f"http://127.0.0.1:{port}"})
    with simulator(port, "--scale", "0.5"):
        assert bench(*resume, "batch=1").exit_code in CARRIED_OUT
    with simulator(port, "--scale", "0.5"):
        assert bench(*resume, "batch=2").exit_code in CARRIED_OUT
    before = {name: data for name, data in files().items() if "records" in name}
    with simulator(port, "--scale", "1"):
        refused = bench(*resume, "batch=2", "--set", "rounds={min: 3, max: 3, warmup: 0}")
    assert refused.exit_code == 2
    assert "this run has rounds of another engine (command:" in " ".join(refused.stderr.split())
    assert {name: data for name, data in files().items() if "records" in name} == before
    path = Path("run/manifest.json")
    manifest = orjson.loads(path.read_bytes())
    assert {start["identity_digest"] for start in manifest["starts"]} == {manifest["starts"][0]["identity_digest"]}
    loaded = manifest["loaded"][manifest["starts"][-1]["loaded"]]
    library = next(iter(loaded["libraries"]))
    loaded["libraries"][library] = "built before"
    path.write_bytes(orjson.dumps(manifest))
    with simulator(port, "--scale", "0.5"):
        refused = bench(*resume, "batch=2", "--set", "rounds={min: 3, max: 3, warmup: 0}")
    assert refused.exit_code == 2
    assert f"this run has rounds of another engine ({library}: changed)" in refused.stderr


def test_rounds_of_two_engines_in_one_cell_are_invalid() -> None:
    write(grid={"input": 32, "output": 8, "batch": 1})
    assert bench("sweep", "s.yaml", "--out", "run", "--no-plots").exit_code in CARRIED_OUT
    assert "mixed_engines" not in (summary(Path("run"))[0]["reasons"] or "")
    run = RunDirectory(Path("run"))
    key = summary(run.path)[0]["key"]
    table = run.read_round(key, "measured", 1)
    other = orjson.dumps({**round_facts(table), "identity": "0" * 16})
    run.write_round(table.replace_schema_metadata({b"benchbench": other}), key, "measured", 1)
    explained = bench("explain", "run")
    assert "mixed_engines" in explained.stdout, explained.stderr
    assert "invalid" in explained.stdout


def named(model: Callable[[int], str]) -> Callable[[Ask], Script]:
    """A server whose answers name `model(n)`, n the requests before, as model and system fingerprint."""

    def answer(ask: Ask) -> Script:
        parts = [orjson.loads(one[6:]) | {"model": "m", "system_fingerprint": model(ask.number)} for one in events(ask)]
        return [CHUNKED, *(step for part in parts for step in (0.002, chunk(event(part)))), chunk(DONE) + LAST_CHUNK]

    return answer


def test_answers_of_another_build_are_invalid_and_so_is_what_a_resumed_run_gets_of_it() -> None:
    fallback = 3  # the second cell's second request of two
    with ScriptedServer(named(lambda number: "b" if number == fallback else "a")) as server:
        write(engine={"kind": "endpoint", "url": server.url}, grid={"input": 32, "output": 8, "batch": [1, 2]})
        bench("sweep", "s.yaml", "--out", "run", "--no-plots")
        assert [("mixed_engines" in row["reasons"]) for row in summary(Path("run"))] == [False, True]
        assert "(m, a; m, b)" in bench("explain", "run").stdout
        bench("sweep", "s.yaml", "--out", "one", "--no-plots", "--only", "batch=1")
        server.answer = named(lambda _number: "c")  # started again with other flags
        bench("sweep", "s.yaml", "--out", "one", "--no-plots", "--resume")
    assert {row["batch"]: "mixed_engines" in row["reasons"] for row in summary(Path("one"))} == {1: False, 2: True}
    assert {row["answered_by"] for row in records(Path("one"))} == {"m, a", "m, c"}


LISTS: dict[str, tuple[list[dict[str, Any]], str, bool]] = {
    "its own name": ([{"id": "sim"}], "sim", False),
    "the first of several served names": ([{"id": "a", "root": "/w"}, {"id": "sim", "root": "/w"}], "a", False),
    "its root": ([{"id": "sim", "root": "org/Sim-7B"}], "Sim-7B", False),
    "an alias of the entry": ([{"id": "sim", "aliases": ["sim-7b"]}], "sim-7b", False),
    "a revision": ([{"id": "sim"}], "sim-2024-08-06", False),
    "another case": ([{"id": "sim"}], "org/SIM", False),
    "asked by a name that is not listed": ([{"id": "a"}], "a", False),
    "another of the list": ([{"id": "sim", "root": "/w"}, {"id": "a", "root": "/v"}], "a", True),
    "an adapter's base": ([{"id": "sim", "root": "/l", "parent": "a"}, {"id": "a", "root": "/w"}], "a", True),
    "a smaller one": ([{"id": "sim"}], "sim-small", True),
}


@pytest.mark.parametrize(("listed", "answers", "other"), LISTS.values(), ids=LISTS.keys())
def test_answers_that_all_name_another_model_are_suspect_unless_the_list_knows_the_name(
    listed: list[dict[str, Any]], answers: str, other: bool
) -> None:
    def answer(ask: Ask) -> Script:
        parts = [orjson.loads(one[6:]) | {"model": answers} for one in events(ask)]
        return [CHUNKED, *(step for part in parts for step in (0.002, chunk(event(part)))), chunk(DONE) + LAST_CHUNK]

    with ScriptedServer(answer, listed=[whole(200, {"object": "list", "data": listed})]) as server:
        engine = {"kind": "endpoint", "url": server.url}
        write(engine=engine, grid={"input": 8, "output": 4, "batch": 1}, rounds={"warmup": 0, "min": 1, "max": 1})
        bench("sweep", "s.yaml", "--out", "run", "--no-plots")
        assert ("other_model" in summary(Path("run"))[0]["reasons"].split(";")) == other
        if other:
            assert f"({answers})" in bench("explain", "run").stdout
            bench("sweep", "s.yaml", "--out", "as", "--no-plots", "--set", f"engine.answers_as={answers}")
            assert "other_model" not in summary(Path("as"))[0]["reasons"].split(";")


def test_the_words_to_continue_with_are_the_whole_command_and_resume_takes_the_stored_sets() -> None:
    scale, only = "engine.scale=0.25", "batch=1,input=32"
    with ScriptedServer(lambda _ask: [HANG]) as server:
        write(engine={"kind": "endpoint", "url": server.url})
        words = ("sweep", "s.yaml", "--set", "timeouts={first_token_s: 30.0}", "--only", only, "--out", "my run")
        with sweeping(*words[1:]) as sweep:
            while not server.asks:
                time.sleep(0.01)
            sweep.process.send_signal(signal.SIGINT)
            _, _, printed = sweep.end()
    command = printed.partition("continue with: ")[2].splitlines()[0]
    assert shlex.split(command)[1:] == [*words[:-2], "--resume", "--out", "my run"]
    write()
    first = bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--only", "batch=1", "--set", scale)
    assert first.exit_code in CARRIED_OUT
    assert bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume").exit_code in CARRIED_OUT
    assert [row["rounds"] for row in summary(Path("run"))] == [2, 2]
    manifest = orjson.loads(Path("run/manifest.json").read_bytes())
    assert (manifest["spec"]["engine"]["scale"], manifest["sets"]) == (0.25, [scale])


def test_a_secret_that_is_set_is_in_no_file_and_not_in_the_words_to_continue_with() -> None:
    write(engine={"kind": "endpoint", "url": "http://127.0.0.1:9", "extra_body": {"api_key": "x"}})
    failed = bench("sweep", "s.yaml", "--out", "run", "--set", "engine.extra_body.api_key=planted-secret")
    assert failed.exit_code == 1
    assert "api_key=***" in failed.stderr
    assert "planted" not in failed.stderr


def test_what_never_began_leaves_no_folder_and_resume_takes_the_latest_run_with_rounds() -> None:
    write()
    assert bench("sweep", "s.yaml", "--no-plots", "--only", "batch=1").exit_code in CARRIED_OUT
    (run,) = Path("runs").iterdir()
    write(engine={"kind": "endpoint", "url": "http://127.0.0.1:9"})
    failed = bench("sweep", "s.yaml", "--no-plots")
    assert failed.exit_code == 1
    assert "nobody answers" in failed.stderr
    assert list(Path("runs").iterdir()) == [run]
    Path("runs/t-29991231-000000/records").mkdir(parents=True)
    write()
    resumed = bench("sweep", "s.yaml", "--no-plots", "--resume")
    assert resumed.exit_code in CARRIED_OUT
    assert f"Run: {run}" in resumed.stdout
    shown = bench("table", run, "runs/t-29991231-000000")
    assert shown.exit_code == 0
    assert shown.stderr == "note: skipped: runs/t-29991231-000000: not a run directory (it has no manifest.json)\n"
    assert bench("table", "runs/t-29991231-000000").exit_code == 2


JSON = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers() | st.text(max_size=3), max_size=4)


@given(JSON, JSON)
def test_flags_that_differ_are_named_and_no_others(before: dict[str, Any], now: dict[str, Any]) -> None:
    specs = [
        {"model": "m", "engine": {"kind": "vllm_serve", "args": args, "port": len(args)}, "variants": {}}
        for args in (before, now)
    ]
    named = {line.partition(":")[0] for line in changes(requested(specs[0], ""), requested(specs[1], ""))}
    assert named == {f"engine.args.{key}" for key in {**before, **now} if before.get(key) != now.get(key)}


def test_what_only_one_side_tells_is_no_difference_and_sizes_measured_at_a_start_are_none() -> None:
    told = {"kind": "vllm", "version": "1", "cache_config": {"block_size": "16", "num_gpu_blocks": "8192"}}
    again = {**told, "cache_config": {"block_size": "16", "num_gpu_blocks": "8191"}}
    assert changes(served(told, {}, [], ""), served({**again, "max_model_len": 8}, {}, [], "w")) == []
    other = {**told, "version": "2", "cache_config": {"block_size": "32"}}
    assert changes(served(told, {}, [], ""), served(other, {}, [], "")) == [
        "server version: 1 -> 2",
        "cache block_size: 16 -> 32",
    ]
