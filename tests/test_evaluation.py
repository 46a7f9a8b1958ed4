"""bench eval with a stand-in for lm-eval, which leaves what the real one wrote: servers, keys, folders, continuing."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from answers import Ask, Script, completion, error
from driving import bench, sweeping, write_sweep
from servers import ScriptedServer

from benchbench.accuracy.evaluate import api_key, model_args
from benchbench.accuracy.results import read_scores
from benchbench.accuracy.section import evaluation_section, read_evaluation
from benchbench.engines.open import Opened
from benchbench.errors import EngineError
from benchbench.openai.target import Access
from benchbench.spec import spec_from_mapping

LM_EVAL = Path(__file__).with_name("standin_lm_eval.py")
DATA = Path(__file__).parent / "data" / "lm_eval"
KEY = "sk-verysecret-0123"


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def variants_file(**changes: Any) -> Path:
    """Two servers that differ in the length that they allow, and so, for the stand-in, in their answers."""
    lengths = {"bf16": 8192, "int8": 4096}
    variants = {name: {"engine": {"options": {"max_model_len": length}}} for name, length in lengths.items()}
    engine = {"kind": "simulator", **changes}
    return write_sweep(Path("s.yaml"), "", engine=engine, variants=variants, baseline="bf16")


def evaluating(*arguments: object) -> Any:
    return bench("eval", *arguments, "--lm-eval", LM_EVAL)


def calls() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("asked.jsonl").read_text().splitlines()]


def test_each_variant_is_asked_and_the_table_pairs_their_answers() -> None:
    result = evaluating(variants_file(), "--task", "both:1", "--task", "sums", "--limit", "10", "--out", "run")
    assert result.exit_code == 0, result.stderr
    assert [(call["tasks"], call["num_fewshot"], call["limit"]) for call in calls()] == [
        *(("both", "1", "10"), ("sums", None, "10")),
    ] * 2
    args = calls()[0]["args"]
    assert args["model"] == "sim"
    assert args["base_url"].endswith("/v1/completions")
    assert (args["max_length"], args["num_concurrent"], args["tokenizer_backend"]) == (8192, 32, "none")
    golden = DATA / "evaluation.md"
    assert Path("run/evaluation.md").read_text() == golden.read_text()
    assert result.stdout == golden.read_text()
    assert evaluation_section(read_evaluation(Path("run"))) == golden.read_text()
    numbers = json.loads(Path("run/evaluation.json").read_text())
    assert numbers["baseline"] == "bf16"
    assert numbers["benchmarks"][0]["recovery"]["int8"]["ratio"]["method"] == "paired by question"
    manifest = json.loads(Path("run/eval-manifest.json").read_text())
    assert manifest["engines"]["int8"]["engine"]["kind"] == "benchbench simulator"
    assert manifest["runs"]["bf16/both:1"]["notes"] == ["prompts cut to max_length: 1"]


def test_the_key_reaches_the_server_and_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai-itself")

    def answer(ask: Ask) -> Script:
        return completion(ask) if ask.headers.get("authorization") == f"Bearer {KEY}" else (error(401, "no"),)

    with ScriptedServer(answer) as server:
        engine = {"kind": "endpoint", "url": server.url, "api_key_env": "MY_KEY"}
        sweep = write_sweep(Path("s.yaml"), "", engine=engine)
        monkeypatch.setenv("MY_KEY", KEY)
        result = evaluating(sweep, "--task", "sums", "--out", "run")
        monkeypatch.setenv("MY_KEY", "sk-anotherone-4567")
        refused = evaluating(sweep, "--task", "sums", "--out", "refused")
    assert result.exit_code == 0, result.stderr
    assert refused.exit_code == 1
    assert "status 401 from the server, key ***" in refused.stderr
    every = "".join(path.read_text() for path in Path().rglob("*") if path.is_file())
    assert "Left truncating context; ***" in every
    assert not [key for key in (KEY, "sk-anotherone", "sk-of-openai") if key in every + refused.stderr]


def test_ctrl_c_ends_lm_eval_and_its_server_and_the_same_command_continues() -> None:
    words = [variants_file(), "--task", "sums", "--task", "both:1", "--out", "run", "--lm-eval", LM_EVAL]
    with sweeping(*words, command="eval", env={"STANDIN_HANGS": "both"}) as running:
        while not Path("hangs").exists():
            assert running.process.poll() is None, running.end()
            time.sleep(0.05)
        assert len(running.descendants()) >= 3  # lm-eval, its supervisor, the simulator
        running.process.send_signal(signal.SIGINT)
        code, _, err = running.end()
        assert code == 130
        assert "--out run" in err
        assert running.descendants() == []
    other = bench("eval", *words, "--limit", "5")
    assert other.exit_code == 2
    assert "limit" in other.stderr
    result = bench("eval", *words)
    assert result.exit_code == 0, result.stderr
    assert [call["tasks"] for call in calls()] == ["sums", "both", "both", "sums", "both"]
    assert len(read_evaluation(Path("run")).sides["bf16"]) == 2


def test_what_fails_is_said_and_the_others_go_on() -> None:
    result = evaluating(variants_file(), "--task", "sums", "--task", "nosuch", "--out", "run")
    assert result.exit_code == 1
    assert "int8/nosuch: lm-eval ended with exit code 1" in result.stderr
    assert "| sums (2-shot) | 80.0 %" in result.stdout
    assert "FileNotFoundError" in Path("run/evaluation.md").read_text()
    again = evaluating(variants_file(), "--task", "sums", "--out", "run")
    assert again.exit_code == 0, again.stderr


def test_results_that_exist_are_put_side_by_side_and_kept() -> None:
    given = ["--results", f"a={DATA / 'bf16' / 'both'}", "--results", f"b={DATA / 'int8'}"]
    shown = bench("eval", *given)
    assert shown.exit_code == 0, shown.stderr
    assert "paired by question" in shown.stdout
    assert "sums (2-shot): only b has it" in shown.stdout
    kept = bench("eval", *given, "--out", "kept")
    assert kept.stdout == shown.stdout
    assert evaluation_section(read_evaluation(Path("kept"))).rstrip() == shown.stdout.rstrip()
    with_published = bench("eval", *given[2:], "--base", "BF16", "--published", "sums (2-shot)=50", "--format", "json")
    benchmark = json.loads(with_published.stdout)["benchmarks"][-1]
    assert benchmark["scores"]["BF16"]["text"] == "50"
    assert benchmark["recovery"]["b"]["assumed_n"] == 10


def test_a_groups_parts_do_not_stand_beside_it_and_a_metric_can_be_chosen() -> None:
    (group,) = read_scores(DATA / "bf16" / "both")
    assert (group.label, group.n, len(group.samples)) == ("both (1-shot)", 20, 20)
    (first,) = read_scores(DATA / "bf16" / "sums")
    (other,) = read_scores(DATA / "bf16" / "sums", {"sums": "exact_match,first-word"})
    assert (first.metric, other.metric) == ("exact_match,strict", "exact_match,first-word")


def arguments_for(engine: dict[str, Any], url: str, **access: Any) -> dict[str, Any]:
    grid, prompts = {"input": 8, "output": 6, "batch": 1}, {"kind": "text"}
    spec = spec_from_mapping({"name": "t", "model": "m", "engine": engine, "grid": grid, "prompts": prompts})
    opened = Opened(url, None, access=Access(**access))
    assert api_key(opened) in {None, "k"}
    return model_args(spec, opened)


def test_lm_eval_is_told_how_the_server_is_reached() -> None:
    Path("model").mkdir()
    launched = arguments_for({"kind": "vllm_serve", "args": {"model": "model"}}, "http://127.0.0.1:1")
    assert (launched["tokenizer"], launched["tokenizer_backend"]) == ("model", "huggingface")
    kind = {"kind": "endpoint", "url": "https://h/base/v1?a=b", "api": "chat", "ca_file": "ca.pem"}
    reached = arguments_for(kind, kind["url"], headers={"Authorization": "Bearer k"})
    assert reached["base_url"] == "https://h/base/v1/chat/completions?a=b"
    assert reached["ca_cert_path"] == "ca.pem"
    assert "tokenizer" not in reached


@pytest.mark.parametrize(
    ("url", "more", "key"),
    [
        ("http://h/?api_key=abcdef", {}, "engine.url"),
        ("http://h", {"proxy": "http://p:1"}, "engine.proxy"),
        ("http://h", {"headers": {"X-Team": "secret"}}, "engine.headers_env"),
    ],
)
def test_what_lm_eval_would_show_or_cannot_do_is_refused(url: str, more: dict[str, Any], key: str) -> None:
    headers = more.pop("headers", {})
    with pytest.raises(EngineError) as refused:
        arguments_for({"kind": "endpoint", "url": url, **more}, url, headers=headers)
    assert refused.value.key == key


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "FILE or --results"),
        (["--results", "a=none.json"], "none.json: cannot be read"),
        (["--results", "a=bad.json"], "bad.json: not a file of lm-eval's results"),
        (["--results", "a"], "NAME=VALUE"),
        (["--results", f"a={DATA / 'bf16'}", "--base", "z"], "no results of z"),
        (["--results", f"a={DATA / 'bf16'}", "--published", "mmlu=86"], "no such results (allowed: both"),
        (["--results", f"a={DATA / 'bf16'}", "--metric", "sums=acc"], "exact_match,strict, exact_match,first-word"),
        (["s.yaml", "--base", "z"], "--base z: unknown side (allowed: t)"),
        (["s.yaml", "--model-arg", "auth_token=x"], "auth_token: shows a secret"),
        (["s.yaml", "--lm-eval", "no-such-program"], "pip install 'lm-eval[api]'"),
        (["s.yaml", "--set", "engine.kind=vllm_inprocess"], "engine.kind"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(words: list[str], message: str) -> None:
    Path("bad.json").write_text('{"results": []}')
    write_sweep(Path("s.yaml"), "", engine={"kind": "simulator"})
    result = bench("eval", *words, *([] if "--lm-eval" in words else ["--lm-eval", LM_EVAL]))
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
