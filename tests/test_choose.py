"""What the figures show: which panels and lines, which colours are legible, what a scale spans. No drawing."""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import font_manager
from matplotlib.colors import LinearSegmentedColormap, to_hex

from benchbench.analysis.stats import Estimate
from benchbench.choice.pareto import beside
from benchbench.comparison.figures import FOREST, HEAT, UNDECIDED, shown_cells
from benchbench.comparison.forest import STEPS, change_text, limit_of, reach_of, ticks_of
from benchbench.comparison.verdicts import Comparison
from benchbench.figures import fonts
from benchbench.figures.choose import (
    COLOURS,
    LINES,
    PANELS,
    SHARE,
    SHOWN_DOTS,
    agree,
    dots_of,
    make_sheet,
    panels_of,
    spread,
    with_shares,
)
from benchbench.figures.grid import contrast, ink_on
from benchbench.figures.lettering import NAME, short_names, width_of, wrapped
from benchbench.figures.sheet import apart, wide_span
from benchbench.report.summary_table import Row

SHARES = st.floats(0, 1)


def cell(length: int, output: int, batch: int, variant: str = "", **more: Any) -> Row:
    """A cell whose TTFT does not depend on the output, and whose Sys tok/s does."""
    ttft, speed = 10.0 + length * batch / 50, 20.0 * batch * (1 + output / 1000)
    row: Row = {"variant": variant, "input": length, "output": output, "batch": batch, "rate": None, "status": "valid"}
    return row | {"ttft_ms": ttft, "sys_tok_s": speed} | more


def grid(inputs: Any = (128, 1024, 2048), outputs: Any = (128, 256, 1024), variants: Any = ("",)) -> list[Row]:
    return [cell(i, o, b, v) for v in variants for i in inputs for o in outputs for b in (1, 2, 4, 8, 16, 32)]


def test_the_grid_of_54_cells_is_a_panel_an_input_and_one_line_for_what_agrees() -> None:
    sheet = make_sheet(grid(), "t")
    panels, note = panels_of(sheet, "sys_tok_s")
    assert [panel.title for panel in panels] == ["input 128", "input 1,024", "input 2,048"]
    assert [[line.name for line in panel.lines] for panel in panels] == 3 * [["out 128", "out 256", "out 1,024"]]
    assert note == ""
    panels, note = panels_of(sheet, "ttft_ms")
    assert [(panel.title, [line.name for line in panel.lines]) for panel in panels] == [
        ("output 128, 256 and 1,024", ["in 128", "in 1,024", "in 2,048"])
    ]
    assert sum(len(line.rows) for line in panels[0].lines) == 54
    assert note == " · outputs that agree are one line"


def test_shares_are_of_the_smallest_batch_times_n() -> None:
    rows = [cell(8, 8, b, sys_tok_s=speed, sys_tok_s_low=0.9 * speed) for b, speed in ((2, 40.0), (8, 80.0))]
    rows.append(cell(16, 8, 8))  # its smallest batch is not there
    shares = with_shares(make_sheet(rows, "t"))
    assert [(row[SHARE], row[f"{SHARE}_low"]) for row in shares.rows] == [(100, pytest.approx(90)), (50, 45)]


def test_variants_have_colours_and_shapes_have_panels() -> None:
    panels, _ = panels_of(make_sheet(grid(variants=("main", "b")), "t"), "sys_tok_s")
    assert len(panels) == 9
    assert {tuple((line.name, line.colour) for line in panel.lines) for panel in panels} == {
        (("main", COLOURS[0]), ("b", COLOURS[1]))
    }
    panels, _ = panels_of(make_sheet(grid(variants=("main", "b")), "t"), "ttft_ms")
    assert [panel.title for panel in panels] == [f"{i:,} → 128, 256 and 1,024" for i in (128, 1024, 2048)]


@pytest.mark.parametrize(
    ("factor", "width", "same"),
    [(1.02, 0.0, True), (1.08, 0.0, False), (1.08, 0.06, True), (1.3, 0.5, False)],
)
def test_curves_agree_by_their_points_or_by_their_intervals(factor: float, width: float, same: bool) -> None:
    def curve(by: float) -> dict[Any, Row]:
        values = {b: 100.0 * by * b for b in (1, 2)}
        ends = {b: {"x_low": v * (1 - width), "x_high": v * (1 + width)} for b, v in values.items()}
        return {(128, "", b): {"x": v, **(ends[b] if width else {})} for b, v in values.items()}

    assert agree(curve(1.0), curve(factor), "x") is same
    assert not agree(curve(1.0), {key: row for key, row in curve(1.0).items() if key[2] == 1}, "x")  # other loads


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6))
@settings(max_examples=30)
def test_no_figure_is_crowded_and_what_is_left_out_is_said(inputs: int, outputs: int, variants: int) -> None:
    names = [f"v{k}" for k in range(variants)] if variants > 1 else [""]
    rows = [cell(10 * i, 40 * o, b, v) for i in range(1, inputs + 1) for o in range(1, outputs + 1) for v in names
            for b in (1, 8)]  # fmt: skip
    sheet = make_sheet(rows, "t")
    panels, note = panels_of(sheet, "sys_tok_s")
    assert 1 <= len(panels) <= PANELS
    for panel in panels:
        assert 1 <= len(panel.lines) <= LINES
        assert len({(line.colour, line.name) for line in panel.lines}) == len(panel.lines)
    if sum(len(line.rows) for panel in panels for line in (*panel.lines, *panel.others)) < len(rows):
        assert " of " in note
    dots, note = dots_of(sheet, "sys_tok_s")
    assert len(dots) == min(SHOWN_DOTS, len(rows))
    assert bool(note) == (len(rows) > SHOWN_DOTS)


@given(st.lists(st.text(max_size=60), unique=True))
def test_a_name_is_written_one_way_and_no_two_alike(names: list[str]) -> None:
    written = short_names(names)
    assert list(written) == names
    assert all(width_of(text) <= NAME for text in written.values())
    assert len(set(written.values())) == len(names) or "no variant" in names


@given(st.text("a b模型.", max_size=80), st.integers(2, 30))
def test_a_text_is_wrapped_to_its_width_and_nothing_is_lost(text: str, most: int) -> None:
    lines = wrapped(text, most)
    assert all(width_of(line) <= most for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


@given(st.lists(st.integers(), max_size=50), st.integers(2, 20))
def test_what_is_chosen_has_both_ends(items: list[int], most: int) -> None:
    chosen = spread(items, most)
    assert len(chosen) == min(len(items), most)
    assert (chosen[:1], chosen[-1:]) == (items[:1], items[-1:])


@given(SHARES, SHARES, SHARES)
def test_text_is_legible_on_any_colour(red: float, green: float, blue: float) -> None:
    ink = [int(ink_on((red, green, blue))[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    assert contrast(ink, (red, green, blue)) >= 4.5


def test_text_is_legible_on_the_colours_of_the_maps() -> None:
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    colours = [mpl.colormaps["cividis"].resampled(16)(n / 15) for n in range(16)]
    heat = LinearSegmentedColormap.from_list("better", HEAT).resampled(15)
    colours += [heat(n / 14) for n in range(15)]
    assert not {to_hex(colour).upper() for colour in colours} & {*COLOURS}  # a page's own, which change with its scheme
    for colour in [*colours, UNDECIDED]:
        ink = [int(ink_on(colour)[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        assert contrast(ink, colour) >= 4.5


@given(st.lists(st.floats(1, 1e6), min_size=1))
def test_an_axis_does_not_zoom_into_noise(values: list[float]) -> None:
    low, high = wide_span(values)
    assert low <= min(values)
    assert max(values) <= high
    assert high - low >= 0.24 * (min(values) + max(values))


@given(st.lists(SHARES, max_size=8).map(sorted), st.floats(0.01, 0.1))
def test_names_at_ends_do_not_touch(places: list[float], gap: float) -> None:
    moved = apart(places, gap)
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(moved))
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in moved)


# ---- Comparisons ----------------------------------------------------------------------------------------


def effect(ratio: float, verdict: Any, label: str = "c", metric: str = "sys_tok_s") -> Comparison:
    estimate = Estimate(ratio, ratio / 1.01, ratio * 1.01, 0.95, 5, "t")
    return Comparison(
        metric=metric, ratio=estimate, p_value=0.5, p_adjusted=0.5, noise=0.01, mde=0.02, mde_family=0.03,
        more_blocks=None, verdict=verdict, significant=False, warnings=(), cell=label, base=1.0, candidate=ratio,
    )  # fmt: skip


def test_the_scale_is_symmetrical_and_one_of_few() -> None:
    for step in STEPS:
        places, labels = ticks_of(step)
        assert len(places) == len(labels) == 5
        assert all(abs(place) <= limit_of(step) * (1 + 1e-9) for place in places)
    assert reach_of([effect(1.033, "undecided")], 0.01) == 0.05
    assert reach_of([effect(1.5, "faster"), *[effect(1.001, "equivalent")] * 20], 0.01) == 0.5
    assert reach_of([effect(40.0, "undecided"), *[effect(1.001, "undecided")] * 20], 0.01) == STEPS[0]


@given(st.floats(0.02, 90))
def test_decided_cells_are_on_the_scale_and_so_are_their_intervals(ratio: float) -> None:
    assert abs(math.log(ratio)) <= limit_of(reach_of([effect(ratio, "faster")], 0.01)) + 1e-9
    end = abs(math.log(ratio)) + math.log(1.01)
    assert end <= limit_of(reach_of([effect(ratio, "faster")], 0.01, ends=True)) + 1e-9


def test_numbers_stand_beside_their_dots_and_on_nothing_else() -> None:
    named = [(150.0, 110.0), (151.0, 111.0), (152.0, 110.0), (149.0, 111.0), (40.0, 10.0), (45.0, 11.0)]
    dots = [*named, (60.0, 12.0)]
    at = [(x + dx, y + dy) for (x, y), (dx, dy) in zip(named, beside(named, dots, (200.0, 125.0)), strict=True)]
    assert all(abs(a - c) >= 11 or abs(b - d) >= 10 for (a, b), (c, d) in combinations(at, 2))
    assert all(math.hypot(a - c, b - d) >= 7 for a, b in at for c, d in dots)
    assert all(0 < x < 200 and 0 < y < 125 for x, y in at)
    assert max(math.hypot(a - c, b - d) for (a, b), (c, d) in zip(at, named, strict=True)) < 30


def test_of_many_cells_the_decided_are_shown() -> None:
    labels = [f"c{k}" for k in range(1000)]
    cells = [effect(1 + k / 1e4, "faster" if k == 3 else "undecided", label) for k, label in enumerate(labels)]
    shown = shown_cells(cells, labels)
    assert len(shown) == FOREST
    assert shown == ["c3", *labels[-FOREST + 1 :]]
    assert [change_text(ratio) for ratio in (1.033, 0.9999, 0.25, 3.1)][:2] == ["+3.3 %", "+0.0 %"]


# ---- Fonts ----------------------------------------------------------------------------------------------


def test_a_script_that_no_font_has_is_said_and_one_that_is_installed_is_used(monkeypatch: Any) -> None:
    has = {fonts.BASE: "abc", "Symbols": "abc", "WenQuanYi Zen Hei": "模型"}
    monkeypatch.setattr(fonts, "_characters", lambda family: frozenset(map(ord, has[family])))
    monkeypatch.setattr(fonts, "_others", lambda: iter(["Symbols", "WenQuanYi Zen Hei"]))
    assert fonts.families(["abc a"]) == ([fonts.BASE], "")
    assert fonts.families(["a模", "型"]) == ([fonts.BASE, "WenQuanYi Zen Hei"], "")
    has["WenQuanYi Zen Hei"] = "模"
    assert fonts.families(["abc", "模型"]) == ([fonts.BASE, "WenQuanYi Zen Hei"], "型")
    assert fonts.note_of("") == ""
    assert fonts.note_of("型").startswith("No font is installed here for 1 character (U+578B): boxes in a PNG; ")
    assert "fonts-noto-cjk" in fonts.note_of("型")
    note = fonts.note_of("กขฃค")
    assert "4 characters (U+0E01, U+0E02, U+0E03 ...): boxes in a PNG; Debian's fonts-noto-core" in note


def test_a_font_is_known_that_was_installed_after_matplotlib_made_its_list(monkeypatch: Any, tmp_path: Path) -> None:
    manager = font_manager.fontManager
    file = next(entry.fname for entry in manager.ttflist if entry.name == "STIXGeneral" and entry.style == "normal")
    monkeypatch.setattr(manager, "ttflist", [entry for entry in manager.ttflist if entry.name != "STIXGeneral"])
    fonts._characters.cache_clear()
    assert not fonts._characters("STIXGeneral")
    (tmp_path / "broken.ttf").write_text("no font")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "broken.ttf"), file])
    fonts._find_new.cache_clear()
    fonts._characters.cache_clear()
    assert "STIXGeneral" in list(fonts._others())
    assert fonts._characters("STIXGeneral")
    assert not any(family.startswith("Last Resort") for family in fonts._others())


def test_initials_of_settings_are_told_where_they_are_used() -> None:
    names = [
        f"max-num-batched-tokens={tokens},tensor-parallel-size={size}" for tokens in (8192, 16384) for size in (4, 8)
    ]
    sheet = make_sheet([cell(128, 128, 1, name) for name in names], "t")
    assert sheet.names[names[0]] == "mnbt=8192,tps=4"
    assert sheet.title == "t · mnbt: max-num-batched-tokens, tps: tensor-parallel-size"
    assert make_sheet([cell(128, 128, 1, name) for name in ("main", "tp=8")], "t").title == "t"


def test_long_names_that_differ_in_their_middle_keep_what_differs() -> None:
    long = [f"feature-quark-w8a8-int8-moe-kernel-rewrite-v{n}-with-long-name" for n in (2, 3)]
    assert [*short_names(["main", *long]).values()] == ["main", "…ewrite-v2-with-long-na…", "…ewrite-v3-with-long-na…"]
