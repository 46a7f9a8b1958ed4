"""Sweep files: what is read, what is refused, and in which words."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchbench.cli.sweep_schema import json_schema
from benchbench.spec import (
    ClosedLoad,
    EndpointEngine,
    OpenLoad,
    SimulatorEngine,
    SpecError,
    SweepSpec,
    load_spec,
    make_plan,
    spec_from_mapping,
)
from benchbench.yamlfile.mistakes import Problem

HERE = Path(__file__).parent
SWEEPS = HERE.parent / "sweeps"

ENDPOINT_KEYS = (
    "api, max_tokens_field, answers_as, extra_body, kind, url, routing, path, api_key_env, headers_env, ca_file, "
    "insecure, proxy"
)
KINDS = "endpoint, simulator, vllm_serve, vllm_inprocess"
MINIMAL = """\
name: s
model: m
engine: {kind: endpoint, url: "http://127.0.0.1:8000"}
grid: {input: 8, output: 4, batch: 2}
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def load(text: str | bytes, *sets: str) -> SweepSpec:
        Path("s.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return load_spec("s.yaml", sets)

    return load


def messages(call: Any, *args: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        call(*args)
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    return [str(problem) for problem in caught.value.problems]


def test_every_mistake_of_a_file_and_its_options_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE / "data")
    sets = ["grid.0.input.7=1", "nonsense", "model.x=1", "slo.ttft_ms=fast", "rounds.warmup=2", "sed=1"]
    found = messages(load_spec, "many-mistakes.yaml", sets)
    assert found == (HERE / "golden" / "many-mistakes.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "s.yaml: is empty: a sweep needs name, model, engine and grid"),
        ("# only a comment\n", "s.yaml: is empty: a sweep needs name, model, engine and grid"),
        ("\n- a", "s.yaml:2: must be a mapping (key: value), is a list"),
        ("name: a\nmodel: b: c", "s.yaml:2: is not YAML: mapping values are not allowed here"),
        (
            "a:\n\t- b",
            "s.yaml:2: is not YAML: found character '\\t' that cannot start any token; YAML indents with spaces",
        ),
        ("a: 1\n---\nb: 2", "s.yaml:2: is not YAML: but found another document"),
        ("a: *x", "s.yaml:1: is not YAML: found undefined alias 'x'"),
        ("[" * 20_000, "s.yaml: is nested too deeply"),
        (b"a: 1\nb: \xff", "s.yaml:2: is not UTF-8 text"),
        (b"#" * (2 << 20), "s.yaml: is larger than 1048576 bytes: not a sweep file"),
        (
            "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcd", "bcde", strict=True)),
            "s.yaml: holds more than 100000 values",
        ),
    ],
)
def test_unreadable_file_is_one_problem(load: Any, text: str | bytes, message: str) -> None:
    assert messages(load, text) == [message]


def test_no_file_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    assert messages(load_spec, "none.yaml") == ["none.yaml: no such file"]
    assert messages(load_spec, "folder") == ["folder: is a folder, not a sweep file"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1: 2", "s.yaml:5: a key must be text: put it in quotes"),
        ("slo: &x {ttft_ms: *x}", "s.yaml:5: slo.ttft_ms: refers to itself"),
        ("slo: !!set {}", "s.yaml:5: slo: has the tag tag:yaml.org,2002:set, which is not used in sweeps"),
        ("model: other", "s.yaml:5: model: duplicate key, first given in line 2"),
        ("seed: 12:30", 's.yaml:5: seed: must be a whole number, is "12:30"'),
        ("seed: off", 's.yaml:5: seed: must be a whole number, is "off"'),
        ("order:", "s.yaml:5: order: unknown value empty (allowed: random, as_written)"),
        ("load: {}", "s.yaml:5: load.kind: is missing (allowed: static, closed, open)"),
        ("load: {kind: open, requests: 4}", "s.yaml:4: grid.batch: an open load has no batch: its third axis is rate"),
        ("load: {kind: closed, requests: 1}", "s.yaml:5: load.requests: 1 requests cannot keep a batch of 2 in flight"),
        ("slo: {ttft_ms: 1e-3, tpot_ms: 0}", "s.yaml:5: slo.tpot_ms: must be above 0, is 0"),
        ("prompts: {vocab: [1]}", "s.yaml:5: prompts.vocab: must be two token ids [low, high), has 1"),
        (
            "variants: {main: {}}",
            "s.yaml:5: variants: needs at least two variants to compare, or blocks: how often to start the one",
        ),
        (
            "blocks: 2",
            (
                "s.yaml:5: blocks: needs an engine that the sweep starts: a server that is attached to is not started "
                "again (allowed: simulator, vllm_serve, vllm_inprocess; or two variants)"
            ),
        ),
        (
            "variants: {a: {}, b: {gut: 1}}",
            "s.yaml:5: variants.b.gut: unknown key, did you mean git? (allowed: engine, git)",
        ),
        (
            "variants: {a: {}, b: {engine: {apy: chat}}}",
            f"s.yaml:5: variants.b.engine.apy: unknown key, did you mean api? (allowed: {ENDPOINT_KEYS})",
        ),
        ("variants: {a: {}, b: {}}\nbaseline: c", 's.yaml:6: baseline: unknown variant "c" (allowed: a, b)'),
        (
            "validity: {shared_invalid: 2}",
            "s.yaml:5: validity.shared_invalid: must be at most 1, is 2",
        ),
    ],
)
def test_one_wrong_line(load: Any, line: str, message: str) -> None:
    assert messages(load, MINIMAL + line) == [message]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("grid=[]", "grid: must not be empty"),
        ("grid={}", "grid.input: is missing"),
        ("grid.batch=0", "grid.batch: must be at least 1, is 0"),
        ("grid.batch=[]", "grid.batch: must not be empty"),
        ("grid.rate=2", "grid.rate: a static load has no rate: its third axis is batch"),
        ("engine.kind=vllm", f'engine.kind: unknown kind "vllm" (allowed: {KINDS})'),
        ("engine.api=chat", "engine.api: the chat API takes no token ids: set prompts.kind to text"),
        ("engine.api_key_env=sk-123", "engine.api_key_env: must be the name of an environment variable"),
        ("engine.extra_body={a: [.nan]}", "engine.extra_body: holds nan, which JSON cannot"),
        ("engine.extra_body={a: 9223372036854775808}", "engine.extra_body: holds a number beyond 64 bits"),
        ("rounds.max=.5", "rounds.max: must be a whole number, is 0.5"),
        ("insecure=true", "insecure: unknown key"),
        ("engine.insecure=1", "engine.insecure: must be true or false, is 1"),
        ("name=a: b: c", "is not YAML: mapping values are not allowed here"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named_with_its_text(load: Any, option: str, message: str) -> None:
    assert any(found.startswith(f"--set {option}: {message}") for found in messages(load, MINIMAL, option))


def test_a_pasted_secret_is_never_repeated(load: Any) -> None:
    for line in ("headers_env: {A: sk-secret-1}", "api_key_env: sk-secret-1"):
        text = MINIMAL.replace('8000"}', '8000", ' + line + "}")
        assert "secret-1" not in "".join(messages(load, text))


@pytest.mark.parametrize(
    "url",
    ["http://h", "https://h:1/base/path?q=1", "http://[::1]:8000", "HTTP://127.0.0.1:8000/", "http://h.example./v"],
)
def test_urls(load: Any, url: str) -> None:
    assert load(MINIMAL, f"engine.url={url}").engine.url == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:8000", 'needs a scheme, is "127.0.0.1:8000": write http://127.0.0.1:8000'),
        ("localhost:8000", 'needs a scheme, is "localhost:8000": write http://localhost:8000'),
        ("ftp://h", "has the scheme 'ftp' (allowed: http, https)"),
        ("http://", "must be a URL with a host"),
        ("http://h:99999", "must be a URL: Port out of range"),
        ("http://h:0", "must be a URL with a host"),
        ("http://[::1", "must be a URL: Invalid IPv6 URL"),
        ("http://user:pass@h", "holds a user or a password: use api_key_env or headers_env"),
        ("'http://h/#a'", "holds a fragment"),
        ("http://h/a b", "must be a URL with a host"),
    ],
)
def test_bad_urls(load: Any, url: str, message: str) -> None:
    assert messages(load, MINIMAL, f"engine.url={url}")[0].startswith(f"--set engine.url={url}: engine.url: {message}")


BODIES = {
    "n: 2": "is 2: asks for several answers to a request, whose tokens cannot be told apart (allowed: 1)",
    "best_of: 3": "is 3: asks for several answers to a request, whose tokens cannot be told apart (allowed: 1)",
    "use_beam_search: true": "is true: asks for several answers to a request, whose tokens cannot be told apart "
    "(allowed: false)",
    "echo: true": "is true: sends the prompt as if it were generated (allowed: false)",
    "stream: false": "is false: without it no token has a time (allowed: true)",
    "max_tokens: 4": "limits answers, whose length is the cell's (allowed: grid.output, engine.max_tokens_field)",
    "model: other": "is the sweep's (allowed: the key model)",
    "prompt: hello": "is made for each request, of the cell's input length (allowed: grid.input, prompts)",
    "truncate_prompt_tokens: 8": "cuts prompts, whose length is the cell's (allowed: grid.input)",
}


@pytest.mark.parametrize(("field", "why"), BODIES.items())
def test_a_body_with_which_a_cell_would_not_be_what_it_says_is_refused(load: Any, field: str, why: str) -> None:
    key = field.partition(":")[0]
    given = MINIMAL.replace("kind: endpoint,", f"kind: endpoint, extra_body: {{{field}}},")
    (line,) = [number for number, text in enumerate(given.splitlines(), 1) if "extra_body" in text]
    assert messages(load, given) == [f"s.yaml:{line}: engine.extra_body.{key}: {why}"]
    some = MINIMAL + f"overrides: [{{when: batch>=1, engine: {{extra_body: {{{field}}}}}}}]"
    assert messages(load, some) == [f"s.yaml:5: overrides.0.engine.extra_body.{key}: {why}"]
    one = MINIMAL + f"variants: {{a: {{}}, b: {{engine: {{extra_body: {{{field}}}}}}}}}"
    assert messages(load, one) == [f"s.yaml:5: variants.b.engine.extra_body.{key}: {why}"]


def test_a_body_that_changes_nothing_that_is_measured_is_taken(load: Any) -> None:
    body = (
        "{n: 1, best_of: null, echo: false, stream: true, stream_options: {continuous_usage_stats: true}, "
        "max_completion_tokens: 9, logprobs: 1, min_tokens: 2, ignore_eos: false, use_beam_search: false}"
    )
    assert load(MINIMAL, f"engine.extra_body={body}").engine.extra_body["n"] == 1
    inprocess = load(MINIMAL, "engine.kind=vllm_inprocess", "engine.extra_body={n: 2}")
    assert inprocess.engine.other["extra_body"] == {"n": 2}  # of other kinds: kept, not used


def test_keys_of_another_engine_kind_are_kept_noted_and_used_when_the_kind_changes(load: Any) -> None:
    text = MINIMAL.replace("kind: endpoint,", "kind: endpoint, profile: w7900d, args: {tensor-parallel-size: 8},")
    spec = load(text)
    assert isinstance(spec.engine, EndpointEngine)
    assert spec.engine.other == {"profile": "w7900d", "args": {"tensor-parallel-size": 8}}
    assert spec.notes == [
        "engine.profile belongs to simulator: kept, not used",
        "engine.args belongs to vllm_serve, vllm_inprocess: kept, not used",
    ]
    other = load(text, "engine.kind=simulator", "engine.scale=2")
    assert isinstance(other.engine, SimulatorEngine)
    assert (other.engine.profile, other.engine.scale) == ("w7900d", 2.0)
    assert other.engine.other == {"url": "http://127.0.0.1:8000", "args": {"tensor-parallel-size": 8}}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("engine.host=0.0.0.0", 'engine.host: must be a loopback address, is "0.0.0.0"'),
        ("engine.args={port: 1}", "engine.args: port is not set here: use engine.port"),
        ("engine.args={hf_token: x}", "engine.args: holds a secret, hf-token: set the environment variable HF_TOKEN"),
        ("engine.args={api_key: x}", "engine.args: api_key is not set here: use engine.api_key_env"),
        ("engine.args={--seed: 1}", 'engine.args: invalid flag "--seed"'),
        ("engine.args={a: [.nan]}", "engine.args: holds nan, which JSON cannot"),
        ("engine.env={A-B: 1}", "engine.env: must be the name of an environment variable"),
        ("engine.ready.timeout_s=0", "engine.ready.timeout_s: must be above 0, is 0"),
        ("engine.ready.wait=1", "engine.ready.wait: unknown key (allowed: timeout_s, path)"),
        ("engine.ready.path=health", "engine.ready.path: must be a path such as"),
        ("engine.command=[]", "engine.command: must not be empty"),
        ("engine.restarts=-1", "engine.restarts: must be at least 0, is -1"),
    ],
)
def test_a_wrong_option_of_a_launched_engine_is_named(load: Any, option: str, message: str) -> None:
    found = messages(load, MINIMAL, "engine.kind=vllm_serve", option)
    assert any(one.startswith(f"--set {option}: {message}") for one in found), found


def test_an_inprocess_engine_takes_token_ids_only_and_no_api(load: Any) -> None:
    option = "prompts.kind=text"
    wrong = f"--set {option}: prompts.kind: the in-process engine takes token ids (allowed: token_ids)"
    assert messages(load, MINIMAL, "engine.kind=vllm_inprocess", option) == [wrong]
    assert load(MINIMAL, "engine.kind=vllm_inprocess", "engine.api=chat").engine.other["api"] == "chat"


def test_set_reaches_lists_and_new_sections_and_the_last_one_wins(load: Any) -> None:
    text = MINIMAL + "slo:\n"
    spec = load(
        text, "grid.batch=[1, 2]", "grid.batch.1=16", "slo.ttft_ms=200", "seed=1", "seed=2", "timeouts={stall_s: 5}"
    )
    assert spec.grid[0].batch == (1, 16)
    assert (spec.slo.ttft_ms, spec.seed, spec.timeouts.stall_s) == (200.0, 2, 5.0)


def test_anchors_and_merge_keys(load: Any) -> None:
    spec = load(
        MINIMAL.replace("grid:", "grid:\n  - &p {input: 1, output: 2, batch: 3}\n  - {<<: *p, input: 7}\n  -"),
        "grid.0.input=9",
    )
    cells = [(cell.input, cell.output, cell.batch) for cell in make_plan(spec).cells]
    assert sorted(cells) == [(7, 2, 3), (8, 4, 2), (9, 2, 3)]
    assert (
        "s.yaml:5: slo.ttft: unknown key, did you mean ttft_ms? (allowed: ttft_ms, tpot_ms, e2el_ms, statistic)"
        in messages(load, MINIMAL + "slo: &a {ttft: 1}\nvalidity: {<<: *a}")
    )


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({}, (5, 20)),
        ({"min": 30}, (30, 30)),
        ({"max": 3}, (3, 3)),
        ({"min": 1, "max": 1}, (1, 1)),
        ({"max": 9}, (5, 9)),
    ],
)
def test_of_min_and_max_rounds_the_one_not_given_gives_way(
    load: Any, given_: dict[str, int], expected: tuple[int, int]
) -> None:
    rounds = load(MINIMAL + f"rounds: {json.dumps(given_)}").rounds
    assert (rounds.min, rounds.max) == expected


def test_defaults_and_numbers(load: Any) -> None:
    spec = load(MINIMAL)
    assert spec.load.kind == "static"
    assert (spec.timeouts.connect_s, spec.timeouts.first_token_s, spec.timeouts.stall_s) == (10.0, 300.0, 60.0)
    assert (spec.rounds.warmup, spec.rounds.rel_ci) == ("auto", 0.02)
    assert (spec.prompts.kind, spec.prompts.vocab) == ("token_ids", None)
    assert (spec.order, spec.output, spec.seed, spec.hardware, spec.notes) == ("random", "exact", 0, None, [])
    assert load(MINIMAL + "load: {kind: closed}").load == ClosedLoad(kind="closed")
    opened = load(MINIMAL.replace("batch: 2", "rate: [1, 2.5]") + "load: {kind: open}")
    assert opened.load == OpenLoad(kind="open", arrival="poisson", burstiness=1.0, requests=100)
    assert opened.grid[0].rate == (1.0, 2.5)


def test_burstiness_belongs_to_gamma(load: Any) -> None:
    text = MINIMAL.replace("batch", "rate")
    assert load(text + "load: {kind: open, arrival: gamma, burstiness: 0.5}").load.burstiness == 0.5
    assert "only arrival: gamma" in messages(load, text + "load: {kind: open, burstiness: 0.5}")[0]


H200 = [f"h200/{path.stem}" for path in sorted((SWEEPS / "h200").glob("*.yaml"))]


@pytest.mark.parametrize(
    "name", ["quickstart", "w7900d", "endpoint", "corpus", "vllm-cpu", "shared-prefix", "best-demo", "best-vllm", *H200]
)
def test_shipped_sweeps_load_and_survive_a_manifest(name: str) -> None:
    text = (SWEEPS / f"{name}.yaml").read_text()
    up = "../" * name.count("/") or "./"
    assert text.startswith(f"# yaml-language-server: $schema={up}sweep.schema.json\n")
    spec = load_spec(SWEEPS / f"{name}.yaml")
    again = spec_from_mapping(json.loads(spec.model_dump_json()), "manifest.json")
    assert again == spec == pickle.loads(pickle.dumps(spec))  # noqa: S301 # our own
    assert again.engine.other == spec.engine.other
    assert make_plan(again) == make_plan(spec)


def test_the_commented_sweeps_name_every_key() -> None:
    text = (SWEEPS / "endpoint.yaml").read_text() + (SWEEPS / "vllm-cpu.yaml").read_text()
    later = {"axis", "variants", "baseline", "blocks", "cool_to", "fidelity", "profile", "git", "repo", "ref", "build"}
    simulator = {"profile", "scale", "port", "options"}
    for section in [json_schema(), *json_schema()["$defs"].values()]:
        for key, described in section["properties"].items():
            if key not in later | simulator and "of engine kind" not in described["description"]:
                assert re.search(rf"\b{key}\b", text), key


def test_the_schema_file_is_current_and_describes_every_key() -> None:
    schema = json_schema()
    assert json.loads((SWEEPS / "sweep.schema.json").read_text()) == schema
    for section in [schema, *schema["$defs"].values()]:
        assert section["additionalProperties"] is False
        assert all(described.get("description") for described in section["properties"].values())
    references = set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema)))
    assert references <= schema["$defs"].keys()


def refusal(call: Callable[[], object]) -> tuple[Problem, ...]:
    try:
        call()
    except SpecError as error:
        return error.problems
    return ()


def assert_one_line_each(problems: tuple[Problem, ...]) -> None:
    for problem in problems:
        assert problem.message
        assert str(problem).isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["open", "chat"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=3) | st.sampled_from(["kind", "input", "when", "rate"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(sorted(SweepSpec.model_fields)), JSON))
def test_any_data_is_read_or_refused_in_words(data: dict[str, Any]) -> None:
    base = {"name": "s", "model": "m", "engine": {"kind": "simulator"}, "grid": {"input": 1, "output": 1, "batch": 1}}
    assert_one_line_each(refusal(lambda: make_plan(spec_from_mapping(base | data))))


KINDS = {
    "engine": ["simulator", "endpoint", "vllm_serve", "vllm_inprocess"],
    "load": ["static", "closed", "open"],
    "prompts": ["text", "token_ids", "file", "corpus"],
}
SCHEMA = json_schema()
KEYS = [
    (section, key)
    for section, described in SCHEMA["properties"].items()
    for shape in sorted(set(re.findall(r"\$defs/(\w+)", json.dumps(described))))
    for key in SCHEMA["$defs"][shape]["properties"]
]


@given(st.data())
def test_any_value_of_any_key_is_read_or_refused_in_words(data: st.DataObject) -> None:
    kinds = {section: {"kind": data.draw(st.sampled_from(KINDS[section]))} for section in KINDS}
    sweep: dict[str, Any] = {"name": "s", "model": "m", "grid": {"input": 1, "output": 1, "batch": 1}} | kinds
    for section, key in data.draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3)):
        where = data.draw(st.sampled_from(["base", "override", "variant"]))
        value = {key: data.draw(JSON | st.text(st.characters(), max_size=2))}
        if where == "override":
            sweep["overrides"] = [*sweep.get("overrides", []), {"when": {"batch": 1}, section: value}]
        elif where == "variant":
            sweep["variants"] = {"a": {}, "b": {section: value}}
        else:
            was = sweep.get(section)
            sweep[section] = {**was, **value} if isinstance(was, dict) else value
    assert_one_line_each(refusal(lambda: make_plan(spec_from_mapping(sweep))))


@given(
    text=st.text(alphabet=st.sampled_from("ab:,-[]{}&*<!|>'\"#% \n\t\\01.~\x00é"), max_size=40) | st.text(max_size=20),
    option=st.text(alphabet="gridseloa.0=[]:{}", max_size=12),
)
def test_any_text_is_read_or_refused_in_words(tmp_path_factory: pytest.TempPathFactory, text: str, option: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    for content in (text, MINIMAL + text):
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
        assert_one_line_each(refusal(lambda: load_spec(path, [option, f"grid={text}"])))


def test_a_sweep_that_nobody_could_run_is_one_line(load: Any) -> None:
    many = list(range(1, 1001))
    assert [
        message.partition(": ")[2] for message in messages(load, MINIMAL, f"grid.input={many}", f"grid.output={many}")
    ] == ["grid: has 1000000 cells (allowed: 10000 at most)"]
    assert messages(load, MINIMAL, "grid.batch=1000000000")[0].endswith("must be at most 65536, is 1000000000")
