"""What an engine has loaded: two builds that are the same are said to be, and what differs has its name."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from driving import CARRIED_OUT, bench, write_sweep
from test_git_variants import commit, git

from benchbench.comparison.loaded_builds import loaded_notes
from benchbench.engines.log_backends import chosen_backends
from benchbench.identity import running
from benchbench.identity.loaded_code import loaded_code
from benchbench.spec import EndpointEngine

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="a C extension is built, and gcc is not installed")
needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is loaded is read from /proc")

KERNEL = "int steps(int n) { return n * %d; }\n"
SERVE = """import ctypes, pathlib, sys
kernel = ctypes.CDLL(str(pathlib.Path(__file__).parent / "kernel.so"))
print("(EngineCore pid=7) INFO 11-28 10:00:00 [cuda.py:507] Using BACKEND attention backend out of ...", flush=True)
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
from benchbench.cli.main import main
main(["sim", "--port", given["--port"], "--model", given["--model"]])
"""


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server with a kernel in C: `comment` compiles to the same, `kernel` does not, `again` has main's files."""
    (tmp_path / "gitconfig").write_text("[user]\nname=x\nemail=x@x\n[init]\ndefaultBranch=main\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "engine"
    folder.mkdir()
    git(folder, "init", "-q")
    commit(folder, **{"kernel.c": KERNEL % 2, "serve.py": SERVE.replace("BACKEND", "FLASH_ATTN")})
    for branch, files in {
        "comment": {"kernel.c": "/* faster, surely */\n" + KERNEL % 2},
        "kernel": {"kernel.c": KERNEL % 3, "serve.py": SERVE.replace("BACKEND", "TRITON_ATTN")},
    }.items():
        git(folder, "checkout", "-qb", branch, "main")
        commit(folder, **files)
    git(folder, "checkout", "-qb", "again", "main")
    git(folder, "commit", "-q", "--allow-empty", "-m", "nothing")
    return folder


def sweep_of(repo: Path, **refs: str) -> Path:
    engine = {"kind": "vllm_serve", "command": [sys.executable, "serve.py"], "ready": {"timeout_s": 60}}
    build = ["gcc -shared -fPIC -O1 -o kernel.so kernel.c"]
    variants = {name: {"git": {"repo": str(repo), "ref": ref, "build": build}} for name, ref in refs.items()}
    return write_sweep(Path("s.yaml"), "", engine=engine, variants=variants, blocks=2)


def compared(sweep: Path) -> tuple[list[str], str]:
    """The notes of the verdict, and what the sweep said."""
    result = bench("sweep", sweep, "--out", "run", "--no-plots")
    assert result.exit_code in CARRIED_OUT, result.stderr
    notes: list[str] = json.loads(bench("compare", "run", "--format", "json").stdout)["pairs"][0]["notes"]
    return notes, result.stdout + result.stderr


@needs_gcc
@needs_proc
def test_two_branches_that_compile_to_the_same_kernel_loaded_the_same_code(repo: Path) -> None:
    sweep = sweep_of(repo, old="main", new="comment")
    assert "warning" not in bench("validate", sweep).stdout + bench("sweep", sweep, "--dry-run").stdout
    notes, result = compared(sweep)
    assert notes[0].startswith("both builds loaded the same code (")
    overall = json.loads(bench("compare", "run", "--format", "json").stdout)["overall"]
    assert "; both builds loaded the same code; " in overall["sentence"]
    assert "both builds loaded the same code" in result
    manifest = json.loads(Path("run/manifest.json").read_text())
    digests = {start["loaded"] for start in manifest["starts"]}
    assert len(digests) == 1
    facts = manifest["loaded"][digests.pop()]
    assert "serve.py" in facts["python"]
    assert any(path.endswith("/kernel.so") for path in facts["libraries"])
    assert {start["backends"]["attention backend"][0] for start in manifest["starts"]} == {"FLASH_ATTN"}


@needs_gcc
@needs_proc
def test_what_differs_between_two_builds_is_named(repo: Path) -> None:
    notes, _ = compared(sweep_of(repo, old="main", new="kernel"))
    assert notes[0] == (
        "of what the builds loaded, 1 library differs (kernel.so); Python of serve.py differs; "
        "attention backend FLASH_ATTN -> TRITON_ATTN"
    )


def test_two_refs_with_the_same_files_are_warned_of_before_anything_is_built(repo: Path) -> None:
    short = {name: git(repo, "rev-parse", name)[:12] for name in ("main", "again")}
    warning = (
        f"variants old and new build the same code: main (commit {short['main']}) and again (commit {short['again']}) "
        "have the same files"
    )
    sweep = sweep_of(repo, old="main", new="again")
    assert f"warning: {warning}" in bench("validate", sweep).stdout
    assert f"warning: {warning}" in bench("sweep", sweep, "--dry-run").stdout
    assert not Path("cache/benchbench/git").exists()
    builds = [word for name in ("old", "new") for word in ("--set", f"variants.{name}.git.build=['false']")]
    assert f"note: {warning}" in bench("sweep", sweep, *builds, "--out", "run", "--no-plots").stderr
    sweep = sweep_of(repo, old="main", new="main")
    assert f"build the same code: main (commit {short['main']})\n" in bench("validate", sweep).stdout


def test_two_variants_that_are_one_server_are_named(tmp_path: Path) -> None:
    """Nobody can read the code of an endpoint; that both are at one address says enough."""
    engines: dict[str, Any] = {
        name: {"engine": {"url": f"http://127.0.0.1:{port}"}} for name, port in zip("abc", "112", strict=True)
    }
    file = write_sweep(tmp_path / "s.yaml", "http://127.0.0.1:9", variants=engines, blocks=2)
    assert "warning: variants a and b are the same: a build is compared with itself\n" in bench("validate", file).stdout
    told = {
        name: {"engine.kind": "endpoint", **{f"engine.{k}": v for k, v in one["engine"].items()}}
        for name, one in engines.items()
    }
    starts = [{"variant": name, "identity": told[name], "identity_digest": name} for name in "abc"]
    run: Any = {"starts": starts}
    assert loaded_notes(("a", run, "a"), ("b", run, "b")) == [
        "both builds loaded the same code: they are one server (http://127.0.0.1:1)"
    ]
    assert loaded_notes(("a", run, "a"), ("c", run, "c")) == []
    assert loaded_notes(("a", run, "a"), ("b", {"starts": [*starts, {"variant": "d"}]}, "b")) == []  # of another day


@needs_proc
def test_a_library_that_was_replaced_under_a_running_process_is_not_taken_for_what_it_runs(tmp_path: Path) -> None:
    library = tmp_path / "kernel.so"
    shutil.copy(next(path for path in loaded_code_of_python()["libraries"] if ".so" in path), library)
    code = "import mmap, sys; f = open(sys.argv[1]); m = mmap.mmap(f.fileno(), 0, prot=1); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(library)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        first = loaded_code(process.pid)
        assert str(library) in first["libraries"]
        other = tmp_path / "other.so"
        other.write_bytes(b"another build")
        other.replace(library)
        second = loaded_code(process.pid)
        process.communicate(b"\n")
    assert second["unread"] == [f"{library} (deleted)", "Python's program"]
    assert second["digest"] != first["digest"]


@needs_proc
def test_a_script_among_too_many_files_is_not_taken_for_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchbench.identity.loaded_code.MOST_FILES", 2)
    for name in ("a.py", "b.py", "serve.py"):
        (tmp_path / name).write_text("input()\n")
    with subprocess.Popen([sys.executable, str(tmp_path / "serve.py")], stdin=subprocess.PIPE) as process:
        facts: dict[str, Any] = {}
        while not facts:
            facts = loaded_code(process.pid)
        process.communicate(b"\n")
    assert "serve.py" in facts["unread"]
    assert "serve.py" not in facts["python"]


@needs_proc
@pytest.mark.parametrize("way", ["a .pth file", "a finder"])
def test_a_server_installed_to_be_edited_is_read_where_its_source_lies(tmp_path: Path, way: str) -> None:
    source, packages = tmp_path / "source" / "server", tmp_path / "environment" / "lib" / "python3.11" / "site-packages"
    (packages / "server").mkdir(parents=True)  # only its data: as some installers leave it
    (packages / "server" / "kernels.json").write_text("{}")
    source.mkdir(parents=True)
    (source / "__init__.py").touch()
    (source / "__main__.py").write_text("input()")
    if way == "a finder":
        (packages / "__editable___server_1_finder.py").write_text(
            f"MAPPING: dict[str, str] = {{'server': '{source}'}}\n"
        )
    else:
        (packages / "__editable__.server-1.pth").write_text(f"{source.parent}\n")
    command = tmp_path / "environment" / "bin" / "server"
    command.parent.mkdir()
    command.write_text("input()")
    first = loaded_code_of("sh", "-c", f"{sys.executable} {command}; exit", python="server")
    (source / "__main__.py").write_text("input()  # faster")
    second = loaded_code_of(sys.executable, str(command), python="server")
    assert first["python"]["server"] != second["python"]["server"]
    assert not first["unread"]


@needs_proc
def test_a_program_is_code_and_what_python_runs_is_read_or_named(tmp_path: Path) -> None:
    """Two builds of a server that is one file (Go, Rust, a static llama.cpp) map the same libraries."""
    server = tmp_path / "server"
    shutil.copy("/bin/sleep", server)
    first = loaded_code_of(str(server), "1")
    server.unlink()
    shutil.copy("/bin/cat", server)
    assert loaded_code_of(str(server))["libraries"][str(server)] != first["libraries"][str(server)]
    assert loaded_code_of_python()["unread"] == ["Python's program"]


def loaded_code_of_python() -> dict[str, Any]:
    return loaded_code_of(sys.executable, "-c", "input()")


def loaded_code_of(*command: str, python: str = "") -> dict[str, Any]:
    """Once it has begun: mapped the C library besides itself, or a package of that name is seen."""
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        facts, until = loaded_code(process.pid), time.monotonic() + 30
        while time.monotonic() < until and (
            len(facts.get("libraries", ())) < 2 or python not in {"", *facts["python"]}
        ):
            facts = loaded_code(process.pid)
        process.communicate(b"\n")
    return facts


def manifest_of(*libraries: dict[str, str], **more: Any) -> dict[str, Any]:
    loaded = {str(k): {"libraries": one, "python": {}, "unread": []} for k, one in enumerate(libraries)}
    return {"starts": [{"variant": "", "loaded": key, **more} for key in loaded], "loaded": loaded}


def test_starts_of_one_build_that_loaded_different_code_are_named_and_old_runs_say_nothing() -> None:
    base: Any = manifest_of({"/a/k.so": "1", "/a/t.so": "5"}, {"/b/k.so": "1"})
    other: Any = manifest_of({"/c/k.so": "1"})
    same = "both builds loaded the same code (1 library): only flags, variables and data can differ"
    assert loaded_notes(("a", base, ""), ("b", other, "")) == [
        same,
        "a: not all of its starts loaded the same code (t.so)",
    ]
    assert loaded_notes(("a", base, ""), ("b", {"starts": [{"variant": ""}]}, ""))[1:] == []
    old = manifest_of(
        {"/c/k.so": "1"}, environment={"packages": {"torch": "2.9"}}, backends={"KV cache layout": ["NHD"]}
    )
    new = manifest_of(
        {"/c/k.so": "1"},
        environment={"packages": {"torch": "2.10"}},
        backends={"KV cache layout": ["NHD"], "MoE backend": ["A"]},
    )
    assert loaded_notes(("b", old, ""), ("c", new, "")) == [  # type: ignore[arg-type] # the parts that are looked at
        "of what the builds loaded, MoE backend none -> A; torch 2.9 -> 2.10"
    ]
    other["loaded"]["0"]["unread"] = ["/c/kernels.so (deleted)"]
    assert loaded_notes(("b", other, ""), ("b", other, "")) == [
        f"as far as it could be read, {same}",
        "loaded, but replaced on disk since then or not readable: kernels.so (deleted)",
    ]


@pytest.mark.parametrize(
    ("line", "kind", "name"),
    [
        (
            "Using FLASH_ATTN attention backend out of potential backends: ['FLASH_ATTN'].",
            "attention backend",
            "FLASH_ATTN",
        ),
        ("Using AttentionBackendEnum.TRITON_ATTN backend.", "attention backend", "TRITON_ATTN"),
        ("Using ROCM_ATTN backend (selected via --attention-backend).", "attention backend", "ROCM_ATTN"),
        ("Using Flash Attention backend.", "attention backend", "Flash Attention"),
        (  # ROCm's, where one candidate does not fit: in vLLM 0.33 two never do by default
            "Found incompatible backend(s) [ULTRAQUANT] with ... Overriding with TRITON_ATTN out of potential backends",
            "attention backend",
            "TRITON_ATTN",
        ),
        ("Using ROCM_ATTN backend out of potential backends: ['ROCM_ATTN'].", "attention backend", "ROCM_ATTN"),
        ("Using Rocm Attention backend on V1 engine.", "attention backend", "Rocm Attention"),
        ("Using Triton Attention backend on V1 engine.", "attention backend", "Triton Attention"),
        ("Using ROCmFlashAttention backend.", "attention backend", "ROCmFlashAttention"),
        ("Using aiter sampler on ROCm (lazy import, sampling-only).", "sampler", "aiter"),
        ("Using 'AITER_MXFP4_BF16' Mxfp4 MoE backend", "MoE backend", "AITER_MXFP4_BF16"),
        ("Using AITER Flash Attention backend for ViT model.", "ViT attention backend", "AITER Flash Attention"),
        (
            "Using Flash Attention (Triton backend) for ViT model on RDNA.",
            "ViT attention backend",
            "Flash Attention (Triton backend)",
        ),
        ("Using CUTLASS_MLA MLA prefill backend.", "MLA prefill backend", "CUTLASS_MLA"),
        ("Using FlashAttention version 3", "FlashAttention version", "3"),
        ("Using 'MARLIN' MxFp8 MoE backend (user-requested).", "MoE backend", "MARLIN"),
        ("Using TRITON Unquantized MoE backend out of potential backends: ['TRITON'].", "MoE backend", "TRITON"),
        ("Using TritonExperts MoE backend", "MoE backend", "TritonExperts"),
        ("Using CutlassExpertsMxfp4 for MXFP4 MoE", "MoE backend", "CutlassExpertsMxfp4"),
        ("Using FlashInferKernel for NVFP4 GEMM", "GEMM kernel", "FlashInferKernel"),
        ("Using MarlinLinearKernel for AutoGPTQLinearMethod", "GEMM kernel", "MarlinLinearKernel"),
        (
            "Using backend AttentionBackendEnum.FLASH_ATTN for vit attention",
            "ViT attention backend",
            "AttentionBackendEnum.FLASH_ATTN",
        ),
        (
            "Using ['CUSTOM', 'PYNCCL'] all-reduce backends (in dispatch order) for group",
            "all-reduce backends",
            "['CUSTOM', 'PYNCCL']",
        ),
    ],
)
def test_lines_in_which_vllm_says_what_it_has_chosen(line: str, kind: str, name: str) -> None:
    log = f"(EngineCore_DP0 pid=15871) INFO 11-23 18:29:43 [cuda.py:507] {line}\n"
    assert chosen_backends(log + log) == {kind: [name]}


def test_a_backend_that_only_its_file_tells_of() -> None:
    log = """(EngineCore_DP0 pid=166) INFO 11-11 10:01:57 [rocm.py:298] Using Triton Attention backend.
(EngineCore_DP0 pid=166) INFO 11-11 10:01:57 [mxfp4.py:150] Using Triton backend
"""
    assert chosen_backends(log) == {"attention backend": ["Triton Attention"], "MoE backend": ["Triton"]}


def test_other_lines_choose_nothing() -> None:
    assert (
        chosen_backends("Using None for EOS token id because it is not initialized\nUsing max model len 4096\n") == {}
    )


@needs_proc  # elsewhere nothing is looked at ahead
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # pytest-xdist has a thread that idles
def test_a_look_begun_ahead_counts_once_and_for_its_engine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def side(engine: EndpointEngine, pid: int | None = None) -> dict[str, Any]:
        ahead = os.getpid() != here
        if ahead and engine.urls[0].endswith("3"):
            raise RuntimeError
        if ahead and engine.urls[0].endswith("4"):
            signal.pause()
        return {"ahead": ahead, "launched": pid}

    here = os.getpid()
    monkeypatch.setattr(running, "side_of", side)
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    one, other, failing, slow = (
        EndpointEngine(kind="endpoint", url=f"http://127.0.0.1:{port}") for port in range(1, 5)
    )
    now = ({"ahead": False, "launched": None}, {})
    with running.looking_at(one):
        assert running.known_once(one, None) == ({"ahead": True, "launched": None}, {})
        assert running.known_once(one, None) == now
    with running.looking_at(one):
        assert running.known_once(other, None) == now
        assert running.known_once(one, None) == now
    with running.looking_at(failing):
        assert running.known_once(failing, None) == now
    with running.looking_at(slow):
        (look,) = running._begun
    assert not running._begun
    assert look._process.exitcode == -signal.SIGKILL
    with running.looking_at(one):
        assert running.known_once(one, 9)[0] == {"ahead": False, "launched": 9}


def test_no_process_is_forked_beside_a_thread() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        with running.looking_at(EndpointEngine(kind="endpoint", url="http://127.0.0.1:1")):
            assert not running._begun
