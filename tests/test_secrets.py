"""No planted secret survives, wherever it stands; what only looks like one at a glance stays readable."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchbench.secrets import MASK, is_sensitive, mask_text, masked, secrets_of

# As keys look; the beginning occurs in nothing else that these tests write.
SECRETS = st.text(string.ascii_letters + string.digits + "+/=_.~-", min_size=6, max_size=40).map("Zq".__add__)
NAMES = st.sampled_from(
    ["api_key", "api-key", "HF_TOKEN", "hf-token", "VLLM_API_KEY", "password", "DB_PWD", "X-Api-Key", "clientSecret"]
) | st.sampled_from(["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "authToken", "db.password", "GITHUB_PAT"])
# Texts that hold a secret under a telling name: commands, logs of Python programs, headers, URLs.
TEXTS: list[Callable[[str, str], str]] = [
    lambda _, secret: f"curl -H 'Authorization: Bearer {secret}' http://h",
    lambda _, secret: f"Authorization: Token {secret}",
    lambda _, secret: f"http://user:{quote(secret, '')}@host/v1",
    lambda name, secret: f"see https://h/p?x=1&{name}={quote(secret, '')}&y=2",
    lambda name, secret: f"vllm serve m --{name} {secret} --port 1",
    lambda name, secret: f"vllm serve m --{name} 'one' {secret}",
    lambda name, secret: f"vllm serve m --{name}={secret} --port 1",
    lambda name, secret: f"{name}={secret} vllm serve m",
    lambda name, secret: f"INFO [x.py:1] args: {{'port': 1, '{name}': ['one', '{secret}'], 'max_tokens': 5}}",
    lambda name, secret: f"Config(model='m', {name}='{secret}', seed=0)",
    lambda name, secret: f"Config(model='m', {name}={secret})",
    lambda name, secret: json.dumps({"a": 1, name: secret, "b": 2}),
    lambda name, secret: f"{name}: {secret}\nnext line",
]
# Places in JSON, as in a sweep's engine or a process's command.
PLACES: list[Callable[[str, str], Any]] = [
    *[lambda name, secret, text=text: {"note": text(name, secret)} for text in TEXTS],
    *[lambda name, secret, text=text: ["sh", "-c", text(name, secret)] for text in TEXTS],
    lambda name, secret: {name: secret},
    lambda name, secret: {"env": {name: secret, "HOME": "/h"}},
    lambda name, secret: {"args": {name: ["one", secret], "port": 1}},
    lambda name, secret: {name: {"deep": [{"er": secret}]}},
    lambda name, secret: ["vllm", "serve", f"--{name}", secret, "--port", "1"],
    lambda name, secret: ["vllm", "serve", f"--{name}", "one", secret],
    lambda name, secret: ["vllm", "serve", f"--{name}={secret}", "--port", "1"],
    lambda name, secret: ["docker", "run", "-e", f"{name}={secret}", "image"],
    lambda name, secret: ["docker", "run", f"-e{name}={secret} and more", "image"],
    lambda name, secret: ["x", "--header", f"{name}: {secret}"],
]


def nested(value: Any, path: list[str | int]) -> Any:
    for step in path:
        value = {step: value, "other": 1} if isinstance(step, str) else [*range(step), value]
    return value


@given(st.sampled_from(PLACES), NAMES, SECRETS, st.lists(st.sampled_from(["engine", "command", "x", 0, 2]), max_size=3))
def test_a_planted_secret_survives_nowhere(
    place: Callable[[str, str], Any], name: str, secret: str, path: list[str | int]
) -> None:
    found = json.dumps(masked(nested(place(name, secret), path)))
    assert "Zq" not in found
    assert MASK in found


@given(st.sampled_from(TEXTS), NAMES, SECRETS)
def test_a_line_of_a_log_loses_it_too(text: Callable[[str, str], str], name: str, secret: str) -> None:
    assert "Zq" not in mask_text(text(name, secret))


@given(st.text(), SECRETS, st.text(), st.integers(8, 50))
def test_a_known_secret_is_hidden_in_any_text_also_when_it_was_cut_off(
    before: str, secret: str, after: str, length: int
) -> None:
    cut = secret[: max(8, length)]
    assert cut[:8] not in mask_text(f"{before}{cut}{after}", {secret, "other secret"})
    assert mask_text(f"refused: {secret}!", [secret]) == f"refused: {MASK}!"


@pytest.mark.parametrize(
    "text",
    [
        "GPU KV cache size: 1,048,576 tokens, Maximum concurrency for 4,096 tokens per request: 256.00x",
        "Avg prompt throughput: 10.0 tokens/s, Running: 4 reqs",
        "{'max_num_batched_tokens': 8192, 'api_key': None, 'skip_tokenizer_init': False, 'tokenizer': 'm'}",
        "KeyError: 'model'",
        "the model's maximum context length is 4096 tokens (max_tokens=5000)",
        "http://127.0.0.1:8000/v1?model=m",
        "--max-num-batched-tokens 8192 --tokenizer m --ssl-keyfile key.pem",
        "keys and tokens are words",
        "a secret: \nValueError: no such layer\n",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert mask_text(text) == text
    assert masked(text.split()) == text.split()


def test_names_that_tell() -> None:
    assert all(
        map(is_sensitive, ["key", "API_KEYS", "--hf-token", "accessToken", "passwd", "Proxy-Authorization", "PAT"])
    )
    assert not any(
        map(is_sensitive, ["tokenizer", "keyfile", "monkey", "path", "api_key_env", "headers_env", "token_ids"])
    )
    assert [is_sensitive("max_tokens", value) for value in (5, "5", "sk-1")] == [False, False, True]
    assert not is_sensitive("use_auth", True)  # noqa: FBT003 - a value
    assert masked({"api_key": 12345, "trust_key": False, "token": None}) == {
        "api_key": MASK, "trust_key": False, "token": None,
    }  # fmt: skip


def test_the_secrets_of_an_environment() -> None:
    env = {"HF_TOKEN": "hf_12345678", "API_KEY": "1", "HOME": "/home/key", "OPENAI_API_KEY": "sk-abcdefgh"}
    env |= {"PWD": "/some/folder", "TLS_KEY": __file__, "SSH_AUTH": "/no/such/"}
    assert secrets_of(env) == {"hf_12345678", "sk-abcdefgh", "/no/such/"}
    assert masked(["echo", "hf_12345678"], secrets=secrets_of(env)) == ["echo", MASK]


def test_secrets_stay_out_of_the_manifest() -> None:
    spec = {
        "model": "m",
        "key": "hunter2",
        "engine": {
            "url": "https://user:hun/a?api_key=hunter2&model=m",
            "proxy": "http://us:hunter2@proxy:3128",
            "mirrors": ["http://a:hunter@2@h/x@y", "https://h/x?mail=a@b"],
            "api_key_env": "OPENAI_API_KEY",
            "headers_env": {"Authorization": "MY_TOKEN", "X-Api-Key": "OTHER_KEY"},
            "env": {"HF_TOKEN": "hunter2", "HOME": "/home"},
            "extra_body": {"apiKey": "hunter2", "X-Auth-Token": "hunter2", "max_tokens": 5, "tokenizer": "t"},
            "secrets": [{"one": "hunter2"}, "hunter2", {"deep": {"er": ("hunter2",)}}],
        },
        "seed": 0,
        "none": None,
    }
    found = masked(spec)
    assert "hunter" not in str(found)
    engine = found["engine"]
    assert engine["url"] == f"https://user:hun/a?api_key={MASK}&model=m"
    assert engine["proxy"] == f"http://{MASK}@proxy:3128"
    assert engine["mirrors"] == [f"http://{MASK}@h/x@y", "https://h/x?mail=a@b"]
    assert engine["api_key_env"] == "OPENAI_API_KEY"
    assert engine["headers_env"] == spec["engine"]["headers_env"]  # type: ignore[index]
    assert engine["env"] == {"HF_TOKEN": MASK, "HOME": "/home"}
    assert engine["extra_body"] == {"apiKey": MASK, "X-Auth-Token": MASK, "max_tokens": 5, "tokenizer": "t"}
    assert engine["secrets"] == [{"one": MASK}, MASK, {"deep": {"er": [MASK]}}]
    assert (found["model"], found["key"], found["seed"], found["none"]) == ("m", MASK, 0, None)


@pytest.mark.parametrize("name", ["key", "sig", "access_token", "X-Amz-Credential", "passwd", "client_secret", "auth"])
def test_telling_queries_are_masked(name: str) -> None:
    assert masked(f"http://h/p?x=1&{name}=hunter2&y=2") == f"http://h/p?x=1&{name}={MASK}&y=2"
    assert masked(f"see http://h/p?{name}=hunter2 for more") == f"see http://h/p?{name}={MASK} for more"
