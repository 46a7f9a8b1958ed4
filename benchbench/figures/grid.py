"""A heat map: a cell's text is legible on its colour, and a bar says what the colours are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from benchbench.figures import sheet as sheets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INKS = ("#010101", "#fefefe")  # not quite black and white, which a dark page turns into its own
SHOWN_ROWS, SHOWN_COLUMNS = 28, 12
Colour = tuple[float, float, float, float]


class GridCell(NamedTuple):
    """A cell of a heat map: column, row, text, RGBA colour."""

    x: int
    y: int
    text: str
    colour: Colour
    bold: bool = False


class Bar(NamedTuple):
    """What the colours are: matplotlib's map and norm, the label, and ticks where they are not matplotlib's."""

    scale: Any
    norm: Any
    label: str
    ticks: tuple[Sequence[float], Sequence[str]] | None = None


def ink_on(colour: Sequence[float]) -> str:
    """The ink of most contrast on a colour, at least 4.5 : 1 on any."""
    return max(INKS, key=lambda ink: contrast(_rgb(ink), colour))


def contrast(first: Sequence[float], other: Sequence[float]) -> float:
    """Of two sRGB colours from 0 to 1, 1 to 21 (WCAG 2.2, contrast ratio)."""
    low, high = sorted((_luminance(first), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: Sequence[float]) -> float:
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def _rgb(code: str) -> tuple[float, ...]:
    return tuple(int(code[at : at + 2], 16) / 255 for at in (1, 3, 5))


def draw_grid(
    heading: str,
    title: str,
    names: Sequence[str],
    loads: Sequence[float],
    label: str,
    cells: Sequence[GridCell],
    bar: Bar,
) -> Figure:
    """A row per name of a shape, a column per load, each cell with its text; `label`: of the loads."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import PolyCollection

    row_in, column_in = max(0.17, min(0.3, 12 / len(names))), 0.68 * sheets.width_in() / len(loads)
    height = max(1.2, row_in * len(names))
    figure, (axes,) = sheets.make_frame(heading, title, height=height, names=names)
    longest = max(len(cell.text) for cell in cells)
    upright = column_in < 0.06 * longest
    # A digit is 0.64 of its size wide: 102 points an inch leave a tenth free.
    along, across = (row_in, column_in) if upright else (column_in, row_in)
    style: Any = {"fontsize": min(8.5, 102 * along / longest, 58 * across), "rotation": 90 if upright else 0}
    boxes = [[(c.x, c.y), (c.x + 1, c.y), (c.x + 1, c.y + 1), (c.x, c.y + 1)] for c in cells]
    axes.add_collection(PolyCollection(boxes, facecolors=[c.colour for c in cells], edgecolors="white"), autolim=False)
    for cell in cells:
        weight = "bold" if cell.bold else "normal"
        x, y, ink = cell.x + 0.5, cell.y + 0.5, ink_on(cell.colour)
        axes.text(x, y, cell.text, ha="center", va="center", color=ink, fontweight=weight, **style)
    axes.grid(visible=False)
    axes.set_facecolor("#F2F2F2")
    axes.set_xlim(0, len(loads))
    axes.set_ylim(len(names), 0)
    axes.set_xticks([n + 0.5 for n in range(len(loads))], labels=[sheets.short(load) for load in loads])
    axes.set_yticks([n + 0.5 for n in range(len(names))], labels=names)
    axes.tick_params(length=0)
    axes.tick_params(axis="x", labelsize=9 if len(loads) <= 16 else 6.5)
    axes.annotate("in → out (tokens)", (0, 0), (-4, -5), "axes fraction", "offset points", ha="right", va="top")
    axes.set_xlabel(label)
    colours = axes.figure.colorbar(
        ScalarMappable(bar.norm, bar.scale), ax=axes, fraction=0.03, pad=0.015, aspect=max(12.0, 8 * height)
    )
    colours.set_label(bar.label, fontsize=8)
    if bar.ticks:
        colours.set_ticks(bar.ticks[0], labels=bar.ticks[1])
    else:
        colours.ax.yaxis.set_major_formatter(lambda value, _: sheets.short(value))
    colours.ax.tick_params(labelsize=8)
    colours.outline.set_visible(False)
    return figure
