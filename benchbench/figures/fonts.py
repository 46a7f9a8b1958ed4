"""Which font writes which character: DejaVu Sans, which comes with matplotlib, then an installed one that has CJK."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

BASE = "DejaVu Sans"
CJK = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans CJK TC", "Noto Sans SC", "Noto Sans JP"),
    *("Noto Sans KR", "Source Han Sans SC", "Source Han Sans", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
    *("Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB", "Hiragino Sans", "Apple SD Gothic Neo"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "MS Gothic", "Malgun Gothic", "Arial Unicode MS", "Unifont"),
)
NOTE = " · characters for which no font is installed here: {missing} (fonts-noto-cjk has Chinese, Japanese, Korean)"


def families(texts: Iterable[str]) -> tuple[list[str], str]:
    """The fonts for these texts, the first that has a character writes it; and the characters that none has."""
    needed = {ord(character) for text in texts for character in text if not character.isspace()} - _characters(BASE)
    used = [BASE]
    for family in CJK if needed else ():
        if needed & (has := _characters(family)):
            used.append(family)
            needed -= has
    return used, "".join(sorted(map(chr, needed)))


@cache
def _characters(family: str) -> frozenset[int]:
    """The code points of an installed font; none of one that is not."""
    from matplotlib.font_manager import fontManager, get_font

    path = next((entry.fname for entry in fontManager.ttflist if entry.name == family), None)
    return frozenset(get_font(path).get_charmap()) if path else frozenset()
