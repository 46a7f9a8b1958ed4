"""The server's own counters: read from a real page, added up, compared, and never a 0 for what is not said."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from answers import Ask, Script, completion, head
from hypothesis import given
from hypothesis import strategies as st
from servers import ScriptedServer

from benchbench.counters.server_counters import LOOKS, counted, settled
from benchbench.counters.server_metrics import Counts, grown, look, parse
from benchbench.engines.simulator import SimulatorProcess
from benchbench.openai.target import Access
from benchbench.store.requests import RoundColumns

PAGE = (Path(__file__).parent / "data" / "vllm-metrics.txt").read_text()
SERIES = {
    "prompt_tokens": "prompt_tokens_total",
    "generation_tokens": "generation_tokens_total",
    "prefix_queries": "prefix_cache_queries_total",
    "prefix_hits": "prefix_cache_hits_total",
    "preemptions": "num_preemptions_total",
    "requests_finished": "request_success_total",
    "queue_s_sum": "request_queue_time_seconds_sum",
    "queue_count": "request_queue_time_seconds_count",
    "ttft_s_sum": "time_to_first_token_seconds_sum",
    "ttft_count": "time_to_first_token_seconds_count",
}
REAL: Counts = {
    "prompt_tokens": 62,
    "generation_tokens": 57,
    "prefix_queries": 62,
    "prefix_hits": 0,
    "preemptions": 0,
    "requests_finished": 14,
    "queue_s_sum": 0.0004423250006766466,
    "queue_count": 14,
    "ttft_s_sum": 38.82072448730469,
    "ttft_count": 14,
    "kv_tokens": 8192 * 128,
    "started_s": 1795422429.4,
    "engines": 1,
}
counts = st.integers(0, 10**12)


def lines(values: dict[str, float], labels: str = 'engine="0",model_name="m"') -> str:
    return "".join(f"vllm:{SERIES[name]}{{{labels}}} {float(value)!r}\n" for name, value in values.items())


def test_a_real_page_of_vllm_in_both_spellings() -> None:
    assert parse(PAGE) == REAL
    bare = PAGE.replace("_total{", "{").replace("_total ", " ")
    assert "vllm:generation_tokens{" in bare
    assert parse(bare) == REAL


@given(
    st.lists(
        st.dictionaries(st.sampled_from(sorted(SERIES)), counts, min_size=1),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 2),
)
def test_counters_add_up_over_engines_and_models_and_what_is_not_said_is_none(
    engines: list[dict[str, float]], models: int
) -> None:
    page = "".join(
        lines(values, f'engine="{number}",model_name="m {{{model}}}"')
        for model in range(models)
        for number, values in enumerate(engines)
    )
    found = parse(page)
    for name in SERIES:
        said = [values[name] for values in engines if name in values]
        assert found.get(name) == (sum(said) * models if said else None), name
    assert found["engines"] == len(engines)
    assert not found.keys() & {"kv_tokens", "started_s"}


def test_hits_behind_a_kv_connector_are_hits_and_what_is_no_number_is_not_said() -> None:
    page = (
        lines({"prefix_hits": 3}) + 'vllm:external_prefix_cache_hits_total{engine="0"} 4.0\nvllm:num_preemptions NaN\n'
    )
    assert parse(page) == {"prefix_hits": 7, "engines": 1}


@pytest.mark.parametrize("value", ["1e308", "-1e308", "1e16", "NaN", "+Inf"])
def test_counts_that_no_float_holds_are_left_out(value: str) -> None:
    page = "".join(f'vllm:prompt_tokens_total{{engine="{k}"}} {value}\n' for k in range(3))
    assert "prompt_tokens" not in parse(page)
    assert parse(f'vllm:cache_config_info{{num_gpu_blocks="{"9" * 400}",block_size="16"}} 1.0\n') == {}


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        (['kv_cache_size_tokens="None",num_gpu_blocks="10",block_size="16"'], 160),
        (['num_gpu_blocks="10",block_size="16"', 'num_gpu_blocks="20",block_size="16"'], 480),
        (['kv_cache_size_tokens="100",num_gpu_blocks="10",block_size="16"'], 100),
        (['num_gpu_blocks="None",block_size="16"'], None),
        (['num_gpu_blocks="10",block_size="16"', 'block_size="16"'], None),
    ],
)
def test_the_capacity_of_the_kv_cache(configs: list[str], expected: int | None) -> None:
    page = "".join(f'vllm:cache_config_info{{engine="{k}",{text}}} 1.0\n' for k, text in enumerate(configs))
    assert parse(page).get("kv_tokens") == expected


@st.composite
def columns(draw: st.DrawFn) -> RoundColumns:
    """Lengths of a round: as `usage` tells them (-1: it does not), as asked, and as received in one event each."""
    told = draw(st.lists(st.tuples(st.integers(-1, 50), st.integers(-1, 50)), min_size=1, max_size=4))
    count = len(told)
    return {  # type: ignore[return-value] # those that are looked at
        "status": ["ok"] * count,
        "input_tokens": np.array([one for one, _ in told]),
        "output_tokens": np.array([one for _, one in told]),
        "asked_input_tokens": np.array(draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))),
        "event_offsets": np.arange(count + 1),
        "event_tokens": np.array(draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))),
    }


def made(prompt: int, output: int) -> RoundColumns:
    """A round of one request with these lengths."""
    one = {"input_tokens": prompt, "output_tokens": output, "asked_input_tokens": prompt, "event_tokens": output}
    return {name: np.array([value]) for name, value in one.items()} | {  # type: ignore[return-value]
        "status": ["ok"],
        "event_offsets": np.array([0, 1]),
    }


LOOK = st.dictionaries(st.sampled_from(sorted(SERIES)), counts)


@given(LOOK, LOOK)
def test_a_change_says_what_grew_or_that_it_cannot(before: Counts, after: Counts) -> None:
    changes = {name: after[name] - before[name] for name in before.keys() & after.keys()}
    assert grown(before, after) == (None if any(change < 0 for change in changes.values()) else changes)
    assert grown(before, {**before, "started_s": 2.0}) is None
    assert grown(before, {**before, "engines": 3}) is None
    assert grown(before, before) is not None


@given(counts, counts, columns())
def test_what_was_served_is_ours_foreign_or_missing(prompt: int, output: int, ours: RoundColumns) -> None:
    found = counted(dict.fromkeys(OURS, 0), {"prompt_tokens": prompt, "generation_tokens": output}, ours)
    pairs = ((prompt, *lengths(ours, *INPUT)), (output, *lengths(ours, *OUTPUT)))
    assert found["foreign_tokens"] == sum(max(0, served - most) for served, _, most in pairs)
    assert found["missing_tokens"] == sum(max(0, told - served) for served, told, _ in pairs)
    assert not found["replicas"]
    ours["status"][0] = "failed"
    failed = counted(dict.fromkeys(OURS, 0), {"prompt_tokens": prompt, "generation_tokens": output}, ours)
    assert failed == {"prompt_tokens": prompt, "generation_tokens": output, "replicas": False}


OURS = ("prompt_tokens", "generation_tokens")
INPUT, OUTPUT = ("input_tokens", "asked_input_tokens"), ("output_tokens", "event_tokens")


def lengths(ours: RoundColumns, usage: str, seen: str) -> tuple[int, int]:
    """(told, the most that are ours), request by request."""
    pairs = [(int(told), int(other)) for told, other in zip(ours[usage], ours[seen], strict=True)]  # type: ignore[literal-required]
    return sum(other if told < 0 else told for told, other in pairs), sum(max(pair) for pair in pairs)


def test_what_the_server_does_not_say_is_not_reconciled() -> None:
    assert counted({"started_s": 1.0}, {"started_s": 2.0}, made(5, 5)) == {"replicas": True}
    assert counted({"engines": 1}, {"engines": 1}, made(5, 5)) == {"replicas": False}
    found = counted({"generation_tokens": 0}, {"generation_tokens": 3}, made(5, 5))
    assert found == {"generation_tokens": 3, "replicas": False, "foreign_tokens": 0, "missing_tokens": 2}
    hits: Counts = {"prompt_tokens": 0, "prefix_hits": 0}
    assert counted(hits, {"prompt_tokens": 1, "prefix_hits": 4}, made(5, 5))["missing_tokens"] == 0


@pytest.mark.parametrize(
    ("seen", "last", "looked"),
    [
        ([90, 99, 100, 120], 100, 3),
        ([130], 130, 1),
        ([90, None, 95, 96, 97, 98], 97, 5),
        ([90, None, None, None, None], 90, 5),
        ([None] * 5, None, 5),
        ([0, 100], 0, 1),
    ],
)
def test_looks_again_until_the_last_step_is_counted(
    seen: list[int | None], last: int | None, looked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchbench.counters.server_counters.PAUSE_S", 0)
    name = "generation_tokens" if 0 not in seen else "prompt_tokens"  # one that is never told is not waited for
    pages = iter([None if tokens is None else {name: float(tokens)} for tokens in seen])

    async def looking() -> Counts | None:
        return next(pages)

    found = asyncio.run(settled(looking, {"generation_tokens": 60}, made(7, 40)))
    assert (found and found[name]) == last
    assert len(list(pages)) == len(seen) - looked
    assert looked <= LOOKS


@pytest.mark.parametrize(
    ("a", "b"),
    [({"started_s": 1.0}, {"started_s": 2.0}), ({"prompt_tokens": 70.0}, {"prompt_tokens": 30.0})],
    ids=["start time", "a count that goes down"],
)
@pytest.mark.parametrize("first", [0, 1])
def test_two_servers_behind_one_address_are_known_whichever_answers_first(
    a: Counts, b: Counts, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that goes from one to the other: of the looks after a round the last is at the one from before it."""
    monkeypatch.setattr("benchbench.counters.server_counters.PAUSE_S", 0)
    pages = itertools.cycle([{"generation_tokens": 80.0, **a}, {"generation_tokens": 80.0, **b}])
    before = {"generation_tokens": 60.0, **a}
    for _ in range(first):
        next(pages)

    async def looking() -> Counts | None:
        return next(pages)

    ours = made(7, 40)
    after = asyncio.run(settled(looking, before, ours))
    assert after is not None
    assert counted(before, after, ours) == {"replicas": True}


def test_the_simulators_counters_are_what_was_asked_of_it() -> None:
    def ask(server: SimulatorProcess, prompt: list[int], output: int) -> None:
        body = {"prompt": prompt, "max_tokens": output, "ignore_eos": True}
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{server.url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            answer.read()

    with SimulatorProcess("tiny") as server:
        before = asyncio.run(look(server.url, Access()))
        assert before is not None
        ask(server, list(range(1000, 1064)), 7)
        ask(server, list(range(1000, 1064)), 9)
        after = asyncio.run(settled(partial(look, server.url, Access()), before, made(100, 16)))
        assert after is not None
    found = counted(before, after, made(100, 16))
    assert (found["prompt_tokens"], found["generation_tokens"], found["requests_finished"]) == (128, 16, 2)
    assert (found["prefix_queries"], found["preemptions"]) == (128, 0)
    assert (found["ttft_count"], found["queue_count"]) == (2, 2)
    assert found["prefix_hits"], "the second prompt is the first's"
    assert found["ttft_s_sum"] > 0
    assert after["kv_tokens"]
    assert (found["foreign_tokens"], found["missing_tokens"]) == (28, 0)


@pytest.mark.parametrize(
    "page",
    [
        b"<html>metrics of a proxy</html>",
        b"sglang:prompt_tokens_total 3.0\nprocess_start_time_seconds 1.0\n",
        b'vllm:prompt_tokens_total{engine="0} 3.0\n',
        None,
    ],
)
def test_a_page_that_is_not_vllms_says_nothing(page: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(server: ScriptedServer, ask: Ask) -> Script:
        return (head(200, "text/plain", content_length=len(page)) + page,) if page else ordinary(server, ask)

    ordinary = ScriptedServer._script
    monkeypatch.setattr(ScriptedServer, "_script", script)
    with ScriptedServer(completion) as server:
        assert asyncio.run(look(server.url, Access())) is None


def test_nobody_there_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert asyncio.run(look(f"http://127.0.0.1:{port}", Access())) is None


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    names = "sys.modules.keys() & {'aiohttp', 'prometheus_client', 'tokenizers', 'numpy'}"
    code = (
        f"import sys, benchbench.counters.server_metrics, benchbench.engines.token_lengths; sys.exit({names} or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
