"""Variants built from git: fetched into the cache, built once a commit, started there; a user's own is only read."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from driving import CARRIED_OUT, bench, records, summary, sweeping, write_sweep

from benchbench.engines.git_checkout import DIFF_BYTES, checkout, moved_into
from benchbench.engines.process import Hooks
from benchbench.engines.vllm import command_line
from benchbench.errors import EngineError, LaunchStoppedError
from benchbench.spec import Git, SpecError, VllmInprocessEngine, VllmServeEngine, spec_from_mapping

STANDIN = str(Path(__file__).with_name("standin_vllm.py"))
SERVE = """import os, pathlib, sys
words = [sys.executable, os.environ["STANDIN_VLLM"], *sys.argv[1:]]
os.execv(sys.executable, [*words, "--option", "law.itl_s=" + pathlib.Path("built").read_text().strip()])
"""
BUILD = ["cp speed built", 'pwd >> "$COUNTER"']


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S607


def commit(folder: Path, **files: str) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "A change")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a cache and a configuration of git of their own, the latter with a hook that must not run."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    hook = tmp_path / "hooks" / "post-checkout"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    hook.chmod(0o755)
    (tmp_path / "gitconfig").write_text("[user]\nname=x\nemail=x@x\n[init]\ndefaultBranch=main\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COUNTER", str(tmp_path / "counter"))
    monkeypatch.setenv("STANDIN_VLLM", STANDIN)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """Two branches that serve at 2 and 20 ms a token; main is checked out."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    git(folder, "init", "-q")
    commit(folder, **{"bin/serve.py": SERVE, "speed": "0.02\n"})
    git(folder, "checkout", "-qb", "feat/fast")
    commit(folder, speed="0.002\n")
    git(folder, "checkout", "-q", "main")
    with (tmp_path / "gitconfig").open("a") as file:
        file.write(f"[core]\nhooksPath={tmp_path}/hooks\n")
    return folder


def state(folder: Path) -> dict[str, Any]:
    """Every file's content and every entry's time of change: also a lock that came and went would show."""
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_nlink, hashlib.sha256(path.read_bytes()).hexdigest())
        if path.is_file()
        else path.stat().st_mtime_ns
        for path in [folder, *sorted(folder.rglob("*"))]
    }


def sweep_of(repo: Path, *first: str, blocks: int = 2, **refs: str) -> Path:
    """Variants built from these refs; `first` are commands before the others in the build of the last variant."""
    engine = {"kind": "vllm_serve", "command": [sys.executable, "bin/serve.py"], "ready": {"timeout_s": 60}}
    last = list(refs)[-1]
    variants = {
        name: {"git": {"repo": str(repo), "ref": ref, "build": [*first, *BUILD] if name == last else [*BUILD]}}
        for name, ref in refs.items()
    }
    return write_sweep(Path("s.yaml"), "", engine=engine, variants=variants, blocks=blocks)


def manifest() -> dict[str, Any]:
    return json.loads(Path("run/manifest.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.slow
def test_two_branches_are_built_once_and_measured_in_blocks_and_the_checkout_is_untouched(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repo / "bin/serve.py").write_text(SERVE + "# not committed\n")
    (repo / "new.txt").write_text("not in git\n")
    os.utime(repo / "speed")  # git would gladly write its index anew
    before, shas = state(repo), {"slow": git(repo, "rev-parse", "main"), "fast": git(repo, "rev-parse", "feat/fast")}
    assert state(repo) == before
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.setenv(name, "/nowhere")
    sweep = sweep_of(repo, slow="main", fast="feat/fast")
    assert (
        "slow: is built from git when the sweep begins: not checked\nnothing was checked"
        in bench("check", sweep).stdout
    )
    assert bench("sweep", sweep, "--dry-run").exit_code == 0
    assert not Path("cache/benchbench/git").exists()
    result = bench("sweep", sweep, "--out", "run", "--no-plots")
    assert result.exit_code in CARRIED_OUT, result.stderr
    assert state(repo) == before
    assert not Path("hooked").exists()

    built = manifest()["variants"]
    assert {name: facts["commit"] for name, facts in built.items()} == shas
    assert {name: (facts["ref"], facts["repo"]) for name, facts in built.items()} == {
        "slow": ("main", str(repo)),
        "fast": ("feat/fast", str(repo)),
    }
    assert built["slow"]["dirty"] == [" M bin/serve.py", "?? new.txt"]
    assert f"uncommitted changes in {repo}, M bin/serve.py first, are not part of what is measured" in result.stderr
    assert "+# not committed" in Path("run/git/slow.diff").read_text()
    speeds = {(one["block"], one["variant"]): one["environment"]["command"][-1] for one in manifest()["starts"]}
    slow, fast = "law.itl_s=0.02", "law.itl_s=0.002"
    assert speeds == {(0, "slow"): slow, (0, "fast"): fast, (1, "fast"): fast, (1, "slow"): slow}
    assert {row["status"] for row in records(Path("run"))} == {"ok"}
    assert [(row["variant"], row["rounds"]) for row in summary(Path("run"))] == [("slow", 2), ("fast", 2)]
    assert summary(Path("run"))[0]["tpot_ms"] > 15

    found = json.loads(bench("compare", "run", "--format", "json").stdout)
    assert "fast" in found["overall"]["sentence"]
    for one in found["cells"]:  # none on a machine so busy that no cell can be trusted
        assert (one["base"], one["candidate"]) == ("slow", "fast")
        if one["metric"] == "tpot":
            assert one["verdict"] in {"faster", "undecided"}
            assert one["ratio"]["point"] > 2

    trees = [facts["path"] for facts in built.values()]
    assert Path("counter").read_text().split() == trees
    assert Path("run", built["fast"]["log"]).read_text().count("$ cp speed built") == 1
    again = bench("sweep", sweep, "--out", "again", "--no-plots", "--set", "blocks=1")
    assert again.exit_code in CARRIED_OUT, again.stderr
    assert Path("counter").read_text().split() == trees
    assert "$ cp speed built" in Path("again", built["fast"]["log"]).read_text()


def test_a_build_that_fails_leaves_out_its_variant_and_is_tried_again(repo: Path) -> None:
    sweep = sweep_of(repo, "echo compiling; test -e ../../../../../allowed || exit 3", blocks=1, a="main", b="main")
    result = bench("sweep", sweep, "--out", "run", "--no-plots")
    assert result.exit_code == 3, result.stderr
    assert result.stderr.endswith("bench: no cell of variant b is valid (see bench explain run)\n")
    assert "variant b cannot start, and is left out: `echo compiling;" in result.stderr
    assert "failed (exit code 3): compiling" in result.stderr
    assert "whole log: run/logs/build-b.log" in result.stderr
    assert {row["variant"]: row["rounds"] for row in summary(Path("run"))} == {"a": 1, "b": 0}
    Path("allowed").touch()
    result = bench("sweep", sweep, "--out", "run", "--no-plots", "--resume")
    assert result.exit_code in CARRIED_OUT, result.stderr
    assert {row["variant"]: row["rounds"] for row in summary(Path("run"))} == {"a": 1, "b": 1}
    assert {facts["commit"] for facts in manifest()["variants"].values()} == {git(repo, "rev-parse", "main")}


def test_refs_that_there_are_not_end_the_sweep_when_no_variant_is_left(repo: Path) -> None:
    before = state(repo)
    result = bench("sweep", sweep_of(repo, a="mian", b="feat/fats"), "--out", "run", "--no-plots")
    assert result.exit_code == 2
    assert f"s.yaml:28: variants.a.git.ref: no commit has this name in {repo}: mian (allowed: main" in result.stderr
    assert "note:   allowed: feat/fast and 1 more" in result.stderr
    assert state(repo) == before


def test_a_ref_that_has_moved_is_not_mixed_with_what_was_measured(repo: Path) -> None:
    sweep = sweep_of(repo, a="main", b="feat/fast")
    assert bench("sweep", sweep, "--out", "run", "--no-plots", "--set", "blocks=1").exit_code in CARRIED_OUT
    old, measured = git(repo, "rev-parse", "main"), records(Path("run"))
    new = commit(repo, speed="0.03\n")
    again = ("sweep", sweep, "--out", "run", "--no-plots", "--resume", "--set", "blocks=2")
    result = bench(*again)
    assert result.exit_code == 2
    assert f"variants.a.git.ref: main is now at {new}, this run measured {old}" in result.stderr
    assert records(Path("run")) == measured
    git(repo, "reset", "-q", "--hard", old)
    result = bench(*again)
    assert result.exit_code in CARRIED_OUT, result.stderr
    assert [row["rounds"] for row in summary(Path("run"))] == [2, 2]


def test_an_interrupted_build_leaves_no_process_and_is_begun_anew(repo: Path) -> None:
    building = 'test -e "$COUNTER.again" && exit; touch half; (sleep 500 & touch "$COUNTER.building"; sleep 500)'
    with sweeping(sweep_of(repo, building, blocks=1, a="main", b="main"), "--out", "run", "--no-plots") as running:
        while not Path("counter.building").exists():
            assert running.process.poll() is None, running.end()
            time.sleep(0.05)
        running.process.send_signal(signal.SIGINT)
        code, _, err = running.end()
        assert code == 130, err
        assert running.descendants() == []
    Path("counter.again").touch()
    result = bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume")
    assert result.exit_code in CARRIED_OUT, result.stderr
    assert [row["rounds"] for row in summary(Path("run"))] == [1, 1]
    assert not Path(manifest()["variants"]["b"]["path"], "half").exists()


# ---- The commits of a ref ---------------------------------------------------------------------------------


def made(repo: object, ref: str, **more: Any) -> Any:
    return checkout(Git(repo=str(repo), ref=ref), "x", Hooks(Path("logs").absolute(), **more))


@pytest.mark.parametrize("url", ["../kernels-library", "absolute"])
def test_submodules_are_checked_out_at_their_commits(repo: Path, tmp_path: Path, url: str) -> None:
    library = tmp_path / "kernels-library"
    library.mkdir()
    git(library, "init", "-q")
    commit(library, header="1\n")
    with (tmp_path / "gitconfig").open("a") as file:
        file.write('[protocol "file"]\nallow=always\n')  # else git takes submodules from the network only
    git(repo, "submodule", "--quiet", "add", str(library) if url == "absolute" else url, "library")
    git(repo, "commit", "-qm", "A submodule")
    commit(library, header="2\n")
    Path("hooked").unlink()  # by our own submodule add
    for source in (repo, f"file://{repo}"):
        tree = made(source, "main").path
        assert (tree / "library" / "header").read_text() == "1\n"
        assert git(tree, "status", "--porcelain") == ""
    assert git(repo, "status", "--porcelain") == ""
    assert not Path("hooked").exists()


@pytest.mark.parametrize("ref", ["main", "v1", "SHA", "HEAD", "refs/pull/7/head"])
def test_commits_of_a_url_and_of_a_folder_are_the_same(repo: Path, ref: str) -> None:
    sha = commit(repo, speed="1\n")
    git(repo, "tag", "-am", "One", "v1")
    git(repo, "update-ref", "refs/pull/7/head", "HEAD")
    git(repo, "config", "uploadpack.allowAnySHA1InWant", "true")
    ref = sha if ref == "SHA" else ref
    for source in (repo, f"file://{repo}", repo / "bin"):
        found = made(source, ref)
        assert (found.commit, found.dirty, found.diff) == (sha, (), "")
        assert (found.path / "speed").read_text() == "1\n"
        assert git(found.path, "describe", "--tags") == "v1"


def test_a_folder_of_branches_becomes_a_branch(repo: Path) -> None:
    for source in (repo, f"file://{repo}"):
        made(source, "feat/fast")
    git(repo, "branch", "-q", "-m", "feat/fast", "feat")
    commit(repo, speed="2\n")
    assert made(repo, "main").commit == made(f"file://{repo}", "main").commit == git(repo, "rev-parse", "main")
    with pytest.raises(EngineError, match=r"no commit has this name in .*: feat/fast") as told:
        made(f"file://{repo}", "feat/fast")
    assert told.value.allowed.startswith("feat")


def test_what_only_the_folder_has_is_found_there(repo: Path, tmp_path: Path) -> None:
    git(repo, "checkout", "-q", "--detach")
    lone = commit(repo, speed="3\n")
    git(repo, "checkout", "-q", "main")
    git(repo, "worktree", "add", "-q", str(tmp_path / "other"), "feat/fast")
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{repo}", "shallow")
    before = state(repo)
    assert made(repo, lone).commit == made(repo, lone[:9]).commit == lone
    assert made(tmp_path / "other", "HEAD").commit == git(repo, "rev-parse", "feat/fast")
    assert made(tmp_path / "shallow", "HEAD").commit == git(repo, "rev-parse", "main")
    assert made(tmp_path / "shallow", "origin/main").commit == git(repo, "rev-parse", "main")
    assert state(repo) == before
    assert len(list((tmp_path / "cache/benchbench/git").iterdir())) == 2  # a worktree is no repository of its own


def test_sources_that_are_none(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        (tmp_path / "cache", "main", "git.repo", "no such folder"),
        (tmp_path, "main", "git.repo", "not a git repository"),
        (f"file://{tmp_path}/none", "main", "git.repo", "cannot be fetched: fatal: .*none"),
        (repo, "--all", "git.ref", "no commit has this name"),
        (f"file://{repo}", "--all", "git.ref", "no commit has this name"),
        (f"file://{repo}", "HEAD~5", "git.ref", "no commit has this name"),
        (repo, "HEAD:speed", "git.ref", "no commit has this name"),
    ]
    for source, ref, key, message in cases:
        with pytest.raises(EngineError, match=message) as told:
            made(source, ref)
        assert told.value.key == f"variants.x.{key}"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="git is not installed"):
        made(repo, "main")


def test_the_record_of_a_dirty_checkout_is_bounded_and_masked(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hf_verysecret")
    (repo / "speed").write_text("hf_verysecret\n" + "a line\n" * DIFF_BYTES)
    found = made(repo, "main")
    assert found.dirty == (" M speed",)
    assert len(found.diff) <= DIFF_BYTES
    assert "hf_verysecret" not in found.diff


def test_another_run_that_builds_is_waited_for(repo: Path) -> None:
    folder = made(repo, "main").path.parent
    there, stop = os.pipe()
    said: list[str] = []

    def progress(_what: str, _seconds: float, line: str) -> None:
        said.append(line)
        os.write(stop, b"x")

    with (folder / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LaunchStoppedError):
            made(repo, "main", progress=progress, stop=there)
    os.close(there)
    os.close(stop)
    assert said == ["another run fetches or builds from this repository"]


# ---- What starts in it ------------------------------------------------------------------------------------


def test_relative_paths_of_an_engine_are_those_of_its_checkout(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/serve").touch()
    (tmp_path / "vllm").mkdir()  # as in vLLM's own repository
    command = ["bin/serve", "vllm", "my-org/my-model", "/bin/sh"]
    engine = VllmServeEngine(kind="vllm_serve", command=command, venv=".venv", python="venv/bin/python", cwd="sub")
    moved = moved_into(engine, tmp_path)
    assert moved.command == (f"{tmp_path}/bin/serve", "vllm", "my-org/my-model", "/bin/sh")
    assert (moved.venv, moved.python) == (f"{tmp_path}/.venv", f"{tmp_path}/venv/bin/python")
    assert moved.cwd == f"{tmp_path}/sub"
    assert command_line(moved, "m", 1)[0] == f"{tmp_path}/bin/serve"
    plain = moved_into(VllmInprocessEngine(kind="vllm_inprocess", python="python3.12", venv="/opt/v"), tmp_path)
    assert (plain.cwd, plain.python, plain.venv) == (str(tmp_path), "python3.12", "/opt/v")


def test_git_needs_an_engine_to_launch_and_no_password() -> None:
    source = {"repo": "https://me:secret@h/r.git", "ref": "main"}
    data = {
        "name": "t",
        "model": "m",
        "engine": {"kind": "vllm_serve"},
        "grid": {"input": 1, "output": 1, "batch": 1},
        "variants": {
            "a": {"git": source},
            "b": {"git": {**source, "repo": "git@h:r.git"}, "engine": {"kind": "simulator"}},
        },
    }
    with pytest.raises(SpecError) as told:
        spec_from_mapping(data)
    said = [str(problem) for problem in told.value.problems]
    assert len(said) == 2
    assert any("variants.a.git.repo: holds a user or a password" in line for line in said)
    assert any("variants.b.git: needs an engine that is launched" in line for line in said)
    assert "secret" not in "".join(said)
