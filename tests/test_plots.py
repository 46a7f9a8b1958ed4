"""The figures: that they exist, are readable by machines, hold what they must and nothing they must not."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from benchbench.figures import fonts, plots
from benchbench.figures.choose import COLOURS, make_sheet
from benchbench.figures.phases import Timeline, draw_timeline
from benchbench.figures.plots import draw_plots
from benchbench.figures.schemes import DARK, ROLES
from benchbench.figures.sheet import STYLE, make_frame
from benchbench.figures.trade_off import pareto
from benchbench.page import page_figures
from benchbench.report.summary_table import Row

FIGURES = ["throughput", "scaling", "ttft_batch", "ttft_input", "pareto", "heatmap", "timeline"]
TIMELINE = Timeline("in=8, out=8, batch=3", [0, 0, 0], [0.0, 0.1, 0.1], [0.2, 0.4, math.nan], [1, 2, math.nan])


def row(shape: tuple[int, int, float], load: str = "static", **more: Any) -> Row:
    length, output, load_value = shape
    axis = {"batch": None, "rate": load_value} if load == "open" else {"batch": load_value, "rate": None}
    ttft, speed = 40 + length * load_value / 50, 25 - load_value / 5 - length / 1e4
    rates: Row = {"ttft_ms": ttft, "sys_tok_s": speed * load_value, "stream_tok_s": speed}
    spans = {
        f"{name}_{end}": rates[name] * factor
        for name in ("ttft_ms", "sys_tok_s")
        for end, factor in (("low", 0.97), ("high", 1.03))
    }
    cell: Row = {"variant": "", "input": length, "output": output, "load": load, "status": "valid", "reasons": ""}
    return cell | axis | rates | spans | more


def grid(inputs: Any = (128, 2048), outputs: Any = (64, 256), batches: Any = (1, 4, 32)) -> list[Row]:
    return [row((i, o, b)) for i in inputs for o in outputs for b in batches]


def texts(svg: Path) -> list[str]:
    """Every text in an SVG, which must therefore be XML with its text as text."""
    tree = ET.parse(svg)  # noqa: S314 - a file this test made
    return ["".join(element.itertext()) for element in tree.iter("{http://www.w3.org/2000/svg}text")]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = grid()
    rows[2] |= {"status": "suspect", "reasons": "drift", "sys_tok_s": 480.1}
    rows[7] |= {"status": "invalid", "sys_tok_s": 777.7}
    rows.append(row((128, 64, 64), status="invalid"))
    out = tmp_path_factory.mktemp("figures") / "made" / "here"
    files = draw_plots(rows, TIMELINE, out, "a run of $money$ and 模型")
    assert files == [out / f"{name}.{form}" for name in FIGURES for form in ("png", "svg")]
    return out


@pytest.mark.parametrize("style", [STYLE, page_figures.STYLE])
def test_headings_and_small_print_stand_whole_within_the_figure(style: Any) -> None:
    heading = "Is mnbt=16384,mns=WWWW better than mnbt=2048,mns=8? (in → out at batch)"
    small = "95 % of a name · max_num_batched_tokens=16384,max_num_seqs=16 against MMMM_WWWW_max_num_batched_tokens=8"
    with mpl.rc_context(style):
        figure, _ = make_frame(heading, small)
        FigureCanvasAgg(figure).draw()
        written = [text for text in figure.findobj(Text) if len(text.get_text()) > 20]
        assert [" ".join(text.get_text().split()) for text in written] == [heading, small]
        for text in written:
            assert text.get_window_extent().x1 <= figure.bbox.x1
        figure, _ = make_frame("t", f"/{'path' * 300}")
    (long,) = [text.get_text() for text in figure.findobj(Text) if "path" in text.get_text()]
    assert " " not in long.splitlines()[-1]  # a word that is broken anywhere stays one


@pytest.mark.parametrize(("style", "inputs", "legend"), [(STYLE, 2, 0), (STYLE, 3, 1), (page_figures.STYLE, 2, 1)])
def test_narrow_panels_leave_the_names_of_lines_to_a_legend(style: Any, inputs: int, legend: int) -> None:
    with mpl.rc_context(style):
        shapes = [(length, 64, batch) for length in (128, 1024, 4096)[:inputs] for batch in (1, 4, 32)]
        rows = [row(shape, variant=name) for name in ("main", "int8") for shape in shapes]
        figure = dict(plots.figures(rows, None, "t"))["throughput"]
        names = [text.get_text() for text in figure.findobj(Text)]
        keys = [text.get_text() for text in figure.legends[0].get_texts()]
    assert keys[: 2 * legend] == ["main", "int8"][: 2 * legend]
    assert [names.count("main"), names.count("int8")] == [1 if legend else inputs] * 2


@pytest.mark.parametrize("name", FIGURES)
def test_png_is_as_wide_as_promised(drawn: Path, name: str) -> None:
    head = (drawn / f"{name}.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    assert width == 1440
    assert 200 < height < 2 * width


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("throughput", {"Batch (requests in flight)", "Sys tok/s (output), log scale", "1", "4", "32",
                        "in 128, out 64", "System throughput, mean and 95 % interval", "ideal: batch 1 times n",
                        "hollow: suspect"}),
        ("scaling", {"Batch (requests in flight)", "Sys tok/s (% of ideal)", "ideal: batch 1 times n", "100"}),
        ("ttft_batch", {"Batch (requests in flight)", "TTFT (ms), log scale"}),
        ("ttft_input", {"Input (tokens); lines are means over output lengths", "TTFT (ms), log scale",
                        "128", "2,048", "batch 1", "batch 32"}),
        ("pareto", {"tok/s per stream (numbers at points: batch)", "Sys tok/s (output)", "1", "4", "32"}),
        ("heatmap", {"Batch (requests in flight)", "in → out (tokens)", "128 → 64", "480.1*", "96.7", "Sys tok/s"}),
        ("timeline", {"Time since the round began (s)", "Request", "prefill (sent to first token)",
                      "Timeline of one round: in=8, out=8, batch=3"}),
    ],
)  # fmt: skip
def test_svg_holds_labels_with_units(drawn: Path, name: str, expected: set[str]) -> None:
    assert expected <= set(texts(drawn / f"{name}.svg"))


def test_a_grid_of_large_numbers_does_without_tenths(tmp_path: Path) -> None:
    rows = [
        row((128, 64, batch), sys_tok_s=speed) for batch, speed in ((1, 98.76), (2, 200), (4, 1234.56), (32, 12345.6))
    ]
    draw_plots(rows, None, tmp_path, "t", ["svg"])
    assert {"98.8", "1,235", "12,346"} <= set(texts(tmp_path / "heatmap.svg"))


def test_invalid_cells_are_absent_and_counted(drawn: Path) -> None:
    for name in FIGURES[:6]:
        found = texts(drawn / f"{name}.svg")
        assert not {"64", "batch 64", "777.7"} & set(found)
        assert any("2 invalid cells left out" in text for text in found)


def test_svg_is_the_same_bytes_again_and_no_setting_leaks(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    first, second = (draw_plots(grid(), TIMELINE, tmp_path / name, "t", formats=["svg"]) for name in "ab")
    assert [path.name for path in first] == [f"{name}.svg" for name in FIGURES]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert dict(mpl.rcParams) == before


def test_throughput_draws_the_means_their_intervals_and_the_ideal() -> None:
    rows = grid((128,), (64,), (1, 4, 8, 32))
    rows[1]["status"] = "suspect"
    figure = plots._throughput(make_sheet(rows, "t"))
    assert figure is not None
    axes = figure.axes[0]
    means = [(one["batch"], one["sys_tok_s"]) for one in rows]
    drawn = [[tuple(point) for point in line.get_xydata()] for line in axes.lines]
    assert means in drawn
    first = rows[0]["sys_tok_s"]
    assert drawn.count([(1, first), (32, pytest.approx(32 * first))]) == 1  # the ideal
    assert axes.get_ylim()[1] > 32 * first
    spans = [[tuple(end) for end in segment] for segment in axes.collections[0].get_segments()]
    assert spans == [[(one["batch"], one["sys_tok_s_low"]), (one["batch"], one["sys_tok_s_high"])] for one in rows]
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [[tuple(point) for point in line.get_xydata()] for line in hollow] == [means[1:2]]


def test_a_line_breaks_at_a_cell_without_a_valid_number_which_is_marked(tmp_path: Path) -> None:
    rows = [row((length, 64, batch)) for length in (128, 2048, 4096) for batch in (1, 2, 4, 8)]
    rows[1] |= {"status": "invalid", "sys_tok_s": 777.7}  # of 128 the batch of 2
    rows[10]["sys_tok_s"] = None  # of 4096 the batch of 4
    sheet = make_sheet(rows, "t")
    for figure in (plots._throughput(sheet), pareto(sheet)):
        assert figure is not None
        lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 4 and line.get_linestyle() != "None"]
        assert [[math.isnan(y) for y in line.get_ydata()] for line in lines] == [
            [False, True, False, False],
            [False, False, False, False],
            [False, False, True, False],
        ]
    figure = plots._throughput(sheet)
    assert figure is not None
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [(*line.get_xdata(), line.get_color()) for line in crosses] == [(2, COLOURS[0]), (4, COLOURS[2])]
    figure = plots._ttft_input(make_sheet([one | {"status": "invalid"} if one["input"] == 2048 else one
                                           for one in rows], "t"))  # fmt: skip
    assert figure is not None
    assert all(math.isnan(line.get_ydata()[1]) for line in figure.axes[0].lines if len(line.get_xdata()) == 3)
    draw_plots(rows, None, tmp_path, "t", ["svg"])
    assert "no valid number" in texts(tmp_path / "throughput.svg")
    assert any("a line breaks where a batch has no valid number" in text for text in texts(tmp_path / "pareto.svg"))


def test_a_line_is_no_mean_over_fewer_outputs_than_it_has() -> None:
    rows = [row((length, output, 4), ttft_ms=1.0 * length + output)
            for length in (128, 512, 2048) for output in (64, 4096)]  # fmt: skip
    rows[3]["status"] = "invalid"  # 512 -> 4096, whose TTFT is the longer
    figure = plots._ttft_input(make_sheet(rows, "t"))
    assert figure is not None
    assert [math.isnan(y) for y in figure.axes[0].lines[0].get_ydata()] == [False, True, False]


def test_lines_are_told_apart_in_grey() -> None:
    rows = [row((128, 64, batch), variant=f"v{n}") for n in range(4) for batch in (1, 2, 4)]
    figure = plots._throughput(make_sheet(rows, "t"))
    assert figure is not None
    lines = [line for line in figure.axes[0].lines if line.get_color() in COLOURS and len(line.get_xdata()) == 3]
    dashes = {line.get_color(): str(line._dash_pattern) for line in lines if line.get_linestyle() != "None"}  # type: ignore[attr-defined]
    assert len(dashes) == len(set(dashes.values())) == 4


def test_pareto_falls_back_to_the_inverse_of_tpot() -> None:
    rows = [row((128, 64, batch), stream_tok_s=None, tpot_ms=40.0 * batch) for batch in (1, 2, 4, 8)]
    figure = pareto(make_sheet(rows, "t"))
    assert figure is not None
    assert list(figure.axes[0].lines[0].get_xdata()) == [25.0, 12.5, 6.25, 3.125]


def test_timeline_draws_each_phase_that_took_place() -> None:
    figure = draw_timeline(TIMELINE, "t")
    assert figure is not None
    waiting, prefill, decode = (
        [(path.vertices[0][0], path.vertices[1][0]) for path in phase.get_paths()]
        for phase in figure.axes[0].collections
    )
    assert (waiting, prefill, decode) == ([(0, 0.1), (0, 0.1)], [(0, 0.2), (0.1, 0.4)], [(0.2, 1), (0.4, 2)])


def test_queue_stands_apart_from_prefill_where_the_server_tells_it(tmp_path: Path) -> None:
    told = Timeline("x", [0, 0], [0.0, 0.0], [1.0, 2.0], [3.0, 4.0], [0.5, math.nan])
    figure = draw_timeline(told, "t")
    assert figure is not None
    spans = [
        [(path.vertices[0][0], path.vertices[1][0]) for path in phase.get_paths()]
        for phase in figure.axes[0].collections
    ]
    assert [sorted(phase) for phase in spans] == [[], [(0, 0.5)], [(0, 2), (0.5, 1)], [(1, 3), (2, 4)]]
    draw_plots([], told, tmp_path, "t", ["svg"])
    assert "queue (as the server reports it)" in texts(tmp_path / "timeline.svg")


def test_many_batches_keep_their_ticks_apart(tmp_path: Path) -> None:
    draw_plots(grid((128,), (64,), range(1, 65)), None, tmp_path, "t", formats=["svg"])
    found = set(texts(tmp_path / "ttft_batch.svg"))
    assert {"1", "2", "4", "8", "16", "32", "64"} <= found
    assert not {"3", "63"} & found


def test_variants_are_told_apart(tmp_path: Path) -> None:
    rows = [one | {"variant": name} for name in ("main", "kernel") for one in grid((128, 512), (64,))]
    draw_plots(rows, None, tmp_path, "t", formats=["svg"])
    for name in ("throughput", "ttft_input", "pareto"):
        assert {"main", "kernel"} <= set(texts(tmp_path / f"{name}.svg"))
    assert {"128 → 64", "512 → 64"} <= set(texts(tmp_path / "throughput.svg"))
    assert "128 → 64, kernel" in texts(tmp_path / "heatmap.svg")


def test_open_loads_are_drawn_over_rate(tmp_path: Path) -> None:
    rows = [row((128, 64, rate), "open") for rate in (0.5, 1.0, 2.0, 8.0)]
    draw_plots(rows, None, tmp_path, "t", formats=["svg"])
    found = set(texts(tmp_path / "throughput.svg"))
    assert {"Request rate (req/s)", "0.5", "2", "8"} <= found
    assert not any("ideal" in text for text in found)


def test_what_has_no_data_is_skipped(tmp_path: Path) -> None:
    never = Timeline("x", [0.0], [math.nan], [math.nan], [math.nan])
    invalid = [one | {"status": "invalid"} for one in grid()]
    assert draw_plots([], None, tmp_path, "t") == []
    assert draw_plots(invalid, never, tmp_path, "t") == []
    no_speed = [one | {"sys_tok_s": None} for one in grid()]
    assert [path.stem for path in draw_plots(no_speed, None, tmp_path, "t", ["svg"])] == ["ttft_batch", "ttft_input"]


def test_one_cell_is_no_figure_and_few_are_dots(tmp_path: Path) -> None:
    few = [row((128, 64, 4), sys_tok_s_bound=900.0), row((512, 64, 4), sys_tok_s_low=None), row((2048, 64, 4))]
    alone = Timeline("x", [0.0], [0.1], [0.2], [0.3])
    assert draw_plots(few[:1], alone, tmp_path, "t", ["svg"]) == []
    assert [path.stem for path in draw_plots(few, None, tmp_path, "t", ["svg"])] == ["throughput", "ttft_batch"]
    found = set(texts(tmp_path / "throughput.svg"))
    assert {"128 → 64", "512 → 64", "2,048 → 64", "Sys tok/s (output)", "tick: speed of light"} <= found


def test_a_long_timeline_is_cut_and_says_so(tmp_path: Path) -> None:
    times = [[float(n + step) for n in range(600)] for step in range(4)]
    draw_plots([], Timeline("x", *times), tmp_path, "run", formats=["svg"])
    assert "run · the first 512 of 600 requests" in texts(tmp_path / "timeline.svg")


def test_another_font_writes_what_the_usual_one_lacks_and_else_it_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    stix = fonts._characters("STIXGeneral")  # comes with matplotlib, as a font that is installed
    lacking = chr(min(stix - fonts._characters(fonts.BASE)))
    monkeypatch.setattr(fonts, "_others", lambda: iter(["STIXGeneral"]))
    with mpl.rc_context(STYLE):
        figure, _ = make_frame("heading", f"a title with {lacking}")
        FigureCanvasAgg(figure).draw()  # a glyph that is missing would be a warning, which is an error here
        assert not any("No font" in text.get_text() for text in figure.findobj(mpl.text.Text))
    draw_plots(grid(), None, tmp_path, "a run of 模型", ["svg"])
    said = "No font is installed here for 2 characters (U+578B, U+6A21)"
    assert said in " ".join(texts(tmp_path / "pareto.svg"))


def test_unknown_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown plot format pdf \(allowed: png, svg\)"):
        draw_plots(grid(), None, tmp_path / "new", "t", formats=["png", "pdf"])
    assert not (tmp_path / "new").exists()


def test_importing_the_figures_does_not_import_matplotlib() -> None:
    code = "import sys, benchbench.figures.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_svg_file_follows_its_readers_scheme_and_has_a_font_everywhere(tmp_path: Path) -> None:
    for path in draw_plots(grid(), TIMELINE, tmp_path, "t", ["svg"]):
        svg = path.read_text(encoding="utf-8")
        assert svg.count("@media (prefers-color-scheme: dark)") == 1
        assert (
            svg.count("font-family: 'DejaVu Sans', Verdana, sans-serif")
            == svg.count("font-family")
            == svg.count("<text")
        )
        assert all(
            f'[style*="fill: {light}"] {{ fill: {DARK[role]} !important }}' in svg for light, role in ROLES.items()
        )
    page = (Path(plots.__file__).parents[1] / "page/page.css").read_text(encoding="utf-8")
    dark = page[page.index("(prefers-color-scheme: dark)") :]
    assert all(f"--{role}: {colour};" in dark for role, colour in DARK.items())
