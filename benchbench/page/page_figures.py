"""A report's figures: those of `plots` and `comparison_plots` at a phone's width, as SVG that stands inside HTML.

Each has a title, and a description that says in numbers what it shows. Grey, black and white become the page's own
variables, so that a dark page has dark figures; so do the lines' colours, which are then those of the page's charts.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree as ET

from benchbench.comparison.figures import FEW_PAIRS, best_of, comparison_figures, overview
from benchbench.comparison.pairs import Pair
from benchbench.comparison.tables import cells_of, headline, sentence
from benchbench.comparison.verdicts import PRIMARY
from benchbench.figures import sheet as sheets
from benchbench.figures.choose import COLOURS
from benchbench.figures.plots import Timeline, figures
from benchbench.figures.schemes import ROLES
from benchbench.report.summary_table import Row, rounded, valued
from benchbench.spec.cell import cell_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# 451 px: at the 336 px of a small phone a text of 9 pt is still 9 px high.
STYLE = sheets.STYLE | {"figure.figsize": (4.7, 2.9), "axes.labelsize": 8.0}
TITLES = {
    "throughput": "System throughput",
    "ttft_batch": "Time to first token over load",
    "scaling": "Throughput as a share of the ideal",
    "ttft_input": "Time to first token over input length",
    "pareto": "Throughput against speed per stream",
    "heatmap": "System throughput of every cell",
    "timeline": "Timeline of one round",
    "best_pareto": "Throughput against latency of the settings",
    "capacity": "What is limited, over the load, and the answer",
    "compare_overview": "All candidates against the baseline",
    "compare_forest": "Ratio of each cell, with its interval",
    "compare_heatmap": "Change of Sys tok/s of every cell",
    "compare_curves": "Sys tok/s of both sides",
    "compare_blocks": "Drift and variance from block to block",
}
_VARIABLES = {colour.lower(): f"hue{place}" for place, colour in enumerate(COLOURS)} | ROLES
_HREF = "{http://www.w3.org/1999/xlink}href"


class PageFigure(NamedTuple):
    """A figure as SVG, and its description."""

    title: str
    description: str
    svg: str


def page_figures(rows: Sequence[Row], timeline: Timeline | None, title: str, prefix: str = "") -> Iterator[PageFigure]:
    """The figures of summary rows; texts must be free of control characters. `prefix` begins the ids of these."""
    for name, figure in figures(rows, timeline, title):
        yield drawn_figure(name, figure, _description(name, rows, timeline), prefix + name.replace("_", "-"))


def comparison_page_figures(pairs: Sequence[Pair], title: str, prefix: str) -> Iterator[PageFigure]:
    """The figures of comparisons with one baseline. `prefix` begins the ids of these, which must differ on a page."""
    drawn = list(pairs)
    if len(pairs) > FEW_PAIRS and (figure := overview(pairs, title)):
        drawn = [best_of(pairs)]
        known = [overall.ratio.point for pair in pairs if (overall := headline(pair))]
        description = f"Geometric means of {len(known)} candidates: {drawn[0].candidate} is the fastest, "
        description += f"at {max(known):.3f} times."
        yield drawn_figure("compare_overview", figure, description, f"{prefix}-overview")
    for place, pair in enumerate(drawn):
        for name, figure in comparison_figures(pair, title):
            yield drawn_figure(
                name, figure, _comparison_description(name, pair), f"{prefix}-{place}-{name.partition('_')[2]}"
            )


def style() -> Any:  # noqa: ANN401 - matplotlib's context manager
    """In which the figures are to be made."""
    import matplotlib as mpl

    return mpl.rc_context(STYLE)


# ---- Descriptions ---------------------------------------------------------------------------------


def _description(name: str, rows: Sequence[Row], timeline: Timeline | None) -> str:
    usable = [row for row in rows if row.get("status") != "invalid"]
    if name == "timeline" and timeline is not None:
        first, last = ([s for s in times if math.isfinite(s)] for times in (timeline.first_s, timeline.last_s))
        text = f"{len(timeline.sent_s)} requests of {timeline.label}"
        text += f"; first tokens from {min(first):.3g} to {max(first):.3g} s" if first else ""
        return text + (f"; the last token at {max(last):.3g} s." if last else ".")
    if name == "pareto":
        return f"Sys tok/s {_ends(usable, 'sys_tok_s', '')}; a single stream {_ends(usable, 'stream_tok_s', ' tok/s')}."
    if name in {"throughput", "scaling", "heatmap"}:
        return f"Sys tok/s {_ends(usable, 'sys_tok_s', '')}, of {len(usable)} cells."
    return f"Mean TTFT {_ends(usable, 'ttft_ms', ' ms')}, of {len(usable)} cells."


def _ends(rows: Sequence[Row], name: str, unit: str) -> str:
    """The smallest and the largest of a column, and in which cells."""
    if not (known := valued(rows, name)):
        return "unknown"
    low, high = (end(known, key=lambda pair: pair[0]) for end in (min, max))
    return " to ".join(f"{rounded(value, 1)}{unit} ({cell_name(row)})" for value, row in (low, high))


def _comparison_description(name: str, pair: Pair) -> str:
    cells = cells_of(pair, PRIMARY[:1])
    if name == "compare_heatmap":
        changes = sorted(100 * (cell.ratio.point - 1) for cell in cells)
        return f"Sys tok/s changes by {changes[0]:+.1f} % to {changes[-1]:+.1f} % in {len(changes)} cells."
    if name == "compare_curves":
        ends = (f"{cell.base:.1f} against {cell.candidate:.1f} at {cell.cell}" for cell in (cells[0], cells[-1]))
        return f"Sys tok/s of {pair.base} against {pair.candidate}: {'; '.join(ends)}."
    if name == "compare_blocks":
        speeds = [sample.base for sample in pair.samples if sample.metric == PRIMARY[0] and sample.base is not None]
        return f"{pair.blocks} blocks; mean Sys tok/s of {pair.base} over all of them {fmean(speeds):.1f}."
    return sentence(pair)


# ---- SVG ------------------------------------------------------------------------------------------------


def drawn_figure(name: str, figure: Figure, description: str, prefix: str) -> PageFigure:
    """A figure for the page. `prefix` begins its ids, which must differ on a page."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text, no_metadata = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a title in a script that the font lacks
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(text, metadata=no_metadata)
    title = TITLES.get(name, name.replace("_", " "))
    return PageFigure(title, description, inline(text.getvalue(), prefix, title, description))


def inline(svg: str, prefix: str, title: str, description: str) -> str:
    """An SVG of matplotlib's as an element of HTML: ids begin with `prefix`, with title and description.

    Nothing in it is from outside but texts, which a parser has read and a serialiser escapes. Raises ParseError for
    characters that XML does not know.
    """
    root = ET.fromstring(svg)  # noqa: S314 - matplotlib made it
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = dict(_attributes(element.attrib, prefix, used))
        if element.tag == "defs":
            for sheet in [child for child in element if child.tag.endswith("style")]:
                element.remove(sheet)
    labels = f"{prefix}-title {prefix}-description"
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": labels}
    for place, (tag, of, words) in enumerate((("title", "title", title), ("desc", "description", description))):
        element = ET.Element(tag, {"id": f"{prefix}-{of}"})
        element.text = words
        root.insert(place, element)
    return re.sub(r">\s+<", "><", ET.tostring(root, encoding="unicode"))


def _attributes(attributes: Mapping[str, str], prefix: str, used: set[str]) -> Iterator[tuple[str, str]]:
    for name, value in attributes.items():
        if name == "id":
            if value in used:
                yield name, f"{prefix}-{value}"
        elif name == _HREF:
            yield "href", f"#{prefix}-{value[1:]}"
        elif name == "clip-path":
            yield name, value.replace("#", f"#{prefix}-")
        elif name == "style":
            plain = re.sub(r"\s*font-family:[^;]*;?", "", value)
            yield name, re.sub(r"#[0-9a-f]{6}", lambda hit: _ink(hit[0]), plain)
        else:
            yield name, " ".join(re.sub(r"-?\d+\.\d+", lambda hit: f"{float(hit[0]):.2f}", value).split())


def _ink(colour: str) -> str:
    return f"var(--{_VARIABLES[colour]})" if colour in _VARIABLES else colour
