"""`bench bisect` on a real repository whose builds serve the simulator: it names the commit, resumes, only reads."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from driving import bench, sweeping, write_sweep
from runs_made import write_starts

from benchbench.bisect import search
from benchbench.measure.run import Outcome
from benchbench.measure.sessions import Sessions
from benchbench.spec import Cell, Session

SERVE = """import os, pathlib, sys
words = [sys.executable, os.environ["STANDIN_VLLM"], *sys.argv[1:]]
os.execv(sys.executable, [*words, "--option", "law.itl_s=" + pathlib.Path("speed").read_text().strip()])
"""
BROKEN = 3  # commits after good: does not build


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S607


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    (tmp_path / "gitconfig").write_text("[user]\nname=x\nemail=x@x\n[init]\ndefaultBranch=main\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("STANDIN_VLLM", str(Path(__file__).with_name("standin_vllm.py")))
    monkeypatch.chdir(tmp_path)


def repository(commits: int, slow: int, speeds: tuple[str, str] = ("0.004", "0.006")) -> tuple[Path, list[str]]:
    """A repository with so many commits after the first, of which number `slow` is slower; their names."""
    folder = Path("kernels").absolute()
    folder.mkdir()
    git(folder, "init", "-q")
    stream = []
    for number in range(commits + 1):
        files = {"serve.py": SERVE, "notes": f"{number}\n", "speed": speeds[number >= slow]}
        files["build.sh"] = "exit 7\n" if number == BROKEN else "true\n"
        day = int(datetime(2026, 3, 1 + number % 28, 12, tzinfo=UTC).timestamp())
        who, text = f"x <x@x> {day} +0000", f"Change {number}"
        stream += ["commit refs/heads/main", f"author {who}", f"committer {who}", f"data {len(text)}", text]
        for name, content in files.items():
            stream += [f"M 644 inline {name}", f"data {len(content)}", content]
    subprocess.run(["git", "fast-import", "--quiet"], cwd=folder, check=True, input="\n".join(stream), text=True)  # noqa: S607
    git(folder, "reset", "-q", "--hard", "main")
    return folder, git(folder, "rev-list", "--reverse", "main").split()


def sweep_file(repo: Path, *build: str, **changes: Any) -> Path:
    engine = {"kind": "vllm_serve", "command": [sys.executable, "serve.py"], "ready": {"timeout_s": 60}}
    source = {"repo": str(repo), "ref": "main", "build": [*build]}
    shape = {"grid": {"input": 8, "output": 12, "batch": 1}, "rounds": {"warmup": 1, "min": 2}}
    return write_sweep(
        Path("s.yaml"), "", engine=engine, variants={"main": {"git": source}}, blocks=2, **shape, **changes
    )


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def events(name: str) -> list[dict[str, Any]]:
    lines = map(json.loads, Path("run/journal.jsonl").read_text().splitlines())
    return [event for event in lines if event["event"] == name]


@pytest.fixture
def _instead_of_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds are made; what a start of them would give is written down, with 1 % noise of the start."""

    def carried_out(sessions: Sessions) -> Outcome:
        sessions.prepare()

        def tell(_cell: Cell, start: Session, _k: int) -> tuple[float, ...]:
            speed = float((sessions.checkouts[start.variant].path / "speed").read_text())
            luck = random.Random(f"{start.variant} {start.block}").gauss(1, 0.01)
            return 30.0, 1e3 * speed * luck

        made = [todo.session for todo in sessions.todo]
        starts = [*sessions.run.earlier().get("starts", []), *write_starts(sessions.run, made, tell)]
        entries = [cell.info.to_entry() for cell in sessions.plan.cells]
        facts = {"devices": [], "host": {"name": "here"}, "caption": [], "instrument": None, "sets": []}
        spec = sessions.plan.spec.model_dump(mode="json")
        sessions.run.write_manifest({"spec": spec, "plan": entries, "starts": starts, **facts})
        return Outcome(sessions.run.path, "complete", "", [])

    monkeypatch.setattr(search, "carry_out", carried_out)


@pytest.mark.usefixtures("_instead_of_servers")
def test_of_64_commits_the_one_that_is_slower_is_named() -> None:
    repo, names = repository(64, slow=41, speeds=("0.0100", "0.0105"))
    words = (sweep_file(repo), "--good", names[0], "--bad", "main", "--metric", "tpot", "--out", "run")
    result = bench("bisect", *words)
    assert result.exit_code == 0, result.stderr
    assert f'it is {names[41][:12]}, 2026-03-14, "Change 41".' in result.stdout
    assert "It changed TPOT by +" in result.stdout
    facts = json.loads(Path("run/bisect.json").read_text())
    assert [one["commit"] for one in facts["commits"]] == [names[41]]
    assert facts["ratio"]["low"] < 1 / 1.05 < facts["ratio"]["high"]
    assert facts["starts"] <= 40
    assert facts["blocks"][:2] == [["good", "bad"]] * 2
    ends = [block for block in facts["blocks"][2:] if {"good", "bad"} & {*block}]
    assert len(ends) >= (len(facts["blocks"]) - 2) // 12  # they are measured again along the way
    assert sum(one["probability"] for one in facts["places"]) == pytest.approx(1)
    assert "| good |" in bench("table", "run").stdout
    again = bench("bisect", *words, "--resume")
    assert (again.exit_code, again.stdout) == (0, result.stdout)


@pytest.mark.usefixtures("_instead_of_servers")
def test_builds_that_fail_share_the_verdict_of_what_follows() -> None:
    repo, names = repository(4, slow=BROKEN)
    result = bench("bisect", sweep_file(repo, "sh build.sh"), "--good", names[0], "--bad", names[4], "--out", "run")
    assert result.exit_code == 0, result.stderr
    assert "one of 2 commits (between them nothing could be measured):" in result.stdout
    for number in (BROKEN, BROKEN + 1):
        assert f'- {names[number][:12]}, 2026-03-0{number + 1}, "Change {number}"' in result.stdout
    assert f"Skipped: 3-{names[BROKEN][:9]}: does not build: `sh build.sh` failed (exit code 7)" in result.stdout


@pytest.mark.usefixtures("_instead_of_servers")
def test_a_path_leaves_commits_out_and_says_so() -> None:
    repo, names = repository(12, slow=9)
    words = ("--good", names[0], "--bad", names[12], "--path", "speed", "--out", "run")
    result = bench("bisect", sweep_file(repo), *words)
    assert result.exit_code == 0, result.stderr
    assert f'{names[9][:12]}, 2026-03-10, "Change 9", or one of the 8 before it that touch no --path.' in result.stdout


@pytest.mark.usefixtures("_instead_of_servers")
def test_builds_that_do_not_differ_are_said_not_to_and_budgets_are_kept() -> None:
    repo, names = repository(8, slow=99)
    words = (sweep_file(repo), "--good", names[0], "--bad", names[8], "--metric", "tpot")
    result = bench("bisect", *words, "--out", "run")
    assert result.exit_code == 4, result.stderr
    assert "Good and bad are not shown to differ" in result.stdout
    assert {tuple(event["places"]) for event in events("bisect_block")} == {(0, 8)}
    few = bench("bisect", *words, "--out", "few", "--starts", "5")
    assert few.exit_code == 4
    assert "bench bisect: The budget was spent before good and bad were shown to differ" in few.stderr
    assert "4 starts of 2 builds in 2 blocks" in few.stdout


def test_a_search_that_was_killed_goes_on_and_the_checkout_is_only_read(request: pytest.FixtureRequest) -> None:
    """Until it is killed with servers, whose starts may be invalid on a busy machine."""
    repo, names = repository(2, slow=1, speeds=("0.020", "0.040"))
    (repo / "notes").write_text("not committed\n")
    before = state(repo)
    words = (sweep_file(repo), "--good", names[0], "--bad", "main", "--metric", "tpot", "--out", "run")
    with sweeping(*words, command="bisect") as running:
        while not Path("run/journal.jsonl").exists() or len(events("bisect_block")) < 2:
            assert running.process.poll() is None, running.end()
            time.sleep(0.05)
        running.process.kill()
    starts = json.loads(Path("run/manifest.json").read_text())["starts"]
    assert [start["variant"] for start in starts][:2] == ["good", "bad"]
    assert starts[0]["environment"]["command"][-1] == "law.itl_s=0.020"
    request.getfixturevalue("_instead_of_servers")
    refused = bench("bisect", *words[:-4], "--metric", "ttft", "--out", "run", "--resume")
    assert refused.exit_code == 2
    assert "is another bisection (metric tpot -> ttft)" in refused.stderr
    result = bench("bisect", *words, "--resume")
    assert result.exit_code == 0, result.stderr
    assert f'it is {names[1][:12]}, 2026-03-02, "Change 1".' in result.stdout
    assert state(repo) == before
    blocks = [event["block"] for event in events("bisect_block")]
    assert blocks == list(range(len(blocks)))
    assert len(blocks) >= 3


@pytest.mark.parametrize(
    ("good", "bad", "more", "message"),
    [
        ("HEAD", "HEAD", (), "good and bad are the same commit"),
        ("HEAD", "HEAD~1", (), "HEAD~1 comes before HEAD: swap them"),
        ("other", "main", (), "other is not among the first parents of main"),
        ("HEAD~1", "HEAD", ("--path", "none"), "no commit between HEAD~1 and HEAD touches none"),
        ("HEAD~1", "HEAD", ("--variant", "x"), "--variant x: no variant of t that has `git` (allowed: main)"),
        ("HEAD~1", "HEAD", ("--metric", "x"), "--metric x: unknown (allowed: sys_tok_s, ttft, tpot)"),
        ("HEAD~1", "HEAD", ("--confidence", "100%"), "must be at least 50% and below 100%"),
        ("HEAD~1", "HEAD", ("--only", "batch=7"), "selects none of the 2 cells"),
        ("mian", "HEAD", (), "no commit has this name"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(good: str, bad: str, more: tuple[str, ...], message: str) -> None:
    repo, _ = repository(1, slow=1)
    git(repo, "checkout", "-q", "--orphan", "other")
    git(repo, "commit", "-qm", "Elsewhere")
    git(repo, "checkout", "-q", "main")
    result = bench("bisect", sweep_file(repo), "--good", good, "--bad", bad, *more)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) <= 2
