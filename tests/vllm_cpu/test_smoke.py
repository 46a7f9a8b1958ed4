"""The shortest way through a real vLLM: installed beside it, served by it, and inside it. `make smoke-vllm`."""

from __future__ import annotations

import shutil
import subprocess

from launching import PYTHON, ROOT, VENV, Swept, assert_exact, show


def test_benchbench_changes_no_package_of_vllm() -> None:
    before = set((VENV / "packages-of-vllm.txt").read_text().split("\n")) - {""}
    uv = shutil.which("uv") or str(ROOT / ".venv" / "bin" / "uv")
    freeze = [uv, "pip", "freeze", "--quiet", "--python", str(PYTHON)]
    now = set(subprocess.run(freeze, capture_output=True, text=True, check=True).stdout.split("\n")) - {""}
    assert len(before) > 100
    assert before - now == set()
    plan = (VENV / "plan-of-benchbench.txt").read_text()
    replaced = [line for line in plan.splitlines() if line.startswith((" -", " ~"))]
    assert [line for line in replaced if " benchbench-llm==" not in line] == []
    show(f"beside the {len(before)} packages of vLLM's environment, benchbench brings {len(now - before) - 1}")


def test_the_grid_by_a_server_of_ours(served: Swept) -> None:
    assert served.code in (0, 3), served.said
    assert_exact(served.run)
    assert served.journal("engine_died") == []
    assert len(served.traces.ports) >= 1
    assert len(served.traces.processes) >= 5  # sweep, worker, server, engine core, engine's worker


def test_the_same_grid_in_process(in_process: Swept) -> None:
    assert in_process.code in (0, 3), in_process.said
    assert_exact(in_process.run)
    assert in_process.journal("engine_died") == []
