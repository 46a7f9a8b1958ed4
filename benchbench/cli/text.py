"""Text for a terminal."""

from __future__ import annotations


def one_line(text: object) -> str:
    """`text` with line ends and control characters written out: a server's words may hold any."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
