"""Gates for CI: a baseline that is kept, what may pass, and what a gate says where nobody looks at the table."""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml
from driving import bench
from hypothesis import given
from hypothesis import strategies as st
from runs_made import BRANCHES, FAILED, Tell, made_run
from scripts import load_benchmark

from benchbench import open_run
from benchbench.cli.main import main
from benchbench.comparison.pairs import Pair, pair, sides_of
from benchbench.comparison.tables import notes
from benchbench.comparison.verdicts import Sample, compare
from benchbench.gates.gate_checks import judge_pair
from benchbench.gates.rules import rule_of
from benchbench.gates.texts import sentences
from benchbench.host.local_results import NOISE, store
from benchbench.spec import Cell, Session

SIMULATION = load_benchmark("gates")
CARRIED_OUT = {0, 3}  # on a busy machine no cell may be valid
DAY_NS = 86_400 * 10**9
SINGLE = {name: value for name, value in BRANCHES.items() if name != "variants"}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def build(speed: float = 1.0, noise: float = 0.003, seed: object = "") -> Tell:
    """A build so many times as fast, whose starts and rounds have luck of their own."""

    def tell(cell: Cell, start: Session, k: int) -> tuple[float, float]:
        own = random.Random(f"{seed} {speed} {start.block}").gauss(1, noise)
        own *= random.Random(f"{seed} {speed} {cell.key} {start.block} {k}").gauss(1, noise / 3)
        return (40 + cell.input / 50) * own / speed, (10 + (cell.batch or 0)) * own / speed

    return tell


def single(name: str, tell: Tell, day: int = 0, **more: Any) -> Path:
    """A run of one build, started `blocks` times."""
    data = {**SINGLE, **more}
    starts = [{"block": b, "variant": "", "time_ns": day * DAY_NS + b} for b in range(data["blocks"] or 1)]
    return made_run(Path(name), data, tell, starts=starts)


# ---- A baseline of another day ---------------------------------------------------------------------------


def test_runs_of_a_single_build_are_compared_start_by_start_and_days_are_told() -> None:
    base, new = single("base", build(seed=1)), single("new", build(0.95, seed=2), day=1, blocks=4)
    compared = pair(sides_of(open_run(base))[0], sides_of(open_run(new))[0])
    overall = compared.compared.overall[0]
    assert (overall.verdict, overall.ratio.n, overall.ratio.method) == ("slower", 4, "Welch's t over starts, logs")
    assert not any("4 of 6 starts" in note for note in notes(compared))  # four were asked for
    assert any("different days (1970-01-01 and 1970-01-02)" in note for note in notes(compared))
    same = pair(sides_of(open_run(base))[0], sides_of(open_run(single("again", build(seed=3))))[0])
    assert not any("days" in note for note in notes(same))


def test_a_sweep_of_one_build_starts_it_as_often_as_asked() -> None:
    Path("s.yaml").write_text(
        "{name: s, model: sim, engine: {kind: simulator, scale: 0.2}, blocks: 3, telemetry: {enabled: false},\n"
        " grid: {input: 8, output: 4, batch: [1, 2]}, rounds: {warmup: 0, min: 2}}"
    )
    planned = bench("sweep", "s.yaml", "--dry-run")
    assert "2 rounds of 2 requests in each of 3 starts" in planned.stdout
    assert "3 starts, 12 measured rounds" in planned.stdout
    assert "with 3 starts against 3 of another run" in planned.stdout
    result = bench("sweep", "s.yaml", "--out", "run", "--no-plots")
    assert result.exit_code in CARRIED_OUT, result.stderr
    run = open_run(Path("run"))
    assert [start["block"] for start in run.manifest["starts"]] == [0, 1, 2]
    assert [(row["variant"], row["rounds"], row["starts"]) for row in run.rows] == [("", 6, 3)] * 2


# ---- Gates on a comparison --------------------------------------------------------------------------------


def gated(*words: object, code: int = 0) -> str:
    """stderr of bench compare, which ends with this code."""
    result = bench("compare", *words)
    assert result.exit_code == code, result.stderr + result.stdout
    return result.stderr


def test_two_ordinary_runs_pass_no_gate_and_are_told_a_way() -> None:
    base, new = (single(name, build(speed, seed=name), blocks=None) for name, speed in (("a", 1.0), ("b", 0.67)))
    for gate in ("slower", "slower>5%", "tpot>5%"):
        err = gated(base, new, "--fail-on", gate, code=4)
        assert "cannot be judged: only one start of one side, so no interval (measure both with blocks: 6" in err
    unknown = gated(base, new, "--fail-on", "ratio<0.9", code=4)
    assert "cannot be judged: the noise between starts is unknown (bench noise measures it" in unknown


def test_points_of_ordinary_runs_are_judged_against_stored_noise() -> None:
    runs = {
        name: single(name, build(speed, seed=name), blocks=None) for name, speed in (("a", 1), ("b", 0.8), ("c", 1))
    }
    noise = {"name": "branches", "blocks": 6, "cell": 0.004, "mean": 0.003}
    store(noise, NOISE)
    assert "Sys tok/s of geometric mean: ratio 0.8" in gated(runs["a"], runs["b"], "--fail-on", "ratio<0.95", code=4)
    assert gated(runs["a"], runs["c"], "--fail-on", "ratio<0.95") == ""
    assert "0.999 lies inside the noise" in gated(runs["a"], runs["c"], "--fail-on", "ratio<0.999", code=4)
    store({**noise, "cell": 0.2}, NOISE)
    inside = gated(runs["a"], runs["b"], "--fail-on", "ratio<0.95", code=4)
    assert "Sys tok/s of in=128 out=8 batch=1 and 3 more: cannot be judged: 0.95 lies inside the noise" in inside
    assert "Sys tok/s of geometric mean: ratio 0.8" in inside


def test_a_certain_change_fails_though_it_is_equivalent_or_inside_a_margin() -> None:
    run = made_run(Path("run"), BRANCHES, branch(0.993, noise=0.0002))
    assert "equivalent" in bench("compare", run).stdout
    assert "Sys tok/s of geometric mean" in gated(run, "--fail-on", "slower", code=4)
    assert "0.6 % slower" in gated(run, "--fail-on", "slower>0.3%", code=4)
    assert gated(run, "--fail-on", "slower>1%") == ""
    worse = made_run(Path("worse"), BRANCHES, branch(0.95, noise=0.0005))
    assert "equivalent" in bench("compare", worse, "--margin", "8%").stdout
    assert "slower>3%" in gated(worse, "--margin", "8%", "--fail-on", "slower>3%", code=4)


def branch(decode: float, noise: float = 0.003, prefill: float = 1.0) -> Tell:
    """main, and a candidate whose decode and prefill are so many times as fast."""

    def tell(cell: Cell, start: Session, k: int) -> tuple[float, float]:
        own = random.Random(f"{start.variant} {start.block}").gauss(1, noise)
        own *= random.Random(f"{start.variant} {cell.key} {start.block} {k}").gauss(1, noise / 2)
        first, fast = (prefill, decode) if start.variant == "int8-moe" else (1.0, 1.0)
        return (4 + cell.input / 500) * own / first, (10 + (cell.batch or 0)) * own / fast

    return tell


def test_each_metric_has_gates_of_its_own() -> None:
    run = made_run(Path("run"), {**BRANCHES, "slo": {"tpot_ms": 50}}, branch(1.0, 0.001, prefill=0.8))
    err = gated(run, "--fail-on", "ttft>20%", code=4)
    assert "int8-moe against main: TTFT of geometric mean: 25.0 % longer" in err.replace("24.9", "25.0").replace(
        "25.1", "25.0"
    )
    for gate in ("ttft>30%", "tpot>1%", "e2el>50%", "sys_tok_s>10%", "goodput>10%"):
        assert gated(run, "--fail-on", gate) == ""
    unset = made_run(Path("unset"), BRANCHES, branch(1.0))
    assert "Goodput of in=128 out=8 batch=1 and 3 more: cannot be judged" in gated(
        unset, "--fail-on", "goodput>5%", code=4
    )


def test_goodput_of_nothing_is_not_left_out_of_its_mean() -> None:
    """A start whose requests all missed the limit has goodput 0, of which there is no logarithm."""

    def tell(cell: Cell, start: Session, k: int) -> tuple[float, float]:
        ttft, itl = branch(1.0)(cell, start, k)
        return ttft, 90.0 if (start.variant, start.block) == ("int8-moe", 2) else itl

    run = made_run(Path("run"), {**BRANCHES, "slo": {"tpot_ms": 50}}, tell)
    assert "Goodput of in=128 out=8 batch=1 and 3 more: cannot be judged" in gated(
        run, "--fail-on", "goodput>90%", code=4
    )
    assert "Goodput is 0 in a start, so it has no ratio" in bench("compare", run).stdout


def test_a_cell_that_is_not_compared_is_not_passed() -> None:
    def tell(cell: Cell, start: Session, k: int) -> tuple[float, float] | str:
        lost = start.variant == "int8-moe" and (cell.input, cell.batch) == (1024, 4)
        return "cached_prefix" if lost else branch(1.0)(cell, start, k)

    err = gated(made_run(Path("run"), BRANCHES, tell), "--fail-on", "slower>5%", code=4)
    assert (
        "Sys tok/s of in=1024 out=8 batch=4 and 1 more: cannot be judged: dropped as invalid of int8-moe (cach" in err
    )
    small = single("small", build(seed=2), grid={"input": 128, "output": 8, "batch": [1, 4]})
    large = single("large", build(seed=1))
    assert "(--allow-unlike compares them anyway)" in gated(large, small, "--fail-on", "slower>5%", code=2)
    assert "not judged" not in gated(large, small, "--allow-unlike", "--fail-on", "slower>5%")


def test_a_limit_below_what_the_design_finds_is_said() -> None:
    run = made_run(Path("run"), {**BRANCHES, "blocks": 3}, branch(1.0, 0.01))
    err = gated(run, "--fail-on", "slower>1%", "--fail-on", "slower")
    assert "slower>1%: 10 of 10 tests would probably miss a change of 1 % (found with 80 % power: " in err
    assert re.search(r"slower: \d of 10 tests would probably miss a change of 5 %", err)
    assert gated(made_run(Path("quiet"), BRANCHES, branch(1.0, 0.0005)), "--fail-on", "slower>5%") == ""


def test_a_test_without_power_does_not_pass() -> None:
    """A third slower in two noisy blocks is no significant change."""
    run = made_run(Path("run"), {**BRANCHES, "blocks": 2}, branch(0.5, 0.06))
    assert "undecided" in bench("compare", run).stdout
    for gate in ("slower", "slower>5%"):
        assert "so few starts would miss even a build of half the speed" in gated(run, "--fail-on", gate, code=4)


# ---- Properties ------------------------------------------------------------------------------------------

LOGS = st.lists(st.floats(-0.3, 0.3), min_size=3, max_size=6)


def made_pair(shifts: list[list[float]], blocks: int, missing: dict[str, str], *, swap: bool = False) -> Pair:
    """Cells whose candidate's logs are these, beside a baseline of 0 with small luck."""
    samples = []
    for number, logs in enumerate(shifts):
        for block in range(blocks):
            luck = random.Random(f"{number} {block}").gauss(0, 0.001)
            sides = (math.exp(luck), math.exp(logs[block % len(logs)] + 2 * luck))
            samples += [
                Sample(f"c{number}", metric, block, *sides[:: -1 if swap else 1]) for metric in ("sys_tok_s", "tpot")
            ]
    compared = compare(samples)
    labels = dict.fromkeys(sample.cell for sample in samples)
    return Pair(
        base="a", candidate="b", cells=labels, samples=tuple(samples), compared=compared,  # type: ignore[arg-type]
        planned_cells=labels | missing, missing=missing, blocks=blocks, planned=blocks,  # type: ignore[arg-type]
        interleaved=True, margin=0.01, absent="", notes=(), fidelity="not_measured", fidelity_note="",
        fidelity_mode="off",
    )  # fmt: skip


def outcomes(pair: Pair, gate: str) -> dict[str, str]:
    return {check.what: check.outcome for check in judge_pair(pair, [rule_of(gate)])}


@given(st.lists(LOGS, min_size=1, max_size=4), st.integers(2, 5), st.floats(0.1, 20), st.floats(1.01, 3))
def test_what_a_loose_gate_fails_a_tight_one_fails(
    shifts: list[list[float]], blocks: int, limit: float, factor: float
) -> None:
    pair = made_pair(shifts, blocks, {})
    for name in ("slower", "sys_tok_s", "tpot"):
        loose, tight = (outcomes(pair, f"{name}>{share:.4f}%") for share in (limit * factor, limit))
        assert {what for what, outcome in loose.items() if outcome == "failed"} <= {
            what for what, outcome in tight.items() if outcome == "failed"
        }
    failed = {what for what, outcome in outcomes(pair, "sys_tok_s>0.01%").items() if outcome == "failed"}
    back = {what.replace("b against a", "") for what in failed}
    other = outcomes(made_pair(shifts, blocks, {}, swap=True), "sys_tok_s>0.01%")
    assert not back & {what.replace("b against a", "") for what, outcome in other.items() if outcome == "failed"}


@given(st.lists(LOGS, max_size=3), st.integers(1, 4), st.booleans())
def test_nothing_passes_that_was_not_judged(shifts: list[list[float]], blocks: int, lost: bool) -> None:
    pair = made_pair(shifts, blocks, {"gone": "the server died"} if lost else {})
    for gate in ("slower", "slower>5%", "tpot>5%", "ratio<0.9", "fidelity", "goodput>5%"):
        checks = judge_pair(pair, [rule_of(gate)])
        assert checks
        if lost or not shifts or blocks < 2 or gate in {"ratio<0.9", "fidelity", "goodput>5%"}:
            assert any(check.outcome == "not judged" for check in checks)
        assert bool(sentences(checks)) == any(check.outcome != "passed" for check in checks)


# ---- Limits on one run -----------------------------------------------------------------------------------


def test_limits_on_the_rows_of_one_run() -> None:
    run = single("run", build(), blocks=None)
    highest = max(row["ttft_ms_p99"] for row in open_run(run).rows)
    assert bench("table", run, "--fail-on", f"ttft_ms_p99>{highest}", "--fail-on", "failed>0").exit_code == 0
    result = bench("table", run, "--fail-on", f"ttft_ms_p99>={highest}")
    assert (result.exit_code, len(result.stderr.splitlines())) == (4, 1)
    assert "ttft_ms_p99 of in=1024 out=8 batch=" in result.stderr
    assert result.stdout.startswith("| Input |")
    lost = bench("table", run, "lost", "--fail-on", "failed>0")
    assert (lost.exit_code, "lost: does not exist" in lost.stderr) == (2, True)
    for gate, words in (
        ("ttft_ms_p98>5", "unknown column, did you mean ttft_ms_p99? (allowed: "),
        ("ttft_ms_p99", "must be a column and its limit (allowed: as 'ttft_ms_p99>500')"),
        ("ttft_ms_p99<0", "ttft_ms_p99 is never below 0, so it could not fail"),
        ("ttft_ms_p99<=-1", "so it could not fail"),
        ("ttft_ms_p99>1e400", "must be a finite number"),
    ):
        wrong = bench("table", run, "--fail-on", gate)
        assert (wrong.exit_code, words in wrong.stderr) == (2, True)


@pytest.mark.parametrize("name", ["slower", "sys_tok_s", "goodput"])
def test_a_rate_cannot_fall_by_all_of_it(name: str) -> None:
    assert rule_of(f"{name}>99.9%").limit == pytest.approx(0.999)
    with pytest.raises(ValueError, match="could not fail"):
        rule_of(f"{name}>100%")
    assert rule_of("ttft>150%").limit == pytest.approx(1.5)


def test_a_row_without_the_number_or_that_is_invalid_is_not_passed() -> None:
    run = single("run", lambda cell, start, k: FAILED if cell.batch == 4 else build()(cell, start, k), blocks=None)
    result = bench("table", run, "--fail-on", "ttft_ms_p99>1e9")
    assert result.exit_code == 4
    assert "ttft_ms_p99 of in=128 out=8 batch=4 and 1 more: cannot be judged: invalid (request_failed)" in result.stderr
    unset = bench("table", single("unset", build(), blocks=None), "--fail-on", "goodput_req_s<1")
    assert unset.exit_code == 4
    assert "goodput_req_s of in=128 out=8 batch=1 and 3 more: cannot be judged: there is no number" in unset.stderr


# ---- Where nobody looks at the table -----------------------------------------------------------------------


def test_junit_has_a_case_for_each_check() -> None:
    run = made_run(Path("run"), BRANCHES, branch(0.9))
    result = bench("compare", run, "--fail-on", "slower>1%", "--fail-on", "fidelity", "--format", "junit")
    assert result.exit_code == 4
    suites = ET.fromstring(result.stdout)  # noqa: S314 - our own
    counts = [(suite.get("name"), suite.get("tests"), suite.get("failures"), suite.get("errors")) for suite in suites]
    assert counts[1] == ("fidelity", "1", "0", "1")
    assert counts[0][:2] == ("slower>1%", "10")
    failures = suites.findall(".//failure")
    assert str(len(failures)) == counts[0][2]
    assert all(" % slower" in failure.get("message", "") for failure in failures)
    ungated = bench("compare", run, "--format", "junit")
    assert (ungated.exit_code, "give one with --fail-on" in ungated.stderr) == (2, True)
    table = bench("table", run, "--fail-on", "failed>0", "--format", "junit")
    assert (table.exit_code, table.stdout.count("<testcase ")) == (0, 8)


def test_github_gets_annotations_and_a_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    run = made_run(Path("run"), {**BRANCHES, "blocks": 3}, branch(0.9, 0.001))
    result = bench("compare", run, "--fail-on", "slower>1%", "--fail-on", "tpot>0.01%")
    lines = result.stderr.splitlines()
    assert result.exit_code == 4
    assert all(line.startswith(("::error title=bench::bench compare: ", "::warning title=bench::")) for line in lines)
    assert any("%25 slower" in line for line in lines)
    summary = Path("summary.md").read_text()
    assert "### int8-moe against main" in summary
    assert "| `slower>1%` | **failed** |" in summary
    assert bench("table", run, "--fail-on", "failed>0").exit_code == 0
    assert "| `failed>0` | passed | 8 | 0 | 0 |" in Path("summary.md").read_text()
    bad = bench("table", "nowhere")
    assert bad.stderr.startswith("::error title=bench::bench table: nowhere: does not exist")


# ---- A baseline that is made anew --------------------------------------------------------------------------


def test_overwrite_replaces_a_run_and_nothing_else() -> None:
    Path("s.yaml").write_text(
        "{name: s, model: sim, engine: {kind: simulator, scale: 0.2}, telemetry: {enabled: false},\n"
        " grid: {input: 8, output: 4, batch: [1, 2]}, rounds: {warmup: 0, min: 1, max: 1}}"
    )
    sweep = ("sweep", "s.yaml", "--out", "run", "--no-plots")
    assert bench(*sweep, "--overwrite").exit_code in CARRIED_OUT  # nothing is there
    before = {path.name for path in Path("run/records").iterdir()}
    Path("run/mine.txt").write_text("kept")
    Path("run/profiles/main-0").mkdir(parents=True)  # another run's traces would be taken for this one's
    Path("run/profile.md").write_text("old")
    refused = bench(*sweep)
    assert (refused.exit_code, "--overwrite" in refused.stderr) == (2, True)
    assert bench(*sweep, "--overwrite", "--only", "batch=1").exit_code in CARRIED_OUT
    after = {path.name for path in Path("run/records").iterdir()}
    assert after < before
    assert len(open_run(Path("run")).rows) == 1
    assert Path("run/mine.txt").read_text() == "kept"
    assert not Path("run/profiles").exists()
    assert not Path("run/profile.md").exists()
    assert bench(*sweep, "--overwrite", "--resume").exit_code == 2
    assert bench(*sweep, "--overwrite", "--only", "batch=99").exit_code == 2  # bad input deletes nothing
    assert len(open_run(Path("run")).rows) == 1
    Path("other").mkdir()
    Path("other/mine.txt").write_text("kept")
    assert "holds no run" in bench("sweep", "s.yaml", "--out", "other", "--overwrite").stderr


# ---- How often a gate is wrong -----------------------------------------------------------------------------


def test_false_alarms_are_as_rare_as_stated() -> None:
    """At most 5 unchanged builds in 100, at a fixed seed; with the standard error of 2,000 runs."""
    for design in (SIMULATION.Design(3, 5), SIMULATION.Design(6, 18)):
        cells, means, either = SIMULATION.rates(design, 0.0, 0.0, 2000)
        assert max(cells, means) < 0.025 + 0.0105
        assert either < 0.05 + 0.0145
        assert SIMULATION.rates(design, 0.0, 0.02, 2000)[2] < either
        assert SIMULATION.check(design, 0.01, 0.01, 4) == 4
    assert SIMULATION.ratio_rate(5, 2000) < 0.05 + 0.0145


# ---- docs/ci.md ------------------------------------------------------------------------------------------


def steps_of(event: str) -> dict[str, str]:
    """The commands of the page's workflow that an event runs, by their names."""
    page = (Path(__file__).parents[1] / "docs" / "ci.md").read_text(encoding="utf-8")
    sweep, workflow = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    quick = sweep.replace("{kind: simulator}", "{kind: simulator, scale: 0.25}")
    assert quick != sweep
    Path("bench.yaml").write_text(quick)
    steps = yaml.safe_load(workflow)["jobs"]["speed"]["steps"]
    here = [
        step for step in steps if step.get("if", f"github.event_name == '{event}'") == f"github.event_name == '{event}'"
    ]
    return {step["name"]: step["run"] for step in here if "run" in step}


def shell(command: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": "summary.md", **env}
    words = ["bash", "-e", "-o", "pipefail", "-c", command]  # as GitHub runs a step
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.slow
def test_the_workflow_runs_as_it_is_written() -> None:
    """How its numbers turn out on a busy machine is another matter, and the next test's."""
    done = {name: shell(command) for event in ("push", "pull_request") for name, command in steps_of(event).items()}
    assert list(done) == ["Check the sweep", "Measure main", "Measure the pull request", "Limits", "Compare"]
    codes = {name: step.returncode for name, step in done.items()}
    assert codes["Check the sweep"] == 0, done["Check the sweep"].stderr
    assert {codes["Measure main"], codes["Measure the pull request"]} <= CARRIED_OUT, done
    assert {codes["Limits"], codes["Compare"]} <= {0, 4}, (done["Limits"].stderr, done["Compare"].stderr)
    for name in ("baseline", "candidate"):
        assert {row["starts"] for row in open_run(Path(name)).rows} == {3}
    assert ET.parse("gate.xml").getroot().tag == "testsuites"  # noqa: S314 - our own
    assert "### speed" in Path("summary.md").read_text()


@pytest.mark.parametrize(("speed", "code"), [(1.0, 0), (0.85, 4)])
def test_the_workflow_fails_a_slower_build_and_no_other(speed: float, code: int) -> None:
    single("baseline", build(seed=1))
    single("candidate", build(speed, seed=2), day=1)
    compare_step = shell(steps_of("pull_request")["Compare"])
    assert compare_step.returncode == code, compare_step.stderr
    assert ("::error title=bench::bench compare: slower>5%25: " in compare_step.stderr) == bool(code)
    assert len(ET.parse("gate.xml").findall(".//failure")) == (10 if code else 0)  # noqa: S314 - our own
    assert "different days (1970-01-01 and 1970-01-02)" in Path("summary.md").read_text()


def test_every_exit_code_that_a_command_names_is_in_the_table() -> None:
    page = (Path(__file__).parents[1] / "docs" / "definitions.md").read_text(encoding="utf-8")
    table = page.partition("## Exit codes")[2]
    known = set(re.findall(r"^\| (\d+) \|", table, re.MULTILINE)) | {"143", "129"}
    for command in main.commands.values():
        for line in re.findall(r"Exit: (.*?)\n\n", (command.help or "") + "\n\n", re.DOTALL):
            assert set(re.findall(r"(?:^|, )(\d+)\b", line)) <= known, command.name
