"""What a cell costs does not grow with the plan: files, bytes, names and calls are counted, nothing is timed."""

from __future__ import annotations

import cProfile
import os
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pyarrow as pa
import pytest
from driving import bench, run_well, write_sweep
from hypothesis import given
from hypothesis import strategies as st
from runs_made import made_run
from servers import ScriptedServer

from benchbench.explain import of_run
from benchbench.host import samples
from benchbench.host.samples import read_telemetry
from benchbench.page import document, page_figures
from benchbench.page.page_figures import PageFigure
from benchbench.spec import make_plan, spec_from_mapping
from benchbench.spec.cell import CellInfo
from benchbench.store.parquet_files import parquet_bytes
from benchbench.store.run_directory import RunDirectory

SIZES = (20, 40, 80)
CARD = "<!-- bench:performance -->\n<!-- /bench:performance -->\n"
Work = Counter[str]


class Files:
    """What is opened and listed below `root`, as long as it is set: an audit hook stays for good."""

    def __init__(self) -> None:
        self.root: Path | None = None
        self.work: Work = Counter()

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.root is None or event not in {"open", "os.listdir", "os.scandir"}:
            return
        path, root = args[0], self.root
        if not isinstance(path, str | os.PathLike) or not Path(path).absolute().is_relative_to(root):
            return
        self.root = None  # what is asked here does not count
        try:
            if event != "open":
                self.work["names listed"] += sum(1 for _ in Path(path).iterdir())
            elif Path(path).is_file():
                self.work["files opened"] += 1
                if args[2] & os.O_ACCMODE == os.O_RDONLY:
                    self.work["bytes to read"] += Path(path).stat().st_size
        finally:
            self.root = root


FILES = Files()
sys.addaudithook(FILES)


@contextmanager
def files_below(root: Path) -> Iterator[Work]:
    """Opened files, bytes of those that are opened to be read, and names in listed folders."""
    FILES.root, FILES.work = root.absolute(), Counter()
    try:
        yield FILES.work
    finally:
        FILES.root = None


@contextmanager
def calls() -> Iterator[Work]:
    """Calls of functions in this thread, Python's and C's; a generator's turn is one."""
    work: Work = Counter()
    with cProfile.Profile() as profile:  # counts in C
        yield work
    work["calls"] = sum(entry.callcount for entry in profile.getstats())


def grid(cells: int) -> dict[str, Any]:
    return {"input": [*range(8, 8 + cells // 4)], "output": [2, 3], "batch": [1, 2]}


def proportional(of: Callable[[int], Work]) -> None:
    """A cell more costs what a cell more cost before, with a tenth for what is not the same in each."""
    small, middle, large = (of(cells) for cells in SIZES)
    assert small.keys() == large.keys()
    assert small
    for kind in large:
        before, after = middle[kind] - small[kind], large[kind] - middle[kind]
        assert after / (SIZES[2] - SIZES[1]) <= 1.1 * before / (SIZES[1] - SIZES[0]) + 1, (kind, before, after)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")  # each is made once, by the first that needs it


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_files_of_a_sweep_and_of_its_resumption() -> None:
    resumed: dict[int, Work] = {}

    def swept(cells: int) -> Work:
        out, telemetry = Path(f"run{cells}"), {"enabled": False}  # its files are as many as the machine is slow
        with ScriptedServer() as server:
            with files_below(out) as work:
                run_well(server.url, out=str(out), grid=grid(cells), order="random", telemetry=telemetry)
            first = Counter(work)
            assert len(list(out.glob("records/*.parquet"))) == cells
            with files_below(out) as work:
                assert "nothing left to do" in bench("sweep", "s.yaml", "--out", out, "--resume").stdout
            resumed[cells] = Counter(work)
        return first

    proportional(swept)
    proportional(lambda cells: resumed[cells])


@pytest.mark.parametrize(
    "words",
    [
        ("table", "RUN"),
        ("table", "RUN", "--format", "csv"),
        ("explain", "RUN"),
        ("publish", "RUN", "--card", "card.md"),
        ("report", "RUN", "-o", "page.html"),
        ("validate", "s.yaml"),
        ("sweep", "s.yaml", "--dry-run", "--out", "RUN"),
        ("sweep", "s.yaml", "--dry-run", "--set", "name=unknown"),
    ],
    ids=" ".join,
)
def test_calls_of_a_command(words: tuple[str, ...], runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for figures, a million calls each: how much there is to draw is bounded (test_choose.py)."""

    def undrawn(name: str, _figure: object, description: str, _prefix: str) -> PageFigure:
        return PageFigure(name, description, "")

    monkeypatch.setattr(page_figures, "drawn_figure", undrawn)
    monkeypatch.setattr(document, "drawn_figure", undrawn)

    def of(cells: int) -> Work:
        run = runs / f"run{cells}"
        if "RUN" in words and not run.exists():
            data = {"name": "t", "model": "m", "engine": {"kind": "simulator"}, "grid": grid(cells)}
            data["rounds"] = {"warmup": 0, "min": 2}
            made_run(run, data, lambda cell, _, k: (50.0 + k, 10.0 + 0.01 * cell.input))
        write_sweep(Path("s.yaml"), "http://127.0.0.1:9", engine={"kind": "simulator"}, grid=grid(cells))
        Path("card.md").write_text(CARD)
        command = [str(run) if word == "RUN" else word for word in words]
        with calls() as work:
            assert bench(*command).exit_code == 0
        return work

    of(SIZES[0])  # what is imported, and compiled once
    proportional(of)


SPANS = st.tuples(st.integers(0, 50), st.integers(0, 10)).map(lambda drawn: (drawn[0], drawn[0] + drawn[1]))


@given(
    st.lists(SPANS, max_size=8), st.lists(SPANS, max_size=3), st.lists(SPANS, max_size=3), st.sampled_from([0, 2**30])
)
def test_telemetry_is_found_by_its_time_also_where_the_clock_was_set_back(
    files: list[tuple[int, int]], early: list[tuple[int, int]], late: list[tuple[int, int]], kept: int
) -> None:
    """Of files that are there when it is first asked, and of those that come later."""
    import tempfile

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "KEPT_BYTES", kept)
        run = RunDirectory(Path(name))
        (run.path / "telemetry").mkdir()
        for asked, there in ((early, files[:4]), (late, files)):
            for number, (first, last) in enumerate(there):
                facts = {"first_ns": first, "last_ns": last}
                table = pa.table({"file": [number]}).replace_schema_metadata({"benchbench": orjson.dumps(facts)})
                (run.path / "telemetry" / f"{number:04d}.parquet").write_bytes(parquet_bytes(table))
            wanted = [
                number
                for number, (first, last) in enumerate(there)
                if any(first <= end and last >= begin for begin, end in asked)
            ]
            for _ in range(2):
                found = read_telemetry(run, asked)
                assert ([] if found is None else found["file"].to_pylist()) == wanted
        assert run.unread == {}


def write_samples(name: str, first: int, last: int) -> None:
    Path("telemetry").mkdir(exist_ok=True)
    table = pa.table({"first": [first]}).replace_schema_metadata(
        {"benchbench": orjson.dumps({"first_ns": first, "last_ns": last})}
    )
    Path(f"telemetry/{name}.parquet").write_bytes(parquet_bytes(table))


def test_telemetry_of_a_long_sweep_is_opened_about_once() -> None:
    run = RunDirectory(Path())
    for number in range(100):
        write_samples(f"{number:04d}", 10 * number, 10 * number + 9)
    with files_below(Path()) as work:
        for number in range(100):
            found = read_telemetry(run, [(10 * number - 1, 10 * number + 10)])
            assert found is not None
            assert found["first"].to_pylist() == [10 * k for k in (number - 1, number, number + 1) if 0 <= k < 100]
    assert work["files opened"] == 100
    assert work["names listed"] == 100


def test_telemetry_is_read_by_whatever_name_its_file_has() -> None:
    names = ["copy of 0001", "12", "0013", "12345"]  # in this order: what has no number comes first
    for place, name in enumerate(names):
        write_samples(name, place, place)
    run = RunDirectory(Path())
    for _ in range(2):
        found = read_telemetry(run)
        assert found is not None
        assert found["first"].to_pylist() == [0, 1, 2, 3]
    assert run.unread == {}


def test_cells_are_explained_as_they_were_measured_and_told_as_they_were_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So telemetry, of which a cell's neighbours need the same, is read in its order."""
    read: list[str] = []
    monkeypatch.setattr(of_run, "explain_cell", lambda _run, cell: read.append(cell.key) or f"of {cell.key}")
    a, b, c, d = (SimpleNamespace(key=key) for key in "abcd")
    run = SimpleNamespace(measured=[c, a, d, b])
    assert of_run.explain_cells(run, [a, b, c]) == ["of a", "of b", "of c"]  # type: ignore[arg-type]
    assert read == ["c", "a", "b"]


def test_a_long_plan_is_small_in_memory() -> None:
    """Cells of the same limits share them: 500 bytes a cell where it was 4,500."""
    spec = {"name": "t", "model": "m", "engine": {"kind": "simulator"}, "grid": grid(400)}
    entries = [cell.info.to_entry() for cell in make_plan(spec_from_mapping(spec)).cells]
    CellInfo.model_validate(entries[0])
    tracemalloc.start()
    try:
        cells = [CellInfo.model_validate(entry) for entry in entries]
        assert tracemalloc.get_traced_memory()[0] < 1000 * len(cells)
    finally:
        tracemalloc.stop()
    assert [cell.to_entry() for cell in cells] == entries
