"""Text from others, shown or written: it steers no terminal, turns no writing and is no formula of a spreadsheet.

Names and labels come from files that others wrote (runs, results, cards) and from servers.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence

_FORMULA = ("=", "+", "-", "@")


def printable(text: object, keep: str = "") -> str:
    r"""`text` with control characters (ESC, BEL, C1), line ends and marks of direction written out: `\x1b`, `\u202e`.

    `keep`: such characters that stay.
    """
    text = str(text)
    return text if text.isprintable() else "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def printable_lines(text: str) -> str:
    """Several lines, each as `printable` has it. JSON stays the same JSON."""
    return "\n".join(printable(line, keep="\t") for line in text.split("\n"))


def csv_text(names: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """CSV with `names` as its head; None is an empty field, and what is not in `names` is left out.

    Text that a spreadsheet would take for a formula begins with an apostrophe (OWASP, *CSV Injection*).
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_field(row.get(name)) for name in names] for row in rows)
    return text.getvalue()


def _escape(c: str) -> str:
    """As JSON has it, but for the first 32, of which JSON's text holds line ends only, between its values."""
    if c < " ":
        return c.encode("unicode_escape").decode()
    return f"\\u{ord(c):04x}" if ord(c) < 1 << 16 else json.dumps(c)[1:-1]


def _field(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
