"""What the documents point at is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "sweeps").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
MODULE = re.compile(r"(?<![\w/.])((?:[a-z_]+/)+[a-z_]+\.py)\b")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_module_paths_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    modules = [
        path for path in MODULE.findall(text) if not any((base / path).exists() for base in (ROOT, ROOT / "benchbench"))
    ]
    assert (links, modules) == ([], [])


def test_benchmarks_can_be_started() -> None:
    """Each script imports what it needs, its own folder first; a module that moved is noticed here."""
    folder = ROOT / "benchmarks"
    runs = "[runpy.run_path(name, run_name='i') for name in sys.argv[1:]]"
    code = f"import runpy, sys; sys.path[0] = {str(folder)!r}; {runs}"
    words = [sys.executable, "-c", code, *map(str, sorted(folder.glob("*.py")))]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # the traceback names the script


def test_nobody_is_told_to_install_another_projects_package() -> None:
    """`benchbench` on PyPI is not this project's: the distribution is benchbench-llm, installed from a checkout."""
    stranger = re.compile(r"benchbench\[|\binstall\s[^\n#;|]*?(?<![-./\w])benchbench(?![-./\w])")
    assert stranger.search("pip install -U benchbench")
    tops = [path for path in ROOT.iterdir() if path.name[0] != "." and path.name not in {"runs", "build", "dist"}]
    wrong = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for top in tops
        for path in (top.rglob("*") if top.is_dir() else [top])
        if path.suffix in {".py", ".md", ".sh", ".yaml", ".yml", ".toml", ".txt", ".html", ".j2"}
        if path != Path(__file__)
        for match in stranger.finditer(path.read_text(encoding="utf-8"))
    ]
    assert wrong == []
