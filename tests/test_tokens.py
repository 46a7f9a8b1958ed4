"""Text prompts of exact length, whoever counts: properties with made tokenizers, and servers over HTTP."""

from __future__ import annotations

import itertools
import json
import socket
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from answers import Ask, Script, error, whole
from hypothesis import given
from hypothesis import strategies as st
from servers import ScriptedServer

from benchbench.engines.simulator import SimulatorProcess
from benchbench.engines.token_lengths import (
    MIN_WORDS,
    exact_texts,
    find_counter,
    fit_vocabulary,
    ordinary_range,
    vocabulary_range,
)
from benchbench.errors import EngineError
from benchbench.openai.target import Access
from benchbench.spec import SimulatorEngine

WORDS = [f"w{k}" for k in range(120)]
# One token each for the simulator (four letters and the space before them), and some that are two or three.
SHORT = (  # noqa: SIM905 - a list of quoted words would fill a screen
    "time way day man life hand part eye work week case fact area lot book job word side kind head hour game line end "
    "car city name team idea body back face door war girl guy air foot boy age tree home town food road rain blue cold "
    "warm dark tall deep soft star moon wind fish bird rock sand"
).split()  # fmt: skip
LONG = ["people", "government", "question", "understanding"]


@dataclass
class Tokenizer:
    """Words that cost other than one token in running text, or as the first of a text, and what comes on top."""

    running: Mapping[str, int]
    first: Mapping[str, int]
    overhead: int = 0  # BOS, chat template
    calls: int = 0

    def __call__(self, text: str) -> int:
        assert text
        assert text == " ".join(text.split())
        self.calls += 1
        head, *rest = text.split()
        return self.overhead + self.first.get(head, 1) + sum(self.running.get(word, 1) for word in rest)


costs = st.dictionaries(st.sampled_from(WORDS), st.integers(2, 4), max_size=100)


@given(costs, costs, st.integers(0, 90), st.integers(1, 300), st.integers(0, 2**32))
def test_whatever_the_tokenizer_adds_and_splits_every_text_is_exact(
    running: dict[str, int], first: dict[str, int], overhead: int, room: int, seed: int
) -> None:
    count = Tokenizer(running, first, overhead)
    good = tuple(word for word in WORDS if word not in running)
    if len(good) < MIN_WORDS:
        with pytest.raises(EngineError, match=f"only {len(good)} of 120 words"):
            fit_vocabulary(count, WORDS)
        return
    fitted = fit_vocabulary(count, WORDS)
    assert fitted.words == good
    assert count.calls <= 3 + min(len(WORDS), 8 * len(running))
    length = fitted.overhead + room
    texts = exact_texts(fitted, np.random.default_rng(seed), 5, length)
    assert texts == exact_texts(fitted, np.random.default_rng(seed), 5, length)
    assert len(texts) == 5
    assert {count(text) for text in texts} == {length}


@pytest.mark.parametrize("good", [MIN_WORDS - 1, MIN_WORDS])
def test_too_few_words_would_repeat_themselves(good: int) -> None:
    count = Tokenizer(dict.fromkeys(WORDS[good:], 2), {})
    if good == MIN_WORDS:
        assert list(fit_vocabulary(count, WORDS).words) == WORDS[:good]
    else:
        with pytest.raises(EngineError, match=f"only {MIN_WORDS - 1} of 120 words"):
            fit_vocabulary(count, WORDS)


def test_texts_are_never_empty() -> None:
    fitted = fit_vocabulary(Tokenizer({}, {}, 7), WORDS)
    for length in (0, 7, 8):
        with pytest.raises(EngineError, match=f"{length} tokens hold no prompt") as caught:
            exact_texts(fitted, np.random.default_rng(0), 1, length)
        assert caught.value.allowed == "9 or more"
    (text,) = exact_texts(fitted, np.random.default_rng(0), 1, 9)
    assert len(text.split()) == 2


def test_prompts_of_a_round_differ_from_their_second_word_on() -> None:
    fitted = fit_vocabulary(Tokenizer({}, {}), WORDS)
    texts = exact_texts(fitted, np.random.default_rng(0), 200, 64)
    assert len({text[:16] for text in texts}) > 190


def test_a_tokenizer_that_joins_words_is_refused() -> None:
    def count(text: str) -> int:
        """Words one token each, but two are joined where a later word comes first."""
        numbers = [int(word[1:]) for word in text.split()]
        return len(numbers) - sum(a == b + 1 for a, b in itertools.pairwise(numbers))

    with pytest.raises(EngineError, match="neighbours"):
        fit_vocabulary(count, WORDS)


# Over HTTP.


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess("fixed", scale=0.01) as process:
        yield process


def engine(api: str, extra: dict[str, Any] | None = None) -> SimulatorEngine:
    return SimulatorEngine.model_validate({"kind": "simulator", "api": api, "extra_body": extra or {}})


def used(url: str, path: str, body: dict[str, Any]) -> int:
    """What a server says that a prompt had."""
    data = json.dumps({"model": "sim", "max_tokens": 1, **body}).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})  # noqa: S310 - our own
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return int(json.load(answer)["usage"]["prompt_tokens"])


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_prompts_counted_by_tokenize_are_exact_when_they_are_served(
    simulator: SimulatorProcess, api: Literal["completions", "chat"]
) -> None:
    counter = find_counter(simulator.url, Access(), engine(api), "sim")
    assert counter.how == "POST /tokenize"
    fitted = fit_vocabulary(counter.count, [*SHORT, *LONG])
    assert list(fitted.words) == SHORT
    for length in (16, 500):
        for text in exact_texts(fitted, np.random.default_rng(length), 3, length):
            if api == "chat":
                found = used(simulator.url, "/v1/chat/completions", {"messages": [{"role": "user", "content": text}]})
            else:
                found = used(simulator.url, "/v1/completions", {"prompt": text})
            assert found == length


def text_of(body: Any) -> str:
    return str(body["messages"][0]["content"] if "messages" in body else body["prompt"])


@dataclass
class Served:
    """A server's POST routes: words are tokens, and `added` more; None where a route or a count is not there."""

    tokenize: int | None = None
    usage: int | None = None
    flat: bool = False  # /tokenize says the same of every text

    def __call__(self, ask: Ask) -> Script:
        added = self.tokenize if ask.path == "/tokenize" else self.usage
        if added is None:
            return (error(404, "Not Found"),) if ask.path == "/tokenize" else (whole(200, {"usage": None}),)
        tokens = 3 if self.flat else len(text_of(ask.json).split()) + added
        if ask.path == "/tokenize":
            return (whole(200, {"count": tokens, "tokens": [5] * tokens}),)
        return (whole(200, {"choices": [], "usage": {"prompt_tokens": tokens, "completion_tokens": 1}}),)


@pytest.fixture
def tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with a tokenizer.json, for a library that counts words and knows as many more as the file says."""

    class Loaded:
        def __init__(self, added: int) -> None:
            self.added, self.limit = added, 4  # a file may hold a truncation

        @classmethod
        def from_file(cls, path: str) -> Loaded:
            return cls(int(Path(path).read_text()))

        def no_truncation(self) -> None:
            self.limit = 10**9

        def no_padding(self) -> None:
            self.added -= 100

        def encode(self, text: str) -> SimpleNamespace:
            return SimpleNamespace(ids=[*range(len(text.split()) + self.added)][: self.limit])

    (tmp_path / "tokenizer.json").write_text("101")
    monkeypatch.setitem(sys.modules, "tokenizers", SimpleNamespace(Tokenizer=Loaded))
    return str(tmp_path)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_local_tokenizer_learns_from_the_server_what_template_and_bos_add(
    tokenizer: str, api: Literal["completions", "chat"]
) -> None:
    with ScriptedServer(Served(usage=12)) as server:
        counter = find_counter(server.url, Access(), engine(api), "m", tokenizer)
        probes = len(server.asks)
        fitted = fit_vocabulary(counter.count, WORDS)
        assert len(server.asks) == probes, "a local tokenizer needs no more of the server"
    assert counter.how.endswith("+11 tokens by the server's usage")
    assert fitted.overhead == 13
    assert counter.count(exact_texts(fitted, np.random.default_rng(0), 1, 100)[0]) == 100


def test_a_server_without_usage_is_enough_for_completions_and_not_for_chat(tokenizer: str) -> None:
    with ScriptedServer(Served()) as server:
        counter = find_counter(server.url, Access(), engine("completions"), "m", tokenizer)
        assert "not compared" in counter.how
        assert counter.count("a b c") == 4
        with pytest.raises(EngineError, match=r"POST /tokenize.*template.*no usage") as caught:
            find_counter(server.url, Access(), engine("chat"), "m", tokenizer)
        assert caught.value.key == "prompts.tokenizer"
        with pytest.raises(EngineError, match=r"status 404.*no usage"):
            find_counter(server.url, Access(), engine("completions"), "m")


def test_another_models_tokenizer_is_found_out(tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = sys.modules["tokenizers"].Tokenizer
    monkeypatch.setattr(loaded, "encode", lambda _, text: SimpleNamespace(ids=[*text]))
    with ScriptedServer(Served(usage=2)) as server:
        counter = find_counter(server.url, Access(), engine("completions"), "m", tokenizer)
        assert counter.how == "usage.prompt_tokens of requests for one token"
        assert counter.count("some four letter words") == 6


@pytest.mark.parametrize(("served", "route"), [(Served(usage=2), 1), (Served(tokenize=1, usage=2, flat=True), 2)])
def test_the_usage_probe_asks_for_one_token_in_the_sweeps_own_template(served: Served, route: int) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "min_tokens": 9, "stream": True, "max_tokens": 9}

    def answer(ask: Ask) -> Script:
        return Served(usage=2)(ask) if "completions" in ask.path else served(ask)

    with ScriptedServer(answer) as server:
        counter = find_counter(server.url, Access(), engine("chat", extra), "m")
        assert counter.count("a b c") == 5
    assert len([ask for ask in server.asks if ask.path == "/tokenize"]) == route
    for ask in server.asks:
        assert ask.json["chat_template_kwargs"] == {"enable_thinking": False}
        if ask.path == "/v1/chat/completions":
            assert ask.json["max_tokens"] == 1
            assert not {"min_tokens", "stream"} & ask.json.keys()


def test_nobody_there_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for ask in (
        lambda url: find_counter(url, Access(), engine("chat"), "m"),
        lambda url: vocabulary_range(url, "m", Access()),
    ):
        with pytest.raises(EngineError) as caught:
            ask(f"http://127.0.0.1:{port}")
        assert caught.value.gone
        assert caught.value.key == "engine.url"


# The range of token ids.


def test_the_range_of_ids_by_tokenize_holds_only_what_the_server_knows() -> None:
    with SimulatorProcess("fixed", scale=0.01, options={"vocab_size": 40_000}) as server:
        found = vocabulary_range(server.url, "sim", Access())
    assert found is not None
    low, high = found
    assert low == 1000
    assert 30_000 < high <= 40_000, "a broad text has high ids"
    with ScriptedServer(Served(tokenize=0)) as scripted:  # whose every token is 5
        assert vocabulary_range(scripted.url, "m", Access()) == (1, 6)
        assert scripted.asks[0].json["add_special_tokens"] is False, "BOS may be the highest id of all"
    with ScriptedServer(Served()) as without:
        assert vocabulary_range(without.url, "m", Access()) is None


def test_the_range_of_ids_in_a_tokenizers_file(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    vocabulary = {f"t{k}": k for k in range(5000)}
    path.write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": [{"id": 4990}, {"id": 5000}]}))
    for given_as in (tmp_path, path):
        assert vocabulary_range("http://127.0.0.1:9", "m", Access(), str(given_as)) == (1000, 4990)
    path.write_text("{")
    with pytest.raises(EngineError) as caught:
        vocabulary_range("http://127.0.0.1:9", "m", Access(), str(path))
    assert caught.value.key == "prompts.tokenizer"


@given(st.sets(st.integers(0, 3000)), st.integers(1, 3000))
def test_the_range_of_ids_is_the_longest_without_added_tokens(added: set[int], size: int) -> None:
    unigram = {"model": {"vocab": [[f"t{k}", -1.0] for k in range(size)]}, "added_tokens": [{"id": k} for k in added]}
    ordinary = sorted(set(range(size)) - added)
    found = ordinary_range(unigram)
    low = min(1000, ordinary[-1] // 4) if ordinary else 0
    runs = [""]
    for k in range(low, size):
        runs = [*runs[:-1], runs[-1] + "x"] if k not in added else [*runs, ""]
    longest = max(map(len, runs))
    if not longest:
        assert found is None
    else:
        assert found is not None
        assert found[1] - found[0] == longest
        assert found[0] >= low
        assert not set(range(*found)) - set(ordinary)


@pytest.mark.parametrize("data", [{}, [], {"model": {"vocab": {}}}, {"model": {"vocab": None}}])
def test_a_file_without_a_vocabulary_says_no_range(data: Any) -> None:
    assert ordinary_range(data) is None
