"""The walls between the rooms, as built: who imports whom, who prints, who exits, what costs start-up time."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from driving import CARRIED_OUT
from scripts import load_benchmark

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "benchbench"
HEAVY = {"aiohttp", "matplotlib", "numpy", "pandas", "pyarrow", "pydantic", "scipy"}
# Programs of their own: they talk to their parent on standard output and end themselves.
PROCESSES = {"engines/simulator/__main__.py", "senders/sending_process.py", "spool/collector.py"}


def python(code: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )
    assert done.returncode in CARRIED_OUT, done.stdout + done.stderr
    return done.stdout


BENCH = """
import sys
from benchbench.cli.main import main
try:
    main(sys.argv[1:], prog_name="bench")
finally:
    print("MODULES", *sorted(sys.modules))
"""


def modules_after(*words: str) -> tuple[str, set[str]]:
    """What `bench WORDS` printed, and the modules that its process had imported in the end."""
    shown, _, modules = python(BENCH, *words).rpartition("MODULES")
    return shown, set(modules.split())


def test_help_imports_nothing_heavy() -> None:
    shown, modules = modules_after("--help")
    assert "Usage: bench" in shown
    assert "click" in modules
    assert not modules & HEAVY


ONE_CELL = ("engine.profile=fixed", "engine.scale=0.1", "grid.input=8", "grid.output=4", "grid.batch=2")
FEW_ROUNDS = ("rounds.min=2", "rounds.max=2", "slo.ttft_ms=50")


@pytest.mark.parametrize("plots", ["--plots", "--no-plots"])
def test_a_sweep_imports_only_what_it_needs(tmp_path: Path, plots: str) -> None:
    """Plots are drawn by processes of their own (`cli.drawing`); Student's t is in `student`."""
    words = [word for one in (*ONE_CELL, *FEW_ROUNDS) for word in ("--set", one)]
    run = tmp_path / "run"
    shown, modules = modules_after("sweep", "sweeps/quickstart.yaml", *words, plots, "--out", str(run))
    assert "Run: " in shown
    assert len((run / "summary.csv").read_text().splitlines()) == 1 + 1
    assert (run / "summary.parquet").exists()
    assert (run / "plots").exists() == (plots == "--plots")
    assert {"numpy", "pyarrow"} <= modules
    assert not modules & {
        "aiohttp",
        "benchbench.figures.plots",
        "matplotlib",
        "pandas",
        "pyarrow.compute",
        "rich",
        "scipy",
    }


def test_plotting_imports_neither_matplotlib_nor_pandas(tmp_path: Path) -> None:
    shown, modules = modules_after("plot", "tests/data/stored-run", "--out", str(tmp_path), "--format", "svg")
    assert {"throughput.svg", "timeline.svg"} <= {path.name for path in tmp_path.iterdir()}
    assert "timeline.svg" in shown
    assert not modules & {"matplotlib", "pandas"}


STRUCTURE = load_benchmark("structure")


def sources() -> list[tuple[str, ast.Module]]:
    return [(path.relative_to(PACKAGE).as_posix(), STRUCTURE.tree(path)) for path in STRUCTURE.files()]


def test_only_cli_prints_and_exits() -> None:
    last = {"print", "exit", "quit", "SystemExit", "stdout", "stderr", "echo"}
    banned = {"print", "exit", "quit", "SystemExit", "sys.exit", "sys.stdout", "sys.stderr", "click.echo"}
    found = [
        f"{name}:{node.lineno}: {ast.unparse(node)}"
        for name, tree in sources()
        if not name.startswith("cli/") and name not in PROCESSES
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)
        if (node.id if isinstance(node, ast.Name) else node.attr) in last and ast.unparse(node) in banned
    ]
    found += [  # `input` is also the name of an axis
        f"{name}:{node.lineno}: input"
        for name, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "input"
    ]
    assert found == []


def test_what_a_command_prints_goes_through_one_gate() -> None:
    """`console.show` and `fail`: names and labels of others' files must not act on a terminal."""
    assert [path.relative_to(PACKAGE).as_posix() for path in STRUCTURE.files() if "click.echo" in path.read_text()] == [
        "cli/console.py"
    ]


def test_vllm_is_imported_in_one_module_and_only_when_it_is_used() -> None:
    found = [
        (name, node.col_offset > 0)
        for name, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        if any((getattr(node, "module", None) or one.name).split(".")[0] == "vllm" for one in node.names)
    ]
    assert set(found) == {("inprocess/async_llm.py", True)}


def test_the_public_functions_of_the_pure_rooms_say_what_they_give() -> None:
    """Methods of a single statement are left out: their name and types say it all."""
    silent = []
    for name, tree in sources():
        if name.split("/", maxsplit=1)[0] not in {"store", "host", "identity", "model", "analysis", "spec", "yamlfile"}:
            continue
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        owners: list[ast.Module | ast.ClassDef] = [tree, *classes]
        for owner in owners:
            for node in owner.body:
                if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                    continue
                short = owner is not tree and len(node.body) == 1
                if not short and ast.get_docstring(node) is None:
                    silent.append(f"{name}:{node.lineno}")
    assert silent == []


# ---- Budgets --------------------------------------------------------------------------------------------

CORE_LINES = 6_000


def test_sizes() -> None:
    rooms = STRUCTURE.rooms()
    assert sum(rooms[core] for core in STRUCTURE.CORE) <= CORE_LINES
    assert {optional: rooms[optional] for optional in STRUCTURE.OPTIONAL if rooms[optional] > 800} == {}
    assert [size for size in STRUCTURE.modules() if size.lines > 400] == []
    assert [size for size in STRUCTURE.functions() if size.lines >= 60] == []


def test_imports_make_no_circle_and_never_go_up() -> None:
    assert STRUCTURE.circles() == []
    assert STRUCTURE.arrows_up() == []
    assert STRUCTURE.from_outside() == []


def test_architecture_is_one_page_and_names_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {room for room in rooms if f"`{room}/`" not in text} == set()
    assert set(re.findall(r"`(\w+)/`", text)) == rooms
    assert len(text.splitlines()) <= 70


def test_no_file_name_stands_in_two_rooms() -> None:
    assert STRUCTURE.doubles() == []


def test_names_say_what_they_hold() -> None:
    assert list(STRUCTURE.nameless()) == []


def test_from_the_command_to_the_first_send_are_at_most_twelve_calls() -> None:
    assert len(STRUCTURE.calls()) <= 12
