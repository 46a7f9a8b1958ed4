"""Sections of a model card: written where they belong, the same again, and nothing else touched."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from driving import bench
from hypothesis import given
from hypothesis import strategies as st
from runs_made import BRANCHES, FAILED, made_run
from test_table import row

from benchbench import open_run
from benchbench.cli import publish
from benchbench.errors import CardError
from benchbench.provenance.labels import provenance, provenance_text, setting
from benchbench.publish.card import SECTIONS, performance_section, with_sections
from benchbench.report.summary_table import table_parts

BEGIN, END = "<!-- bench:performance -->", "<!-- /bench:performance -->"
CARD = f"---\nlicense: mit\n# no heading\n---\n# M\n\n## Performance\n\n{BEGIN}\nold\n{END}\n\n## License\ntext"


def put(card: str, text: str = "new", after: str | None = None) -> str:
    return with_sections(card, {"performance": text}, after)


def test_only_what_stands_between_the_markers_changes() -> None:
    made = put(CARD)
    head, body, tail = re.split(f"{re.escape(BEGIN)}\n|\n{re.escape(END)}", made)
    assert (head, tail) == (CARD.partition(BEGIN)[0], CARD.partition(END)[2])
    assert body.endswith("\n\nnew\n")
    assert "old" not in made
    assert put(made) == made


def test_a_section_without_markers_is_put_behind_a_heading_and_then_stays_there() -> None:
    card = "# M\n\n## Performance\nTo be said.\n\n## License\n"
    made = put(card, after="## Performance")
    assert made.startswith(f"# M\n\n## Performance\n\n{BEGIN}\n<!-- Written by bench publish")
    assert made.endswith(f"\n\nnew\n\n{END}\n\nTo be said.\n\n## License\n")
    assert put(made, after="## Performance") == made == put(made)
    both = with_sections(made, {"performance": "new", "model": "sizes"}, "## License")
    assert both.startswith(made)
    assert "\n## License\n\n<!-- bench:model -->\n" in both
    assert both.endswith("\n\nsizes\n\n<!-- /bench:model -->\n")


@pytest.mark.parametrize("card", ["# M", "# M\r\n", "# M\r\ntext", "# M\n\ntext\n", "\ufeff# N\n# M"])
def test_line_ends_stay_as_they_are(card: str) -> None:
    made = put(card, "a\nb", after="# M")
    windows = "\r\n" in card
    assert made.startswith(card if card.endswith("# M") else card[: card.index("# M") + 3])
    assert made.endswith("\n") == (card.endswith("\n"))
    assert bool(re.search(r"[^\r]\n", made)) != windows
    assert put(made, "a\nb") == made


def test_a_marker_may_follow_a_byte_order_mark_and_stand_shown_in_html() -> None:
    made = put(f"\ufeff{BEGIN}\nold\n{END}\nrest\n")
    assert made.startswith(f"\ufeff{BEGIN}\n")
    assert made.endswith(f"\nnew\n\n{END}\nrest\n")
    shown = f"<pre>\n{BEGIN}\nkept\n{END}\n</pre>\n\n"
    assert put(f"{shown}{BEGIN}\nold\n{END}\n").startswith(shown + BEGIN)


@pytest.mark.parametrize(
    ("card", "after", "said"),
    [
        ("# M\n", None, r'has no <!-- bench:performance --> \(--after "## Performance" puts it'),
        (f"```\n{BEGIN}\n{END}\n```\n", None, "has no <!-- bench:performance -->"),
        (f"---\na: |\n  x\n{BEGIN}\n{END}\n---\n", None, "has no <!-- bench:performance -->"),
        (f"<!--\n{BEGIN}\n", None, "has no <!-- bench:performance -->"),
        (f"~~~~ text\n~~~\n{BEGIN}\n{END}\n", None, "has no <!-- bench:performance -->"),
        (f"{BEGIN}\n", None, "line 1: bench:performance has no end"),
        (f"a\n{END}\n", None, "line 2: <!-- /bench:performance --> ends a section that does not begin"),
        (f"{BEGIN}\n{END}\n\n{BEGIN}\n{END}\n", None, r"line 4: a second bench:performance \(the first: line 1\)"),
        (f"{BEGIN}\n{BEGIN}\n{END}\n", None, "line 2: bench:performance begins before bench:performance of line 1"),
        (f"<!-- bench:model -->\n{END}\n", None, "line 2: .* ends a section that does not begin"),
        ("<!-- bench:speed -->\n", None, r"unknown section bench:speed \(allowed: performance, model, "),
        ("# M\n## P\n", "## Performance", r"has no heading '## Performance' \(allowed: # M, ## P\)"),
        ("# M\n", "Performance", "must be a heading's line"),
        ("# M\n```\n# P\n```\n", "# P", "has no heading '# P'"),
        ("# M\na\n# M\n", "# M", "line 3: a second heading"),
        ("<!-- bench:model -->\n# M\n<!-- /bench:model -->\n", "# M", "stands inside a section of bench"),
    ],
)
def test_a_card_that_cannot_be_changed_is_refused(card: str, after: str | None, said: str) -> None:
    with pytest.raises(CardError, match=said):
        put(card, after=after)


def test_a_text_that_would_hide_its_own_markers_is_refused() -> None:
    for text in ("```", END, f"{END}\n{BEGIN}", "<!-- bench:speed -->", "<!-- open"):
        with pytest.raises(CardError):
            put(CARD, text)


_LINES = st.sampled_from(
    ["", "text", "# H", "```", "~~~", "````py", "---", "<!-- c -->", "    " + BEGIN, f"see `{BEGIN}`", "a\x0cb\u2028c",
     "| a | b |", "\ufeff", "- x", "<!-- /bench", "\\"]
)  # fmt: skip


@given(st.lists(_LINES), st.lists(_LINES), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_no_surroundings_are_touched(before: list[str], behind: list[str], end: str, whole: bool) -> None:
    head = "".join(line + end for line in before)
    tail = end + end.join(behind) + (end if whole else "")
    card = f"{head}{BEGIN}{end}old{end}{END}{tail}"
    try:
        made = put(card)
    except CardError:  # the markers are code, front matter or comment here
        assert any(line.startswith(("```", "~~~", "````", "---", "<!-- /bench")) for line in before)
        return
    assert made.startswith(f"{head}{BEGIN}{end}<!-- Written")
    assert made.endswith(f"{end}new{end}{end}{END}{tail}")
    assert put(made) == made


HOSTILE = st.one_of(
    st.text(st.characters(codec="utf-8")),
    st.sampled_from(["-->", "<!--", END, BEGIN, f"\n{END}\n", "```", "|", "\n---\n", "<script>", "`", "~~~\n", "# H"]),
)


def manifest(**more: Any) -> dict[str, Any]:
    spec = {"name": "n", "model": "m/M", "engine": {"kind": "endpoint", "url": "http://h"}, "seed": 0, "variants": {}}
    return {"spec": spec, "starts": [], "plan": [], "created_ns": 1_795_469_502 * 10**9, **more}


def run_of(manifest: dict[str, Any]) -> Any:
    directory = SimpleNamespace(is_edited=lambda: False)
    return SimpleNamespace(manifest=manifest, has_records=True, imported=None, name="n", rows=[], directory=directory)


@given(HOSTILE, HOSTILE, HOSTILE)
def test_no_name_breaks_out_of_its_section(model: str, variant: str, reasons: str) -> None:
    rows = [row((8, 8, 1), 1.0, 2.0, variant=variant, reasons=reasons, status="suspect")]
    facts = manifest(caption=[model], engine={"kind": variant, "version": reasons})
    facts["spec"] |= {"model": model, "hardware": {"name": reasons, "count": 2}}
    text = performance_section(run_of(facts), table_parts(rows, ["variant", "reasons", "sys_tok_s"]))
    made = put(CARD, text)
    assert (made[: made.index(BEGIN)], made[made.rindex(END) :]) == (CARD[: CARD.index(BEGIN)], CARD[CARD.index(END) :])
    assert put(made, text) == made
    inside = made[made.index(BEGIN) + len(BEGIN) : made.rindex(END)].replace("is lost. -->", "", 1)
    assert "-->" not in inside
    assert [len(re.findall(r"(?<!\\)\|", line.replace("\\\\", ""))) for line in text.split("\n")[2:5]] == [4, 4, 4]


# ---- What a run was made with --------------------------------------------------------------------------------


def launched(variant: str, *flags: str, commit: str = "a" * 40) -> dict[str, Any]:
    argv = ["/opt/venv/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model", "m/M", *flags]
    side = {
        "vllm": {"version": "0.32.0", "commit": commit},
        "torch": {"version": "2.9.0+rocm6.4"},
        "env": {"VLLM_X": "1", "PYTHONPATH": "/home/me", "CUDA_VERSION": "13", "NVIDIA_REQUIRE_CUDA": "cuda>=13"},
    }
    return {
        "variant": variant, "block": 0, "argv": [*argv, "--host", "127.0.0.1", "--port", "40111"],
        "env": {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}, "engine": {"kind": "vllm", "version": "0.32.0"},
        "environment": side,
    }  # fmt: skip


GPUS = [
    {"device": f"gpu{k}", "name": "AMD Radeon PRO W7900D", "driver": "6.12.12", "memory_total_bytes": 48 * 2**30}
    for k in range(8)
]


def test_provenance_of_a_launched_server() -> None:
    start = launched("", "--tensor-parallel-size", "8", "--load-format=dummy")
    start["backends"] = {"attention backend": ["TRITON_ATTN"], "MoE backend": ["TRITON", "AITER"]}
    devices = [gpu | {"gfx": "gfx1100"} for gpu in GPUS]
    facts = manifest(starts=[start], engine=start["engine"], engine_environment=start["environment"], devices=devices)
    facts["host"] = {**(facts.get("host") or {}), "drivers": {"amdgpu": "6.12.12", "rocm": "7.0.1"}}
    facts["spec"]["engine"] = {"kind": "vllm_serve"}
    run = run_of(facts)
    assert setting(run) == "8x AMD Radeon PRO W7900D (48 GiB each), vLLM 0.32.0 with TP=8"
    told = dict(provenance(run))
    assert told["Engine"] == "vLLM 0.32.0 (commit aaaaaaaaaaaa, torch 2.9.0+rocm6.4)"
    assert told["Flags"] == (
        "--model m/M --tensor-parallel-size 8 --load-format=dummy, with VLLM_X=1 VLLM_WORKER_MULTIPROC_METHOD=spawn"
    )
    assert told["Weights"] == "dummy (random): no real model"
    assert told["Kernels"] == "attention backend TRITON_ATTN, MoE backend TRITON and AITER"
    assert told["Hardware"] == "8x AMD Radeon PRO W7900D (48 GiB each), gfx1100, driver 6.12.12, ROCm 7.0.1"
    assert told["Date"] == "2026-11-23 UTC"
    assert "/" not in provenance_text(run).replace("m/M", "")  # no path of anybody's machine


def test_provenance_of_variants_says_what_each_has() -> None:
    starts = [launched("main", "-tp=4"), launched("new", "-tp=4", "--x", commit="b" * 40)]
    facts = manifest(starts=starts, devices=GPUS[:1], variants={"new": {"ref": "feat/x", "commit": "b" * 40}})
    facts["spec"] |= {"engine": {"kind": "vllm_serve"}, "variants": {"main": {}, "new": {}}}
    told = dict(provenance(run_of(facts)))
    assert told["Engine (new)"] == "vLLM 0.32.0 (commit bbbbbbbbbbbb, torch 2.9.0+rocm6.4)"
    assert told["Source (new)"] == "feat/x at commit bbbbbbbbbbbb"
    assert told["Source (main)"] == "unknown"
    assert {"Engine", "Flags"}.isdisjoint(told)
    assert setting(run_of(facts)) == "1x AMD Radeon PRO W7900D (48 GiB), vLLM 0.32.0 with TP=4"


def test_what_an_endpoint_does_not_tell_is_not_known() -> None:
    run = run_of(manifest(engine={"kind": "openai", "version": None}))
    assert setting(run) == "unknown hardware, OpenAI endpoint, version unknown"
    told = dict(provenance(run))
    assert told["Engine"] == "OpenAI endpoint, version unknown (commit unknown)"
    assert [told[name] for name in ("Flags", "Hardware", "Host", "Load", "Rounds")] == ["unknown"] * 5
    assert told["Instrument error"].startswith("not measured")


def test_an_imported_run_names_its_files() -> None:
    files = [{"name": "a.json", "tool": "AIPerf", "version": "0.13.0", "date": "2026-11-23", "sha256": "ab" * 32}]
    run = run_of(manifest(caption=["Imported."]))
    run.imported = {"files": files}
    assert setting(run) == "unknown hardware, imported from AIPerf 0.13.0"
    told = dict(provenance(run))
    assert list(told) == ["Model", "File", "Tool", "Note"]
    assert told["File"] == "a.json (AIPerf, 0.13.0, of 2026-11-23; sha256 abababababab)"


# ---- The command ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two variants whose numbers are known."""
    data = {**BRANCHES, "blocks": 3, "grid": {"input": 128, "output": 8, "batch": [1, 4]}}
    return made_run(tmp_path_factory.mktemp("run") / "r", data, lambda cell, *_: (50.0 + cell.batch, 10.0))


def test_publish_writes_once_keeps_mode_and_link_and_check_sees_a_hand(stored: Path, tmp_path: Path) -> None:
    card, link = tmp_path / "card.md", tmp_path / "README.md"
    card.write_text("# M\n\n## Performance\n")
    card.chmod(0o640)
    link.symlink_to("card.md")
    asked = ("publish", stored, "--card", link, "--after", "## Performance")
    told = bench(*asked, "--dry-run")
    assert (told.exit_code, card.read_text()) == (0, "# M\n\n## Performance\n")
    assert "+| int8-moe | 128 | 8 | 4 | 54.0 |" in told.stdout
    assert bench(*asked, "--check").exit_code == 4
    assert bench(*asked).exit_code == 0
    text = card.read_text()
    assert "Throughput of the embedded simulator (profile fixed), no measurement of hardware:" in text
    assert stat.S_IMODE(card.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "card.md"]
    before = card.stat()
    assert "nothing to change" in bench(*asked).stdout
    assert (card.read_text(), card.stat().st_ino) == (text, before.st_ino)
    assert bench(*asked, "--check").exit_code == 0
    card.write_text(text.replace("| 54.0 |", "| 45.0 |", 1))
    edited = bench(*asked, "--check")
    assert edited.exit_code == 4
    assert "-| main | 128 | 8 | 4 | 45.0 |" in edited.stdout
    assert edited.stderr == f"bench publish: {link}: performance differs from what {stored} gives\n"


def test_publish_of_some_cells_of_a_pivot_and_of_the_comparison(stored: Path, tmp_path: Path) -> None:
    card = tmp_path / "c.md"
    card.write_text("# M\n")
    asked = ("--card", card, "--after", "# M")
    assert bench("publish", stored, *asked, "--only", "batch=4,variant=main", "--only", "batch=1").exit_code == 0
    assert len(re.findall(r"^\| (main|int8-moe) ", card.read_text(), re.MULTILINE)) == 3
    assert bench("publish", stored, *asked, "--pivot", "batch:ttft_ms").exit_code == 0
    assert "| main | 128 | 8 | 51.0 | 54.0 |" in card.read_text()
    assert "| Metric |" not in card.read_text()
    assert bench("publish", stored, *asked, "--section", "comparison").exit_code == 0
    assert "| main | 128 | 8 | 51.0 | 54.0 |" in card.read_text()
    assert "| Metric | Input | Output | Batch | main | int8-moe | Ratio |" in card.read_text()


def test_a_table_for_a_jobs_summary_and_a_pivot_for_programs(stored: Path) -> None:
    text = bench("table", stored, "--format", "github").stdout
    assert text.startswith("### branches\n\n- Peak throughput: ")
    assert "Engine: embedded simulator (profile fixed); Hardware: none: simulated; " in text
    told = bench("table", stored, "--pivot", "batch:ttft_ms", "--format", "csv").stdout.split("\n")
    assert told[0] == "variant,input,output,ttft_ms batch=1,ttft_ms batch=4"
    assert [line.split(",")[0] for line in told[1:3]] == ["main", "int8-moe"]  # as in the sweep
    assert bench("table", stored, "--pivot", "batch:ttft_ms", "--format", "csv", "--include-invalid").exit_code == 2


def test_the_command_knows_the_sections() -> None:
    assert SECTIONS == publish.SECTIONS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "has no <!-- bench:performance -->"),
        (("--only", "batch=99"), "batch=99: selects none of the 4 cells"),
        (("--columns", "speed"), "unknown column 'speed'"),
        (("--pivot", "batch:ttft_ms", "--columns", "batch"), "give one of them"),
        (("--section", "model"), "--section model: needs --model FOLDER"),
        (("--section", "evaluation"), "--section evaluation: needs --evaluation FOLDER"),
    ],
)
def test_what_cannot_be_published_is_one_line_and_changes_nothing(
    stored: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    card = tmp_path / "c.md"
    card.write_bytes(b"# M\r\n")
    told = bench("publish", stored, "--card", card, *words)
    assert told.exit_code == 2
    assert said in told.stderr
    assert told.stderr.count("\n") == 1
    assert card.read_bytes() == b"# M\r\n"


def test_a_run_without_a_valid_cell_leaves_a_good_card_alone(stored: Path, tmp_path: Path) -> None:
    spoiled = made_run(tmp_path / "spoiled", BRANCHES, lambda *_: FAILED)
    card = tmp_path / "c.md"
    card.write_text("# M\n")
    assert bench("publish", stored, "--card", card, "--after", "# M").exit_code == 0
    good = card.read_text()
    for section in ("performance", "comparison"):
        refused = bench("publish", spoiled, "--card", card, "--after", "# M", "--section", section)
        assert (refused.exit_code, card.read_text()) == (2, good)
        assert refused.stderr == (
            f"bench publish: {spoiled}: has no valid cell (request_failed): nothing to publish (or use --allow-empty)\n"
        )
    assert bench("publish", spoiled, "--card", card, "--allow-empty").exit_code == 0
    assert "8 cells left out as invalid" in card.read_text()


def test_a_table_below_the_heading_already_is_named(stored: Path, tmp_path: Path) -> None:
    table = "| Batch | tok/s |\n|---|---|\n| 1 | 20 |\n"
    card = tmp_path / "c.md"
    card.write_text(f"# M\n\n{table}\n## Performance\n\nBy hand:\n\n{table}| 4 | 70 |\n\n## License\n\n{table}")
    first = bench("publish", stored, "--card", card, "--after", "## Performance")
    what = f"note: {card}: below '## Performance' stands a table already, lines 11 to 14: it stays, below the new one\n"
    assert (first.exit_code, first.stderr) == (0, what)
    again = bench("publish", stored, "--card", card, "--after", "## Performance")
    assert (again.stdout, again.stderr) == (f"{card}: nothing to change\n", "")
    two = bench("publish", stored, "--card", card, "--after", "## Performance", "--section", "comparison", "--dry-run")
    assert two.stderr.count("lines ") == 1  # the table that is ours is none of them


def test_a_card_that_cannot_be_read_is_named(stored: Path, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    os.mkfifo(tmp_path / "fifo")
    for name, said in (
        ("none.md", "no such card"),
        ("latin", "not UTF-8 (byte 3)"),
        (".", "a folder, not a card"),
        ("fifo", "not a regular file"),
    ):
        told = bench("publish", stored, "--card", tmp_path / name)
        assert (told.exit_code, said in told.stderr) == (2, True), told.stderr
    card = tmp_path / "read-only.md"
    card.write_text("# M\n")
    card.chmod(0o444)
    told = bench("publish", stored, "--card", card, "--after", "# M")
    assert (told.exit_code, told.stderr) == (2, f"bench publish: {card}: cannot write: it is read-only\n")
    assert card.read_text() == "# M\n"
    (tmp_path / "c.md").write_text("# M\n")
    assert "not a run directory" in bench("publish", tmp_path, "--card", tmp_path / "c.md").stderr


def test_provenance_names_the_stored_run(stored: Path) -> None:
    told = provenance_text(open_run(stored))
    assert told.startswith("Model: m; Engine: embedded simulator (profile fixed); Hardware: none: simulated; Host: ")
    assert "Rounds: 2 per cell in each start, 0 for warm-up" in told


def test_other_sections_are_made_of_facts(stored: Path, tmp_path: Path) -> None:
    card, model, scores = (tmp_path / name for name in ("c.md", "model", "scores"))
    card.write_text("# M\n")
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3}')
    scores.mkdir()
    results = {"gsm8k": {"alias": "gsm8k", "exact_match,none": 0.5, "exact_match_stderr,none": 0.05}}
    told = {"results": results, "n-shot": {"gsm8k": 8}, "n-samples": {"gsm8k": {"original": 100, "effective": 100}}}
    (scores / "results_2026-01-01T00-00-00.json").write_text(json.dumps(told))
    asked = ("--card", card, "--after", "# M", "--model", model, "--evaluation", scores)
    done = bench("publish", stored, *asked, "--section", "model", "--section", "evaluation")
    assert (done.exit_code, done.stderr) == (0, "")
    text = card.read_text(encoding="utf-8")
    assert text.index("<!-- bench:model -->") < text.index("<!-- bench:evaluation -->")
    assert "LlamaForCausalLM" in text
    assert "50.0" in text
    assert "bench:performance" not in text
