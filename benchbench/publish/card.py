"""Sections of a model card between markers: text in, text out. Nothing outside of the markers is ever changed. Pure.

A section stands between two lines of its own, `<!-- bench:performance -->` and `<!-- /bench:performance -->` (so too
`model`, `evaluation`, `comparison`). Lines in fenced code, in YAML front matter, in other comments and in what HTML
takes as it is (`<pre>`) are no markers.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchbench.analysis.runs import Run
from benchbench.errors import CardError
from benchbench.provenance.labels import provenance_text, setting
from benchbench.report.markdown import escape_markdown, read_tables
from benchbench.report.summary_table import Parts

SECTIONS = ("performance", "model", "evaluation", "comparison")
_MARKER = re.compile(r"\ufeff? {0,3}<!--[ \t]*(?P<end>/?)bench:(?P<name>[\w-]+)[ \t]*-->[ \t]*\r?\n?")
_VERBATIM = ("<!--", "<pre", "<script", "<style", "<textarea")
_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t].*)?")


@dataclass(frozen=True, slots=True)
class _Line:
    text: str  # with its end
    plain: bool  # neither front matter, nor fenced code, nor inside a comment of several lines


def with_sections(card: str, sections: Mapping[str, str], after: str | None = None) -> str:
    """The card with these sections, by name, each a text of Markdown; the others stay as they are.

    A section that the card has is replaced between its markers. One that it lacks is put, markers and all, behind the
    heading `after` (a line such as `## Performance`), in the order of `sections`. Line ends are the card's own.
    Raises CardError: no markers and no `after`, a heading that is not there or stands twice, markers that are no pairs.
    """
    lines = _lines(card)
    places = _places(lines)
    end = "\r\n" if card.partition("\n")[0].endswith("\r") else "\n"
    blocks = {name: _block(name, text).replace("\n", end) for name, text in sections.items()}
    missing = [name for name in sections if name not in places]
    at = _heading(lines, places, after, missing) if missing else -1
    replaced = {place.start: (place, blocks[name]) for name, place in places.items() if name in blocks}
    texts: list[str] = []
    for k, line in enumerate(lines):
        if any(k in place[1:] for place, _ in replaced.values()):
            continue
        texts.append(line.text)
        if k in replaced:
            texts.append(replaced[k][1])
        if k == at:
            texts += _inserted({name: blocks[name] for name in missing}, lines, at, end)
    text = "".join(texts)
    if not sections.keys() <= _places(_lines(text)).keys():
        raise CardError(f"the text of {' and '.join(sections)} would hide its own markers")
    return text


def tables_below(card: str, names: Iterable[str], after: str) -> list[str]:
    """The lines ("5 to 9") of tables between the heading `after` and the next one, where a section is to be inserted.

    None where the card has all sections `names`; those between markers are no such tables.
    """
    lines = _lines(card)
    places = _places(lines)
    if set(names) <= places.keys():
        return []
    headings = [k for k, line in enumerate(lines) if line.plain and _HEADING.fullmatch(line.text.rstrip("\r\n"))]
    start = next((k for k in headings if lines[k].text.strip() == after.strip()), len(lines))
    end = next((k for k in headings if k > start), len(lines))
    ours = {k for place in places.values() for k in place}
    tables = [table for table in read_tables(card) if start < table.line - 1 < end and table.line - 1 not in ours]
    return [f"{table.line} to {table.rows[-1][0] if table.rows else table.line + 1}" for table in tables]


def _inserted(blocks: Mapping[str, str], lines: Sequence[_Line], at: int, end: str) -> list[str]:
    """What is put behind the line `at`: a blank line before each section, and one behind where text follows."""
    whole = lines[at].text.endswith("\n")
    parts = [f"{end}<!-- bench:{name} -->{end}{block}<!-- /bench:{name} -->{end}" for name, block in blocks.items()]
    if not whole:  # a card without a last line end stays one
        return [end, *parts[:-1], parts[-1].removesuffix(end)]
    return [*parts, *([end] if at + 1 < len(lines) and lines[at + 1].text.strip() else [])]


def _block(name: str, text: str) -> str:
    body = "\n".join(line.rstrip() for line in text.strip("\n").split("\n"))
    return f"<!-- Written by bench publish: what is changed by hand up to /bench:{name} is lost. -->\n\n{body}\n\n"


def _lines(card: str) -> list[_Line]:
    """The card's lines, and which of them are plain Markdown."""
    from markdown_it import MarkdownIt

    texts = _split(card)
    ends = [k for k, text in enumerate(texts) if k and text.rstrip() in {"---", "..."}]
    matter = ends[0] + 1 if ends and texts[0].lstrip("\ufeff").rstrip() == "---" else 0
    hidden = set(range(matter))
    body = ["\n"] * matter + [text.replace("\r", "") for text in texts[matter:]]
    blocks = MarkdownIt("commonmark")
    blocks.core.ruler.enableOnly(["normalize", "block"])  # what is within a line takes most of the time
    for token in blocks.parse("".join(body).removeprefix("\ufeff")):
        verbatim = token.type == "html_block" and token.content.lstrip().lower().startswith(_VERBATIM)
        if token.map and (token.type == "fence" or (verbatim and len(range(*token.map)) > 1)):
            hidden.update(range(*token.map))
    return [_Line(text, plain=k not in hidden) for k, text in enumerate(texts)]


def _places(lines: Sequence[_Line]) -> dict[str, range]:
    """By name of a section its marker lines: the first is `start`, the last `stop`. Raises CardError."""
    places: dict[str, range] = {}
    opened: tuple[str, int] | None = None
    for k, line in enumerate(lines):
        marker = _MARKER.fullmatch(line.text) if line.plain else None
        if not marker:
            continue
        name, is_end, where = marker["name"], bool(marker["end"]), f"line {k + 1}"
        if name not in SECTIONS:
            raise CardError(f"{where}: unknown section bench:{name} (allowed: {', '.join(SECTIONS)})")
        if is_end and (opened is None or opened[0] != name):
            raise CardError(f"{where}: <!-- /bench:{name} --> ends a section that does not begin")
        if not is_end and opened is not None:
            raise CardError(f"{where}: bench:{name} begins before bench:{opened[0]} of line {opened[1] + 1} has ended")
        if not is_end and name in places:
            raise CardError(f"{where}: a second bench:{name} (the first: line {places[name].start + 1}); one may stand")
        if opened is not None:
            places[name], opened = range(opened[1], k), None
        else:
            opened = (name, k)
    if opened is not None:
        raise CardError(f"line {opened[1] + 1}: bench:{opened[0]} has no end (<!-- /bench:{opened[0]} -->)")
    return places


def _heading(lines: Sequence[_Line], places: Mapping[str, range], after: str | None, missing: Sequence[str]) -> int:
    """The index of the heading's line. Raises CardError."""
    if after is None:
        markers = " and ".join(f"<!-- bench:{name} -->" for name in missing)
        raise CardError(f'has no {markers} (--after "## Performance" puts it behind that heading)')
    wanted = after.strip()
    if not _HEADING.fullmatch(wanted):
        raise CardError(f"--after {after!r}: must be a heading's line, as '## Performance'")
    matches = [k for k, line in enumerate(lines) if line.plain and line.text.strip() == wanted]
    if not matches:
        headings = [line.text.strip() for line in lines if line.plain and _HEADING.fullmatch(line.text.rstrip("\r\n"))]
        raise CardError(f"has no heading {wanted!r} (allowed: {', '.join(headings) or 'it has no headings'})")
    if len(matches) > 1:
        raise CardError(f"line {matches[1] + 1}: a second heading {wanted!r}; place the markers by hand")
    if any(place.start < matches[0] < place.stop for place in places.values()):
        raise CardError(f"line {matches[0] + 1}: the heading {wanted!r} stands inside a section of bench")
    return matches[0]


def performance_section(run: Run, parts: Parts) -> str:
    """On what it was measured, the table, the three lines, caption, notes and provenance."""
    where = "of the" if run.manifest["spec"]["engine"]["kind"] == "simulator" else "on"
    first = [f"Throughput {where} {escape_markdown(setting(run))}:"]
    blocks = [first, *parts.blocks(), [f"Provenance: {escape_markdown(provenance_text(run))}."]]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def difference(before: str, after: str, name: str) -> list[str]:
    """The lines of a unified diff, with their ends; none where nothing differs."""
    old, new = (_split(text) for text in (before, after))
    return list(difflib.unified_diff(old, new, name, f"{name} (from the run)"))


def _split(text: str) -> list[str]:
    """Lines with their ends, of newlines only: a form feed ends none."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)
