"""A server that does not tell what its prefix cache held gets other prompts in each run, and the same within one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from answers import Ask, head
from driving import CARRIED_OUT, bench, write_sweep
from servers import ScriptedServer
from test_prompts import TARGET, VOCAB, cells

from benchbench.prompts.round_job import make_job

GRID: dict[str, Any] = {"grid": {"input": 8, "output": 4, "batch": 2}, "rounds": {"warmup": 1, "min": 2, "max": 2}}
METRICS = b'vllm:prompt_tokens_total{engine="0"} 0\nvllm:prefix_cache_hits_total{engine="0"} 0\n'


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def prompts(asks: list[Ask]) -> list[tuple[int, ...]]:
    return [tuple(ask.json["prompt"]) for ask in asks]


def sent(server: ScriptedServer, name: str, *words: str, **changes: Any) -> set[tuple[int, ...]]:
    """The prompts of one run, all of them different."""
    before = len(server.asks)
    write_sweep(Path("s.yaml"), server.url, **{**GRID, **changes})
    result = bench("sweep", "s.yaml", "--out", name, "--no-plots", *words)
    assert result.exit_code in CARRIED_OUT, result.stderr
    own = prompts(server.asks[before:])
    assert len(own) == len({*own}) > 0
    return {*own}


def test_a_second_run_sends_other_prompts_and_so_does_a_resumed_one() -> None:
    more = {**GRID["rounds"], "min": 3, "max": 3}
    with ScriptedServer() as server:
        first, second = sent(server, "first", seed=7), sent(server, "second", seed=7)
        again = sent(server, "second", "--resume", seed=7, rounds=more)
    assert len(first | second | again) == len(first) + len(second) + len(again) == 6 + 6 + 4  # a warm-up, a round


def test_where_metrics_tell_of_hits_the_seed_says_all() -> None:
    page = [head(200, "text/plain", content_length=len(METRICS)) + METRICS]
    with ScriptedServer(routes={"/metrics": page}) as server:
        assert sent(server, "first", seed=7) == sent(server, "second", seed=7) != sent(server, "third", seed=8)


def test_variants_of_a_run_are_asked_the_same() -> None:
    with ScriptedServer() as one, ScriptedServer() as other:
        engines = {name: {"engine": {"url": server.url}} for name, server in (("a", one), ("b", other))}
        write_sweep(Path("s.yaml"), one.url, **GRID, variants=engines, blocks=1)
        assert bench("sweep", "s.yaml", "--out", "run", "--no-plots").exit_code in CARRIED_OUT
        assert sorted(prompts(one.asks)) == sorted(prompts(other.asks)) != []


def test_variants_at_one_address_are_not() -> None:
    """The second would find the first one's prompts in the prefix cache of the server that is the same."""
    with ScriptedServer() as server:
        engines = {name: {"engine": {"extra_body": {"top_k": k}}} for name, k in (("a", 1), ("b", 2))}
        write_sweep(Path("s.yaml"), server.url, **GRID, variants=engines, blocks=2)
        assert bench("sweep", "s.yaml", "--out", "run", "--no-plots").exit_code in CARRIED_OUT
        assert len({*prompts(server.asks)}) == len(server.asks) > 0


def test_a_salt_changes_prompts_alone() -> None:
    load = {"kind": "open", "requests": 8}
    laws = {"input": {"uniform": [16, 64]}, "output": 8, "rate": 50.0}
    (cell,) = cells(grid=laws, load=load)
    plain, salted, other = (make_job(cell, TARGET, VOCAB, "measured", 0, 0, salt=salt) for salt in (0, 1, 2))
    assert plain.due_ns == salted.due_ns == other.due_ns
    assert plain.asked_input == salted.asked_input
    assert len({*plain.payloads, *salted.payloads, *other.payloads}) == 3 * 8
