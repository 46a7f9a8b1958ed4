"""`bench audit`: the verdict on the published card, consistent tables that it must accept, and mutations of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from driving import bench
from hypothesis import given
from hypothesis import strategies as st
from runs_made import BRANCHES, made_run
from test_table import published

from benchbench import open_run
from benchbench.audit.claims import Claims, claims_of_card, claims_of_csv, claims_of_run
from benchbench.audit.findings import audit
from benchbench.audit.findings_text import audit_markdown
from benchbench.model.accelerators import accelerator
from benchbench.model.config import ModelFacts
from benchbench.report.summary_table import csv_table, markdown_table

HERE = Path(__file__).parent
CARD = HERE / "data" / "published-card.md"
DEVICE = accelerator("W7900D")
DENSE = ModelFacts(parameters=8_000_000_000, active_parameters=8_000_000_000, weight_dtype="bf16", compute_dtype="bf16")
GIB_IN_GB = 1.073741824


@pytest.mark.parametrize(
    ("golden", "options"),
    [("audit_published.md", []), ("audit_published_real.md", ["--parameters", "228.7B", "--active", "10.4B"])],
)
def test_the_published_card(golden: str, options: list[str]) -> None:
    result = bench("audit", CARD, *options)
    assert result.exit_code == 4
    assert result.stdout == (HERE / "golden" / golden).read_text(encoding="utf-8")


def test_the_published_card_by_hand() -> None:
    """The figures of the verdict, from the card's numbers alone: 456 B in INT8, and prompts at 8 x 122.64 TOP/s."""
    claims = claims_of_card(CARD.read_text(encoding="utf-8"))
    findings = {finding.code: finding for finding in audit(claims)}
    assert set(findings) == {"parameters_size", "ttft_bound", "ttft_falls", "decode"}
    assert claims.size == pytest.approx((215e9, 215e9 * GIB_IN_GB))
    assert claims.device is not None
    assert (claims.device.name, claims.count) == ("AMD Radeon PRO W7900D", 8)
    prompt_ms = 2 * 45.9e9 * 1024 / (8 * 122.64e12) * 1e3
    assert f"at least {33 / 2 * prompt_ms:.1f} ms" in findings["ttft_bound"].arithmetic[0]
    assert f"possible with {int(170.8 / (33 / 2 * prompt_ms) * 1024)} of 1024" in findings["ttft_bound"].arithmetic[0]
    assert not any("in=128," in line for line in findings["ttft_bound"].arithmetic)
    lines = CARD.read_text(encoding="utf-8").splitlines()
    places = [number for number, line in enumerate(lines, 1) if line.startswith("| 1024 |")]
    assert [line.split(":")[0] for line in findings["ttft_falls"].arithmetic] == [
        f"in=1024, out=256, batch=32 (line {places[0]})",
        f"in=1024, out=1024, batch=32 (line {places[1]})",
    ]
    assert "215.0 B to 230.9 B" in findings["parameters_size"].arithmetic[0]


def simulated(
    inputs: list[int], outputs: list[int], batches: list[int], slow: float, *, tpot: bool, whole: bool = True
) -> Claims:
    """What a server does that computes prompts one after another and then decodes, `slow` times the least time."""
    assert DEVICE is not None
    weights, kv = 16e9, 131072
    rows = []
    for size in inputs:
        for output in outputs:
            for batch in batches:
                read, token = weights / DEVICE.bandwidth_bytes_s, 16e9 / DEVICE.flop_s["bf16"]
                prompt = slow * (read + size * token)
                context = size + output / 2
                step = slow * (read + batch * token + batch * context * kv / DEVICE.bandwidth_bytes_s)
                ttft, lasts = (batch + 1) / 2 * prompt, batch * prompt + (output - 1) * step
                row: dict[str, Any] = {"input": size, "output": output, "batch": batch, "load": "static"}
                row |= {"ttft_ms": 1e3 * ttft, "sys_tok_s": batch * output / lasts}
                if tpot and output > 1:
                    row["tpot_ms"] = 1e3 * (lasts - ttft) / (output - 1)
                row |= {"e2el_ms": 1e3 * lasts} if whole else {}
                rows.append(row)
    model = replace(DENSE, kv_bytes_per_token=kv)
    return Claims(rows=tuple(rows), model=model, size=(16e9, 16e9), device=DEVICE, count=1)


def axis(least: int, most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(least, most), min_size=1, max_size=3, unique=True)


@given(axis(1, 20000), axis(1, 4000), axis(1, 256), st.floats(1.0, 20.0), st.booleans(), st.booleans())
def test_consistent_tables_have_no_finding(
    inputs: list[int], outputs: list[int], batches: list[int], slow: float, tpot: bool, whole: bool
) -> None:
    assert audit(simulated(inputs, outputs, batches, slow, tpot=tpot, whole=whole)) == []


def scaled(name: str, factor: float, number: int = -1) -> Callable[[Claims], Claims]:
    def change(claims: Claims) -> Claims:
        rows = list(claims.rows)
        rows[number] = {**rows[number], name: rows[number][name] * factor}
        return replace(claims, rows=tuple(rows))

    return change


def of_model(**changes: Any) -> Callable[[Claims], Claims]:
    return lambda claims: replace(claims, model=replace(claims.model, **changes))


@pytest.mark.parametrize(
    ("change", "code", "severity"),
    [
        (scaled("ttft_ms", 0.02), "ttft_bound", "impossible"),
        (scaled("ttft_ms", 0.02), "ttft_falls", "suspicious"),
        (scaled("tpot_ms", 0.05), "tpot_bound", "impossible"),
        (scaled("e2el_ms", 0.01), "e2el_bound", "impossible"),
        (scaled("e2el_ms", 0.01), "e2el", "impossible"),
        (scaled("e2el_ms", 0.8), "e2el", "suspicious"),
        (scaled("e2el_ms", 1.5), "e2el", "suspicious"),
        (scaled("sys_tok_s", 40.0), "sys_tok_s_bound", "impossible"),
        (scaled("sys_tok_s", 1.1), "rate", "impossible"),
        (scaled("sys_tok_s", 0.5), "rate", "suspicious"),
        (scaled("tpot_ms", 0.4), "decode", "suspicious"),
        (scaled("sys_tok_s", 2.5), "scaling", "suspicious"),
        (of_model(parameters=9_000_000_000), "parameters_size", "impossible"),
        (of_model(parameters=3_000_000_000), "parameters_size", "suspicious"),
        (of_model(experts=8, top_k=2, active_parameters=1_000_000_000), "active_share", "impossible"),
        (of_model(active_parameters=9_000_000_000), "active_share", "impossible"),
        (lambda claims: replace(claims, size=(60e9, 60e9)), "memory", "impossible"),
        (lambda claims: replace(claims, device_memory=(24e9, 24e9)), "device_memory", "suspicious"),
    ],
)
def test_each_finding(change: Callable[[Claims], Claims], code: str, severity: str) -> None:
    claims = simulated([128, 2048], [64, 1024], [1, 2], 3.0, tpot=True)
    assert audit(claims) == []
    assert (code, severity) in {(finding.code, finding.severity) for finding in audit(change(claims))}


def test_a_throughput_is_held_against_end_to_end_latencies_alone() -> None:
    table = (
        "| Input | Output | Batch | E2E latency (s) | Tok/s |\n|---|---|---|---|---|\n| 128 | 100 | 8 | {} | 100 |\n"
    )
    assert [finding.code for finding in audit(claims_of_card(table.format("8.0")))] == []
    (found,) = audit(claims_of_card(table.format("9.0")))  # 800 tokens took 8 s
    assert (found.code, found.severity) == ("rate", "impossible")


def test_a_mixture_of_experts_is_not_taken_for_dense() -> None:
    """Without its active parameters there is no bound; with its routing the experts' share is one."""
    claims = simulated([1024], [128], [8], 0.3, tpot=True)
    assert any(finding.code == "ttft_bound" for finding in audit(claims))
    unknown = of_model(architecture="MoE", active_parameters=None)(claims)
    assert audit(unknown) == []
    assert audit(of_model(experts=64, top_k=2)(unknown)) == []
    assert audit(of_model(experts=64, top_k=48)(unknown)) != []


def test_our_own_tables_are_read_back(tmp_path: Path) -> None:
    rows = published()
    keys = ("input", "output", "batch", "load", "ttft_ms", "sys_tok_s")
    card = claims_of_card("Served on 4x NVIDIA H200\n\n" + markdown_table(rows))
    assert [{key: row[key] for key in keys} for row in card.rows] == [{key: row[key] for key in keys} for row in rows]
    assert (card.count, card.notes) == (4, ())
    table = tmp_path / "summary.csv"
    table.write_text(csv_table(rows), encoding="utf-8")
    assert [row["ttft_ms_low"] for row in claims_of_csv(table.read_text()).rows] == pytest.approx(
        [row["ttft_ms_low"] for row in rows]
    )
    assert bench("audit", table).exit_code == 0


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("ISL | OSL | Concurrency | Mean TTFT (s) | Output throughput (tok/s)", "1,024 | 128 | 8 | 0.25* | 1,234.5",
         {"input": 1024, "output": 128, "batch": 8, "load": "closed", "ttft_ms": 250.0, "sys_tok_s": 1234.5}),
        ("Input tokens | Output tokens | Batch size | TTFT | TPOT (ms) | Total tok/s", "8 | 4 | 2 | 1.5 s | 7 | 99",
         {"input": 8, "output": 4, "batch": 2, "load": "static", "ttft_ms": 1500.0, "tpot_ms": 7.0}),
        ("Input | Output | Batch | E2E latency (s) | Throughput", "8 | 4 | 2 | 1.5 | 5",
         {"input": 8, "output": 4, "batch": 2, "load": "static", "e2el_ms": 1500.0, "sys_tok_s": 5.0}),
        ("Input | Output | Batch | Mean E2EL (ms)", "8 | 4 | 2 | 30.0",
         {"input": 8, "output": 4, "batch": 2, "load": "static", "e2el_ms": 30.0}),
        ("Input | Output | Batch | TTFT (ms) | Sys tok/s", "8 | 4 | 2 | ~~3.0~~ | 5",
         {"input": 8, "output": 4, "batch": 2, "load": "static", "sys_tok_s": 5.0}),
    ],
)  # fmt: skip
def test_titles_of_others(header: str, row: str, expected: dict[str, Any]) -> None:
    assert claims_of_card(f"| {header} |\n|{'---|' * header.count('|')}---|\n| {row} |\n").rows == (
        expected | {"line": 3},
    )


def test_tables_of_one_card_are_not_compared() -> None:
    first, second = ("| Input | Output | Batch | TTFT (ms) |\n|---|---|---|---|\n" + row for row in
                     ("| 8 | 4 | 2 | 90 |\n", "| 80 | 4 | 2 | 9 |\n"))  # fmt: skip
    assert audit(claims_of_card(f"{first}\n{second}")) == []
    assert audit(claims_of_card(first + second.splitlines()[2])) != []


@pytest.mark.parametrize(
    ("text", "parameters", "active"),
    [
        ("| Parameters | 456B total, ~45.9B active |", 456e9, 45.9e9),
        ("Parameters: 229 billion (10 B active)", 229e9, 10e9),
        ("# Qwen3-235B-A22B on one node", 235e9, 22e9),
        ("**Total parameters:** 800M", 800e6, None),
        ("A 70B parameter model", 70e9, None),
    ],
)
def test_counts_of_parameters(text: str, parameters: float, active: float | None) -> None:
    model = claims_of_card(text).model
    assert (model.parameters, model.active_parameters) == (parameters, active)


WORDS = ["| Input | Output | Batch | TTFT (ms) | Sys tok/s |\n", "|---|---|---|---|---|\n", "8 x NVIDIA H200", "TP=0",
         "| Parameters |", "| 0 | 5 | 0 | 0.0 | 0 |\n", "9" * 400, "1,000", "B", " total", "W8A8", "W99A1", "top-9",
         " 0 experts", "| Size | 1 GB", "0 GiB", "|", "\n", "~~", "active", "MoE",
         ": ", "| 1 | 1 | 1 | 1 | 1 |\n"]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=30).map("".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (claims_of_card, claims_of_csv):
        try:
            claims = read(text)
        except ValueError:
            continue
        findings = audit(claims)
        lines = audit_markdown(claims, findings, "x").splitlines()
        assert lines[0] == "# Audit of x"
        assert sum(line.startswith("## ") for line in lines) == len(findings)
        assert sum(line.startswith("- ") for line in lines) == sum(len(finding.arithmetic) for finding in findings)
        assert all(1 <= row["line"] <= len(text.splitlines()) for row in claims.rows)


@pytest.mark.parametrize("title", ["Throughput (tok/s)", "Output throughput (tok/s)", "tok/s"])
@pytest.mark.parametrize("load", ["Batch", "Concurrency"])
def test_a_throughput_that_counts_prompt_tokens_is_called_total(title: str, load: str) -> None:
    """8 requests of 1024 + 128 tokens in 0.25 + 127 x 0.01 = 1.52 s: 6,063 tok/s in all, of which 674 are output."""
    card = f"# x\n\n| Input | Output | {load} | TTFT (ms) | TPOT (ms) | {title} |\n|---|---|---|---|---|---|\n"
    (finding,) = audit(claims_of_card(card + "| 1024 | 128 | 8 | 250 | 10 | 6063 |\n"))
    assert (finding.code, finding.severity) == ("total_throughput", "suspicious")
    assert finding.what.startswith("The throughput counts prompt tokens: it is total throughput")
    assert finding.arithmetic[0].startswith(
        "in=1024, out=128, batch=8 (line 5): 8 x (1024 + 128) tokens at 6063.0 tok/s"
    )
    assert finding.arithmetic[0].endswith("output alone is 673.7 tok/s")
    assert audit(claims_of_card(card + "| 1024 | 128 | 8 | 250 | 10 | 674 |\n")) == []
    (finding,) = audit(claims_of_card(card + "| 1024 | 128 | 8 | 250 | 10 | 3000 |\n"))
    assert finding.code == "rate"


def test_lines_of_a_csv_file_are_told() -> None:
    rows = claims_of_csv('Input,Output,Batch,TTFT (ms),Note\n8,4,2,90,"a\nb"\n80,4,2,9,\n').rows
    (finding,) = audit(Claims(rows=rows))
    assert finding.arithmetic[0].startswith("in=80, out=4, batch=2 (line 4): 9.0 ms, but 90.0 ms at in=8")


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("Served with EAGLE-3 and 3 draft tokens", 0.0), ("MTP enabled", 0.0), ("uses Medusa heads", 0.0),
        ("with a draft model", 0.0), ("n-gram speculation", 0.0), ("lookahead decoding", 0.0), ("NEXTN", 0.0),
        ("`--speculative-config '{\"method\": \"ngram\"}'`", 0.0), ("multi-token prediction", 0.0),
        ("without speculative decoding", 1.0), ("Speculative decoding: off", 1.0), ("a draft of this card", 1.0),
        ("eager mode", 1.0),
    ],
)  # fmt: skip
def test_speculative_decoding_by_all_its_names(text: str, passes: float) -> None:
    table = "\n\n| Input | Output | Batch | TTFT (ms) |\n|---|---|---|---|\n| 8 | 4 | 2 | 90 |\n"
    assert claims_of_card(text + table).passes == passes


@pytest.mark.parametrize(
    ("words", "dtypes"),
    [("W8A8 INT8", ("int8", "int8")), ("W4A16", ("int4", None)), ("W8A8 FP8", ("fp8", "fp8")),
     ("W16A16", ("bf16", "bf16"))],
)  # fmt: skip
def test_a_scheme_of_weights_alone_names_no_dtype_of_the_products(words: str, dtypes: tuple[str, str | None]) -> None:
    model = claims_of_card(f"# A 70B parameter model\n\nQuantization: {words}\n").model
    assert (model.weight_dtype, model.compute_dtype) == dtypes


def test_several_tokens_a_pass_are_offered_as_an_explanation_and_undo_the_bound() -> None:
    claims = scaled("tpot_ms", 0.05)(simulated([128, 2048], [64, 1024], [1, 2], 3.0, tpot=True))
    (finding,) = (finding for finding in audit(claims) if finding.code == "tpot_bound")
    assert "speculative" in finding.explanations
    assert not any(finding.code == "tpot_bound" for finding in audit(replace(claims, passes=0.0)))


def test_more_than_evenly_chosen_experts_allow_is_suspicious_not_impossible() -> None:
    model = ModelFacts(parameters=200_000_000_000, active_parameters=10_000_000_000, experts=256, top_k=8,
                       weight_dtype="int8", compute_dtype="int8")  # fmt: skip
    assert DEVICE is not None
    claims = Claims(model=model, device=DEVICE, count=8)
    experts = 190e9 / (1 - 8 / 256)
    step_s = (10e9 + experts * ((1 - (1 - 8 / 256) ** 32) - 8 / 256) - 8 * 96 * 2**20) / (8 * 864e9)
    for share, expected in ((0.98, []), (1.05, ["sys_tok_s_likely"])):
        row = {"input": 1, "output": 4000, "batch": 32, "load": "static", "sys_tok_s": share * 32 / step_s}
        findings = audit(replace(claims, rows=(row,)))
        assert [finding.code for finding in findings] == expected
        assert all(finding.severity == "suspicious" for finding in findings)


def test_a_run_and_its_own_verdict(tmp_path: Path) -> None:
    data = {
        "name": "audited",
        "model": "m",
        "engine": {"kind": "simulator"},
        "grid": {"input": [128, 1024], "output": 8, "batch": 4},
        "rounds": {"warmup": 0, "min": 2},
        "prompts": {"vocab": [1000, 30000]},
    }
    run = made_run(tmp_path / "r", data, lambda cell, *_: (20.0 + cell.input / 100, 10.0))
    assert "**Nothing found**" in bench("audit", run).stdout
    none = made_run(tmp_path / "n", data, lambda *_: "cached_prefix")
    result = bench("audit", none)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "n: no cell is valid: there is nothing to audit" in result.stderr
    bad = made_run(tmp_path / "b", data, lambda cell, *_: "cached_prefix" if cell.input == 128 else (20.0, 10.0))
    result = bench("audit", bad, "--format", "json")
    assert result.exit_code == 0
    finding = json.loads(result.stdout)["findings"][0]
    assert (finding["code"], finding["severity"]) == ("invalid", "suspicious")
    assert "cached_prefix" in finding["arithmetic"][0]


def test_of_variants_with_unlike_models_each_has_its_own_bounds(tmp_path: Path) -> None:
    """A prompt of 1024 tokens through 1 and 100 B parameters at 1 PFLOP/s takes 2 and 205 ms."""
    device = accelerator("H100 SXM")
    assert device is not None
    small, large = (asdict(ModelFacts(parameters=n, active_parameters=n)) for n in (10**9, 10**11))
    facts = {"model_facts": small, "variant_model_facts": {"int8-moe": large}}
    data = {**BRANCHES, "blocks": 2, "grid": {"input": 1024, "output": 8, "batch": 1}}
    hardware = {**asdict(device), "count": 1}
    run = made_run(tmp_path / "r", data, lambda *_: (20.0, 10.0), **facts, accelerator=hardware)
    claims = claims_of_run(open_run(run))
    claims = replace(claims, rows=tuple({**row, "status": "valid", "reasons": ""} for row in claims.rows))  # as claimed
    (finding,) = (finding for finding in audit(claims) if finding.code == "ttft_bound")
    assert [line.partition(",")[0] for line in finding.arithmetic] == ["int8-moe"]
    text = bench("audit", run).stdout
    assert "Variant main: Model: 1.0 B parameters" in text
    assert "Variant int8-moe: Model: 100.0 B parameters" in text
    given = bench("audit", run, "--parameters", "1B", "--active", "1B", "--hardware", "H100 SXM", "--count", "1")
    assert "\nModel: 1.0 B parameters" in given.stdout


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty.md"
    empty.write_text("No table.\n")
    (tmp_path / "bytes.md").write_bytes(b"\x9d\x00")
    for arguments, words in [
        ([tmp_path / "bytes.md"], "bytes.md: is not UTF-8 text"),
        ([empty], "has no table"),
        ([tmp_path / "none.md"], "cannot be read"),
        ([tmp_path / "\n.csv"], "cannot be read"),
        ([tmp_path], "not a run directory"),
        ([CARD, "--parameters", "many"], "allowed: as 456B"),
        ([CARD, "--hardware", "abacus"], "W7900D"),
        ([CARD, "--weights", "int3"], "allowed: fp32"),
        ([CARD, "--model", tmp_path], "config.json: cannot be read"),
    ]:
        result = bench("audit", *arguments)
        assert result.exit_code == 2, result.output
        assert len(result.stderr.splitlines()) == 1
        assert words in result.stderr


FIELDS: list[tuple[str, str, dict[str, float]]] = [
    ("TTFT (\N{MICRO SIGN}s)", "450000", {"ttft_ms": 450.0}),
    ("TTFT (us)", "450000", {"ttft_ms": 450.0}),
    ("TTFT", "450 \N{GREEK SMALL LETTER MU}s", {"ttft_ms": 0.45}),
    ("TTFT", "0.45 seconds", {"ttft_ms": 450.0}),
    ("TTFT (s)", "450 ms", {"ttft_ms": 450.0}),
    ("TTFT (min)", "1.5", {"ttft_ms": 90_000.0}),
    ("TTFT (ms)", "450 (430-470)", {"ttft_ms": 450.0}),
    ("TTFT (ms)", "450 \N{PLUS-MINUS SIGN} 3", {"ttft_ms": 450.0}),
    ("TTFT (ms)", "<450", {}),
    ("TTFT (ms)", "430-470", {}),
    ("TTFT (ms)", "68,5", {}),
    ("TTFT (ms)", "1.234,5", {}),
    ("Tok/s", "1.2k", {"sys_tok_s": 1200.0}),
    ("Tok/s", "1 200", {"sys_tok_s": 1200.0}),
    ("Tok/s", "1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567", {"sys_tok_s": 1_234_567.0}),
    ("Tok/s", "1'200", {"sys_tok_s": 1200.0}),
    ("Tok/s", "1e3", {}),
    ("Tok/s", "~1,200 tok/s", {"sys_tok_s": 1200.0}),
]


@pytest.mark.parametrize(("title", "field", "values"), FIELDS)
def test_a_field_is_read_in_its_own_unit_or_not_at_all(title: str, field: str, values: dict[str, float]) -> None:
    """Beside it a field that is always read, so that the row is there."""
    head = f"| Input | Output | Batch | {title} | E2E latency (s) |\n|---|---|---|---|---|\n"
    (row,) = claims_of_card(f"{head}| 128 | 256 | 8 | {field} | 9 |\n").rows
    assert {name: row[name] for name in ("ttft_ms", "sys_tok_s") if name in row} == pytest.approx(values)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("1K", 1024), ("8k", 8192), ("128K tokens", 131_072), ("10K", 10_000), ("1.5k", 1500), ("1 024", 1024)],
)
def test_thousands_of_tokens(text: str, tokens: int) -> None:
    (row,) = claims_of_card(f"| ISL | OSL | Batch | TTFT (ms) |\n|---|---|---|---|\n| {text} | {text} | 8 | 9 |\n").rows
    assert (row["input"], row["output"]) == (tokens, tokens)


def test_a_range_of_batches_is_no_batch() -> None:
    (row,) = claims_of_card("| ISL | OSL | Batch | TTFT (ms) |\n|---|---|---|---|\n| 128 | 128 | 1-32 | 9 |\n").rows
    assert "batch" not in row
