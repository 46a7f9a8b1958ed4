"""Names and labels of others' files steer no terminal, turn no writing and are no formula, wherever they come out."""

from __future__ import annotations

import csv
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from driving import bench
from hypothesis import given
from hypothesis import strategies as st
from runs_made import BRANCHES, made_run

from benchbench.report.markdown import escape_markdown
from benchbench.safe_text import csv_text, printable, printable_lines

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\u202eabc\u2066\x7f\r\n\u2028\x00"
FORMULA = "=cmd|' /C calc'!A0"
RESULT = Path(__file__).parent / "data" / "imports" / "vllm-python.json"


def steering(text: str) -> set[str]:
    """What may act: all of Unicode's controls, formats, surrogates and separators but a line's end."""
    return {c for c in text if c != "\n" and unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}


def formulas(text: str) -> list[str]:
    return [field for row in csv.reader(text.splitlines()) for field in row if field[:1] in {"=", "+", "@"}]


@given(st.text())
def test_what_is_printable_stays_and_nothing_else_comes_out(text: str) -> None:
    assert not steering(printable(text))
    assert "\n" not in printable(text)
    assert not steering(escape_markdown(text))
    if text.isprintable():
        assert printable(text) == text


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_json_stays_the_same_json(data: dict[str, Any]) -> None:
    text = json.dumps(data, indent=1, ensure_ascii=False)
    assert json.loads(printable_lines(text)) == data
    assert not steering(printable_lines(text))


@given(st.text())
def test_no_field_of_csv_is_a_formula(text: str) -> None:
    ((field,),) = list(csv.reader(csv_text(["a"], [{"a": text}]).splitlines()[1:])) or [("",)]
    assert field[:1] not in {"=", "+", "-", "@"}
    assert field in {printable(text), f"'{printable(text)}"}


def test_numbers_stay_numbers() -> None:
    assert csv_text(["a", "b", "c"], [{"a": -1.5, "b": None, "c": "-x"}]) == "a,b,c\n-1.5,,'-x\n"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imports")
    data = json.loads(RESULT.read_text())
    for number, (label, model) in enumerate([(FORMULA, ESCAPES), (f"@SUM(1){ESCAPES}", "m")]):
        file = folder / f"\x1b[31m{number}\u202e.json"
        file.write_text(json.dumps(data | {"label": label, "model_id": model, "backend": f"b{ESCAPES}", "n": number}))
    result = bench("import", *sorted(folder.glob("*.json")), "--out", folder / "run")
    assert result.exit_code == 0, result.stderr
    assert not steering(result.stdout + result.stderr)
    return folder / "run"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ours whose manifest somebody has changed."""
    path = made_run(tmp_path_factory.mktemp("runs") / "run", BRANCHES | {"blocks": 3}, lambda *_: (50.0, 10.0))
    manifest = path / "manifest.json"
    data = json.loads(manifest.read_text().replace("int8-moe", json.dumps(FORMULA + ESCAPES)[1:-1]))
    data["spec"] |= {"name": f"n{ESCAPES}", "model": f"m{ESCAPES}"}
    data["caption"] = [ESCAPES]
    manifest.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("run", ["imported", "foreign"])
@pytest.mark.parametrize(
    "command",
    ["table", "table --format csv", "table --format json", "explain", "audit", "audit --format json", "compare"],
)
def test_labels_of_others_do_not_act(run: str, command: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(run)
    name, *options = command.split()
    result = bench(name, path, *options)
    assert not steering(result.stdout + result.stderr)
    if "csv" in options:
        assert formulas(result.stdout) == []
        assert "'=cmd" in result.stdout
    if "json" in options and result.exit_code == 0:
        json.loads(result.stdout)


def test_files_of_an_imported_run_hold_nothing_that_acts(imported: Path) -> None:
    for file in imported.rglob("*"):
        if file.suffix in {".md", ".csv", ".json"}:
            assert not steering(file.read_text()), file.name
    assert formulas((imported / "summary.csv").read_text()) == []
    assert "'=cmd" in (imported / "summary.csv").read_text()
