"""`bench compare` and `bench noise`: what of a run is compared, what is said of it, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from driving import bench
from faulty import LOOSE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs_made import BRANCHES, FAILED, Tell, made_run

from benchbench import compare_runs, open_run
from benchbench.cli.comparing import keep_noise
from benchbench.comparison.candidates import pairs_of
from benchbench.comparison.pairs import pair, sides_of
from benchbench.comparison.shifts import holm
from benchbench.comparison.tables import comparison_table, sentence
from benchbench.comparison.verdicts import PRIMARY
from benchbench.fidelity.answers import GreedyAnswer, StartAnswers
from benchbench.fidelity.stored_answers import store_answers
from benchbench.spec import Cell, Session
from benchbench.store.run_directory import RunDirectory

GOLDEN = Path(__file__).parent / "golden"
DEMO = Path(__file__).parent.parent / "sweeps" / "branches-demo.yaml"


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def times(decode: float = 1.0, prefill: float = 1.0, noise: float = 0.003) -> Tell:
    """A candidate whose decode and prefill are so many times as fast as main's; starts and rounds have luck."""

    def tell(cell: Cell, start: Session, k: int) -> tuple[float, float]:
        luck = random.Random(f"{start.variant} {start.block}").gauss(1, noise)
        own = luck * random.Random(f"{cell.key} {start.block} {k}").gauss(1, noise)
        fast, first = (decode, prefill) if start.variant not in {"main", ""} else (1.0, 1.0)
        return (40 + cell.input / 50) * own / first, (10 + (cell.batch or 0)) * own / fast

    return tell


def troubled(cell: Cell, start: Session, k: int) -> tuple[float, float] | str | None:
    """A cached prefix in one start, requests that failed in another, and a candidate that died in block 3."""
    new = start.variant == "int8-moe"
    shape = (cell.input, cell.batch)
    if new and start.block == 1 and shape == (1024, 1):
        return "cached_prefix"
    if not new and start.block == 2 and shape == (128, 4):
        return FAILED
    if new and start.block == 3:
        return times(1.05)(cell, start, k) if shape == (128, 1) else None
    return times(1.05)(cell, start, k)


def died(path: Path) -> Path:
    made_run(path, BRANCHES, troubled)
    reason = "the server ended with signal 9; engine.restarts allows no other start"
    RunDirectory(path).journal("start_failed", block=3, variant="int8-moe", reason=reason)
    return path


def said(run: Path, **more: Any) -> str:
    base, other = sides_of(open_run(run))
    return sentence(pair(base, other, **more))


def compared(*words: object) -> dict[str, Any]:
    result = bench("compare", *words, "--format", "json")
    assert result.exit_code == 0, result.stderr
    data: dict[str, Any] = json.loads(result.stdout)
    return data


TINY = {
    **BRANCHES,
    "blocks": 2,
    "grid": {"input": 128, "output": 8, "batch": [1, 4]},
    "rounds": {"warmup": 0, "min": 1},
}


# ---- What is said ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["md", "json", "csv", "github"])
def test_golden(form: str) -> None:
    result = bench("compare", died(Path("run")), "--format", form)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (GOLDEN / f"compare.{form.replace('github', 'github.md')}").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("decode", "prefill", "noise", "wanted"),
    [
        (1.05, 1.0, 0.0005, "int8-moe is 3.1 % faster than main (95 % CI 3.1 to 3.2 %) over 4 cells; no cell slower"),
        (0.9, 1.0, 0.002, "int8-moe is 6.4 % slower than main (95 % CI 6.2 to 6.6 %) over 4 cells; slower in 4 cells"),
        (1.0, 1.0, 0.001, "int8-moe vs main: equivalent within 1 %, +0.1 % (95 % CI -0.0 to +0.2) over 4 cells"),
        (1.0, 1.0, 0.05, "int8-moe vs main: undecided, +4.2 % (95 % CI -0.3 to +8.9) over 4 cells"),
        (1.0, 1.0, 0.0, "no variance between starts (copies, or a deterministic server), so no interval"),
        (1.0, 0.5, 0.002, "; TTFT 99.7 % longer; outputs were not compared."),
        (1.0, 2.0, 0.002, "; TTFT 50.1 % shorter; outputs were not compared."),
    ],
)
def test_the_sentence(decode: float, prefill: float, noise: float, wanted: str) -> None:
    assert wanted in said(made_run(Path("run"), BRANCHES, times(decode, prefill, noise)))


def test_undecided_says_what_could_be_seen_and_plans_a_new_run() -> None:
    told = said(made_run(Path("run"), {**BRANCHES, "blocks": 3}, times(noise=0.02)))
    assert "MDE of 3 blocks " in told
    assert " more would decide with 80 % power (plan a new run, do not resume this one)" in told
    wide = said(made_run(Path("wide"), {**BRANCHES, "blocks": 2}, times(noise=0.06)))
    assert "MDE of 2 blocks >100 %" in wide


def test_a_variant_that_never_started_is_said_and_breaks_every_gate() -> None:
    run = made_run(Path("run"), BRANCHES, lambda *at: times()(*at) if at[1].variant == "main" else None)
    RunDirectory(run).journal("start_failed", block=0, variant="int8-moe", reason="KeyError: 'experts.w2'")
    assert said(run) == "int8-moe never started: KeyError: 'experts.w2'. There is nothing to compare."
    for gate in ("slower>1%", "fidelity"):
        result = bench("compare", run, "--fail-on", gate)
        assert (result.exit_code, result.stdout.count("never started")) == (4, 1)
    assert compared(run)["cells"] == []


def test_json_and_csv_tell_the_same() -> None:
    run = died(Path("run"))
    records = compared(run)["cells"]
    rows = list(csv.DictReader(io.StringIO(bench("compare", run, "--format", "csv").stdout)))
    assert [(row["metric"], float(row["ratio_point"])) for row in rows] == [
        (one["metric"], one["ratio"]["point"]) for one in records
    ]
    wanted = {"base", "candidate", "input", "output", "batch", "load", "metric", "ratio", "p_adjusted", "mde"}
    assert all(one.keys() >= wanted | {"verdict", "fidelity"} for one in records)


def test_a_metric_is_only_shown_alone_and_costs_no_family() -> None:
    run = died(Path("run"))
    alone, all_of = compared(run, "--metric", "ttft")["cells"], compared(run)["cells"]
    assert alone == [one for one in all_of if one["metric"] == "ttft"]


def test_every_candidate_has_a_table_and_a_sentence() -> None:
    data = {**TINY, "variants": {"main": {}, "a": {}, "b": {}}, "baseline": "b"}
    run = made_run(Path("run"), data, times())
    assert [(one["base"], one["candidate"]) for one in compared(run)["pairs"]] == [("b", "main"), ("b", "a")]
    both = compared(run, "main", "a")
    assert [(one["base"], one["candidate"]) for one in both["pairs"]] == [("main", "a")]
    assert both == compared(run, "--base", "main", "--candidate", "a")


def texts(svg: Path) -> set[str]:
    tree = ET.parse(svg)  # noqa: S314 - a file this test made
    return {"".join(element.itertext()) for element in tree.iter("{http://www.w3.org/2000/svg}text")}


@pytest.mark.usefixtures("drawn_here")
def test_the_figures_show_what_was_compared_and_nothing_that_was_dropped() -> None:
    result = bench("plot", died(Path("run")), "--format", "svg", "--out", "figures")
    assert result.exit_code == 0, result.stderr
    names = ("forest", "heatmap", "curves", "blocks")
    forest, heatmap, curves, blocks = (texts(Path(f"figures/compare_{name}.svg")) for name in names)
    assert {
        "128 → 8 at 1",
        "128 → 8 at 4",
        "1,024 → 8 at 4",
        "geometric mean",
        "faster",
        "MDE: found with 80 % power",
    } <= forest
    assert "1,024 → 8 at 1" not in forest
    assert {"+3.5", "+3.4", "128 → 8", "1,024 → 8"} <= heatmap
    assert {"main", "int8-moe", "128 → 8", "1,024 → 8"} <= curves
    assert {"main, mean over cells", "0", "5"} <= blocks


@pytest.mark.usefixtures("drawn_here")
def test_the_figures_of_single_starts_and_of_several_candidates() -> None:
    data = {**TINY, "variants": {"main": {}, "a": {}, "b": {}}, "blocks": 1}
    result = bench("plot", made_run(Path("run"), data, times()), "--format", "svg")
    assert result.exit_code == 0, result.stderr
    found = sorted(path.stem for path in Path("run/plots").glob("compare_*"))
    assert found == [f"compare_{name}-{of}" for name in ("curves", "forest", "heatmap") for of in ("a", "b")]


# ---- What counts ----------------------------------------------------------------------------------------

PLACES = st.tuples(st.sampled_from(["main", "int8-moe"]), st.sampled_from([1, 4]), st.integers(0, 2))


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(PLACES, max_size=4), st.sets(PLACES, max_size=1))
def test_an_incident_costs_its_start_and_a_lasting_fault_its_cell(
    tmp_path_factory: pytest.TempPathFactory, incidents: set[tuple[str, int, int]], faults: set[tuple[str, int, int]]
) -> None:
    def tell(cell: Cell, start: Session, k: int) -> tuple[float, float] | str:
        where = (start.variant, cell.batch, start.block)
        broken = FAILED if where in incidents else "cached_prefix" if where in faults else ""
        return broken if broken and k else times()(cell, start, k)

    data = {**BRANCHES, "blocks": 3, "grid": {"input": 128, "output": 8, "batch": [1, 4]}}
    run = made_run(tmp_path_factory.mktemp("runs") / "run", data, tell)
    found = pair(*sides_of(open_run(run)))
    dropped = {f"in=128 out=8 batch={batch}" for _, batch, _ in faults - incidents}
    assert {one.cell for one in found.samples} == {"in=128 out=8 batch=1", "in=128 out=8 batch=4"} - dropped
    for one in found.samples:
        batch = int(one.cell[-1])
        assert (one.base is None) == (("main", batch, one.block) in incidents)
        assert (one.candidate is None) == (("int8-moe", batch, one.block) in incidents)
    told = comparison_table([found])
    assert all(f"{cell} dropped as invalid (cached_prefix)" in told for cell in dropped)


def test_cells_whose_answers_differ_in_length_are_not_compared(tmp_path: Path) -> None:
    def tell(cell: Cell, session: Session, _: int) -> tuple[float, ...]:
        return 50.0, 10.0, 4 if session.variant == "int8-moe" and cell.batch == 4 else 8

    run = made_run(tmp_path / "run", BRANCHES | {"output": "as_served"}, tell)
    (found,) = pairs_of(open_run(run))
    assert {cell.batch for cell in found.cells.values()} == {1}
    assert any("batch=4 is left out: answers of different lengths (8.0 and 4.0 tokens)" in note for note in found.notes)


def test_a_start_without_all_its_rounds_does_not_count() -> None:
    data = {**BRANCHES, "blocks": 3}
    short = made_run(
        Path("run"), data, lambda c, s, k: None if (s.block, s.variant, k) == (2, "main", 1) else times()(c, s, k)
    )
    found = pair(*sides_of(open_run(short)))
    assert {one.block for one in found.samples if one.base is None} == {2}
    assert "main: 4 cells not counted in block 2 (1 of 2 rounds)" in found.notes
    lacking = made_run(
        Path("lacking"),
        data,
        lambda c, s, k: None if s.block and s.variant == "main" and k == 1 else times()(c, s, k),
    )
    (told,) = [note for note in pair(*sides_of(open_run(lacking))).notes if "not counted" in note]
    assert told == "main: 4 cells not counted in blocks 1, 2 (1 of 2 rounds)"
    assert "(paired over 2 of 3 blocks)" in comparison_table([found])


# ---- Two runs -------------------------------------------------------------------------------------------

SINGLE = {key: value for key, value in TINY.items() if key not in {"variants", "blocks"}}


def test_two_runs_are_compared_undecided_and_say_that_they_are_not_interleaved() -> None:
    made_run(Path("a"), SINGLE, times())
    made_run(Path("b"), SINGLE, lambda c, s, k: tuple(0.5 * value for value in times()(c, s, k)))  # type: ignore[union-attr, arg-type]
    data = compared("a", "b")
    assert (data["overall"]["base"], data["overall"]["candidate"]) == ("a", "b")
    assert {one["verdict"] for one in data["cells"]} == {"undecided"}
    assert data["overall"]["ratio"]["point"] == pytest.approx(2, rel=0.02)
    assert data["overall"]["ratio"]["low"] is None
    assert "not interleaved: the change is confounded with drift between the runs" in data["pairs"][0]["notes"]


@pytest.mark.parametrize(
    ("changes", "manifest", "told"),
    [
        ({"model": "other"}, {}, "model: m against other"),
        ({"load": {"kind": "closed"}}, {}, "load: kind=static against kind=closed"),
        (
            {"grid": {"input": 128, "output": 8, "batch": 1}},
            {},
            "shapes: in=128 out=8 batch=1, in=128 out=8 batch=4 against in=128 out=8 batch=1",
        ),
        ({}, {"devices": [{"name": "W7900D"}] * 8}, "GPUs: none against 8 x W7900D"),
        ({}, {"host": {"drivers": {"amdgpu": "6.12"}}}, "drivers: none against amdgpu 6.12"),
    ],
)
def test_unlike_runs_are_refused_or_their_differences_printed(
    changes: dict[str, Any], manifest: dict[str, Any], told: str
) -> None:
    made_run(Path("a"), SINGLE, times())
    made_run(Path("b"), {**SINGLE, **changes}, times(), **manifest)
    result = bench("compare", "a", "b")
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert "--allow-unlike" in result.stderr
    allowed = bench("compare", "a", "b", "--allow-unlike")
    assert allowed.exit_code == 0
    assert f"unlike: {told.partition(' against')[0]}" in allowed.stdout


def test_a_closed_load_of_before_its_first_wave_was_spread_is_another_load() -> None:
    closed = {**SINGLE, "load": {"kind": "closed"}}
    old, _ = (made_run(Path(name), closed, times()) / "manifest.json" for name in ("old", "new"))
    manifest = json.loads(old.read_text(encoding="utf-8"))
    for entry in manifest["plan"]:
        assert entry.pop("spread")
    old.write_text(json.dumps(manifest), encoding="utf-8")
    assert "first waves: none against closed=spread" in bench("compare", "old", "new").stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "nobody", "main"], "--base nobody: no variant of run (allowed: main, int8-moe)"),
        (["run", "main", "main"], "main: is the base and the candidate"),
        (["run", "main"], "main: give other runs, or the names of a base and a candidate"),
        (["run", "single", "main"], "give other runs, or the names of a base and a candidate"),
        (["single"], "has no variants to compare; give a second run"),
        (["single", "run"], "name one with --candidate (allowed: main, int8-moe)"),
        (["none"], "none: does not exist"),
        (["run", "--margin", "1"], "--margin 1: must be percent above 0 (allowed: as 1% or 0.5%)"),
        (["run", "--metric", "itl"], "--metric itl: unknown (allowed: sys_tok_s, ttft, tpot, e2el, goodput_req_s)"),
        (["run", "--fail-on", "faster>1%"], "--fail-on faster>1%: unknown (allowed: 'slower>1%', slower, "),
        (["run", "--fail-on", "slower>"], "--fail-on slower>: unknown"),
        (["run", "--noise", "single"], "single: not a run of A against A (bench noise makes one)"),
    ],
)
def test_bad_words_are_one_clear_line(words: list[str], told: str) -> None:
    made_run(Path("run"), TINY, times())
    made_run(Path("single"), SINGLE, times())
    result = bench("compare", *words)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert told in result.stderr


# ---- Gates and the noise floor --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decode", "gates", "code"),
    [
        (1.05, ["slower"], 0),
        (0.9, ["slower"], 4),
        (0.9, ["slower>1%"], 4),
        (0.9, ["slower > 25 %"], 0),
        (0.9, ["slower>25%", "slower>5%"], 4),
        (1.05, ["fidelity"], 4),  # was not measured
        (0.9, [], 0),
    ],
)
def test_gates_exit_with_4_and_still_print_the_table(decode: float, gates: list[str], code: int) -> None:
    run = made_run(Path("run"), BRANCHES, times(decode, noise=0.001))
    result = bench("compare", run, *(word for gate in gates for word in ("--fail-on", gate)))
    assert result.exit_code == code, result.stderr
    assert "| Sys tok/s | 128 | 8 | 1 |" in result.stdout
    assert bool(result.stderr) == bool(code)


@pytest.mark.parametrize(
    ("token", "mode", "told", "code"),
    [
        (1, "strict", "; outputs match within the noise of a restart.", 0),
        (2, "strict", ", but outputs differ.", 4),
        (2, "report", ", but outputs differ.", 0),
        (None, "strict", "; outputs were not compared (int8-moe has no answers).", 4),
        (2, "off", "; outputs were not compared.", 4),
    ],
)
def test_a_faster_build_with_other_outputs_is_said_and_gated(
    token: int | None, mode: str, told: str, code: int
) -> None:
    run = made_run(Path("run"), {**TINY, "blocks": 3, "fidelity": mode}, times(1.1, noise=0.001))
    for block in range(3):
        for variant, one in (("main", 1), ("int8-moe", token)):
            if one is not None:
                answers = StartAnswers("id", "questions", (GreedyAnswer((7, one)),))
                store_answers(RunDirectory(run), variant, block, answers)
    assert "faster than main" in said(run)
    assert said(run).endswith(told)
    assert bench("compare", run, "--fail-on", "fidelity").exit_code == code
    assert ("outputs differ in 3 of 3 starts" in bench("compare", run).stdout) == ("differ" in told)


def test_nothing_is_called_inside_the_noise_of_a_against_a() -> None:
    data = {**TINY, "blocks": 5}
    run = made_run(Path("run"), data, times(1.02, noise=0.001))
    aa = {**data, "variants": {"A": {}, "A2": {}}}
    made_run(Path("quiet"), aa, times(noise=0.0005))
    made_run(Path("loud"), aa, times(noise=0.2))
    assert compared(run)["overall"]["verdict"] == "faster"
    assert compared(run, "--noise", "quiet")["overall"]["verdict"] == "faster"
    loud = compared(run, "--noise", "loud")
    assert loud["overall"]["verdict"] == "undecided"
    assert any("within the noise floor" in note for note in loud["pairs"][0]["notes"])


# ---- Carried out ----------------------------------------------------------------------------------------

SMALL = [
    *("engine.scale=0.5", "grid.output=6", "grid.input=128", "grid.batch=[1,2]", "blocks=3", "rounds.min=1"),
    *("rounds.max=1", "rounds.warmup=0"),
]
SETS = [word for one in SMALL for word in ("--set", one)]


def test_the_demo_finds_the_slower_one_and_tells_so_at_its_end() -> None:
    slower = ["--set", "variants.faster.engine.scale=1.5", "--set", "variants.faster.engine.options={}"]
    result = bench("sweep", DEMO, *SETS, *slower, "--set", "prompts.vocab=null", "--out", "run", "--no-plots")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("note: prompt token ids are drawn from ") == 1  # of six starts
    assert "slower than main" in result.stdout
    assert "Comparison: run/compare.md, or: bench compare run" in result.stdout
    assert json.loads(Path("run/compare.json").read_text())["overall"]["verdict"] == "slower"
    assert Path("run/compare.md").read_text() == bench("compare", "run").stdout
    assert bench("compare", "run", "--fail-on", "slower>20%").exit_code == 4
    assert bench("compare", "run", "faster", "main", "--fail-on", "slower").exit_code == 0


@pytest.mark.usefixtures("undrawn")
def test_a_against_itself_calls_nothing_large_and_is_remembered_for_plans() -> None:
    before = bench("sweep", DEMO, "--dry-run").stdout
    assert "noise per start 1.1 % in a cell and 0.7 % in the mean (assumed; bench noise measures this host's)" in before
    loose = ("--set", f"validity={json.dumps(LOOSE)}")  # or a busy machine has no valid cells
    words = ["noise", DEMO, *SETS, *loose, "--set", "engine.options.faults.start_noise=0.02", "--out", "run"]
    result = bench(*words)
    assert result.exit_code == 0, result.stderr
    assert "A against A2, over 3 blocks: " in result.stdout
    again = [*words, "--resume"]
    ended = json.loads(bench(*again, "--json", "--quiet").stdout)
    assert (ended["path"], ended["state"]) == ("run", "complete")
    assert ended["noise"] == json.loads(Path("run/noise.json").read_text())["noise"]
    quiet = bench(*again, "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("run\n", "")
    data = compared("run", "--margin", "40%")
    # Of TTFT a busy machine may say anything, one time in twenty even significantly.
    assert {one["verdict"] for one in data["cells"] if one["metric"] == "sys_tok_s"} <= {"equivalent", "undecided"}
    stored = json.loads(Path("run/noise.json").read_text())
    assert stored["name"] == "branches-demo"
    assert {tuple(one["cells"]) for one in stored["noise"] if one["metric"] == "sys_tok_s"} == {
        ("in=128 out=6 batch=1",),
        ("in=128 out=6 batch=2",),
        ("in=128 out=6 batch=1", "in=128 out=6 batch=2"),
    }
    assert "(as measured over 3 blocks of A against A)" in bench("sweep", DEMO, "--dry-run").stdout


def test_a_against_itself_over_one_start_says_nothing_of_noise() -> None:
    made_run(Path("run"), {**BRANCHES, "variants": {"A": {}, "A2": {}}, "blocks": 1}, times())
    text, data = keep_noise(Path("run"))
    assert text.startswith(
        "A against A2, over 1 block: too few starts count: neither noise nor a difference can be told"
    )
    assert "--noise" not in text
    assert data["noise"] == []


def test_the_plan_of_variants_counts_starts() -> None:
    lines = bench("sweep", DEMO, "--dry-run", "--only", "batch=1").stdout.splitlines()
    assert lines[0].startswith("   1 main in=")
    assert "3 rounds of 1 request in each of 6 starts" in lines[0]
    assert lines[4:7] == ["block 0: main, faster", "block 1: faster, main", "block 2: main, faster"]
    assert lines[10] == "12 starts, 72 measured rounds"
    assert lines[11].startswith("4 cells, 96 requests, 55296 input tokens, 2304 output tokens; time: about ")
    assert [line.strip().split(":")[0] for line in lines[13:]] == ["1 %", "2 %", "5 %"]


def test_overrides_by_variant_cannot_be_compared_with_themselves() -> None:
    sets = 'overrides=[{when: "variant=faster", seed: 1}]'
    result = bench("noise", DEMO, "--set", sets)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "overrides that select by variant" in result.stderr


# ---- Several candidates at once --------------------------------------------------------------------------


def test_several_candidates_share_their_families(tmp_path: Path) -> None:
    """Of a sweep's variants, and of runs: Holm's correction is over the cells of all of them."""
    three = {**TINY, "variants": {"main": {}, "b": {}, "c": {}}, "blocks": 4}
    speeds = {"main": 1.0, "b": 1.02, "c": 0.985, "": 1.0}

    def tell(cell: Cell, start: Session, k: int) -> tuple[float, float]:
        own = random.Random(f"{cell.key} {start.block} {cell.variant} {k}").gauss(1, 0.006)
        return 50 * own, 10 * own / speeds[cell.variant]

    run = open_run(made_run(tmp_path / "three", three, tell))
    alone = [pair(sides_of(run)[0], side) for side in sides_of(run)[1:]]
    both = pairs_of(run)
    for kind in ("cells", "overall"):
        before = [effect for of in alone for effect in getattr(of.compared, kind) if effect.metric in PRIMARY]
        after = [effect for of in both for effect in getattr(of.compared, kind) if effect.metric in PRIMARY]
        assert [effect.p_value for effect in after] == [effect.p_value for effect in before]
        assert [effect.p_adjusted for effect in after] == holm([effect.p_value or 0.0 for effect in before])
        assert all(new.ratio == old.ratio for new, old in zip(after, before, strict=True))
        assert all((new.mde_family or 0) > (old.mde_family or 0) for new, old in zip(after, before, strict=True))
    one_by_one = compare_runs(run, candidate="b")  # a question of one candidate has its own families
    assert one_by_one.pairs[0].compared == alone[0].compared


def test_runs_are_compared_with_the_first(tmp_path: Path) -> None:
    single = {name: value for name, value in TINY.items() if name != "variants"} | {"blocks": 4}
    folders = []
    for name, speed in (("a", 1.0), ("b", 0.9), ("c", 1.1)):

        def tell(cell: Cell, start: Session, k: int, speed: float = speed) -> tuple[float, float]:
            own = random.Random(f"{cell.key} {start.block} {speed} {k}").gauss(1, 0.003)
            return 50 * own / speed, 10 * own / speed

        folders.append(made_run(tmp_path / name, single, tell))
    data = compared(*folders)
    sides = [(of["base"], of["candidate"], of["verdict"]) for of in data["pairs"]]
    assert sides == [(str(folders[0]), str(folders[1]), "slower"), (str(folders[0]), str(folders[2]), "faster")]
    raw = [c["p_value"] for c in data["cells"] if c["metric"] in PRIMARY]
    assert [c["p_adjusted"] for c in data["cells"] if c["metric"] in PRIMARY] == pytest.approx(holm(raw))
    gated = bench("compare", *folders, "--fail-on", "slower")
    assert gated.exit_code == 4
    assert str(folders[1]) in gated.stderr
    assert str(folders[2]) not in gated.stderr
    assert bench("compare", *folders, tmp_path / "none").exit_code == 2
