"""Prompts of people's own: every layout read, bad ones named by line, none sent twice, both builds asked the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import bench, records
from hypothesis import given, settings
from hypothesis import strategies as st

from benchbench import open_run, sweep
from benchbench.datasets.corpus import corpus_digest, corpus_words
from benchbench.datasets.prompt_file import PromptFileError, read_prompts
from benchbench.engines.simulator.vocabulary import encode
from benchbench.engines.token_lengths import WORDS
from benchbench.errors import EngineError, RunError
from benchbench.openai.target import Access, make_target
from benchbench.prompts.prompt_dealer import Dealer
from benchbench.prompts.round_job import make_job
from benchbench.prompts.text_fitting import HEAD_WORDS, TextFitter, fit_ids
from benchbench.spec import SpecError, make_plan, spec_from_mapping

FAST = {"kind": "simulator", "scale": 0.02}
SHORT = {"min": 2, "max": 2, "warmup": 1}


def written(path: Path, lines: list[Any]) -> str:
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return str(path)


def questions(path: Path, count: int, words: int = 40) -> str:
    lines = [{"prompt": f"{k} {' '.join(WORDS[:words])}", "output_tokens": 4 + k % 5} for k in range(count)]
    return written(path, lines)


def spec_of(path: str, **changes: Any) -> Any:
    base: dict[str, Any] = {
        "name": "s",
        "model": "sim",
        "engine": FAST,
        "grid": {"input": "file", "output": 4, "batch": [1, 2]},
        "rounds": SHORT,
        "prompts": {"kind": "file", "path": path},
    }
    return spec_from_mapping(base | changes)


# ---- Files ----------------------------------------------------------------------------------------------

CONVERSATION = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Why?"},
    {"from": "gpt", "value": "So."},
]
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


@pytest.mark.parametrize(
    ("entry", "field", "kind", "prompt"),
    [
        ({"prompt": "Why?", "output_tokens": 7}, None, "text", "Why?"),
        ({"text": "Why?", "output_tokens": 7}, None, "text", "Why?"),
        ({"prompt": "not this", "question": "Why?", "output_tokens": 7}, "question", "text", "Why?"),
        ({"id": "a", "conversations": CONVERSATION, "output_tokens": 7}, None, "text", "Why?"),
        (
            {"messages": [*MESSAGES, {"role": "assistant", "content": "So."}], "output_tokens": 7},
            None,
            "messages",
            tuple(MESSAGES),
        ),
        ({"prompt_token_ids": [1, 2, 3], "output_tokens": 7}, None, "token_ids", (1, 2, 3)),
        ({"token_ids": [1, 2, 3], "output_tokens": 7}, None, "token_ids", (1, 2, 3)),
    ],
)
@pytest.mark.parametrize("array", [False, True])
def test_every_layout_is_read(
    tmp_path: Path, entry: dict[str, Any], field: str | None, kind: str, prompt: object, array: bool
) -> None:
    path = tmp_path / "p.jsonl"
    other = {**entry, "conversations": []} if "conversations" in entry else entry
    path.write_text(json.dumps([entry, other]) if array else f"{json.dumps(entry)}\n\n{json.dumps(other)}\n")
    read = read_prompts(str(path), field)
    assert (read.kind, read.prompts, read.outputs) == (kind, (prompt,), (7,))
    assert (read.repeated, read.skipped) == ((0, 1) if "conversations" in entry else (1, 0))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"prompt": "a"}', "{nope"], "p.jsonl:2: is not JSON"),
        (['{"prompt": "a"}', '{"text": "b"}'], "p.jsonl:2: has no prompt (prompts.field); its keys are text"),
        (['{"question": "a"}'], "p.jsonl:1: has no conversations, messages, prompt_token_ids"),
        (['{"prompt": "a"}', "", '{"prompt": ["b"]}'], "p.jsonl:3: prompt must be a text, a list of token ids"),
        (['{"prompt": "a"}', '{"prompt": [1]}'], "p.jsonl:2: prompt holds token ids, the lines before text"),
        (['{"prompt": "  "}'], "p.jsonl:1: prompt must be"),
        (['{"prompt": [1, -1]}'], "p.jsonl:1: prompt must be"),
        (['{"prompt": "a", "output_tokens": 0}'], "p.jsonl:1: output_tokens must be a whole number of tokens from 1"),
        (['"a"'], "p.jsonl:1: must be an object"),
        (['[{"prompt": "a"}, {"prompt": 1}]'], "p.jsonl, entry 2: prompt must be"),
        ([""], "p.jsonl: holds no prompts"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, lines: list[str], words: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(PromptFileError) as caught:
        read_prompts(str(path))
    assert words in str(caught.value)
    with pytest.raises(SpecError) as refused:
        spec_of(str(path))
    assert [(problem.path, words in problem.message) for problem in refused.value.problems] == [("prompts.path", True)]


def test_what_a_sweep_may_not_ask_of_a_file(tmp_path: Path) -> None:
    text = questions(tmp_path / "p.jsonl", 9)
    chat = written(tmp_path / "m.jsonl", [{"messages": MESSAGES}])

    def problems(path: str = text, **changes: Any) -> str:
        with pytest.raises(SpecError) as caught:
            spec_of(path, **changes)
        return str(caught.value)

    grid = {"input": 64, "output": 4, "batch": 1}
    assert "engine.api: completions takes no messages" in problems(chat)
    assert "grid.input: is a length, and messages are sent as they are" in problems(
        chat, grid=grid, engine={**FAST, "api": "chat"}
    )
    assert "m.jsonl:1 has no output_tokens" in problems(chat, grid={**grid, "input": "file", "output": "file"})
    assert "prompts.path: is missing" in problems(prompts={"kind": "file"})
    assert "is file, and prompts.kind names none" in problems(prompts={"kind": "text"})
    assert "prompts.field: is of kind file" in problems(grid=grid, prompts={"kind": "text", "field": "prompt"})
    assert "prompts.fit: as_is leaves" in problems(grid=grid, prompts={"kind": "file", "path": text, "fit": "as_is"})
    assert "prompts of a file beside prompts of given lengths" in problems(grid=[grid, {**grid, "input": "file"}])
    lengths = {"kind": "file", "path": text, "output": 128}
    assert "prompts.output: is 128: a length of all answers is grid.output" in problems(grid=grid, prompts=lengths)
    assert "no grid.output is file" in problems(grid=grid, prompts={**lengths, "output": "length"})
    wrong = {"kind": "file", "path": text, "sha256": "0" * 64}
    assert "is not that of the file" in problems(prompts=wrong)
    assert "the in-process engine takes no text" in problems(engine={"kind": "vllm_inprocess"})


# ---- What is dealt --------------------------------------------------------------------------------------


@given(st.integers(0, 2**40), st.integers(1, 3), st.integers(1, 4), st.sampled_from(["static", "closed"]))
@settings(max_examples=15, deadline=None)
def test_no_prompt_is_sent_twice_and_variants_are_asked_the_same(
    tmp_path_factory: pytest.TempPathFactory, seed: int, batch: int, rounds: int, load: str
) -> None:
    path = questions(tmp_path_factory.mktemp("p") / "p.jsonl", 600, 1)
    variants = {"a": {"engine": {"scale": 0.02}}, "b": {"engine": {"scale": 0.04}}}
    more = {"rounds": {"min": 1, "max": rounds, "warmup": 1}, "variants": variants, "blocks": 2, "load": {"kind": load}}
    spec = spec_of(path, seed=seed, grid={"input": "file", "output": 4, "batch": [batch, batch + 1]}, **more)
    cells = make_plan(spec).cells
    attempts: Counter[tuple[str, str, int]] = Counter()
    dealer = Dealer(spec, attempts)
    assert dealer.check()[0].startswith("prompts: ")
    by_variant: dict[str, list[tuple[Any, ...]]] = {"a": [], "b": []}
    anew = []
    for cell in sorted(cells, key=lambda cell: (cell.variant, cell.batch)):
        for block in range(2):
            for place in (("warmup", block), ("measured", block)):
                attempts[cell.key, *place] += 1
                by_variant[cell.variant].append(tuple(dealer.take(cell, *place).prompts))
        attempts[cell.key, "measured", 1] += 1
        anew += dealer.take(cell, "measured", 1).prompts
        attempts[cell.key, "warmup", 2] += 1
        anew += dealer.take(cell, "warmup", 2).prompts  # more than was planned
    assert by_variant["a"] == by_variant["b"]
    sent = [prompt for prompts in by_variant["a"] for prompt in prompts] + anew
    assert len({*sent}) == len(sent)


def test_another_process_deals_the_same(tmp_path: Path) -> None:
    path = questions(tmp_path / "p.jsonl", 90)
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_prompt_files as t, hashlib\n"
        "cell = t.make_plan(t.spec_of(sys.argv[1])).cells[0]\n"
        "print(cell.key, hashlib.sha256(b''.join(t.payloads(sys.argv[1], 1))).hexdigest())"
    )
    shown = [
        subprocess.run([sys.executable, "-c", code, path, str(Path(__file__).parent)], check=True, capture_output=True)
        for _ in range(2)
    ]
    assert shown[0].stdout == shown[1].stdout != b""
    assert payloads(path, 1) != payloads(path, 0)


def payloads(path: str, number: int) -> list[bytes]:
    spec = spec_of(path)
    cell = make_plan(spec).cells[0]
    target = make_target("http://127.0.0.1:8000", "completions", Access())
    return make_job(cell, target, Dealer(spec).take(cell, "measured", number), "measured", number, 0).payloads


def test_too_few_prompts_are_said_before_anything_starts(tmp_path: Path) -> None:
    path = questions(tmp_path / "p.jsonl", 8)
    spec = spec_of(path)  # 3 rounds of 1 and of 2 requests
    with pytest.raises(EngineError, match=r"may send 9 prompts, no two alike, and .*p.jsonl has 8") as caught:
        sweep(spec, tmp_path / "run")
    assert (caught.value.key, "rounds.max" in caught.value.allowed) == ("prompts.path", True)
    assert not (tmp_path / "run").exists()


def test_a_round_begun_anew_stops_where_no_prompt_is_left(tmp_path: Path) -> None:
    spec = spec_of(questions(tmp_path / "p.jsonl", 10))
    one, two = make_plan(spec).cells[0], make_plan(spec).cells[1]
    small, large = (one, two) if one.batch == 1 else (two, one)
    dealer = Dealer(spec, {(small.key, "measured", 1): 2})
    assert len(dealer.take(small, "measured", 1).prompts) == 1
    dealer.attempts = {(small.key, "measured", 1): 2, (large.key, "measured", 0): 2}
    with pytest.raises(EngineError, match="2 prompts are needed, 0 are left"):
        dealer.take(large, "measured", 0)


def test_the_files_bytes_are_part_of_a_cells_key_and_its_place_is_not(tmp_path: Path) -> None:
    one, other = questions(tmp_path / "p.jsonl", 30), tmp_path / "q.jsonl"
    other.write_bytes(Path(one).read_bytes())
    keys = [cell.key for cell in make_plan(spec_of(one)).cells]
    assert [cell.key for cell in make_plan(spec_of(str(other))).cells] == keys
    again = spec_from_mapping(json.loads(json.dumps(spec_of(one).model_dump(mode="json"))))
    assert [cell.key for cell in make_plan(again).cells] == keys
    other.write_bytes(other.read_bytes() + b'\n{"prompt": "one more", "output_tokens": 3}')
    assert not {cell.key for cell in make_plan(spec_of(str(other))).cells} & {*keys}
    corpus = {"kind": "corpus"}
    grid = {"input": 64, "output": 4, "batch": 1}
    own = tmp_path / "own.txt"
    own.write_text("word " * 2000)
    named = make_plan(spec_of(one, prompts=corpus, grid=grid)).cells[0]
    assert named.key != make_plan(spec_of(one, prompts={**corpus, "path": str(own)}, grid=grid)).cells[0].key
    assert named.prompts.sha256 == corpus_digest(None)


# ---- Exact lengths --------------------------------------------------------------------------------------


def fitter() -> TextFitter:
    return TextFitter(
        lambda text: len(encode(text, 50_000)) + 3, [word for word in WORDS if len(word) <= 4], WORDS[0], 5
    )


@given(st.lists(st.text(min_size=1, max_size=200).filter(str.strip), min_size=1, max_size=4), st.integers(5, 300))
@settings(max_examples=60, deadline=None)
def test_a_text_is_cut_and_filled_to_just_so_many_tokens(texts: list[str], length: int) -> None:
    made, (first, *others) = fitter(), texts
    whole = made.fit(np.random.default_rng(0), first, others or [first], length)
    assert made.count(str(whole)) == length


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 90))
def test_token_ids_are_cut_or_followed_by_others(ids: list[int], length: int) -> None:
    whole = fit_ids(np.random.default_rng(0), tuple(ids), [(77,)], length)
    assert (len(whole), whole[: len(ids)]) == (length, tuple(ids[:length]))


def test_the_corpus_gives_exact_texts_that_begin_differently() -> None:
    words, made = corpus_words(None), fitter()
    texts = made.corpus_texts(words, np.random.default_rng(0), 60, 200)
    assert {made.count(text) for text in texts} == {200}
    assert len({" ".join(text.split()[: HEAD_WORDS + 1]) for text in texts}) == 60
    assert made.corpus_texts(words, np.random.default_rng(0), 60, 200) == texts
    running = " ".join(words[:60]).replace("  ", " ")
    assert running.startswith("Part of the ensuing Discourse about Light was written at the Desire of some Gentlemen")


# ---- Sweeps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_own_texts_are_made_as_long_as_the_grid_says(tmp_path: Path, api: str) -> None:
    path = questions(tmp_path / "p.jsonl", 30)
    grid = {"input": {"uniform": [20, 90]}, "output": "file", "batch": 2}
    outcome = sweep(spec_of(path, grid=grid, engine={**FAST, "api": api}), tmp_path / "run")
    rows = records(tmp_path / "run")
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["asked_input_tokens"] == row["input_tokens"] for row in rows)
    assert {row["output_tokens"] for row in rows} <= set(range(4, 9))
    row = outcome.rows[0]
    assert row["prompts"].startswith("file p.jsonl ")
    assert "| Prompts |" in outcome.table
    assert "no roofline" in open_run(tmp_path / "run").explain()
    assert open_run(tmp_path / "run").manifest["spec"]["prompts"]["sha256"] == read_prompts(path).sha256


def test_texts_as_they_are_have_the_lengths_that_the_server_tells(tmp_path: Path) -> None:
    turns = [{"conversations": [{"from": "human", "value": f"{k} " + "why " * (k % 7 + 1)}]} for k in range(30)]
    path = written(tmp_path / "share.json", turns)
    out = tmp_path / "run"
    outcome = sweep(spec_of(path), out)
    rows = records(out)
    assert {(row["status"], row["asked_input_tokens"]) for row in rows} == {("ok", None)}
    assert len({row["input_tokens"] for row in rows}) > 3
    row = outcome.rows[0]
    assert (row["input"], row["mfu"], row["total_tok_s"] > row["sys_tok_s"]) == (None, None, True)
    assert "input_length" not in row["reasons"]
    assert "in=file" in outcome.table
    run = open_run(out)
    assert "2 rows are left out" in run.audit().report()
    assert run.write_page(tmp_path / "page.html").stat().st_size > 10_000
    explained = run.explain()
    assert "prompts of file share.json" in explained
    # The run's own sweep goes on; with other bytes, or other rounds, it does not.
    assert sweep(spec_of(path), out, resume=True).message == "nothing left to do"
    with pytest.raises(RunError, match="begin a new run"):
        sweep(spec_of(path, rounds={**SHORT, "max": 3}), out, resume=True)
    written(Path(path), turns[::-1])
    with pytest.raises(RunError, match="its prompts are of file"):
        sweep(spec_of(path), out, resume=True)


def test_the_command_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    questions(tmp_path / "p.jsonl", 12)
    file = tmp_path / "s.yaml"
    file.write_text(
        "name: s\nmodel: sim\nengine: {kind: simulator}\ngrid: {input: file, output: 4, batch: 4}\n"
        "rounds: {min: 2, max: 2, warmup: 0}\nprompts: {kind: file, path: p.jsonl}\n"
    )
    dry = bench("sweep", file, "--dry-run")
    assert "prompts: 8 at most of the 12 in p.jsonl" in dry.output
    few = bench("sweep", file, "--set", "rounds.max=9", "--dry-run")
    assert few.exit_code == 2
    assert "may send 36 prompts, no two alike, and p.jsonl has 12" in few.output
    assert few.stderr.startswith(f"{file}:")
