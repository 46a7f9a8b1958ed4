"""The gallery and README.md are what the stored runs give; the published table comes back from a simulated run."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from driving import bench
from test_table import PUBLISHED

ROOT = Path(__file__).parents[1]
RUNS = sorted((ROOT / "plots").glob("**/run"))
SIMULATED = ROOT / "plots" / "w7900d-simulated"


@pytest.mark.parametrize(
    ("run", "card", "form"),
    [
        *((run, run.parent / "README.md", ()) for run in RUNS),
        (ROOT / "plots/quickstart/run", ROOT / "README.md", ("--pivot", "batch:sys_tok_s")),
    ],
    ids=lambda value: str(value.relative_to(ROOT)) if isinstance(value, Path) else "-".join(value) or "rows",
)
def test_a_committed_table_is_what_its_run_gives(run: Path, card: Path, form: tuple[str, ...]) -> None:
    told = bench("publish", run, "--card", card, "--check", *form)
    assert (told.exit_code, told.stdout, told.stderr) == (0, "", "")


@pytest.mark.usefixtures("drawn_here")
@pytest.mark.parametrize("run", RUNS, ids=lambda run: str(run.relative_to(ROOT)))
def test_every_figure_is_of_the_index_and_every_run_too(run: Path, tmp_path: Path) -> None:
    folder = run.parent
    assert f"({folder.relative_to(ROOT / 'plots')}/README.md)" in (ROOT / "plots/README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\]\((\w+\.svg)\)", (folder / "README.md").read_text(encoding="utf-8")))
    assert shown == {path.name for path in folder.glob("*.svg")}
    assert bench("plot", run, "--out", tmp_path / "drawn", "--format", "svg").exit_code == 0
    assert shown == {path.name for path in (tmp_path / "drawn").iterdir()}
    for name in shown:  # the same words and numbers; coordinates may differ between versions of matplotlib
        committed, made = (
            ["".join(one.itertext()) for one in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314 - our own
            for path in (folder / name, tmp_path / "drawn" / name)
        )
        assert committed == made


def test_figures_are_the_same_bytes_again(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for name in "ab":  # by processes of its own, then by this one
        assert bench("plot", SIMULATED / "run", "--out", tmp_path / name).exit_code == 0
        request.getfixturevalue("drawn_here")
    first, second = (sorted((tmp_path / name).iterdir()) for name in "ab")
    assert {path.suffix for path in first} == {".png", ".svg"}
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_no_kept_run_names_a_machine() -> None:
    assert len(RUNS) >= 2
    for run in RUNS:
        assert sorted(path.name for path in run.iterdir()) == ["manifest.json", "summary.parquet"]
        told = (run / "manifest.json").read_text(encoding="utf-8")
        assert not re.search(r'"/(?!v1|health")\w|"(uuid|bus_id)"|/tmp/', told)


def test_the_published_section_comes_back_from_a_simulated_run(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("# Model\n\n## Performance\n\n## License\n")
    asked = ("publish", SIMULATED / "run", "--card", card, "--after", "## Performance")
    assert bench(*asked).exit_code == 0
    text = card.read_text(encoding="utf-8")
    golden = (SIMULATED / "README.md").read_text(encoding="utf-8")
    begin, end = "<!-- bench:performance -->", "<!-- /bench:performance -->"
    assert text[text.index(begin) : text.index(end)] == golden[golden.index(begin) : golden.index(end)]

    assert "| Input | Output | Batch | TTFT (ms) | Sys tok/s |\n|---|---|---|---|---|\n" in text
    lines = re.findall(r"^\| (\d.*) \|$", text, re.MULTILINE)
    rows = [[float(cell) for cell in line.split("|")] for line in lines]
    assert [tuple(row[:3]) for row in rows] == [published[:3] for published in PUBLISHED]
    for row, published in zip(rows, PUBLISHED, strict=True):
        assert row[4] == pytest.approx(published[4], rel=0.02)
    assert "\n- Peak throughput: 537.5 tok/s (in=2048, out=1024, batch=32)\n" in text
    assert re.search(r"\n- TTFT range: [\d.]+\N{EN DASH}[\d.]+ ms\n", text)
    assert "\n- Scaling: 20.9x throughput increase from batch=1 to batch=32 (in=128, out=128)\n" in text

    before = card.read_bytes()
    assert bench(*asked).exit_code == 0
    assert card.read_bytes() == before

    (tmp_path / "edited.md").write_bytes(before.replace(b"537.5", b"547.5", 1))
    edited = bench("publish", SIMULATED / "run", "--card", tmp_path / "edited.md", "--check")
    assert edited.exit_code == 4
    assert "547.5" in edited.stdout
