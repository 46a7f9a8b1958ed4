"""What a server is, and what can be checked with it: found out with GETs alone, and never guessed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from answers import CLOSE, Ask, Script, completion, error, head, models, whole
from driving import bench, run_well, write_sweep
from servers import ScriptedServer

from benchbench.engines.simulator import SimulatorProcess
from benchbench.host.local_results import error_text, stored
from benchbench.openai.client import INFO_CHARS, Capabilities, attach
from benchbench.openai.target import Access

NO_METRICS = "no /metrics of vLLM's kind: preemptions, foreign load and prefix hits are not checked"
SECRET = "sk-planted-secret"
PAGE = (Path(__file__).parent / "data" / "vllm-metrics.txt").read_bytes()
METRICS = (head(200, "text/plain", content_length=len(PAGE)) + PAGE,)
NOT_ALLOWED = (whole(405, {"detail": "Method Not Allowed"}),)
# The routes of vLLM 0.32 that are asked, as they answer; the second half is there in its development mode only.
VLLM: Mapping[str, Script] = {
    "/version": (whole(200, {"version": "0.32.0"}),),
    "/metrics": METRICS,
    "/tokenize": NOT_ALLOWED,
}
INFO = {
    "vllm_config": {
        "model_config": {"model": "m", "hf_token": SECRET, "max_model_len": 4096, "revision": None, "seed": 0},
        "scheduler_config": {"max_num_batched_tokens": 2048},
        "quant_config": None,
        "device_config": {},
    },
    "vllm_env": {"VLLM_BUILD_COMMIT": "abc123", "VLLM_IMAGE_TAG": "", "VLLM_USE_DEEP_GEMM": True},
    "system_env": {
        "torch_version": "2.13.0+cpu",
        "rocm_version": None,
        "hip_runtime_version": "N/A",
        "cpu_info": "x" * 10_000,
        "env_vars": f"VLLM_CPU_KVCACHE_SPACE=1\nHF_TOKEN={SECRET}\nCUSTOM={SECRET}\n",
    },
}
DEVELOPMENT = {
    **VLLM,
    "/reset_prefix_cache": NOT_ALLOWED,
    "/server_info?config_format=json": (whole(200, INFO),),
}


def found(routes: Mapping[str, Script], **model: Any) -> Capabilities:
    listed = (models("sim", **{"owner": "vllm", **model}),)
    with ScriptedServer(listed=listed, routes=routes) as server:
        told = attach(server.url, "sim", Access({"Authorization": f"Bearer {SECRET}"}))
        assert not server.asks, "GETs only"
        return told


def test_an_ordinary_vllm_is_known_without_a_note() -> None:
    capabilities = found(VLLM, max_model_len=4096)
    assert capabilities.cache_config is not None
    assert (capabilities.cache_config["enable_prefix_caching"], capabilities.cache_config["block_size"]) == (
        "True",
        "128",
    )
    assert replace(capabilities, cache_config=None) == Capabilities(
        ("sim",),
        4096,
        "vllm",
        "vllm",
        "0.32.0",
        metrics=True,
        prefix_hits=True,
        tokenize=True,
        reset_prefix_cache=False,
        answers_as=("sim",),
    )


def test_vllm_in_its_development_mode_tells_its_configuration_and_no_secret() -> None:
    told = found(DEVELOPMENT)
    assert (told.kind, told.reset_prefix_cache, told.notes) == ("vllm", True, ())
    assert told.server_info is not None
    assert "planted" not in json.dumps(told.server_info)
    config, system = told.server_info["config"], told.server_info["system"]
    assert config.keys() == {"model_config", "scheduler_config"}
    assert config["model_config"] == {"model": "m", "hf_token": "***", "max_model_len": 4096, "seed": 0}
    assert config["scheduler_config"] == {"max_num_batched_tokens": 2048}
    assert system.keys() == {"torch_version", "cpu_info", "env_vars"}
    assert len(system["cpu_info"]) < INFO_CHARS + 10
    assert told.server_info["build"] == {"VLLM_BUILD_COMMIT": "abc123"}


@pytest.mark.parametrize("answer", [b"[]", b"{", b"null", b'{"vllm_config": "VllmConfig(...)", "vllm_env": null}'])
def test_server_info_of_another_form_is_no_error(answer: bytes) -> None:
    page = (head(200, "application/json", content_length=len(answer)) + answer,)
    told = found({**VLLM, "/server_info?config_format=json": page})
    assert told.server_info == ({"config": "VllmConfig(...)"} if b"vllm_config" in answer else None)


def test_a_plain_server_has_one_note() -> None:
    told = found({}, owner="somebody")
    assert (told.kind, told.owned_by, told.version, told.metrics) == ("openai", "somebody", None, False)
    assert (told.tokenize, told.reset_prefix_cache) == (False, False)
    (note,) = told.notes
    assert note.startswith(NO_METRICS)


def test_vllm_under_another_owners_name_is_known_by_its_metrics() -> None:
    assert found(VLLM, owner="acme").kind == "vllm"


@pytest.mark.parametrize("status", [200, 405])
def test_a_server_that_answers_everything_alike_tells_of_no_route(status: int) -> None:
    same = (whole(status, {"hello": 1}),)
    names = ("/version", "/metrics", "/tokenize", "/reset_prefix_cache", "/no-such-route")
    told = found(dict.fromkeys(names, same), owner="x")
    assert (told.version, told.metrics, told.tokenize, told.reset_prefix_cache) == (None, False, None, None)


def test_what_was_told_before_a_server_hangs_up_is_kept() -> None:
    told = found({**VLLM, "/metrics": (CLOSE,)})
    assert (told.version, told.metrics, told.tokenize) == ("0.32.0", False, None)
    assert told.notes[0].startswith(NO_METRICS)


def test_without_a_list_of_models_the_kind_is_not_known() -> None:
    with ScriptedServer(listed=(error(404, "no"),)) as server:
        told = attach(server.url, "sim", Access())
    assert told.kind is None
    assert len(told.notes) == 2


def test_the_simulator_is_no_vllm() -> None:
    with SimulatorProcess("tiny") as server:
        told = attach(server.url, "sim", Access())
    assert told.kind == "benchbench simulator"
    assert (told.metrics, told.tokenize, told.reset_prefix_cache) == (True, True, True)
    assert told.version
    assert told.notes == ()


def test_a_sweep_records_what_it_found_and_says_what_it_cannot_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rounds = {"warmup": 0, "min": 1, "max": 1, "reset_prefix_cache": True}

    def answer(ask: Ask) -> Script:
        return completion(ask) if ask.path == "/v1/completions" else (error(404, "not here"),)

    with ScriptedServer(answer, routes=VLLM) as server:
        result = run_well(server.url, rounds=rounds)
    missing = "rounds.reset_prefix_cache: the server has no such route (vLLM has it in its development mode)"
    assert f"note: {missing}" in result.stderr.splitlines()
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["notes"] == [missing]
    engine = manifest["engine"]
    assert (engine["kind"], engine["version"], engine["reset_prefix_cache"]) == ("vllm", "0.32.0", False)
    assert NO_METRICS not in result.stderr


def test_bench_check_says_what_answers_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ScriptedServer() as server:
        result = bench("check", write_sweep(Path("s.yaml"), server.url), "--seconds", "0.2")
    lines = result.stdout.splitlines()
    assert "server: vllm, version unknown" in lines
    assert "its answers do not report cached tokens (vLLM: --enable-prompt-tokens-details)" in lines
    assert "its answers do not report the server's own times (vLLM: --enable-per-request-metrics)" in lines


@pytest.mark.parametrize(
    ("fault", "output", "code"),
    [
        ({"cached_tokens": 16}, "exact", "cached_prefix"),
        ({"wrong_usage": {"completion_tokens": -1}}, "as_served", "server_count_mismatch"),
    ],
)
def test_bench_check_judges_as_the_sweep_would(
    fault: dict[str, Any], output: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sweep = {
        "name": "s",
        "model": "sim",
        "engine": {"kind": "simulator", "profile": "tiny", "options": {"mean_output_tokens": 1e6, "faults": fault}},
        "output": output,
        "grid": {"input": 64, "output": 8, "batch": 2},
        "prompts": {"vocab": [1000, 2000]},
    }
    Path("s.yaml").write_text(yaml.safe_dump(sweep))
    result = bench("check", "s.yaml", "--seconds", "0.2")
    assert result.exit_code == 1
    assert f"its cells would be invalid: {code}: " in result.stderr
    assert "ready" not in result.stdout


def test_bench_check_self_keeps_the_instruments_error_for_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = bench("check", "--self", "--streams", "2", "--rate", "50", "--seconds", "0.2", "--json")
    ours = json.loads(result.stdout)["benchbench"]
    found = stored()
    assert found is not None
    assert found.items() >= {**ours, "streams": 2, "workers": 1}.items()
    assert error_text(found).endswith("measured on this host at 2 streams and 0.1k tok/s")


def test_bench_check_self_of_two_workers_says_so_and_keeps_the_rate_that_the_server_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load = ("--streams", "4", "--rate", "1000000", "--seconds", "0.00001", "--workers", "2")
    result = bench("check", "--self", *load)
    assert result.exit_code == 0, result.stderr
    assert "truth, 2 workers" in result.stdout
    assert "of the 4000.0k tok/s asked: it is the bottleneck." in result.stdout
    found = stored()
    assert found is not None
    assert found["workers"] == 2
    assert 0 < found["tok_s"] == found["server_tok_s"] < 4e6
    assert error_text(found).endswith(", sent by 2 processes")


ROUTER = b"""# HELP vllm:current_qps Number of current requests
vllm:current_qps{server="http://10.0.0.1:8000"} 1.0
vllm:healthy_pods_total{server="http://10.0.0.1:8000"} 1.0
vllm:healthy_pods_total{server="http://10.0.0.2:8000"} 1.0
"""


@pytest.mark.parametrize(
    ("page", "metrics", "hits"),
    [
        (PAGE, True, True),
        (ROUTER, False, False),
        (b'vllm:generation_tokens{engine="0"} 1\n', True, False),
        (ROUTER * 10_000 + PAGE, True, True),  # longer than is read
    ],
    ids=["vLLM", "a router of several", "an older vLLM", "of very many ranks"],
)
def test_a_page_counts_only_what_it_has_a_counter_for(page: bytes, metrics: bool, hits: bool) -> None:
    server = found({"/metrics": (head(200, "text/plain", content_length=len(page)) + page,)}, owner="x")
    assert (server.metrics, server.prefix_hits) == (metrics, hits)
    assert any(NO_METRICS in note for note in server.notes) == (not metrics)
