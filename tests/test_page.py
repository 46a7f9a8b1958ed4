"""`bench report`: that the page is whole without a network, says what it must, and that no text of a run acts in it."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import chromium
import pytest
from driving import bench
from runs_made import BRANCHES, FAILED, made_run

from benchbench.analysis.runs import open_run
from benchbench.comparison.pairs import pair, sides_of
from benchbench.comparison.tables import sentence
from benchbench.page import document as pages
from benchbench.page.document import page
from benchbench.safe_text import printable
from benchbench.store.run_directory import RunDirectory

HOSTILE = """<script>alert(1)</script>"><img src=x onerror=alert(1)>]]>{{7*7}}{%x%}\u202eabc--><b>&lt;\x1b[2J"""
SECTIONS = ["figures", "cells", "comparison", "validity", "provenance"]
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements with their attributes, and the text in each; asserts that they are nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.path: list[str] = []
        self.inside: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.path == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.path.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.path.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.path:
            self.inside.setdefault(self.path[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def tell(cell: Any, start: Any, k: int) -> tuple[float, float] | str | None:
    if cell.variant == "int8-moe" and start.block == 1:
        return None
    if cell.variant == "main" and cell.input == 128 and cell.batch == 4:
        return FAILED
    faster = 1.05 if cell.variant == "int8-moe" else 1.0
    return (50 + cell.batch + (start.block or 0) + k / 10) / faster, (10 + k / 100) / faster


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which every name is an attack, also that of the candidate, which did not start in block 1."""
    path = made_run(tmp_path_factory.mktemp("runs") / "run", BRANCHES | {"blocks": 3}, tell, caption=[HOSTILE])
    manifest = path / "manifest.json"
    text = manifest.read_text().replace("int8-moe", json.dumps(HOSTILE)[1:-1])
    data = json.loads(text)
    data["spec"] |= {"name": f"name {HOSTILE}", "model": f"model {HOSTILE}"}
    data["tool"] = {"name": "benchbench", "version": HOSTILE}
    manifest.write_text(json.dumps(data))
    RunDirectory(path).journal("start_failed", block=1, variant=HOSTILE, reason=f"reason {HOSTILE}")
    return path


@pytest.fixture(scope="module")
def written(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    result = bench("report", hostile, "-o", file)
    assert (result.exit_code, result.stdout) == (0, f"{file}\n")
    return file


def check_whole(text: str) -> Page:
    """What holds of every report."""
    found = Page(text)
    tags = Counter(tag for tag, _ in found.elements)
    assert not {"script", "img", "iframe", "object", "embed", "link", "base", "form", "foreignobject"} & set(tags)
    assert (tags["html"], tags["h1"], tags["main"], tags["title"]) == (1, 1, 1, 1 + tags["svg"])
    policy = [meta["content"] for meta in found.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert Counter(ids).most_common(1)[0][1] == 1
    for _, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on") or name in {"src", "srcset", "xlink:href"}]
        refers = re.findall(r"url\((.*?)\)", " ".join(attributes.values()))
        refers += [attributes["href"]] if "href" in attributes else []
        assert all(target[0] == "#" and target[1:] in ids for target in refers)
        assert set(attributes.get("aria-labelledby", "").split()) <= set(ids)
    assert all(svg["role"] == "img" and len(svg["aria-labelledby"].split()) == 2 for svg in found.all("svg"))
    assert tags["desc"] == tags["svg"]
    assert "url(" not in "".join(found.inside["style"])
    assert "@import" not in "".join(found.inside["style"])
    return found


def test_the_page_is_whole_and_nothing_in_it_acts(written: Path) -> None:
    with pytest.raises(AssertionError, match="onclick"):
        check_whole(written.read_text().replace("<p ", "<p onclick='x' ", 1))
    found = check_whole(written.read_text())
    assert [one["id"] for one in found.all("h2")] == SECTIONS
    assert len(found.all("svg")) == 10
    everything = "".join(found.texts)
    for start in ("name ", "model ", "reason "):
        assert start + HOSTILE.replace("\u202e", r"\u202e").replace("\x1b", r"\x1b")[:40] in everything
    assert "{{7*7}}{%x%}" in everything
    assert "\u202e" not in everything
    assert "\x1b" not in everything


def test_it_says_peak_verdict_status_and_remedy(written: Path, hostile: Path) -> None:
    found = Page(written.read_text())
    everything = "".join(found.texts)
    rows = [row for row in open_run(hostile).rows if row["status"] != "invalid"]
    best = max(row["sys_tok_s"] for row in rows)
    assert f"Peak throughput: {best:.0f}" in everything or f"Peak throughput: {best:.1f}" in everything
    assert "8 cells: 7 valid, 0 suspect, 1 invalid" in everything
    assert printable(sentence(pair(*sides_of(open_run(hostile))))) in everything
    assert "95 % CI over server starts (paired over 2 of 3 blocks)" in everything
    assert "read error_kind and error_detail in records/; fix the server or lower the load" in everything
    assert "as asked, 6 failed" in everything
    says = found.inside["desc"]
    low, high = min(row["ttft_ms"] for row in rows), max(row["ttft_ms"] for row in rows)
    assert any(f"Mean TTFT {low:.1f} ms (" in one and f" to {high:.1f} ms (" in one for one in says)
    assert any(f" to {best:.1f} (" in one and "of 7 cells" in one for one in says)


@pytest.mark.skipif(chromium.COMMAND is None, reason="no Chromium (Debian: apt install chromium)")
@pytest.mark.parametrize("width", [360, 1280])
def test_in_a_browser_nothing_overflows_complains_or_loads(written: Path, width: int) -> None:
    wide = "[...document.querySelectorAll('body :not(svg *)')].filter(e => !e.closest('.scroll') && "
    wide += "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName)"
    count = "document.querySelectorAll('script, img, b, [onerror]').length"
    shown = "[...document.querySelectorAll('svg')].every(e => e.getBoundingClientRect().height > 50)"
    seen = chromium.look(written, [chromium.OVERFLOW, wide, count, shown], width=width)
    assert seen.values == [0, [], 0, True]
    assert seen.complaints == []
    assert seen.requested == [written.as_uri()]


def test_forty_variants_are_small_and_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    names = {"main": {}} | {f"build-{n:02}": {} for n in range(1, 40)}
    grid = [{"input": [128, 1024, 2048], "output": 2, "batch": [1, 2, 4, 8]}, {"input": 4096, "output": 2, "batch": 8}]
    data = BRANCHES | {"variants": names, "grid": grid, "blocks": 2, "rounds": {"warmup": 0, "min": 1, "max": 1}}
    speeds = {name: 1 + place / 100 for place, name in enumerate(names)}
    made_run(tmp_path / "run", data, lambda cell, start, k: ((50 + start.block + k) / speeds[cell.variant], 10.0))
    text = page([open_run(tmp_path / "run")])
    found = check_whole(text)
    assert len(text.encode()) < 3e6
    everything = "".join(found.texts)
    assert "520 cells: 520 valid" in everything
    assert "36 others" in everything
    assert "main and the 3 fastest of 40 variants" in everything
    assert {"build-39", "build-38", "build-37"} <= set(found.inside["text"])
    assert "build-20" not in found.texts[: found.texts.index("Cells")]
    assert len(found.all("details")) == 40 + 39


def test_runs_stand_side_by_side(hostile: Path, tmp_path: Path) -> None:
    other = made_run(tmp_path / "other", BRANCHES | {"name": "other", "variants": {}, "blocks": None}, tell)
    found = check_whole(page([open_run(hostile), open_run(other), open_run(hostile)]))
    assert "20 cells" in "".join(found.texts)
    assert len([one for one in found.all("th") if one.get("scope") == "col"]) > 3


def test_telemetry_is_a_table_where_there_is_any() -> None:
    row = {"variant": "", "load": "static", "input": 8, "output": 4, "batch": 1, "rate": None, "status": "valid"}
    assert pages._telemetry([row]) is None
    found = pages._telemetry([row, row | {"power_w": 1834.2, "j_per_tok": 0.01234, "throttle": ""}])
    assert found is not None
    assert found.head == ["Input", "Output", "Batch", "Power (W)", "J/tok", "Throttled by"]
    assert found.rows == [["8", "4", "1", "1,834", "0.0123", "none"]]


def test_what_cannot_be_read_or_written_is_one_line(hostile: Path, tmp_path: Path) -> None:
    for words in (["nowhere"], [hostile, "-o", tmp_path / "no" / "r.html"], [hostile, "-o", tmp_path], []):
        result = bench("report", *words)
        assert (result.exit_code, result.stderr.count("\n"), result.stdout) == (2, 1, "")
        assert "Traceback" not in result.stderr
