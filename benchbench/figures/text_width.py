"""How wide a text is in a figure, in points, from the font that comes with matplotlib."""

from __future__ import annotations

from functools import cache
from typing import Any
from unicodedata import east_asian_width

from benchbench.figures.fonts import BASE

_EM = 100  # pixels, at which a font is measured


def points_of(text: str, size: float, *, bold: bool = False) -> float:
    """The width of a line; a character that the font lacks counts as wide as those of its script usually are."""
    return size * sum(_advance(character, bold) for character in text)


@cache
def _advance(character: str, bold: bool) -> float:
    """As a share of the font's size."""
    face = _face(bold)
    if not face.get_char_index(ord(character)):
        return 1.0 if east_asian_width(character) in "FW" else 0.65
    face.set_size(_EM, 72)
    return float(face.load_char(ord(character)).linearHoriAdvance) / 65536 / _EM


@cache
def _face(bold: bool) -> Any:  # noqa: ANN401 - matplotlib's
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    return FT2Font(findfont(FontProperties(family=BASE, weight="bold" if bold else "normal")))
