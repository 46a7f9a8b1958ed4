"""The server's own counters: read from a real page, added up, compared, and never a 0 for what is not said."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from answers import Ask, Script, completion, head
from hypothesis import given
from hypothesis import strategies as st
from servers import ScriptedServer

from benchbench.engines.endpoint import Access
from benchbench.engines.metrics import (
    Counters,
    Reconciled,
    ServerCounts,
    ServerDelta,
    delta,
    parse,
    reconcile,
    scrape,
    settled,
)
from benchbench.engines.simulator import SimulatorProcess

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
    "running": "num_requests_running",
    "waiting": "num_requests_waiting",
}
REAL = ServerCounts(
    prompt_tokens=62,
    generation_tokens=57,
    prefix_queries=62,
    prefix_hits=0,
    preemptions=0,
    requests_finished=14,
    queue_s_sum=0.0004423250006766466,
    queue_count=14,
    ttft_s_sum=38.82072448730469,
    ttft_count=14,
    running=0,
    waiting=0,
    kv_tokens=8192 * 128,
    started_s=1795422429.4,
    engines=1,
)
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
    found = asdict(parse(page))
    for name in SERIES:
        said = [values[name] for values in engines if name in values]
        assert found[name] == (sum(said) * models if said else None), name
    assert found["engines"] == len(engines)
    assert found["kv_tokens"] is None
    assert found["started_s"] is None


def test_hits_behind_a_kv_connector_are_hits_and_what_is_no_number_is_not_said() -> None:
    page = (
        lines({"prefix_hits": 3}) + 'vllm:external_prefix_cache_hits_total{engine="0"} 4.0\nvllm:num_preemptions NaN\n'
    )
    assert parse(page) == ServerCounts(prefix_hits=7, engines=1)


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
    assert parse(page).kv_tokens == expected


NAMES = [field.name for field in fields(Counters)]


def looks(values: dict[str, int | None]) -> ServerCounts:
    return ServerCounts(**values, started_s=1.0)


@given(st.fixed_dictionaries({name: st.tuples(counts | st.none(), counts | st.none()) for name in NAMES}))
def test_a_delta_says_what_grew_or_that_it_cannot(values: dict[str, tuple[int | None, int | None]]) -> None:
    before = looks({name: old for name, (old, _) in values.items()})
    after = looks({name: new for name, (_, new) in values.items()})
    found = delta(before, after)
    changes = {n: new - old if None not in (old, new) else None for n, (old, new) in values.items()}  # type: ignore[operator]
    if any(change is not None and change < 0 for change in changes.values()):
        assert found == ServerDelta(replicas=True)
    else:
        assert asdict(found) == {**changes, "replicas": False}
    assert delta(before, replace(before, started_s=2.0)).replicas
    assert delta(before, replace(before, engines=3)).replicas
    assert not delta(before, before).replicas


@given(counts, counts, counts, counts)
def test_reconciled_with_ours(served_in: int, served_out: int, ours_in: int, ours_out: int) -> None:
    found = reconcile(ServerDelta(prompt_tokens=served_in, generation_tokens=served_out), ours_in, ours_out)
    assert found.foreign_prompt is not None
    assert found.foreign_generation is not None
    assert found.missing is not None
    # What is ours and what is not make up what was served.
    assert (
        ours_in + ours_out + found.foreign_prompt + found.foreign_generation - found.missing == served_in + served_out
    )
    assert min(found.foreign_prompt, found.foreign_generation, found.missing) >= 0
    assert (found.foreign_prompt > 0) == (served_in > ours_in)
    assert (found.foreign_generation > 0) == (served_out > ours_out)


def test_what_the_server_does_not_say_is_not_reconciled() -> None:
    assert reconcile(ServerDelta(replicas=True), 5, 5) == Reconciled(None, None, None)
    assert reconcile(ServerDelta(generation_tokens=3), 5, 5) == Reconciled(None, 0, 2)


@pytest.mark.parametrize(
    ("seen", "last", "looked"),
    [
        ([90, 99, 100, 120], 100, 3),
        ([130], 130, 1),
        ([90, None, 95, 96, 97, 98], 97, 5),
        ([90, None, None, None, None], 90, 5),
        ([None] * 5, None, 5),
    ],
)
def test_looks_again_until_the_last_step_is_counted(seen: list[int | None], last: int | None, looked: int) -> None:
    pages: Iterator[ServerCounts | None] = iter(
        [None if tokens is None else ServerCounts(generation_tokens=tokens) for tokens in seen]
    )
    found = settled(lambda: next(pages), 100, tries=5, pause_s=0)
    assert (found and found.generation_tokens) == last
    assert len(list(pages)) == len(seen) - looked


def test_does_not_wait_for_a_count_that_is_never_told() -> None:
    pages = iter([ServerCounts(running=0)])
    assert settled(lambda: next(pages), 100, pause_s=0) == ServerCounts(running=0)


def test_the_simulators_counters_are_what_was_asked_of_it() -> None:
    def ask(server: SimulatorProcess, prompt: list[int], output: int) -> None:
        body = {"prompt": prompt, "max_tokens": output, "ignore_eos": True}
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{server.url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            answer.read()

    with SimulatorProcess("tiny") as server:
        before = scrape(server.url, Access())
        assert before is not None
        ask(server, list(range(1000, 1064)), 7)
        ask(server, list(range(1000, 1064)), 9)
        after = settled(lambda: scrape(server.url, Access()), (before.generation_tokens or 0) + 16)
        assert after is not None
    found = delta(before, after)
    assert (found.prompt_tokens, found.generation_tokens, found.requests_finished) == (128, 16, 2)
    assert (found.prefix_queries, found.preemptions, found.ttft_count, found.queue_count) == (128, 0, 2, 2)
    assert found.prefix_hits, "the second prompt is the first's"
    assert found.ttft_s_sum is not None
    assert found.ttft_s_sum > 0
    assert (after.running, after.waiting) == (0, 0)
    assert after.kv_tokens
    assert reconcile(found, 100, 16) == Reconciled(28, 0, 0)


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
        assert scrape(server.url, Access()) is None


def test_nobody_there_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert scrape(f"http://127.0.0.1:{port}", Access()) is None


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    names = "sys.modules.keys() & {'aiohttp', 'prometheus_client', 'tokenizers', 'numpy'}"
    code = f"import sys, benchbench.engines.metrics, benchbench.engines.tokens; sys.exit({names} or None)"
    subprocess.run([sys.executable, "-c", code], check=True)
