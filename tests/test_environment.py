"""With what a run was made: this host as its files tell, an engine's process and packages, and no secret of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from driving import bench, run_well, write_sweep
from hypothesis import given
from hypothesis import strategies as st
from servers import ScriptedServer

from benchbench.host import engine_provenance as engine_side
from benchbench.host import gpus as devices
from benchbench.host.engine_provenance import endpoint_environment, engine_environment, is_loopback
from benchbench.host.environment import drivers, environment, git_state, host, ranges, spec_hash
from benchbench.secrets import MASK

SECRET = "sk-planted-secret"


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S607


# -- this host


def test_a_host_as_its_files_tell(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
    node = "sys/devices/system/node/node{}/cpulist"
    found = host(
        write(
            tmp_path,
            {
                "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC 9654\nmodel name\t: AMD EPYC 9654\n",
                "proc/meminfo": "MemTotal:       1024 kB\nMemFree: 5 kB\n",
                "proc/sys/vm/nr_hugepages": "8\n",
                "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
                cpu.format(0): "performance\n",
                cpu.format(1): "powersave\n",
                cpu.format(10): "performance\n",
                **{node.format(k): f"{k}-{k + 1}\n" for k in (0, 2, 10)},
                "sys/module/amdgpu/version": "6.10.5\n",
                "opt/rocm/.info/version": "7.0.1-42\n",
            },
        )
    )
    assert found["cpu"] == "AMD EPYC 9654"
    assert found["governor"] == "performance, powersave"
    assert found["numa_nodes"] == {"0": "0-1", "2": "2-3", "10": "10-11"}
    assert (found["memory_bytes"], found["hugepages"], found["transparent_hugepages"]) == (1 << 20, 8, "madvise")
    assert found["drivers"] == {"amdgpu": "6.10.5", "rocm": "7.0.1-42"}
    assert found["kernel"]
    assert found["limits"].keys() == {"open_files", "locked_bytes"}


def test_what_a_host_does_not_tell_is_absent(tmp_path: Path) -> None:
    found = host(tmp_path)
    assert not found.keys() & {"governor", "numa_nodes", "memory_bytes", "hugepages", "transparent_hugepages"}
    assert found["drivers"] == {}


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024", "550.54.14"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (x@y)", "580.65.06"),
    ],
)
def test_nvidias_driver(tmp_path: Path, line: str, version: str) -> None:
    text = f"{line}\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    assert drivers(write(tmp_path, {"proc/driver/nvidia/version": text})) == {"nvidia": version}


def test_the_kernels_own_amdgpu_states_no_version(tmp_path: Path) -> None:
    (tmp_path / "sys/module/amdgpu").mkdir(parents=True)
    assert drivers(tmp_path) == {"amdgpu": "the kernel's own"}


@given(st.sets(st.integers(0, 300), max_size=40))
def test_ranges_are_the_numbers_in_linuxs_words(numbers: set[int]) -> None:
    text = ranges(numbers)
    found = []
    for part in text.split(",") if text else []:
        low, _, high = part.partition("-")
        found += range(int(low), int(high or low) + 1)
    assert found == sorted(numbers)
    assert text.count(",") == max(0, sum(n - 1 not in numbers for n in numbers) - 1)


def test_the_state_of_a_checkout(tmp_path: Path) -> None:
    package = write(tmp_path / "repo", {"src/package/__init__.py": "", "venv/lib/site-packages/other.py": ""})
    assert git_state(package / "src") is None
    git(package, "init", "-q")
    git(package, "add", "src")
    git(package, "commit", "-qm", "One")
    commit = git(package, "rev-parse", "HEAD")
    date = {"committed_ns": int(git(package, "show", "-s", "--format=%ct")) * 10**9}
    inside = package / "src" / "package" / "__init__.py"
    assert git_state(inside) == {"path": str(package), "commit": commit, "dirty": False, **date}
    (package / "untracked").touch()
    assert git_state(inside) == {"path": str(package), "commit": commit, "dirty": False, **date}
    inside.write_text("changed = 1")
    assert git_state(inside) == {"path": str(package), "commit": commit, "dirty": True, **date}
    assert git_state(package / "venv/lib/site-packages/other.py") is None, "installed, no part of it"


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 9) | st.text(max_size=3), min_size=1), st.randoms())
def test_a_spec_has_one_hash_in_any_order(spec: dict[str, Any], random: Any) -> None:
    items = list(spec.items())
    random.shuffle(items)
    assert spec_hash(spec) == spec_hash(dict(items)) != spec_hash({**spec, "more": 1})


# -- the engine's side


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of packages: vllm from a checkout, a torch that must not be imported, and others."""
    source = write(tmp_path / "vllm-src", {"vllm/__init__.py": "raise SystemExit", "vllm/_version.py": VERSION})
    git(source, "init", "-q")
    git(source, "add", ".")
    git(source, "commit", "-qm", "One")
    direct = {"url": f"file://{source}", "dir_info": {"editable": True}}
    fork = {"url": f"https://me:{SECRET}@h/aiter.git", "vcs_info": {"vcs": "git", "commit_id": "feed"}}
    return write(
        tmp_path / "site",
        {
            "vllm-9.9.9.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 9.9.9+rocm\n\nVersion: 1\n",
            "vllm-9.9.9.dist-info/direct_url.json": json.dumps(direct),
            "aiter-1.dist-info/METADATA": "Name: aiter\nVersion: 1.0\n\n",
            "aiter-1.dist-info/direct_url.json": json.dumps(fork),
            "google_auth-2.dist-info/METADATA": "Name: google-auth\nVersion: 2.0\n\n",
            "broken-1.dist-info/METADATA": "Nothing: 1\n\n",
            "old-1.egg/EGG-INFO/PKG-INFO": "Name: old\nVersion: 1\n\n",
            "torch/__init__.py": "raise SystemExit",
            "torch/version.py": TORCH,
        },
    )


VERSION = "__version__ = version = '9.9.9.dev1+gabc'\n__commit_id__ = commit_id = 'gabc1234'\n"
TORCH = (
    "from typing import Optional\n__version__ = '2.9.1+rocm7.0'\ndebug = False\ncuda: Optional[str] = None\n"
    "git_version = 'cafe'\nhip: Optional[str] = '7.0.51831'\n"
)


def test_an_interpreters_packages_without_importing_one(site: Path, tmp_path: Path) -> None:
    source = tmp_path / "vllm-src"
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("zipped-1.dist-info/METADATA", "Name: zipped\nVersion: 3\n\n")
    env = {
        "PYTHONPATH": f"{site}:{source}:{tmp_path}/all.zip:{site}/old-1.egg",
        "VLLM_USE_TRITON": "1",
        "HIP_VISIBLE_DEVICES": "0,1",
        "HSA_OVERRIDE_GFX_VERSION": "11.0.0",
        "VLLM_ROCM_USE_AITER_MOE": "1",
        "VLLM_USE_TRITON_FLASH_ATTN": "0",
        "FLASH_ATTENTION_TRITON_AMD_ENABLE": "TRUE",
        "VLLM_API_KEY": SECRET,
        "NCCL_DEBUG_FILE": f"/var/{SECRET}",
        "HOME": "/home",
        "PATH": os.environ["PATH"],
    }
    found = engine_environment(env, sys.executable)
    assert "notes" not in found
    assert found["packages"]["vllm"] == "9.9.9+rocm"
    assert found["packages"]["google-auth"] == "2.0", "a telling name, and no secret"
    assert (found["packages"]["old"], found["packages"]["zipped"]) == ("1", "3")
    assert found["packages"]["pytest"] == pytest.__version__
    assert found["vllm"] == {"version": "9.9.9.dev1+gabc", "commit": "gabc1234"}
    assert found["torch"] == {"version": "2.9.1+rocm7.0", "commit": "cafe", "hip": "7.0.51831"}
    of_vllm = found["sources"]["vllm"]
    assert of_vllm.pop("committed_ns") == int(git(source, "show", "-s", "--format=%ct")) * 10**9
    assert of_vllm == {"path": str(source), "commit": git(source, "rev-parse", "HEAD"), "dirty": False}
    assert found["sources"]["aiter"] == {"url": f"https://{MASK}@h/aiter.git", "commit": "feed"}
    assert found["python"] == {"executable": sys.executable, "version": sys.version.split()[0]}
    assert found["env"] == {
        "FLASH_ATTENTION_TRITON_AMD_ENABLE": "TRUE",
        "HIP_VISIBLE_DEVICES": "0,1",
        "HSA_OVERRIDE_GFX_VERSION": "11.0.0",
        "NCCL_DEBUG_FILE": f"/var/{MASK}",
        "PYTHONPATH": env["PYTHONPATH"],
        "VLLM_API_KEY": MASK,
        "VLLM_ROCM_USE_AITER_MOE": "1",
        "VLLM_USE_TRITON": "1",
        "VLLM_USE_TRITON_FLASH_ATTN": "0",
    }


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 3", "it ended with status 3"),
        ("echo no JSON", "invalid literal"),
        ("echo null", "it answers something else"),
        ("sleep 60", "no answer in 0.2 s"),
        (None, "No such file or directory"),
    ],
)
def test_an_interpreter_that_does_not_tell_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, why: str
) -> None:
    monkeypatch.setattr(engine_side, "ASK_S", 0.2)
    python = tmp_path / "python"
    if script is not None:
        python.write_text(f"#!/bin/sh\nexec {script}\n" if "sleep" in script else f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    found = engine_environment({"OMP_NUM_THREADS": "8"}, python)
    (note,) = found.pop("notes")
    assert note.startswith(f"{python} does not tell its packages: {why}")
    assert found == {"env": {"OMP_NUM_THREADS": "8"}}


LISTEN = """
import os, socket, sys, time
sock = socket.create_server(("127.0.0.1", 0))
os.set_inheritable(sock.fileno(), True)
if sys.argv[1] == "fork" and not os.fork():
    time.sleep(60)
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def listening(*words: str, env: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """(pid, port) of a process of Python that listens."""
    command = [sys.executable, "-c", LISTEN, *words]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}
    ) as process:
        try:
            assert process.stdout is not None
            yield process.pid, int(process.stdout.readline())
        finally:
            for child in psutil.Process(process.pid).children():
                child.kill()
            process.kill()


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_a_server_on_this_host_is_found_by_its_port(how: str, site: Path) -> None:
    env = {"PYTHONPATH": str(site), "HSA_ENABLE_SDMA": "0", "HF_TOKEN": f"{SECRET}-two", "TORCH_TOKEN": f"{SECRET}-two"}
    words = [how, "--api-key", SECRET, "--port", "8000", "--note", f"{SECRET}-two"]
    with listening(*words, env=env) as (pid, port):
        found = endpoint_environment(f"http://localhost:{port}/v1")
        by_pid = engine_environment(pid=pid)
    assert found | {"pid": pid} == by_pid  # the child that listens was called as its parent was
    assert "planted" not in json.dumps(found)
    assert found["command"][-6:] == ["--api-key", MASK, "--port", "8000", "--note", MASK]
    assert (found["env"]["HSA_ENABLE_SDMA"], found["env"]["TORCH_TOKEN"]) == ("0", MASK)
    assert found["packages"]["vllm"] == "9.9.9+rocm"
    assert found["affinity"] == ranges(os.sched_getaffinity(0))
    assert "notes" not in found


def test_what_cannot_be_found_out_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def notes(url: str) -> str:
        return " ".join(endpoint_environment(url)["notes"])

    assert "not on this host" in notes("http://192.0.2.1:8000")
    assert "nobody listens at port 1 " in notes("http://127.0.0.1:1")
    with ScriptedServer() as server:
        refused = psutil.AccessDenied()

        def deny(*_: object) -> Any:
            raise refused

        with monkeypatch.context() as patched:
            patched.setattr(psutil.Process, "environ", deny)
            assert notes(server.url) == f"process {os.getpid()} may not be looked at by this user"
        patched = monkeypatch
        patched.setattr(psutil, "net_connections", deny)
        assert "does not tell which process" in notes(server.url)
    assert engine_environment(pid=2**22 + 1)["notes"]


def test_what_is_no_python_is_not_asked_for_packages() -> None:
    command = ["sh", "-c", "echo up; read line"]
    with subprocess.Popen(command, env={"VLLM_X": "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            found = engine_environment(pid=process.pid)
        finally:
            process.kill()
    assert (found["command"], found["env"]) == (command, {"VLLM_X": "1"})
    (note,) = found["notes"]
    assert note == f"process {process.pid}: the process 'sh' is no Python that we can ask for its packages"
    assert "packages" not in found


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "127.3.2.1", "::1"])
def test_names_of_the_loopback(name: str) -> None:
    assert is_loopback(name)
    assert not any(map(is_loopback, ["", "example.org", "10.0.0.1", "localhost.example.org", "::2"]))


# -- what a run keeps, and `bench env`


def test_a_run_keeps_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ScriptedServer() as server:
        run_well(server.url)
    manifest = json.loads(Path("run/manifest.json").read_text())
    side = manifest["engine_environment"]
    assert side["python"]["version"] == sys.version.split()[0]
    assert side["packages"]["pytest"] == pytest.__version__
    assert manifest["spec_sha256"] == spec_hash(manifest["spec"])
    assert manifest["host"] == environment()["host"]


def test_bench_env_prints_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = bench("env")
    assert result.exit_code == 0
    assert f"\n  kernel: {environment()['host']['kernel']}\n" in result.stdout
    assert "numpy==" in result.stdout
    told = json.loads(bench("env", "--format", "json").stdout)
    assert {name: told[name] for name in environment()} == environment()


def test_bench_env_shows_the_accelerators_and_why_some_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"device": "gpu0", "vendor": "AMD", "name": "W7900D", "memory_total_bytes": 48 << 30}
    monkeypatch.setattr(devices, "open_devices", lambda: ([SimpleNamespace(facts=facts)], ["NVIDIA GPUs: no package"]))
    shown = bench("env").stdout
    assert "\ngpu0:\n  vendor: AMD\n  name: W7900D\n  memory total: 48.0 GiB\nnote: NVIDIA GPUs: no package" in shown


def test_bench_env_tells_of_each_variants_engine(tmp_path: Path) -> None:
    engine = {"kind": "vllm_serve", "python": sys.executable}
    variants = {name: {"engine": {"env": {"OMP_NUM_THREADS": name[-1]}}} for name in ("with1", "with2")}
    sweep = write_sweep(tmp_path / "s.yaml", "", engine=engine, variants=variants)
    told = json.loads(bench("env", sweep, "--format", "json").stdout)["variants"]
    sides = {name: one["engine_environment"]["env"]["OMP_NUM_THREADS"] for name, one in told.items()}
    assert sides == {"with1": "1", "with2": "2"}


def test_bench_env_of_a_sweep_tells_of_its_server_as_a_run_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEY", SECRET)
    with ScriptedServer() as server:
        engine = {"kind": "endpoint", "url": server.url, "api_key_env": "KEY"}
        run_well(server.url, engine=engine)
        told = json.loads(bench("env", "s.yaml", "--format", "json").stdout)
        text = bench("env", "s.yaml").stdout
        assert len(server.asks) == 1, "the sweep's request only"
    manifest = json.loads(Path("run/manifest.json").read_text())
    kept = told.keys() - {"devices", "notes"}  # a run may count fewer devices
    assert {name: manifest[name] for name in kept} == {name: told[name] for name in kept}
    assert "\n  kind: vllm\n" in text
    assert "\n  note: no /metrics" in text
    assert "planted" not in text + json.dumps(told)


def test_bench_env_of_an_engine_that_a_sweep_would_launch(tmp_path: Path) -> None:
    def side(**engine: Any) -> Any:
        engine = {"kind": "vllm_serve", "env": {"OMP_NUM_THREADS": 4}, **engine}
        sweep = write_sweep(tmp_path / "s.yaml", "", engine=engine)
        return json.loads(bench("env", sweep, "--format", "json").stdout)["engine_environment"]

    known = side(python=sys.executable)
    assert known["env"]["OMP_NUM_THREADS"] == "4"
    assert known["packages"]["pytest"] == pytest.__version__
    assert side(venv=sys.prefix, kind="vllm_inprocess")["packages"] == known["packages"]
    assert "packages" not in side(command=["vllm", "serve"]), "whose interpreter that is, only its process shows"


def test_bench_env_of_a_server_that_is_gone_says_so(tmp_path: Path) -> None:
    result = bench("env", write_sweep(tmp_path / "s.yaml", "http://127.0.0.1:1"))
    assert result.exit_code == 0
    assert "note: nobody answers at 127.0.0.1:1: Connection refused" in result.stdout
    assert "note: nobody listens at port 1 of this host" in result.stdout
    bad = bench("env", write_sweep(tmp_path / "s.yaml", "no-url"))
    assert (bad.exit_code, bad.stdout) == (2, "")


def test_a_process_that_left_the_folder_of_its_relative_name_is_still_asked(tmp_path: Path) -> None:
    home = Path(sys.executable).parents[1]
    code = "import os, sys; os.chdir(sys.argv[1]); print(flush=True); sys.stdin.read()"
    name = os.path.join(".", "bin", Path(sys.executable).name)  # noqa: PTH118 - Path would drop the dot
    with subprocess.Popen(
        [name, "-c", code, str(tmp_path)],
        cwd=home,
        env={**os.environ, "PWD": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        process.stdout.readline()
        found = engine_environment(pid=process.pid)
    assert found["python"]["version"] == sys.version.split()[0], found
