"""docs/python.ipynb does what it shows: its cells are run in order, in a folder of their own."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from benchbench.page import document

NOTEBOOK = Path(__file__).parents[1] / "docs" / "python.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_it_is_stored_without_outputs() -> None:
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in cells("code"))
    assert len({cell["id"] for cell in cells("code") + cells("markdown")}) == len(cells("code")) + len(
        cells("markdown")
    )


@pytest.mark.slow
def test_its_cells_run_and_what_they_end_with_can_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for figures in ("page_figures", "comparison_page_figures"):  # test_page.py looks at the page's
        monkeypatch.setattr(document, figures, lambda *_: ())
    names: dict[str, Any] = {}
    shown: dict[str, str] = {}
    for cell in cells("code"):
        body = ast.parse("".join(cell["source"]), cell["id"]).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), cell["id"], "exec"), names)  # noqa: S102 - our own notebook
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)  # noqa: S307 - our own notebook
            shown[cell["id"]] = value._repr_html_() if hasattr(value, "_repr_html_") else repr(value)
    assert "no measurement of hardware" in shown["sweep"]
    assert " · 4 cells (" in shown["sweep"]
    assert "<td>1024</td>" in shown["cells"]
    assert {"0.50", "0.99"} <= set(shown["requests"].replace("<", ">").split(">"))
    assert shown["tokens"].count("<tr") == 1 + 4 * 3
    assert "faster" in shown["ab"]
    assert "ratio_low" in shown["effects"]
    assert "report.html" in shown["files"]
