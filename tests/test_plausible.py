"""Result files whose own figures show that a unit is another, that nothing was streamed, or that a load was none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from test_imports import DATA, only, whole

from benchbench.plausible.loads import was_another

Data = dict[str, Any]


def plain(name: str) -> Data:
    """A file without the times of each request."""
    return {key: value for key, value in whole(name).items() if not isinstance(value, list)}


def sglang() -> Data:
    data: Data = json.loads((DATA / "sglang.jsonl").read_text().splitlines()[0])
    return data


def in_seconds(data: Data, *keys: str) -> Data:
    def scaled(value: Any) -> Any:
        return [*map(scaled, value)] if isinstance(value, list) else value * 1e3

    return data | {key: data[key] / 1e3 if key.endswith("_ms") else scaled(data[key]) for key in keys}


def guidellm(strategy: Data | None = None, **changes: float) -> Data:
    """A report; `changes`: metric -> factor of its mean alone."""
    data = copy.deepcopy(whole("guidellm"))
    (benchmark,) = data["benchmarks"]
    benchmark["config"]["strategy"] = strategy or benchmark["config"]["strategy"]
    for name, factor in changes.items():
        benchmark["metrics"][name]["successful"]["mean"] *= factor
    return data


TIMES = ("mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms")
WRONG: dict[str, tuple[Callable[[], Data], str]] = {
    "all means in s": (lambda: in_seconds(plain("vllm-python"), *TIMES), "a mean TPOT of 0.00511073 ms is shorter"),
    "a mean in s": (lambda: guidellm(time_to_first_token_ms=1e-3), "mean TTFT is far from its percentiles"),
    "a tail in s": (
        lambda: in_seconds(plain("vllm-python"), "p90_tpot_ms", "p99_tpot_ms"),
        "mean TPOT is far from its percentiles",
    ),
    "percentiles in another order": (
        lambda: plain("vllm-python") | {"median_ttft_ms": 90.0, "p90_ttft_ms": 30.0, "p99_ttft_ms": 40.0},
        "TTFT's percentiles do not rise",
    ),
    "TTFT of each request in ms": (
        lambda: in_seconds(whole("vllm-python"), "ttfts"),
        "the mean of each TTFT is far from the stated one",
    ),
    "gaps in ms": (lambda: in_seconds(whole("vllm-python"), "itls"), "the rate by the times of requests is far"),
    "starts in ms": (lambda: in_seconds(whole("vllm-python"), "start_times"), "the rate by the times of requests"),
}


@pytest.mark.parametrize(("made", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_file_with_another_unit_is_refused(made: Callable[[], Data], words: str) -> None:
    with pytest.raises(ValueError, match=f"{words}.*a unit is another one, or the file is wrong"):
        only(made())


@pytest.mark.parametrize("name", ["vllm-python", "vllm-rust", "aiperf", "guidellm"])
def test_what_the_tools_wrote_themselves_is_read(name: str) -> None:
    assert only(whole(name)).load == "closed"


@pytest.mark.parametrize(
    "made",
    [
        lambda: plain("vllm-python") | {"mean_ttft_ms": plain("vllm-python")["mean_e2el_ms"], "mean_tpot_ms": 0.0},
        lambda: sglang() | {"mean_ttft_ms": sglang()["mean_e2e_latency_ms"], "mean_tpot_ms": 0.0},
    ],
    ids=["vllm", "sglang"],
)
def test_of_answers_that_were_not_streamed_there_is_no_ttft(made: Callable[[], Data]) -> None:
    result = only(made())
    assert result.values["e2el_ms"] > 0
    assert not [name for name in result.values if name.startswith(("ttft", "itl", "tpot"))]


@pytest.mark.parametrize(
    "made",
    [
        lambda: guidellm({"type_": "throughput"}),  # which sends no more than its own limit at once
        lambda: sglang() | {"max_concurrency": None},
        lambda: (
            whole("aiperf")
            | {"input_config": {"phases": [{"type": "concurrency", "concurrency": 32, "kind": "profiling"}]}}
        ),
        lambda: guidellm({"type_": "concurrent", "streams": 16}),
    ],
    ids=["GuideLLM's throughput", "SGLang's", "AIPerf's", "GuideLLM's streams"],
)
def test_requests_that_were_not_sent_at_once_are_no_static_batch(made: Callable[[], Data]) -> None:
    result = only(made())
    assert (result.load, result.batch, "sys_tok_s" in result.values) == ("ramp", None, False)
    assert "of 16 in flight" in result.variant


@pytest.mark.parametrize(
    ("load", "seconds", "another"),
    [
        (("static", 8, None), 1.4, False),
        (("static", 8, None), 1.6, True),
        (("closed", 4, None), 2.1, False),
        (("closed", 4, None), 6.1, True),
        (("open", None, 2.0), 60.0, False),
    ],
)
def test_a_load_is_another_by_its_own_times(
    load: tuple[str, int | None, float | None], seconds: float, another: bool
) -> None:
    """8 requests of 1 s each: all at once they take 1 s, 4 at a time 2 s."""
    told = {"ttft_ms": 100.0, "tpot_ms": 100.0, "round_s": seconds}
    whole_answers = {"e2el_ms": 1000.0, "e2el_ms_p99": 1000.0, "round_s": seconds}
    for values in (told, whole_answers):
        assert bool(was_another(load, values, 8, 10.0)) == another
    assert was_another(load, {"round_s": seconds}, 8, 10.0) == ""
