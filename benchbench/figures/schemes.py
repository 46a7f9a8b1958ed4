"""Figures in a reader's own colours: what white, black and the greys become where the scheme is dark.

An SVG file follows the scheme by itself. It is always on a ground of its own, so that it can be read on any page.
"""

from __future__ import annotations

import re
from pathlib import Path

ROLES = {"#ffffff": "paper", "#bbbbbb": "mute", "#dddddd": "line"}  # of a colour, as the page's variables are named
ROLES |= dict.fromkeys(("#000000", "#333333", "#444444"), "ink")
ROLES |= dict.fromkeys(("#555555", "#666666", "#777777", "#888888"), "dim")
ROLES |= dict.fromkeys(("#eeeeee", "#f2f2f2"), "band")
DARK = {  # as in page.css
    "paper": "#15181c",
    "ink": "#e3e6ea",
    "dim": "#a0a7b0",
    "mute": "#5a626c",
    "line": "#30363d",
    "band": "#20252b",
}
FALLBACK = "Verdana, sans-serif"  # as wide as DejaVu Sans, and there where that is not


def follow_scheme(file: Path) -> None:
    """Make an SVG file of matplotlib's dark where its reader's colours are. Raises OSError."""
    file.write_text(following_scheme(file.read_text(encoding="utf-8")), encoding="utf-8")


def following_scheme(svg: str) -> str:
    """The SVG with a style for dark schemes, and fonts for a reader who lacks ours."""
    rules = [f"svg {{ fill: {DARK['ink']} }}"]  # matplotlib leaves black out
    for kind in ("fill", "stroke"):
        rules += [f'[style*="{kind}: {light}"] {{ {kind}: {DARK[role]} !important }}' for light, role in ROLES.items()]
    style = f"  <style>@media (prefers-color-scheme: dark) {{ {' '.join(rules)} }}</style>"
    svg = re.sub(r"(font-family: [^;\"]*)", rf"\1, {FALLBACK}", svg)
    return svg.replace(" <defs>\n", f" <defs>\n{style}\n", 1)
