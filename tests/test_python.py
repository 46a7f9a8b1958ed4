"""The API for Python: what `import benchbench` shows, and that its numbers are those of the tables."""

from __future__ import annotations

import json
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import typed_client
from driving import bench
from runs_made import BRANCHES, FAILED, made_run
from scripts import load_benchmark

import benchbench
from benchbench import open_run
from benchbench.errors import RunError
from benchbench.page import document

ROOT = Path(__file__).parents[1]
STORED = ROOT / "tests" / "data" / "stored-run"
HOSTILE = "<b onclick=x>&{{7*7}}\x1b[31m\u202e|`"
TAGS = {f"<{end}{tag}>" for tag in ("table", "thead", "tbody", "tr", "th", "td", "p") for end in ("", "/")}
PLAIN = {name: value for name, value in BRANCHES.items() if name not in {"variants", "blocks"}}


def test_dir_and_help_show_the_whole_interface() -> None:
    assert dir(benchbench) == sorted(benchbench.__all__)
    text = pydoc.render_doc(benchbench, renderer=pydoc.plaintext)
    homes = [name for names in benchbench._HOMES.values() for name in names]
    assert sorted([*homes, "__version__"]) == sorted(benchbench.__all__)
    for name in homes:
        assert getattr(benchbench, name) is not None
        assert name in text
    with pytest.raises(AttributeError, match="has no attribute 'open_rum'"):
        _ = benchbench.open_rum  # type: ignore[attr-defined]


def test_no_name_of_the_interface_is_a_rooms() -> None:
    """A package and a function of one name hide each other: which one is seen depends on what was imported."""
    structure = load_benchmark("structure")
    rooms = {structure.room(structure.name(path)) for path in structure.files()}
    assert not rooms & set(benchbench.__all__)


def test_importing_it_is_cheap() -> None:
    code = "import sys, benchbench; print(*(name for name in sorted(sys.modules) if not name.startswith('_')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert [name for name in modules if name.startswith("benchbench")] == ["benchbench", "benchbench.version"]
    assert not {"numpy", "pandas", "pyarrow", "pydantic", "importlib.metadata"} & set(modules)


def made(path: Path, data: dict[str, Any] = PLAIN, **manifest: Any) -> benchbench.Run:
    def tell(cell: Any, _: Any, k: int) -> tuple[float, float] | str:
        if cell.input == 1024 and cell.batch == 4:
            return FAILED
        return 50.0 + cell.batch + k / 100, 10.0

    return open_run(made_run(path, data, tell, **manifest))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> benchbench.Run:
    return made(tmp_path_factory.mktemp("runs") / "run")


def test_it_says_what_it_is(run: benchbench.Run) -> None:
    assert repr(run) == f"<Run branches: 4 cells (3 valid, 1 invalid), {run.path}>"
    html = run._repr_html_()
    assert "request_failed" in html
    assert html.count("<tr>") == 1 + 4
    assert "<th>Input</th><th>Output</th><th>Batch</th><th>TTFT (ms)</th>" in html


def test_an_unreadable_run_has_a_repr_too(tmp_path: Path) -> None:
    path = made(tmp_path / "run").path
    next((path / "records").iterdir()).write_bytes(b"PAR1 no")
    assert "unreadable (" in repr(open_run(path))
    assert open_run(path)._repr_html_() is None


def test_hostile_names_do_not_act_in_a_notebook_or_a_terminal(tmp_path: Path) -> None:
    path = made(tmp_path / "run", BRANCHES | {"blocks": 2}).path
    text = (path / "manifest.json").read_text().replace("int8-moe", json.dumps(HOSTILE)[1:-1])
    (path / "manifest.json").write_text(json.dumps(json.loads(text) | {"caption": [HOSTILE]}))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["spec"]["name"] = HOSTILE
    (path / "manifest.json").write_text(json.dumps(manifest))
    hostile = open_run(path)
    table = tmp_path / f"{HOSTILE.replace('/', '')}.csv"
    table.write_text(f"variant,input,output,batch,ttft_ms,sys_tok_s\n{HOSTILE},128,128,1,-5,20\n")
    for shown in (hostile, hostile.compare(), benchbench.audit_file(table)):
        assert repr(shown).isprintable()
        html = shown._repr_html_() or ""
        assert set(re.findall(r"<[^>]*>?", html)) <= TAGS
        assert html.isprintable()
        assert "&lt;b onclick=x&gt;" in html


# ---- Requests, rounds and tokens ------------------------------------------------------------------------


def test_the_latencies_of_requests_are_those_of_the_table(run: benchbench.Run) -> None:
    requests = run.requests()
    assert set(requests.phase) == {"measured"}
    assert not {"event_ns", "event_tokens", "lag_ns"} & set(requests.columns)
    means = requests[requests.steady].groupby(["cell", "round"])[["ttft_ms", "tpot_ms", "e2el_ms"]].mean()
    for row in run.rows:
        if row["status"] != "invalid":
            found = means.loc[row["key"]].mean()
            assert found.to_dict() == pytest.approx({name: row[name] for name in found.index})
    failed = requests[requests.status == "failed"]
    assert len(failed) == 2
    assert failed[["ttft_ms", "tpot_ms", "e2el_ms"]].isna().all(axis=None)
    assert not failed.steady.any()


def test_the_figures_of_rounds_are_what_the_summary_means(run: benchbench.Run, branches: benchbench.Run) -> None:
    for of in (run, branches):
        rounds = of.rounds()
        assert len(rounds) == sum(row["rounds"] for row in of.rows)
        assert {"cell", "phase", "round", "block", "variant", "input", "output", "batch", "rate"} <= set(rounds.columns)
        for row in of.rows:
            mine = rounds[rounds.cell == row["key"]]
            starts = mine.groupby("block") if row["starts"] else mine.groupby("round")
            for name in ("ttft_ms", "tpot_ms", "e2el_ms", "sys_tok_s", "round_s"):
                if row[name] is not None:
                    assert starts[name].mean().mean() == pytest.approx(row[name]), name


def test_times_in_ns_stay_whole_numbers_where_some_are_missing(run: benchbench.Run) -> None:
    requests = run.requests()
    times = requests[[name for name in requests if name.endswith("_ns")]]
    assert times.isna().any(axis=None)
    assert {str(dtype) for dtype in times.dtypes} == {"Int64"}


def test_in_a_closed_load_the_steady_requests_are_the_tables(tmp_path: Path) -> None:
    spec = benchbench.spec_from_mapping(
        {
            "name": "closed",
            "model": "sim",
            "engine": {"kind": "simulator", "scale": 0.1},
            "load": {"kind": "closed", "requests": 40},
            "grid": {"input": 16, "output": 8, "batch": 4},
            "rounds": {"warmup": 0, "min": 2, "max": 2},
            "prompts": {"vocab": [1000, 30000]},
        }
    )
    run = open_run(benchbench.sweep(spec, out=tmp_path / "run", plots=False).path)
    requests = run.requests()
    steady = requests[requests.steady]
    assert 0 < len(steady) == sum(len(r.ttft_s) for r in run.summaries[0].rounds) < len(requests)
    means = steady.groupby("round")[["ttft_ms", "tpot_ms", "e2el_ms"]].mean().mean()
    assert means.to_dict() == pytest.approx({name: run.rows[0][name] for name in means.index})


def test_tokens_are_a_row_an_event_and_a_batch_a_round(run: benchbench.Run) -> None:
    reader = run.tokens()
    assert isinstance(reader, pa.RecordBatchReader)
    batches = list(reader)
    assert len(batches) == len(run.rounds()) == 4 * 2
    tokens, requests = pa.Table.from_batches(batches).to_pandas(), run.requests(events=True)
    assert list(tokens.columns) == ["cell", "phase", "round", "index", "since_send_ms", "tokens"]
    assert len(tokens) == requests.event_ns.str.len().sum()
    on = ["cell", "phase", "round", "index"]
    for dtype in ("cell", "phase"):
        tokens[dtype] = tokens[dtype].astype(str)
    first = tokens.groupby(on).since_send_ms.min().rename("first_ms").reset_index()
    joined = first.merge(requests, on=on)
    assert len(joined) == len(requests) - 2  # those that failed had no token
    assert joined.first_ms.tolist() == pytest.approx(joined.ttft_ms.tolist())
    assert set(tokens.tokens) == {1}


def test_warm_up_is_left_out_unless_asked_for() -> None:
    stored = open_run(STORED)
    counts = {phase: len(stored.requests(phase)) for phase in ("measured", "warmup", "all")}  # type: ignore[arg-type]
    assert counts["measured"] + counts["warmup"] == counts["all"] > counts["measured"] > 0
    assert (len(stored.rounds()), len(stored.rounds("all"))) == (6, 9)
    assert set(stored.tokens("warmup").read_pandas().phase) == {"warmup"}
    with pytest.raises(ValueError, match="phase 'warm': unknown"):
        stored.requests("warm")  # type: ignore[arg-type]


def test_tokens_are_read_round_by_round(tmp_path: Path) -> None:
    """A damaged record is met when its turn comes; what was read before is given out."""
    run = made(tmp_path / "run")
    last = run.cells[-1].key
    (run.path / "records" / f"{last}-measured-0001.parquet").write_bytes(b"PAR1 no")
    reader = run.tokens()
    for _ in range(7):
        reader.read_next_batch()
    with pytest.raises(RunError, match="damaged"):
        reader.read_next_batch()


def test_a_run_without_finished_rounds_has_empty_frames(tmp_path: Path) -> None:
    run = open_run(made_run(tmp_path / "run", PLAIN, lambda *_: None))
    assert run.requests().empty
    assert "ttft_ms" in run.requests().columns
    assert run.rounds().empty
    assert run.tokens().read_pandas().empty


# ---- What is made of runs -------------------------------------------------------------------------------


def ab(path: Path, speedup: float = 1.1) -> benchbench.Run:
    def tell(cell: Any, start: Any, k: int) -> tuple[float, float]:
        faster = speedup if cell.variant == "int8-moe" else 1.0
        return (50 + cell.batch + start.block / 100 + k / 1000) / faster, (10 + start.block / 100) / faster

    return open_run(made_run(path, BRANCHES, tell))


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> benchbench.Run:
    return ab(tmp_path_factory.mktemp("runs") / "ab")


@pytest.mark.parametrize("form", ["md", "csv", "json", "github"])
def test_tables_are_those_of_the_command(run: benchbench.Run, branches: benchbench.Run, form: Any) -> None:
    asked = ["--columns", "input,batch,ttft_ms,status", "--include-invalid"]
    columns = ["input", "batch", "ttft_ms", "status"]
    for wanted, words in (({}, []), ({"columns": columns, "include_invalid": True}, asked)):
        assert run.table(form, **wanted) == bench("table", run.path, "--format", form, *words).stdout
    both = benchbench.runs_table([run, branches.path], form)
    assert both == bench("table", run.path, branches.path, "--format", form).stdout
    assert branches.compare().table(form) == bench("compare", branches.path, "--format", form).stdout


def test_a_pivot_and_what_cannot_be_asked(run: benchbench.Run) -> None:
    assert run.table(pivot="batch:ttft_ms") == bench("table", run.path, "--pivot", "batch:ttft_ms").stdout
    for refused in ({"format": "xml"}, {"columns": ["speed"]}, {"columns": ["batch"], "pivot": "batch:ttft_ms"}):
        with pytest.raises(ValueError, match=r"allowed|give one of them"):
            run.table(**refused)  # type: ignore[arg-type]


def test_explain_is_that_of_the_command(run: benchbench.Run) -> None:
    assert run.explain("batch>=4").strip() == bench("explain", run.path, "batch>=4").stdout.strip()
    with pytest.raises(ValueError, match="selects none of the 4 cells"):
        run.explain("batch=99")


def test_a_comparison_says_its_verdict_as_text_frame_and_html(branches: benchbench.Run) -> None:
    comparison = branches.compare(margin=0.02)
    assert isinstance(comparison, benchbench.RunComparison)
    assert "int8-moe is 10.0 % faster than main" in repr(comparison)
    frame = comparison.summary()
    assert list(frame.columns[:8]) == ["base", "candidate", "input", "output", "batch", "rate", "load", "metric"]
    assert len(frame) == 4 * len(set(frame.metric))
    assert {"sys_tok_s", "ttft", "tpot", "e2el"} <= set(frame.metric)
    assert frame.ratio.tolist() == pytest.approx([1.1] * len(frame), abs=1e-3)
    assert (frame.ratio_low <= frame.ratio).all()
    assert set(frame.verdict) == {"faster"}
    head = comparison.table("csv").splitlines()[0].split(",")
    assert {name.replace("ratio_point", "ratio") for name in head} == set(frame.columns)
    means = comparison.means()
    assert len(means) == len(set(frame.metric))
    assert set(means.verdict) == {"faster"}
    html = comparison._repr_html_()
    assert set(re.findall(r"<[^>]*>?", html)) <= TAGS
    assert "<td>faster</td>" in html
    with pytest.raises(ValueError, match="--metric itl: unknown"):
        comparison.table(metrics=["itl"])


def test_a_comparison_of_nothing_valid_has_the_same_columns(branches: benchbench.Run, tmp_path: Path) -> None:
    failed = open_run(made_run(tmp_path / "run", BRANCHES, lambda *_: FAILED)).compare()
    assert "there is nothing to compare" in repr(failed)
    for mine, theirs in (
        (failed.summary(), branches.compare().summary()),
        (failed.means(), branches.compare().means()),
    ):
        assert mine.empty
        assert list(mine.columns) == list(theirs.columns)
    assert "there is nothing to compare" in failed._repr_html_()


def test_two_runs_are_compared_and_refused_as_by_the_command(
    run: benchbench.Run, branches: benchbench.Run, tmp_path: Path
) -> None:
    other = ab(tmp_path / "ab", 1.2)
    assert branches.compare(base="main", candidate="int8-moe").pairs == branches.compare().pairs
    both = benchbench.compare_runs(branches.path, other, base="int8-moe", candidate="int8-moe")
    words = ["--base", "int8-moe", "--candidate", "int8-moe", "--format", "csv"]
    assert both.table("csv") == bench("compare", branches.path, other.path, *words).stdout
    for refused, why in (({}, "has several variants"), ({"base": "nobody"}, "no variant of")):
        with pytest.raises(ValueError, match=why):
            benchbench.compare_runs(branches, other, **refused)
    with pytest.raises(ValueError, match="has no variants to compare"):
        run.compare()


def test_a_sweep_draws_its_figures_unless_told_not_to(tmp_path: Path) -> None:
    spec = benchbench.spec_from_mapping(
        {
            "name": "drawn",
            "model": "sim",
            "engine": {"kind": "simulator", "scale": 0.1},
            "grid": {"input": 16, "output": 8, "batch": [2, 3, 4]},  # one request alone has no timeline
            "rounds": {"warmup": 0, "min": 1, "max": 1},
            "prompts": {"vocab": [1000, 30000]},
        }
    )
    for wanted in (True, False):
        outcome = benchbench.sweep(spec, out=tmp_path / str(wanted), plots=wanted)
        assert (outcome.state, outcome.message) == ("complete", "")
        assert any((outcome.path / "plots").glob("*.svg")) == (
            wanted and any(row["status"] != "invalid" for row in outcome.rows)
        )
        assert "rows" not in repr(outcome)
    (tmp_path / "unwritable").mkdir()
    (tmp_path / "unwritable" / ".lock").touch()
    (tmp_path / "unwritable" / "plots").touch()
    assert "the plots are not all drawn" in benchbench.sweep(spec, out=tmp_path / "unwritable").message


def test_figures_and_the_page_are_written(
    run: benchbench.Run, branches: benchbench.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = run.draw(tmp_path / "plots", formats=["svg"])
    assert {path.name for path in drawn} >= {"throughput.svg", "timeline.svg"}
    assert all(path.is_file() for path in drawn)
    assert all(path.is_file() for path in branches.compare().draw(tmp_path / "ab", ["png"]))
    with pytest.raises(ValueError, match="no cell nope in this run"):
        run.draw(tmp_path, cell="nope")
    page = run.write_page(tmp_path / "one.html")
    assert page.read_text().startswith("<!doctype html>")
    for figures in ("page_figures", "comparison_page_figures"):  # test_page.py looks at those of several runs
        monkeypatch.setattr(document, figures, lambda *_: ())
    assert "int8-moe" in benchbench.write_page([run, str(branches.path)], tmp_path / "two.html").read_text()
    with pytest.raises(ValueError, match="no run"):
        benchbench.write_page([], tmp_path / "none.html")
    with pytest.raises(OSError, match="No such file"):
        run.write_page(tmp_path / "none" / "one.html")


def test_a_card_is_published_and_checked(run: benchbench.Run, tmp_path: Path) -> None:
    card, by_command = tmp_path / "README.md", tmp_path / "other.md"
    for path in (card, by_command):
        path.write_text("# M\n\n## Performance\n")
    assert "+| 128 | 8 | 1 |" in run.publish(card, after="## Performance", dry_run=True)
    assert card.read_text() == "# M\n\n## Performance\n"
    run.publish(card, after="## Performance")
    bench("publish", run.path, "--card", by_command, "--after", "## Performance")
    assert card.read_text() == by_command.read_text()
    assert run.publish(card, dry_run=True) == ""
    with pytest.raises(benchbench.CardError, match="has no <!-- bench:comparison -->"):
        ab(tmp_path / "ab").publish(card, sections=["comparison"])
    with pytest.raises(ValueError, match="section 'all': unknown"):
        run.publish(card, sections=["all"])


def test_an_audit_is_that_of_the_command(run: benchbench.Run) -> None:
    card = ROOT / "tests" / "data" / "published-card.md"
    audit = benchbench.audit_file(card)
    assert audit.impossible
    assert repr(audit).startswith("<Audit of published-card.md: ")
    assert audit.report() == bench("audit", card).stdout
    assert json.loads(audit.report("json")) == json.loads(bench("audit", card, "--format", "json").stdout)
    assert audit.summary().severity.tolist() == [finding.severity for finding in audit.findings]
    html = audit._repr_html_()
    assert set(re.findall(r"<[^>]*>?", html)) <= TAGS
    given = {"parameters": "100B", "hardware": "H100 SXM", "count": 1}
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    assert run.audit(**given).report() == bench("audit", run.path, *words).stdout  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="--hardware abacus"):
        run.audit(hardware="abacus")


# ---- Types ----------------------------------------------------------------------------------------------


def test_a_typed_client_runs(tmp_path: Path) -> None:
    """`make test` checks it with mypy."""
    card = tmp_path / "README.md"
    card.write_text("# Model\n\n| Input | Output | Batch | Sys tok/s |\n|---|---|---|---|\n| 8 | 8 | 1 | 20 |\n")
    typed_client.main(str(STORED), str(card), str(tmp_path))
