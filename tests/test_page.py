"""`bench report`: that the page is whole without a network and without scripts, says what it must, and that no text of
a run acts in it; in Chromium, that one can explore it."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import chromium
import pytest
from chromium import Mouse
from driving import bench
from runs_made import BRANCHES, FAILED, made_run

from benchbench import open_run
from benchbench.analysis import runs
from benchbench.comparison.pairs import pair, sides_of
from benchbench.comparison.tables import cells_of as cells_of_pair
from benchbench.comparison.tables import sentence
from benchbench.figures.grid import contrast
from benchbench.page import document as pages
from benchbench.page import island
from benchbench.page.document import page
from benchbench.report.summary_table import cell_text
from benchbench.safe_text import printable
from benchbench.store.run_directory import RunDirectory

HOSTILE = """<script>alert(1)</script>"><img src=x onerror=alert(1)>]]>{{7*7}}{%x%}\u202eabc--><b>&lt;\x1b[2J"""
HOSTILE += "' [x](javascript:alert(1)) **b**"
SECTIONS = ["cells", "figures", "comparison", "validity", "provenance"]
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
    """The same file for all processes of pytest-xdist: its figures take seconds."""
    folder = shared_folder(tmp_path_factory)
    file = folder / "report.html"
    with (folder / "report.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            result = bench("report", hostile, "-o", file)
            assert (result.exit_code, result.stdout) == (0, f"{file}\n")
    return file


def test_each_cell_is_summed_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, keys = made_run(tmp_path / "run", BRANCHES, tell), []
    monkeypatch.setattr(runs, "cell_summary", lambda *a, whole=runs.cell_summary: keys.append(a[1].key) or whole(*a))
    page([open_run(run)])
    assert sorted(keys) == sorted(cell.key for cell in open_run(run).cells)


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of this run of the tests: with pytest-xdist each process has its own one in it."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at none: they take seconds."""
    for figures in ("page_figures", "comparison_page_figures"):
        monkeypatch.setattr(pages, figures, lambda *_: ())


def check_whole(text: str) -> Page:
    """What holds of every report."""
    found = Page(text)
    tags = Counter(tag for tag, _ in found.elements)
    assert not {"img", "iframe", "object", "embed", "link", "base", "form", "foreignobject"} & set(tags)
    assert (tags["html"], tags["h1"], tags["main"], tags["title"]) == (1, 1, 1, 1 + tags["svg"])
    assert found.all("script") == [{"type": "application/json", "id": "data"}, {}]
    _, script = found.inside["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [meta["content"] for meta in found.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    only = f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; {only}"
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(|fetch|XMLHttp|import\b", script
    )
    assert re.findall(r"https?:[^\"]*", script) == ["http://www.w3.org/2000/svg"]  # a name, no address
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


def cells_of(found: Page) -> list[dict[str, Any]]:
    """The data island's cells, which must be the table's rows."""
    cells: list[dict[str, Any]] = json.loads(found.inside["script"][0])["cells"]
    rows = [int(row["data-cell"]) for row in found.all("tr") if "data-cell" in row]
    assert sorted(rows) == [*range(len(cells))]
    return cells


def test_the_page_is_whole_and_nothing_in_it_acts(written: Path) -> None:
    with pytest.raises(AssertionError, match="onclick"):
        check_whole(written.read_text().replace("<p ", "<p onclick='x' ", 1))
    found = check_whole(written.read_text())
    assert [one["id"] for one in found.all("h2")] == SECTIONS
    assert len(found.all("svg")) == 11
    everything = "".join(found.texts)
    for start in ("name ", "model ", "reason "):
        assert start + HOSTILE.replace("\u202e", r"\u202e").replace("\x1b", r"\x1b")[:40] in everything
    assert "{{7*7}}{%x%}" in everything
    assert "\u202e" not in everything
    assert "\x1b" not in everything
    island = found.inside["script"][0]
    assert not set("<>&") & set(island)
    assert island.isascii()
    assert {cell["name"].partition(", in=")[0] for cell in cells_of(found)} == {"main", printable(HOSTILE)}


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


def test_the_island_has_every_cell_with_its_numbers_reasons_and_timeline(written: Path, hostile: Path) -> None:
    found = Page(written.read_text())
    data = json.loads(found.inside["script"][0])
    assert [axis[:2] for axis in data["axes"]] == [
        ["variant", "Variant"],
        ["input", "Input"],
        ["output", "Output"],
        ["batch", "Batch"],
    ]
    assert data["axes"][0][2] == ["main", printable(HOSTILE)]  # as planned: colours follow it
    metrics = [name for name, _ in data["metrics"]]
    rows = {(row["variant"], row["input"], row["batch"]): row for row in open_run(hostile).rows}
    for cell in cells_of(found):
        variant, length, _, batch = cell["at"]
        row = rows[variant if variant == "main" else HOSTILE, length, batch]
        assert (cell["status"], ";".join(cell["reasons"])) == (row["status"], row["reasons"])
        value, low, high, text, ends = cell["values"][metrics.index("ttft_ms")]
        assert [value, low, high] == pytest.approx([row[f"ttft_ms{end}"] for end in ("", "_low", "_high")])
        assert text == cell_text(row, "ttft_ms")
        assert ends == f"{cell_text(row, 'ttft_ms_low')}\u2013{cell_text(row, 'ttft_ms_high')}"
        times = cell["timeline"]
        assert times["of"] == len(times["requests"]) == batch
        due, sent, first, last, failed = times["requests"][0]
        assert due <= sent < first < last
        assert (failed, (first - sent) * times["unit_ms"]) == (0, pytest.approx(row["ttft_ms"], rel=0.1))
    ratios = {comparison.cell: comparison for comparison in cells_of_pair(pair(*sides_of(open_run(hostile))), ["ttft"])}
    for cell in cells_of(found):
        variant, length, output, batch = cell["at"]
        ratio = cell["values"][metrics.index("Ratio of TTFT")]
        if variant == "main" or (length, batch) == (128, 4):
            assert ratio is None
            continue
        known = ratios[f"in={length} out={output} batch={batch}"]
        assert ratio[:3] == pytest.approx([known.ratio.point, known.ratio.low, known.ratio.high], rel=1e-5)
        assert ratio[3:] == ["1.050", f"{known.ratio.low:.3f}\u2013{known.ratio.high:.3f}", known.verdict]
    (broken,) = [cell for cell in cells_of(found) if cell["status"] == "invalid"]
    assert [request[4] for request in broken["timeline"]["requests"]] == [0, 0, 0, 1]
    assert broken["timeline"]["requests"][-1][2:4] == [None, None]
    meaning, _ = data["reasons"]["invalid request_failed"]
    assert meaning == "requests failed"


def test_a_timeline_is_thinned_to_what_can_be_seen(hostile: Path) -> None:
    run = open_run(hostile)
    key = next(row["key"] for row in run.rows if row["batch"] == 4 and row["status"] == "valid")
    whole, thinned = (island.timeline(run, key, most) for most in (64, 2))
    assert whole is not None
    assert thinned == whole | {"requests": [whole["requests"][0], whole["requests"][-1]]}
    assert island.timeline(run, "nowhere", 64) is None


browser = pytest.mark.skipif(chromium.COMMAND is None, reason="no Chromium (Debian: apt install chromium)")
WIDE = """[...document.querySelectorAll('body :not(svg *)')].filter(e => !e.closest('.scroll') &&
    !e.closest('details:not([open]) > :not(summary)') && e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => e.outerHTML.slice(0, 99))"""
OPEN = "document.querySelectorAll('details.filter').forEach(e => { e.open = true; })"
SHOWN = "[...document.querySelectorAll('#cell-tables tr[data-cell]')].filter(row => row.getClientRects().length)"
STATUSES = f"{SHOWN}.map(row => row.querySelector('.status').textContent.split(' ')[0])"


@pytest.mark.usefixtures("no_figures")
def test_what_meets_the_slo_is_folded_where_shapes_are_many(tmp_path: Path) -> None:
    for shapes, folded in ((3, False), (4, True)):
        grid = {"input": [8 * (k + 1) for k in range(shapes)], "output": 4, "batch": 2}
        data = BRANCHES | {"variants": {}, "blocks": None, "grid": grid, "slo": {"ttft_ms": 20}}
        run = made_run(tmp_path / str(shapes), data, lambda cell, *_: (30.0 - cell.input, 10.0))
        text = page([open_run(run)])
        assert ("<summary>3 of 4 meet the SLO at a measured load</summary>" in text) is folded
        assert "in=8, out=4: meets the SLO at no measured batch" in text
        check_whole(text)


@browser
@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("width", [360, 400, 1280])
def test_in_a_browser_nothing_overflows_complains_or_loads(written: Path, width: int, scripts: bool) -> None:
    foreign = "document.querySelectorAll('script:not(#data, #data + script), img, body b, [onerror]').length"
    pictures = "[...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().height > 50)"
    status = "Math.max(...[...document.querySelectorAll('td.status')].map(e => e.getBoundingClientRect().right))"
    hints = "[...document.querySelectorAll('.hint')].filter(e => !e.hidden)"
    hints += ".map(e => e.nextSibling.getAttribute('aria-label'))"
    steps = [OPEN, chromium.OVERFLOW, WIDE, foreign, pictures, f"{SHOWN}.length", status, hints]
    seen = chromium.look(written, steps, width=width, scripts=scripts, dark=scripts)
    _, overflow, wide, other, drawn, rows, right, hinted = seen.values
    assert (overflow, wide, other, rows) == (0, [], 0, 8)
    assert drawn == [True] * (13 if scripts else 11)  # the script's charts, one for each input
    assert right < 1280
    assert len(hinted) == 0 or width < 500, hinted
    assert "Cells" in hinted or not (scripts and width < 500)
    assert not {"Reasons", "Provenance"} & {*hinted}  # prose stands below each other instead
    assert seen.complaints == []
    assert seen.requested == [written.as_uri()]


@browser
def test_pointing_tells_and_clicking_shows_timeline_and_reasons(written: Path) -> None:
    cells = cells_of(Page(written.read_text()))
    last = max(number for number, cell in enumerate(cells) if cell["status"] == "valid")
    (broken,) = [number for number, cell in enumerate(cells) if cell["status"] == "invalid"]
    panel = "document.querySelector('.detail')?.textContent"
    seen = chromium.look(
        written,
        [
            *(Mouse(f'[data-point="{last}"]'), "tip.hidden ? '' : tip.textContent"),
            *(Mouse(f'[data-point="{last}"]', click=True), panel),
            *(
                "document.querySelectorAll('.detail .timeline g').length",
                "document.querySelectorAll('.selected').length",
            ),
            *(Mouse(f'tr[data-cell="{broken}"] td', click=True), panel, f"{STATUSES}.length"),
            *(Mouse(".detail button", click=True), "String(document.querySelector('.detail'))"),
            *("dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'})); document.activeElement.blur()",),
            *(f"document.querySelector('tr[data-cell=\"{last}\"]').focus()", panel),
        ],
        width=1280,
    )
    told, chosen, bars, marked, why = (seen.values[place] for place in (1, 3, 4, 5, 7))
    data = json.loads(Page(written.read_text()).inside["script"][0])
    place = [name for name, _ in data["metrics"]].index("sys_tok_s")
    *_, text, ends = cells[last]["values"][place]
    assert told == f"{cells[last]['name']}Sys tok/s: {text} (95 % interval {ends}) valid"
    assert chosen.startswith(f"{cells[last]['name']} valid")
    assert f"Sys tok/s{text} (95 % interval {ends})" in chosen
    assert "warm-up:" in chosen
    assert (bars, marked) == (cells[last]["at"][3], 2)
    assert "invalid: request_failed: requests failed; read error_kind and error_detail in records/" in why
    assert "failed" in why
    assert seen.values[8:11] == [8, None, "null"]
    assert seen.complaints == []


@browser
@pytest.mark.parametrize("told", [FAILED, None, (50.0, 10.0)])
def test_a_run_of_few_numbers_or_none_can_be_looked_at(told: Any, tmp_path: Path) -> None:
    data = BRANCHES | {"variants": {}, "blocks": None, "grid": {"input": 8, "output": 4, "batch": 1}}
    run = made_run(tmp_path / "run", data, lambda *_: told)
    (tmp_path / "report.html").write_text(page([open_run(run)]))
    points, click = "document.querySelectorAll('[data-point]').length", Mouse("tr[data-cell] td", click=True)
    steps = [points, "charts.lastChild.textContent", click, "document.querySelectorAll('.detail').length"]
    seen = chromium.look(tmp_path / "report.html", steps, width=400)
    absent = "Not drawn: 1 of 1 cells, invalid or without a number here."
    assert seen.values == [*((1, "") if isinstance(told, tuple) else (0, absent)), None, 1]
    assert seen.complaints == []


@browser
@pytest.mark.usefixtures("no_figures")
def test_a_chart_does_not_go_over_a_cell_without_a_valid_number(tmp_path: Path) -> None:
    data = BRANCHES | {"grid": {"input": 8, "output": 4, "batch": [1, 2, 4]}, "blocks": 1}
    faults = {("main", 2): FAILED}
    run = made_run(tmp_path / "run", data, lambda cell, *_: faults.get((cell.variant, cell.batch), (50.0, 10.0)))
    (tmp_path / "report.html").write_text(page([open_run(run)]))
    lines = "[...document.querySelectorAll('figure .curve')].map(e => e.getAttribute('d').split('M').length)"
    hide = "[...document.querySelectorAll('.filter input')].find(e => e.parentNode.textContent === 'invalid').click()"
    seen = chromium.look(tmp_path / "report.html", [lines, "charts.lastChild.textContent", hide, lines], width=1280)
    assert (seen.values[0], seen.values[3]) == ([3, 2], [3, 2])  # two pieces and one, though it is filtered out
    assert seen.values[1].startswith("Not drawn: 1 of 6 cells, invalid or without a number here, where lines break.")


@pytest.fixture
def alike(tmp_path: Path) -> Path:
    """The page of two variants whose numbers are the same."""
    data = BRANCHES | {"grid": {"input": 8, "output": 4, "batch": [1, 4]}, "blocks": 2}
    run = made_run(tmp_path / "run", data, lambda *_: (50.0, 10.0))
    (tmp_path / "report.html").write_text(page([open_run(run)]))
    return tmp_path / "report.html"


@browser
@pytest.mark.usefixtures("no_figures")
def test_of_points_that_lie_on_each_other_all_are_told_and_can_be_chosen(alike: Path) -> None:
    panel, click = "document.querySelector('.detail h3')?.firstChild.data", Mouse('[data-point="0"]', click=True)
    steps = [Mouse('[data-point="0"]'), "[...document.querySelectorAll('#tip strong')].map(e => e.textContent)"]
    seen = chromium.look(alike, [*steps, *[click, panel] * 4], width=1280)
    names = [f"{variant}, in=8, out=4, batch=1" for variant in ("int8-moe", "main")]
    assert sorted(seen.values[1]) == names
    first, second, third, fourth = seen.values[3::2]
    assert sorted([first, second]) == names
    ratio = "(e => { e.value = 'Ratio of TTFT'; e.dispatchEvent(new Event('change')); return e.value })"
    steps = [f"{ratio}(document.querySelector('#choosers select'))", "document.querySelectorAll('[data-point]').length"]
    steps += [Mouse('[data-point="2"]'), "tip.textContent", "charts.lastChild.textContent"]
    of_ratios = chromium.look(alike, steps, width=1280)
    assert of_ratios.values[:2] == ["Ratio of TTFT", 2]
    assert of_ratios.values[3] == f"{names[0]}Ratio of TTFT: 1.000, undecided valid"  # alike: no spread, no interval
    assert "Ratio to the baseline" in of_ratios.values[4]
    assert of_ratios.complaints == []
    assert (third, fourth) == (None, first)
    assert seen.complaints == []


def test_texts_have_contrast_in_both_schemes() -> None:
    sheet = (Path(pages.__file__).parent / "page.css").read_text()
    light, dark, *_ = re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)
    for scheme in (light, dark):
        colours = {}
        for name, code in re.findall(r"--(\w+): #([0-9a-f]+)", scheme):
            digits = code if len(code) == 6 else "".join(2 * digit for digit in code)
            colours[name] = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        for name in ("ink", "dim", "link", "valid", "suspect", "invalid"):
            assert min(contrast(colours[name], colours[ground]) for ground in ("paper", "band")) >= 4.5, name
        for name in (f"hue{place}" for place in range(8)):
            assert contrast(colours[name], colours["paper"]) >= 3, name


@browser
@pytest.mark.usefixtures("no_figures")
def test_a_variant_keeps_its_colour_whatever_is_shown(alike: Path) -> None:
    legend = "[...document.querySelectorAll('.legend span')].map(e => [e.textContent, e.className])"
    hide = "[...document.querySelectorAll('.filter input')].find(e => e.parentNode.textContent === 'main').click()"
    drawn = "[...document.querySelectorAll('figure .line')].map(e => e.getAttribute('class'))"
    steps = [legend, hide, legend, drawn, "document.querySelector('.legend').textContent"]
    seen = chromium.look(alike, steps, width=1280)
    assert seen.values[0] == [["main", "hue0"], ["int8-moe", "hue1"]]
    assert seen.values[2:] == [[["int8-moe", "hue1"]], ["line hue1"], "Variant: int8-moe"]


@browser
def test_the_keyboard_opens_a_cell_and_comes_back_to_it(written: Path) -> None:
    press = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: '%s', bubbles: true}))"
    focused, open_panels = "document.activeElement.dataset.cell", "document.querySelectorAll('.detail .content').length"
    steps = ["document.querySelector('tr[data-cell=\"2\"]').focus()"]
    steps += [press % "Enter", open_panels, "document.querySelector('.detail button').focus()"]
    steps += ["document.activeElement.click()", focused, open_panels]
    steps += [press % " ", open_panels, "document.querySelector('.detail button').focus()"]
    steps += [press % "Escape", focused, open_panels]
    steps += ["(e => { e.open = true; })(document.querySelector('.filter'))", press % "Escape"]
    steps += ["document.querySelectorAll('.filter[open]').length"]
    seen = chromium.look(written, steps, width=1280)
    assert [seen.values[at] for at in (2, 5, 6, 8, 11, 12, 15)] == [1, "2", 0, 1, "2", 0, 0]
    assert seen.complaints == []


@browser
def test_filters_and_sorting(written: Path) -> None:
    axes = json.loads(Page(written.read_text()).inside["script"][0])["axes"]
    column = len(axes) + 2  # after them the status, then TTFT
    values = f"{SHOWN}.map(row => parseFloat(row.cells[{column - 1}].textContent))"
    heads = "document.querySelectorAll('#cell-tables th')"
    click = f"{heads}[{column - 1}].querySelector('button').click()"
    box = "[...document.querySelectorAll('.filter input')].find(e => e.parentNode.textContent === '{}').click()"
    count = "counted.textContent"
    points = "document.querySelectorAll('[data-point]').length"
    steps = [values, click, values, f"{heads}[{column - 1}].getAttribute('aria-sort')", click, values, click, values]
    steps += [box.format("invalid"), count, points, box.format("1024"), count, f"{SHOWN}.length", points]
    steps += ["document.querySelector('#filters > button').click()", count, f"{SHOWN}.length"]
    steps.append("document.querySelector('.legend .hue0').textContent")
    seen = chromium.look(written, steps, width=1280)
    planned, up, down, again = (seen.values[place] for place in (0, 2, 5, 7))
    assert (up, seen.values[3]) == (sorted(planned), "ascending")
    assert (down, again) == (sorted(planned, reverse=True), planned)
    assert seen.values[9:11] == ["7 of 8 cells", 7]
    assert seen.values[12:15] == ["3 of 8 cells", 3, 3]
    assert seen.values[16:18] == ["8 of 8 cells", 8]
    assert seen.values[18] == "main"  # the baseline has the first colour, as in the figures
    assert seen.complaints == []


@browser
def test_other_tables_can_be_sorted_too(written: Path) -> None:
    ratios = "[...document.querySelectorAll('th')].find(head => head.textContent === 'Ratio').closest('table')"
    head = f"[...{ratios}.tHead.rows[0].cells].find(head => head.textContent === 'Batch')"
    column = f"[...{ratios}.tBodies[0].rows].map(row => row.cells[{head}.cellIndex].textContent)"
    before, _, after = chromium.look(written, [column, f"{head}.firstChild.click()", column], width=1280).values
    numbers = sorted((text for text in before if text != "\u2013"), key=float)
    assert after == numbers + ["\u2013"] * (len(before) - len(numbers))
    assert before != after


def test_forty_variants_are_small_and_readable(tmp_path: Path) -> None:
    names = {"main": {}} | {f"build-{n:02}": {} for n in range(1, 40)}
    grid = [{"input": 128, "output": 2, "batch": [1, 4]}, {"input": 4096, "output": 2, "batch": 8}]
    data = BRANCHES | {"variants": names, "grid": grid, "blocks": 2, "rounds": {"warmup": 0, "min": 1, "max": 1}}
    speeds = {name: 1 + place / 100 for place, name in enumerate(names)}
    made_run(tmp_path / "run", data, lambda cell, start, k: ((50 + start.block + k) / speeds[cell.variant], 10.0))
    text = page([open_run(tmp_path / "run")])
    found = check_whole(text)
    assert len(text.encode()) < 1.6e6
    everything = "".join(found.texts)
    assert "120 cells: 120 valid" in everything
    assert "36 others" in everything
    assert "main and the 3 fastest of 40 variants" in everything
    assert {"build-39", "build-38", "build-37"} <= set(found.inside["text"])
    assert "build-20" not in found.texts[: found.texts.index("Cells")]
    assert len(found.all("details")) == 40 + 39
    assert len(cells_of(found)) == 120
    if chromium.COMMAND:
        (tmp_path / "report.html").write_text(text)
        search = "(e => { e.value = '-17'; e.dispatchEvent(new Event('input')); })"
        search += "(document.querySelector('.filter [type=search]'))"
        none, every = (f"[...document.querySelectorAll('.filter button')][{place}].click()" for place in (1, 0))
        steps = [
            f"{SHOWN}.length",
            none,
            "counted.textContent",
            search,
            every,
            "counted.textContent",
            chromium.OVERFLOW,
        ]
        seen = chromium.look(tmp_path / "report.html", steps, width=400)
        assert seen.values[::2][:2] == [120, "0 of 120 cells"]
        assert seen.values[5:] == ["3 of 120 cells", 0]
        assert seen.complaints == []


def test_runs_stand_side_by_side_and_models_are_not_mixed(hostile: Path, tmp_path: Path) -> None:
    data = BRANCHES | {"name": "other", "variants": {}, "blocks": None}
    other = made_run(tmp_path / "other", data, tell, caption=["its own"])
    text = page([open_run(hostile), open_run(other), open_run(hostile)])
    found = check_whole(text)
    assert len(cells_of(found)) == 20
    assert len([one for one in found.all("th") if one.get("scope") == "col"]) > 3
    header = text[: text.index("</header>")]
    assert header.count("Peak throughput:") == header.count("TTFT range:") == 3
    assert header.count(" on embedded simulator (") == 3
    own = header[header.index("<strong>other:</strong> m on ") :]
    assert "4 cells: 4 valid, 0 suspect, 0 invalid" in own[: own.index("</ul>")]
    assert "(other, in=" in own[: own.index("</ul>")]
    assert text.count("<h3>model &lt;script&gt;") == 1
    assert text.count("<h3>m</h3>") == 1
    assert "<br>other: its own<br>" in text


def test_telemetry_is_a_table_where_there_is_any() -> None:
    row = {"variant": "", "load": "static", "input": 8, "output": 4, "batch": 1, "rate": None, "status": "valid"}
    assert pages._telemetry([row]) is None
    found = pages._telemetry([row, row | {"power_w": 1834.2, "j_per_tok": 0.01234, "throttle": ""}])
    assert found is not None
    assert found.head == ["Input", "Output", "Batch", "Power (W)", "J/tok", "Throttled by"]
    assert found.rows == [["8", "4", "1", "1,834", "0.0123", "none"]]


@pytest.mark.usefixtures("no_figures")
def test_what_cannot_be_read_or_written_is_one_line(hostile: Path, tmp_path: Path) -> None:
    for words in (["nowhere"], [hostile, "-o", tmp_path / "no" / "r.html"], [hostile, "-o", tmp_path], []):
        result = bench("report", *words)
        assert (result.exit_code, result.stderr.count("\n"), result.stdout) == (2, 1, "")
        assert "Traceback" not in result.stderr
