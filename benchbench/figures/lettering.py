"""Texts as figures write them: how wide they are, shortened, wrapped. Pure.

A width counts characters; those of Chinese, Japanese and Korean are two wide. Or another measure is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from unicodedata import east_asian_width

from benchbench.products.product import short_settings

NAME = 24  # of a variant's name, wherever it stands


def width_of(text: str) -> int:
    """How wide it is."""
    return sum(2 if east_asian_width(character) in "FW" else 1 for character in text)


def shortened(text: str, most: float, width: Callable[[str], float] = width_of) -> str:
    """Text that fits: its middle gives way to an ellipsis, for names differ at both ends."""
    if width(text) <= most:
        return text
    head = _fitting(text, most * 3 // 5, width)
    return f"{head}…{_fitting(text[::-1], most - width(f'{head}…'), width)[::-1]}"


def _fitting(text: str, most: float, width: Callable[[str], float]) -> str:
    """Its beginning, so wide at most."""
    wide = 0.0
    for place, character in enumerate(text):
        wide += width(character)
        if wide > most:
            return text[:place]
    return text


def wrapped(text: str, most: float, width: Callable[[str], float] = width_of) -> list[str]:
    """Lines so wide at most, broken at spaces, but before no unit; a longer word anywhere."""
    lines = [""]
    for word in _pieces(text.replace(" %", "\0%").replace(" UTC", "\0UTC").split(), most, width):
        line = f"{lines[-1]} {word}".lstrip()
        if width(line) <= most:
            lines[-1] = line
        else:
            lines.append(word)
    return [line.replace("\0", " ") for line in lines]


def _pieces(words: Iterable[str], most: float, width: Callable[[str], float]) -> Iterator[str]:
    for word in words:
        left = word
        while width(left) > most:
            piece = _fitting(left, most, width)
            yield piece
            left = left[len(piece) :]
        yield left


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Each name as it is written in all figures: long ones lose their middle, and stay different.

    Names that are settings lose what all have, and the words of their keys; long ones that would be alike without
    their middle keep what follows their common beginning instead.
    """
    written = {name: short or "no variant" for name, short in short_settings(list(names), NAME).items()}
    alike: dict[str, list[str]] = {}
    for name, text in written.items():
        alike.setdefault(shortened(text, NAME), []).append(name)
    for text, those in alike.items():
        letters = zip(*(written[name] for name in those), strict=False)
        common = next((place for place, at in enumerate(letters) if len(set(at)) > 1), 0)
        for name in those:
            rest = written[name][max(0, common - NAME // 3) :]
            cut = _fitting(rest, NAME - 2, width_of)
            written[name] = f"…{cut}" + "…" * (cut != rest) if common else text
    for place, name in enumerate(written):
        if written[name] in [written[other] for other in [*written][:place]]:
            written[name] = f"{_fitting(written[name], NAME - 4, width_of)} #{place + 1}"
    return written
