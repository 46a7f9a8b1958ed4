"""How the package is built: rooms with their lines of code, imports, sizes, names, and the calls from Enter to `send`.

    make structure

Lines of code are without docstrings, comments and blank lines. tests/test_rooms.py holds the budgets.
"""

from __future__ import annotations

import argparse
import ast
import functools
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "benchbench"
CORE = ("spec", "measure", "loadgen", "decoding", "openai", "store", "analysis", "report")
OPTIONAL = (
    "accuracy",
    "audit",
    "bisect",
    "capacity",
    "choice",
    "exporters",
    "forecast",
    "gates",
    "history",
    "importers",
    "page",
    "profiling",
    "publish",
    "selftest",
    "starter",
)
NAMELESS = {"found", "told", "said", "asked", "one"}  # names that do not say what they hold


class Size(NamedTuple):
    """Lines of code, and where."""

    lines: int
    where: str


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def files() -> tuple[Path, ...]:
    return tuple(sorted(PACKAGE.rglob("*.py")))


def name(path: Path) -> str:
    """`benchbench.spec.plan`."""
    return ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def room(module: str) -> str:
    """`spec` of `benchbench.spec.plan`; a module of the root is a room of its own."""
    return module.split(".")[1] if "." in module else PACKAGE.name


@functools.cache
def code_lines(path: Path) -> frozenset[int]:
    """The numbers of the lines that hold code; a string over several lines is code with all that looks otherwise."""
    text = path.read_text(encoding="utf-8").splitlines()
    code = {number for number, line in enumerate(text, 1) if (bare := line.strip()) and not bare.startswith("#")}
    docstrings = set[int]()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.JoinedStr | ast.Constant):
            if node.end_lineno != node.lineno:
                code.update(range(node.lineno, (node.end_lineno or 0) + 1))
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            docstrings.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return frozenset(code - docstrings)


def rooms() -> Counter[str]:
    """Lines of code of each room."""
    sizes: Counter[str] = Counter()
    for path in files():
        sizes[room(name(path))] += len(code_lines(path))
    return sizes


def modules() -> list[Size]:
    """Modules by their lines, comments and all, the largest first."""
    return sorted(
        (Size(len(path.read_text(encoding="utf-8").splitlines()), name(path)) for path in files()), reverse=True
    )


def functions() -> list[Size]:
    """Functions by their lines, comments and all, the largest first."""
    return sorted(
        (
            Size((node.end_lineno or 0) - node.lineno + 1, f"{name(path)}.{node.name}")
            for path in files()
            for node in ast.walk(tree(path))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ),
        reverse=True,
    )


@functools.cache
def imports() -> dict[str, frozenset[str]]:
    """Module -> modules of the package that it imports anywhere, for types too."""
    known = {name(path) for path in files()}
    edges: dict[str, frozenset[str]] = {}
    for path in files():
        targets: set[str] = set()
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                within = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= (within & known) | ({node.module} if within - known else set())
        edges[name(path)] = frozenset(targets & known - {name(path)})
    return edges


def circles() -> list[set[str]]:
    """Sets of modules that import each other."""
    edges = imports()

    @functools.cache
    def reach(start: str) -> frozenset[str]:
        seen, todo = set[str](), [start]
        while todo:
            fresh = edges[todo.pop()] - seen
            seen |= fresh
            todo += fresh
        return frozenset(seen)

    groups = {frozenset(m for m in reach(start) if start in reach(m)) for start in edges if start in reach(start)}
    return [set(group) for group in groups]


def layers() -> list[list[str]]:
    """The rooms from top to bottom, as pyproject.toml has them."""
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    rows = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[word.strip().removeprefix(f"{PACKAGE.name}.") for word in row.split("|")] for row in rows]


def arrows_up() -> list[str]:
    """Imports from a lower room into a higher one, or between rooms of one layer."""
    rank = {member: place for place, row in enumerate(layers()) for member in row}
    return [
        f"{module} -> {target}"
        for module, targets in imports().items()
        for target in targets
        if room(module) != room(target) and room(module) in rank and room(target) in rank
        if rank[room(target)] <= rank[room(module)]
    ]


def from_outside() -> list[str]:
    """Imports of an optional room by another than cli and api."""
    return [
        f"{module} -> {target}"
        for module, targets in imports().items()
        for target in targets
        if room(target) in OPTIONAL and room(module) not in {room(target), "cli", "api"}
    ]


def doubles() -> list[str]:
    """File names that stand in two rooms."""
    homes: dict[str, set[str]] = {}
    for path in files():
        if not path.name.startswith("__"):
            homes.setdefault(path.name, set()).add(room(name(path)))
    return [f"{file}: {', '.join(sorted(where))}" for file, where in homes.items() if len(where) > 1]


def nameless() -> Iterator[str]:
    """Variables, parameters, attributes and functions that are named after how one came by them."""
    for path in files():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                word = node.id if isinstance(node, ast.Name) else node.attr
            elif isinstance(node, ast.arg):
                word = node.arg
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                word = node.name
            else:
                continue
            if word in NAMELESS:
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}: {word}"


# ---- From Enter to `send` -------------------------------------------------------------------------------

HOOK = """
import os, sys
PACKAGE, OUT = {package!r}, {out!r}
WORKER = "benchbench.senders.sending_process" in sys.orig_argv

def hook(frame, event, argument):
    code = frame.f_code
    if WORKER:
        socket = getattr(argument, "__self__", None)
        hit = event == "c_call" and argument.__name__ == "send" and type(socket).__name__ == "socket"
    else:
        hit = event == "call" and code.co_qualname == "PipedWorker.run" and code.co_filename.startswith(PACKAGE)
    if not hit:
        return
    sys.setprofile(None)
    names = []
    while frame:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE) and code.co_name not in ("<module>", "<lambda>"):
            names.append(code.co_filename[len(PACKAGE) + 1 : -3].replace("/", ".") + "." + code.co_qualname)
        frame = frame.f_back
    with open(os.path.join(OUT, "worker" if WORKER else "main"), "w") as file:
        file.write("\\n".join(reversed(names)))

if WORKER or "sweep" in sys.orig_argv:
    sys.setprofile(hook)
"""
SWEEP = """
name: structure
model: sim
engine: {kind: simulator, scale: 0.1}
grid: {input: 8, output: 4, batch: 1}
rounds: {warmup: 0, min: 1, max: 1}
prompts: {vocab: [1000, 2000]}
"""


def calls() -> list[str]:
    """The functions of the package that stand on the stack at the first request's `send`, those of the worker last.

    Measured in a sweep of one cell against the simulator, with a profile hook in both processes.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        (out / "sitecustomize.py").write_text(HOOK.format(package=str(PACKAGE), out=folder))
        (out / "sweep.yaml").write_text(SWEEP)
        words = ["sweep", str(out / "sweep.yaml"), "--out", str(out / "run"), "--no-plots"]
        subprocess.run(
            [sys.executable, "-m", "benchbench.cli.main", *words],
            env={**os.environ, "PYTHONPATH": folder},
            check=False,  # with the hook in it no cell is valid
            capture_output=True,
            timeout=120,
        )
        chain = [line for part in ("main", "worker") for line in (out / part).read_text().splitlines()]
    return [call for call in chain if call != "senders.sending_process.main"]  # it waits for jobs: nobody calls it


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sizes = rooms()
    for where, lines in sizes.most_common():
        print(f"{lines:6} {where}{' (core)' if where in CORE else ''}{' (optional)' if where in OPTIONAL else ''}")
    print(f"{sum(sizes[core] for core in CORE):6} core\n{sizes.total():6} in all\n")
    module, function = modules()[0], functions()[0]
    print(f"largest module: {module.lines} lines, {module.where}")
    print(f"largest function: {function.lines} lines, {function.where}")
    for title, lines in (
        ("import circles", [", ".join(sorted(group)) for group in circles()]),
        ("imports upwards", arrows_up()),
        ("imports of optional rooms by others than cli and api", from_outside()),
        ("file names in two rooms", doubles()),
        ("names that do not say what they hold", list(nameless())),
        ("calls from Enter to send", calls()),
    ):
        print(f"{title}: {len(lines)}", *lines, sep="\n  ")


if __name__ == "__main__":
    main()
