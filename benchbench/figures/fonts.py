"""Which font writes which character: DejaVu Sans, which comes with matplotlib, else what is installed and has it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from functools import cache

BASE = "DejaVu Sans"
CJK = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans CJK TC", "Noto Sans SC", "Noto Sans JP"),
    *("Noto Sans KR", "Source Han Sans SC", "Source Han Sans", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
    *("Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB", "Hiragino Sans", "Apple SD Gothic Neo"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "MS Gothic", "Malgun Gothic"),
)
_NO_TEXT = ("Last Resort", "LastResort", ".LastResort", "Adobe Blank")  # fonts of boxes for everything begin so


def families(texts: Iterable[str]) -> tuple[list[str], str]:
    """The fonts for these texts, the first that has a character writes it; and the characters that none has."""
    needed = {ord(character) for text in texts for character in text if not character.isspace()} - _characters(BASE)
    used = [BASE]
    for family in _others() if needed else ():
        if needed & (has := _characters(family)):
            used.append(family)
            needed -= has
        if not needed:
            break
    return used, "".join(sorted(map(chr, needed)))


def note_of(missing: str) -> str:
    """That there is no font for these characters, for the small print; nothing where there is one."""
    if not missing:
        return ""
    codes = ", ".join(f"U+{ord(character):04X}" for character in missing[:3]) + " ..." * (len(missing) > 3)
    count = f"{len(missing)} character{'s'[: len(missing) > 1]}"
    cjk = any(0x1100 <= ord(c) <= 0x11FF or 0x2E80 <= ord(c) <= 0xD7FF or ord(c) >= 0x20000 for c in missing)
    where = "fonts-noto-cjk has Chinese, Japanese, Korean" if cjk else "fonts-noto-core has most scripts"
    return f"No font is installed here for {count} ({codes}): boxes in a PNG; Debian's {where} · "


def _others() -> Iterator[str]:
    """The installed families but BASE: those of CJK, then sans ones, then all, by name."""
    from matplotlib.font_manager import fontManager

    _find_new()
    upright = {entry.name for entry in fontManager.ttflist if entry.style == "normal"}
    upright = {family for family in upright if not family.startswith(_NO_TEXT)}
    yield from (family for family in CJK if family in upright)
    yield from sorted(upright - {BASE, *CJK}, key=lambda family: ("Sans" not in family, family))


@cache
def _find_new() -> None:
    """Matplotlib keeps a list of fonts, which does not know those that were installed since it was made.

    Nor need it say of each text in which weight it had to write it.
    """
    from matplotlib.font_manager import findSystemFonts, fontManager

    logging.getLogger("matplotlib.font_manager").addFilter(lambda record: "find font weight" not in str(record.msg))
    known = {entry.fname for entry in fontManager.ttflist}
    for path in findSystemFonts():
        if path not in known:
            with contextlib.suppress(OSError, RuntimeError, ValueError):  # no font that can be read
                fontManager.addfont(path)


@cache
def _characters(family: str) -> frozenset[int]:
    """The code points of an installed font; none of one that is not, cannot be read, or is made of pixels (emoji)."""
    from matplotlib.font_manager import fontManager, get_font

    faces = (entry.fname for entry in fontManager.ttflist if entry.name == family and entry.style == "normal")
    with contextlib.suppress(OSError, RuntimeError):
        if (path := next(faces, None)) and (font := get_font(path)).scalable:
            return frozenset(font.get_charmap())
    return frozenset()
